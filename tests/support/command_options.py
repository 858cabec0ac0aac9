"""A command's options as its flags give them."""

from typing import Any, TypeVar

from absl import flags

from bert_tf.options import define, read

T = TypeVar("T")


def parse(options: type[T], arguments: list[str], **defaults: Any) -> T:
    """Return what a command would read of its arguments.

    Args:
        options: dataclass of the command's options.
        arguments: as typed after the command's name.
        **defaults: those of the command, as `run_command` takes them.
    """
    values = flags.FlagValues()
    define(options, values, **defaults)
    values(["program", *arguments])
    return read(options, values)


def of(options: type[T], **values: Any) -> T:
    """Return options with some values; None for what is not given at all."""
    pairs = [
        (name, one)
        for name, value in values.items()
        for one in (value if isinstance(value, list) else [value])
        if value is not None
    ]
    return parse(options, [f"--{name}={value}" for name, value in pairs])
