"""Options: frozen dataclasses with default, help and bounds on the field's line, and their flags.

    @dataclasses.dataclass(frozen=True)
    class ServerOptions:
        port: int = option(8500, "Port of gRPC.", minimum=0)

`define` makes absl flags of the same names and defaults, `read` the dataclass of what was given,
and `check` holds the values of any instance against the bounds. A field whose type is such a
dataclass itself is a group of options: its fields become flags beside the others.
"""

import dataclasses
import os
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from absl import flags

from bert_tf.files import file_system, is_published, is_remote

# Flags defined here are those of the command that calls, and its --help shows them.
flags.disclaim_key_flags()

T = TypeVar("T")

_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
_DEFINE_REPEATED = {
    int: flags.DEFINE_multi_integer,
    float: flags.DEFINE_multi_float,
    str: flags.DEFINE_multi_string,
}
# Bound -> whether a value keeps it, and its words.
_BOUNDS = {
    "minimum": (lambda value, bound: value >= bound, "at least {}"),
    "above": (lambda value, bound: value > bound, "above {}"),
    "maximum": (lambda value, bound: value <= bound, "at most {}"),
    "below": (lambda value, bound: value < bound, "below {}"),
}


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    required: bool = False,
    repeated: bool = False,
    flag: str | None = None,
    alias: str | None = None,
    path: str | None = None,
    group: str | None = None,
) -> Any:
    """Make a field of a dataclass that is an option.

    More than eight arguments, since a field's line says all of its option, each by its name.

    Args:
        default: its value where none is given.
        help: what it means, with the unit; shown by --help.
        minimum: the least number that is allowed; of a tuple, each must keep the bounds.
        above: what a number must be above.
        maximum: the largest number that is allowed.
        below: what a number must be below.
        choices: the values that a string may have.
        required: whether the flag must be given; the default is None then.
        repeated: whether the flag of a tuple is given once for each value, in place of one list
            with commas.
        flag: name of the flag where it cannot be the field's, as of a word of Python.
        alias: a second name of the flag.
        path: of a path, where it may lie: "local" on this machine alone, "any" on each file system
            that fsspec knows too; "model" is as "any", or the name of a published model. "folder"
            and "new_folder" are as "any", of a folder that the command works in; of the latter it
            needs nothing that is there but names.
        group: heading of --help for this option and those after it, up to the next that names one.
    """
    metadata = {
        "help": help,
        "bounds": {"minimum": minimum, "above": above, "maximum": maximum, "below": below},
        "choices": choices,
        "required": required,
        "repeated": repeated,
        "flag": flag,
        "alias": alias,
        "path": path,
        "group": group,
    }
    return dataclasses.field(default=default, metadata=metadata)


def same(options: type, name: str) -> Any:
    """Make a field that is the option of another dataclass: its default, help and bounds."""
    field = {field.name: field for field in dataclasses.fields(options)}[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


def define(options: type, values: flags.FlagValues, **defaults: Any) -> None:
    """Define a flag for each option.

    Args:
        options: a dataclass made with `option`; other fields of it are no flags.
        values: where the flags are defined.
        defaults: option -> default of this command, where it has its own.

    Raises:
        ValueError: a default is for no option.
    """
    fields = {field.name: (field, kind) for field, kind in _leaves(options)}
    if unknown := sorted(set(defaults) - set(fields)):
        raise ValueError(f"defaults: {options.__name__} has no option {', '.join(unknown)}")
    for name, (field, kind) in fields.items():
        _define(field, kind, defaults.get(name, field.default), values)


def read(options: type[T], values: flags.FlagValues, **others: Any) -> T:
    """Make the dataclass of what was given as flags.

    Args:
        options: see `define`.
        values: parsed flags.
        others: values of the fields that are no flags, and of those not to be read from theirs.

    Raises:
        ValueError: a value is out of bounds; the message names the option.
    """
    arguments = dict(others)
    for field, kind in _fields(options):
        if field.name in others:
            continue
        if dataclasses.is_dataclass(kind):
            arguments[field.name] = read(typing.cast(type, kind), values)
        elif field.metadata:
            name = _flag_name(field)
            arguments[field.name] = _converted(name, kind, values[name].value)
    made = options(**arguments)
    check(made)
    return made


def check(options: Any) -> None:
    """Hold the values of options against their bounds.

    Raises:
        ValueError: a value is out of bounds; the message names the option.
    """
    for field, kind in _fields(type(options)):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(kind):
            check(value)
        elif field.metadata and value is not None:
            _check(_flag_name(field), value, field.metadata)


def flag_groups(options: type, group: str = "options") -> dict[str, list[str]]:
    """Return the names of the flags by their group, in the order of the fields.

    Args:
        options: see `define`.
        group: of those before the first that names one.
    """
    groups: dict[str, list[str]] = {}
    for field, kind in _fields(options):
        if dataclasses.is_dataclass(kind):
            for inner, names in flag_groups(typing.cast(type, kind), group).items():
                groups.setdefault(inner, []).extend(names)
        elif field.metadata:
            group = field.metadata["group"] or group
            groups.setdefault(group, []).append(_flag_name(field))
    return groups


def flag_aliases(options: type) -> dict[str, str]:
    """Return second names of flags -> the first."""
    aliases: dict[str, str] = {}
    for field, kind in _fields(options):
        if dataclasses.is_dataclass(kind):
            aliases |= flag_aliases(typing.cast(type, kind))
        elif field.metadata and field.metadata["alias"]:
            aliases[field.metadata["alias"]] = _flag_name(field)
    return aliases


def any_remote(options: Any) -> bool:
    """Tell whether a value of options is a remote path."""
    values = to_dict(options).values()
    texts = (x for value in values for x in (value if isinstance(value, list) else [value]))
    return any(isinstance(text, str) and is_remote(text) for text in texts)


def unexpected_argument(argument: str, hint: str = "") -> str:
    """Return the message on an argument that is no flag.

    Args:
        argument: what was given.
        hint: what may explain it, where it is not the value of a flag such as --do_train.
    """
    if argument.lower() in ("true", "false", "0", "1"):
        hint = f": give it with its flag, as in --do_train={argument}"
    return f"unexpected argument {argument!r}{hint}"


def error_message(error: BaseException, values: flags.FlagValues) -> str:
    """Return what an error says; of a file that cannot be opened, with the flags that name it.

    Args:
        error: what ended a command's work.
        values: the command's flags.

    Returns:
        As "vocab_file: no such file or directory: vocab.txt", in place of Python's "[Errno 2] No
        such file or directory: 'vocab.txt'".
    """
    if not isinstance(error, OSError) or error.filename2 is not None:
        return str(error)
    path, reason = error.filename, error.strerror
    if not (isinstance(path, str) and reason):
        return str(error)
    names = [
        name
        for name, value in values.flag_values_dict().items()
        if values[name].present and (path == value or (isinstance(value, list) and path in value))
    ]
    named = f"{', '.join(names)}: " if names else ""
    return f"{named}{reason[0].lower()}{reason[1:]}: {path}"


def to_dict(options: Any) -> dict[str, Any]:
    """Return the values of options by name of the flag, as JSON can hold them: tuples as lists."""
    values: dict[str, Any] = {}
    for field, kind in _fields(type(options)):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(kind):
            values |= to_dict(value)
        elif field.metadata:
            values[_flag_name(field)] = list(value) if isinstance(value, tuple) else value
    return values


def _check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices = metadata["choices"]
    if metadata["path"]:
        _check_path(name, value, metadata["path"])
    for part in value if isinstance(value, tuple) else (value,):
        if choices and part not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {part!r}")
        bounds = {key: bound for key, bound in metadata["bounds"].items() if bound is not None}
        # Not the other way round: NaN keeps no bound.
        if not all(_BOUNDS[key][0](part, bound) for key, bound in bounds.items()):
            words = " and ".join(_BOUNDS[key][1].format(bound) for key, bound in bounds.items())
            raise ValueError(f"{name}: expected {words}, got {part}")


def _check_path(name: str, value: Any, path: str) -> None:
    parts = value if isinstance(value, tuple) else (value,)
    if path in ("any", "local"):  # which may be a list; a folder is one path
        parts = [text.strip() for part in parts for text in os.fspath(part).split(",")]
    for part in parts:
        if not is_remote(part) or (path == "model" and is_published(part)):
            continue
        if path == "local":
            raise ValueError(
                f"{name}: expected a path on this machine, got {part!r}; copy what it holds, or "
                "mount its file system"
            )
        try:
            file_system(part)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error.__cause__


def _fields(options: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    """Yield the fields of a dataclass with their types, without `| None`."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            # Of several types the first is that of the flag.
            kind, *_ = (part for part in typing.get_args(kind) if part is not types.NoneType)
        yield field, kind


def _leaves(options: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    """Yield the fields that are options, those of groups too."""
    for field, kind in _fields(options):
        if dataclasses.is_dataclass(kind):
            yield from _leaves(typing.cast(type, kind))
        elif field.metadata:
            yield field, kind


def _flag_name(field: dataclasses.Field) -> str:
    return field.metadata["flag"] or field.name


def _define(field: dataclasses.Field, kind: Any, default: Any, values: flags.FlagValues) -> None:
    metadata, name = field.metadata, _flag_name(field)
    arguments: dict[str, Any] = {"help": metadata["help"], "flag_values": values}
    if metadata["required"]:
        arguments["required"] = True
    if typing.get_origin(kind) is tuple:
        default = None if default is None else list(default)
        if metadata["repeated"]:
            _DEFINE_REPEATED[typing.get_args(kind)[0]](name, default, **arguments)
        else:
            default = None if default is None else list(map(str, default))
            flags.DEFINE_list(name, default, **arguments)
    elif metadata["choices"]:
        flags.DEFINE_enum(name, default, list(metadata["choices"]), **arguments)
    else:
        _DEFINE[typing.get_origin(kind) or kind](name, default, **arguments)
    if metadata["alias"]:
        flags.DEFINE_alias(metadata["alias"], name, flag_values=values)


def _converted(name: str, kind: Any, value: Any) -> Any:
    """Return a flag's value as the field's type has it."""
    if value is None or typing.get_origin(kind) is not tuple:
        return value
    part = typing.get_args(kind)[0]
    try:
        return tuple(map(part, value))
    except ValueError as error:
        raise ValueError(
            f"{name}: expected {part.__name__} values, got {','.join(value)}"
        ) from error
