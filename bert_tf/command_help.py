"""What a command says of itself: help of a screen or in full, and what is wrong with a flag."""

import dataclasses
import difflib
import itertools
import os
import pathlib
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator

from absl import flags

from bert_tf.options import flag_aliases, flag_groups

LINES, COLUMNS = 48, 100  # of a screen, less the prompt's
_ORDER = ("data", "model", "training", "output")  # groups of other names come after these
_HELP = re.compile(r"--?(h|\?|help|helpshort)(=true)?")
_HELP_IN_FULL = re.compile(r"--?(helpfull|help=all|help=full)")
_EXAMPLE = re.compile(r"^ {4}((?:python|bert-tf) (?:.*\\\n)*.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class CommandHelp:
    """The help of a command.

    Attributes:
        name: of the command.
        text: the docstring of its script, with examples.
        options: dataclasses of its options (`bert_tf.options`).
    """

    name: str
    text: str
    options: tuple[type, ...]

    @classmethod
    def of_this_process(cls, *options: type) -> "CommandHelp":
        """Return that of the script which runs."""
        text = sys.modules["__main__"].__doc__ or ""
        if typed := _entry_point():
            text = re.sub(r"\bpython (?:data_prep|experiments)/(\w+)\.py", rf"{typed} \1", text)
        return cls(pathlib.Path(sys.argv[0]).stem, text, options)

    def parse(
        self, arguments: list[str], values: flags.FlagValues, known_only: bool = False
    ) -> list[str]:
        """Parse flags; for --help, and on a flag that is wrong, the process ends.

        Args:
            arguments: as typed, the command's name first.
            values: the command's flags.
            known_only: whether flags that are not known are left.

        Returns:
            What is no flag, the command's name first.
        """
        for argument in itertools.takewhile(lambda x: x != "--", arguments[1:]):
            if _HELP_IN_FULL.fullmatch(argument) or _HELP.fullmatch(argument):
                full = _HELP_IN_FULL.fullmatch(argument)
                show(self.all_of_it(values) if full else self.screen(values))
                sys.exit(0)
        try:
            return values(arguments, known_only=known_only)
        except flags.Error as error:
            sys.exit(f"{self.name}: {_message(error, values)}")

    def screen(self, values: flags.FlagValues) -> str:
        """Return help of at most `LINES` lines.

        Flags that must be given or are part of an example are explained, then as many others as
        there is room for; of the rest it has the names.
        """
        groups = self._groups()
        examples = [text.replace("\n    ", "\n") for text in _EXAMPLE.findall(self.text)[:2]]
        named = set(re.findall(r"--(?:no)?(\w+)", "\n".join(examples)))
        everything = [name for names in groups.values() for name in names]
        explained = {x for x in everything if x in named or _is_missing(x, values)}
        full: set[str] = set()  # groups of which no other flag has room
        for row in itertools.zip_longest(*groups.values()):
            for group, name in zip(groups, row, strict=True):
                if name is None or name in explained or group in full:
                    continue
                if len(self._screen(values, groups, examples, explained | {name})) <= LINES:
                    explained.add(name)
                else:
                    full.add(group)
        return "\n".join(self._screen(values, groups, examples, explained))

    def all_of_it(self, values: flags.FlagValues) -> str:
        """Return the docstring, and each flag with its help in full."""
        lines = [f"{self.name}: {self.text.strip()}"]
        groups = self._groups()
        aliases = {name: of for one in self.options for name, of in flag_aliases(one).items()}
        for group, names in groups.items():
            lines += ["", group]
            for name in names:
                choices = getattr(values[name].parser, "enum_values", None)
                text = _meaning(name, values) + (
                    f" One of {', '.join(choices)}." if choices else ""
                )
                needed = " (required)" if _is_missing(name, values) else ""
                others = [f" or --{other}" for other, of in aliases.items() if of == name]
                lines.append(f"  {_as_typed(name, values)}{''.join(others)}{needed}")
                lines += textwrap.wrap(
                    text, COLUMNS, initial_indent=" " * 6, subsequent_indent=" " * 6
                )
        known = {name for names in groups.values() for name in names} | set(aliases)
        lines += ["", "of absl, which reads the flags"]
        others = [name for name in sorted(set(values) - known) if not re.match(r"help|\?", name)]
        return "\n".join(lines + _wrapped(others, "  "))

    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for options in self.options:
            for group, names in flag_groups(options).items():
                groups.setdefault(group, []).extend(names)
        order = [*(name for name in _ORDER if name in groups), *groups]
        return {name: groups[name] for name in order}

    def _screen(
        self,
        values: flags.FlagValues,
        groups: dict[str, list[str]],
        examples: list[str],
        explained: set[str],
    ) -> list[str]:
        summary = " ".join(self.text.strip().partition("\n\n")[0].split())
        lines = [*textwrap.wrap(f"{self.name}: {summary}", COLUMNS), ""]
        for example in examples:
            lines += textwrap.indent(example, "  ").splitlines()
        shown = [_as_typed(name, values) for name in explained]
        width = min(max(map(len, shown), default=0), 36)
        for group, names in groups.items():
            lines += ["", group]
            for name in names:
                if name in explained:
                    left = f"  {_as_typed(name, values):<{width}}  "
                    text = textwrap.shorten(
                        _meaning(name, values), COLUMNS - len(left), placeholder=" ..."
                    )
                    lines.append(left + text)
            if others := [name for name in names if name not in explained]:
                lines += _wrapped(others, "  also ")
        return [*lines, "", "--help=all explains every flag."]


def _entry_point() -> str | None:
    """Return what was typed before the name of a command; None where that is a script's path."""
    typed = sys.orig_argv
    if pathlib.Path(typed[min(1, len(typed) - 1)]).stem == "bert-tf":
        return "bert-tf"
    is_module = ("-m", "experiments") in zip(typed, typed[1:], strict=False)
    return "python -m experiments" if is_module else None


def show(text: str) -> None:
    """Print to standard output, whose reader may be gone before the end, as `head` is."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_typed(name: str, values: flags.FlagValues) -> str:
    """Return a flag with its default."""
    default = values[name].default
    if default is None or default is False or default == []:
        return f"--{name}"
    text = ",".join(map(str, default)) if isinstance(default, list) else str(default)
    typed = f"--{name}={shlex.quote(text.lower() if default is True else text)}"
    return typed if len(typed) <= COLUMNS // 2 else f"--{name}=..."


def _meaning(name: str, values: flags.FlagValues) -> str:
    """Return the help of a flag, without what absl puts around it."""
    text = re.sub(r"^<.*?>: ", "", values[name].help or "")
    return re.sub(r";\s+repeat this option to specify a list of values$", "", text)


def _wrapped(names: list[str], indent: str) -> list[str]:
    text = " ".join(f"--{name}" for name in names)
    later = " " * len(indent)
    return textwrap.wrap(
        text, COLUMNS, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False
    )


def _is_missing(name: str, values: flags.FlagValues) -> bool:
    """Whether a flag must be given, and has not been."""
    return values[name].value is None and bool(values[name].validators)


def _missing(values: flags.FlagValues) -> Iterator[str]:
    return (f"--{name}" for name in values if _is_missing(name, values))


def _message(error: flags.Error, values: flags.FlagValues) -> str:
    if isinstance(error, flags.UnrecognizedFlagError):
        meant = _meant(error.flagname, list(values))
        hint = f"did you mean {' or '.join(meant)}?" if meant else "--help lists the flags"
        return f"unknown flag --{error.flagname}; {hint}"
    if isinstance(error, flags.IllegalFlagValueError) and "must have a value other than" in str(
        error
    ):
        return f"missing: {', '.join(_missing(values))}; --help has examples"
    # What Python says of a word that is no bool is a tuple.
    return re.sub(r"\('Non-boolean argument .*', '(.*)'\)", "expected true or false", str(error))


def _meant(name: str, known: list[str]) -> list[str]:
    """Return the flags that a misspelt one may stand for: alike, or longer names with it inside."""
    alike = difflib.get_close_matches(name, known, 3, 0.7)
    longer = [other for other in known if len(name) > 2 and name in other]
    return [f"--{other}" for other in dict.fromkeys([*alike, *longer])][:3]
