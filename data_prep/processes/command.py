"""A command of data preparation: its options made into flags, and how its process ends."""

import pathlib
import sys
from collections.abc import Callable
from typing import TypeVar

from absl import app, flags

from bert_tf.options import define, read

flags.disclaim_key_flags()  # as in bert_tf.options

T = TypeVar("T")
QUOTE_GLOBS = ": quote globs (--input_file='a/*')"


def run_command(options: type[T], run: Callable[[T], None], hint: str = "") -> None:
    """Run a command; it ends the process.

    Bad input ends it with one line on standard error and exit status 1.

    Args:
        options: dataclass of the command's options (`bert_tf.options`).
        run: the work, on the options that are given.
        hint: what may explain an argument that is no flag.
    """
    define(options, flags.FLAGS)

    def main(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"unexpected argument {arguments[1]!r}{hint}")
        end_in_one_line(lambda: run(read(options, flags.FLAGS)))

    app.run(main)


def end_in_one_line(run: Callable[[], None], when_stopped: str = "stopped") -> None:
    """Run a command's work; where it fails or is stopped, end the process with one line."""
    name = pathlib.Path(sys.argv[0]).stem
    try:
        run()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: {when_stopped}")
