"""The command line of what runs on this machine or on a cluster, as --runner says."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from absl import flags

from bert_tf.command_help import CommandHelp
from bert_tf.options import option, unexpected_argument
from data_prep.processes.command import QUOTE_GLOBS, run_parsed

flags.disclaim_key_flags()  # as in bert_tf.options

T = TypeVar("T")


def spark_master_option() -> Any:
    """Make the field of --spark_master."""
    return option(
        None,
        "Address of the cluster of --runner=spark, such as spark://HOST:7077, yarn or local[2]; "
        "by default what spark-submit or Spark's settings say, else this machine.",
    )


def run_command(options: type[T], run: Callable[[T, list[str]], None]) -> None:
    """Run a command, as `processes.command.run_command` does.

    Args:
        options: dataclass of its options, --runner and --spark_master among them.
        run: the work, of the options and the arguments for the runner.
    """
    run_parsed(
        options,
        parser_of(options),
        lambda arguments: runner_arguments(arguments, flags.FLAGS),
        run,
    )


def parser_of(*options: type) -> Callable[[list[str]], list[str]]:
    """Return what parses flags; where --runner is not "local", those not known are the runner's.

    Args:
        options: dataclasses of the command's options.
    """

    def parse(arguments: list[str]) -> list[str]:
        runners = re.findall(r"(?<!\S)--?runner[= ](\S+)", " ".join(arguments[1:]))
        on_cluster = runners[-1:] not in ([], ["local"])
        command_help = CommandHelp.of_this_process(*options)
        return command_help.parse(arguments, flags.FLAGS, known_only=on_cluster)

    return parse


def runner_arguments(arguments: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Return the arguments for Spark, or a runner of Beam; none for the local runner.

    Args:
        arguments: what `parser_of` left, the command's name first.
        values: the command's flags, --runner and --spark_master among them.

    Raises:
        ValueError: one that is not "--name=value", or a misspelt flag of this command; a master
            of Spark for another runner; or any for the local runner.
    """
    if values.spark_master and values.runner != "spark":
        raise ValueError(f"spark_master: needs runner spark, and runner is {values.runner}")
    if values.runner == "local" and len(arguments) > 1:
        raise ValueError(unexpected_argument(arguments[1], QUOTE_GLOBS))
    for argument in arguments[1:]:
        name = argument.split("=")[0].lstrip("-")
        if not argument.startswith("--"):
            raise ValueError(
                f"unexpected argument {argument!r}: quote globs (--input_file='a/*'), and give "
                "the runner's options as --name=value"
            )
        if meant := difflib.get_close_matches(name, list(values), 1, 0.9):
            raise ValueError(f"unknown flag --{name}; did you mean --{meant[0]}?")
    return list(arguments[1:])


@contextlib.contextmanager
def needing(package: str, extra: str, runner: str) -> Iterator[None]:
    """Say of what cannot be imported with which extra it comes.

    Raises:
        ValueError: it cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"runner: {runner} needs {package}: pip install 'bert-tf[{extra}]' ({error})"
        ) from error
