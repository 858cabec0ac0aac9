"""A command: options made into flags, and work that is imported once the flags are known."""

import importlib
import logging as python_logging
import pathlib
import sys

from absl import app, flags, logging

from bert_tf.options import define, read, unexpected_argument
from data_prep.processes.command import parser_of
from experiments.command_line.exit_status import InputError, exit_on_error
from experiments.command_line.remote_folders import on_this_machine

flags.disclaim_key_flags()  # as in bert_tf.options


def run_command(options: type, work: str, log: str = "info", /, **defaults: object) -> None:
    """Run a command; it ends the process.

    The module that does the work, and TensorFlow with it, is imported after the flags are read, so
    that --help and a mistyped flag answer at once.

    Args:
        options: dataclass of the command's options (`bert_tf.options`).
        work: module whose function `run` takes them.
        log: "info", or "warning" to log nothing less, unless --verbosity says otherwise.
        defaults: option -> default of this command, where it has its own.
    """
    name = pathlib.Path(sys.argv[0]).stem
    define(options, flags.FLAGS, **defaults)

    def main(arguments: list[str]) -> int:
        if log == "warning" and not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            python_logging.getLogger("bert_tf").setLevel(python_logging.WARNING)

        def run() -> None:
            if len(arguments) > 1:
                raise InputError(unexpected_argument(arguments[1]))
            values = read(options, flags.FLAGS)  # before the import, which takes seconds
            with on_this_machine(values) as values:
                importlib.import_module(work).run(values)

        return exit_on_error(name, run)

    app.run(main, flags_parser=parser_of(options))
