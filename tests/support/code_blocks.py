"""The blocks of code in a Markdown text, and what the flags of a command in one mean."""

import dataclasses
import importlib
import pathlib
import re
import shlex

from absl import flags

from bert_tf.options import define, read

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Code:
    """A fenced block, or one command of an indented block.

    Attributes:
        place: file and line where the block begins.
        language: as the fence names it; "" of a command.
        text: as printed; of a command on one line, and whole: "...", and a piece that is nothing
            but flags, stand for the flags of the last whole command of that script.
    """

    place: str
    language: str
    text: str


def code_of(name: str, text: str) -> list[Code]:
    """Find the code of a text.

    Args:
        name: of the text, for the places.
        text: Markdown.
    """
    pattern = r"^```(\w*)\n(.*?)^```$|(?<=\n\n)((?:^ {4}[^\n]*\n|^\n(?= {4}))+)"
    found: list[Code] = []
    whole: dict[str, str] = {}  # script -> flags of its last whole command
    script = ""
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        language, fenced, indented = match.groups()
        place = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
        if language:
            found.append(Code(place, language, fenced))
            continue
        for line in re.sub(r"\\\n\s*", "", indented or fenced).splitlines():
            command = (
                f"python {script} ... {line.strip()}" if line.startswith("    --") else line.strip()
            )
            if given := re.search(r"\bpython (\S+\.py)(.*)", command):
                script = given.group(1)
                if "..." in command:
                    command = command.replace("...", whole.get(script, ""))
                else:
                    whole[script] = given.group(2)
            if command:
                found.append(Code(place, "", command))
    return found


def check_flags(command: str) -> None:
    """Parse the flags of a command that runs one of our scripts, and check their bounds.

    Raises:
        absl.flags.Error: a flag is unknown, or its value is of another type.
        ValueError: a value is out of bounds, or an argument is no flag.
    """
    words = shlex.split(command)
    script, *arguments = words[words.index("python") + 1 :]
    values, options = flags_of(script)
    has_runner = any(argument.startswith("--runner=") for argument in arguments)
    _, *rest = values([script, *arguments], known_only=has_runner)
    if rest and not has_runner:
        raise ValueError(f"{script}: unexpected argument {rest[0]!r}")
    if options is not None:
        read(options, values)


def flags_of(script: str) -> tuple[flags.FlagValues, type | None]:
    """Define the flags of a script; also return the dataclass of its options, if they are one."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    values = flags.FlagValues()
    if hasattr(module, "define_flags"):
        module.define_flags(values)
        return values, None
    (options,) = [value for name, value in vars(module).items() if name.endswith("Options")]
    define(options, values, **getattr(module, "DEFAULTS", {}))
    return values, options
