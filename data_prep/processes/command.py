"""A command of data preparation: its options made into flags, and how its process ends."""

import contextlib
import pathlib
import sys
from collections.abc import Callable
from typing import TypeVar

from absl import app, flags, logging

from bert_tf.command_help import CommandHelp
from bert_tf.files import original_names, printing_original_names
from bert_tf.options import any_remote, define, error_message, read, unexpected_argument

flags.disclaim_key_flags()  # as in bert_tf.options

T = TypeVar("T")
S = TypeVar("S")
QUOTE_GLOBS = ": quote globs (--input_file='a/*')"


def run_command(options: type[T], run: Callable[[T], None], hint: str = "") -> None:
    """Run a command; it ends the process.

    Bad input ends it with one line on standard error and exit status 1.

    Args:
        options: dataclass of the command's options (`bert_tf.options`).
        run: the work, on the options that are given.
        hint: what may explain an argument that is no flag.
    """

    def refuse(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise ValueError(unexpected_argument(arguments[1], hint))

    run_parsed(options, parser_of(options), refuse, lambda values, _: run(values))


def run_parsed(
    options: type[T],
    parse: Callable[[list[str]], list[str]],
    check: Callable[[list[str]], S],
    run: Callable[[T, S], None],
) -> None:
    """Run a command that reads its flags in a way of its own; the rest is as of `run_command`.

    Args:
        options: dataclass of the command's options (`bert_tf.options`).
        parse: arguments -> what is no flag of the command's, its name first.
        check: of what `parse` returns; what it returns is given to `run`.
        run: the work.
    """
    define(options, flags.FLAGS)

    def main(arguments: list[str]) -> None:
        def work() -> None:
            checked = check(arguments)
            values = read(options, flags.FLAGS)
            with printing_original_names() if any_remote(values) else contextlib.nullcontext():
                run(values, checked)

        end_in_one_line(work)

    app.run(main, flags_parser=parse)


def parser_of(*options: type) -> Callable[[list[str]], list[str]]:
    """Return what reads this process' flags, answers --help and tells what is wrong with a flag."""
    return lambda arguments: CommandHelp.of_this_process(*options).parse(arguments, flags.FLAGS)


def end_in_one_line(run: Callable[[], None], when_stopped: str = "stopped") -> None:
    """Run a command's work; where it fails or is stopped, end the process with one line.

    With --verbosity=1 errors keep their traceback.
    """
    name = pathlib.Path(sys.argv[0]).stem
    try:
        run()
    except (ValueError, OSError, RuntimeError) as error:
        if logging.level_debug():
            raise
        sys.exit(f"{name}: {original_names(error_message(error, flags.FLAGS))}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: {when_stopped}")
