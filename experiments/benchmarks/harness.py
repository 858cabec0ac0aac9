"""What the benchmarks share: flags, contenders in processes of their own, tables and files.

A benchmark is a dataclass of options, a dictionary of contenders and a function that compares them.
It runs as a script, so that this folder comes first where modules are looked for: no file here may
have the name of a top-level package.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import app, flags

from bert_tf.config import BertConfig
from bert_tf.files import write_json
from bert_tf.options import define, option, read, unexpected_argument
from data_prep.processes.command import parser_of
from experiments.command_line.exit_status import exit_on_error

flags.disclaim_key_flags()  # as in bert_tf.options

Figures = dict[str, Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """What every benchmark is asked for."""

    output_file: str | None = option(None, "JSON file for the figures; none by default.")


def encoder_config(options: Any, vocab_size: int, **others: Any) -> BertConfig:
    """Return the configuration of the model that a benchmark is of.

    Args:
        options: with hidden_size, num_hidden_layers and num_attention_heads.
        vocab_size: pieces.
        **others: other fields.
    """
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        intermediate_size=4 * options.hidden_size,
        **others,
    )


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is measured.

    Attributes:
        prepare: makes what is measured; its arguments are the benchmark's own.
        packages: that it needs besides those of this package.
    """

    prepare: Callable[..., Any]
    packages: tuple[str, ...] = ()


def installed(
    contenders: Mapping[str, Contender], names: Sequence[str] | None = None
) -> dict[str, Contender]:
    """Return the contenders whose packages are there; of the others say so.

    Args:
        contenders: by name.
        names: of those that were asked for; None for all.

    Raises:
        ValueError: one that was asked for is unknown.
    """
    if unknown := sorted(set(names or ()) - set(contenders)):
        raise ValueError(f"contenders: unknown {unknown}; known are {list(contenders)}")
    chosen = {name: contenders[name] for name in names or contenders}
    for name, contender in list(chosen.items()):
        if missing := [part for part in contender.packages if not importlib.util.find_spec(part)]:
            print(f"{name}: left out, not installed: {', '.join(missing)}", flush=True)
            del chosen[name]
    return chosen


def run_benchmark(
    options: type[T],
    compare: Callable[[T], object],
    measure: Callable[[T, str], Figures] | None = None,
    flag: str = "contender",
    **defaults: object,
) -> None:
    """Run a benchmark; it ends the process.

    Args:
        options: dataclass of its options (`bert_tf.options`).
        compare: measures all and prints what came out.
        measure: measures one by its name, where each has a process of its own.
        flag: with this flag the script measures that one, in its own process.
        defaults: option -> default, where it is not that of the dataclass.
    """
    define(options, flags.FLAGS, **defaults)
    if measure is not None:
        flags.DEFINE_string(flag, None, "Run this one in this process and print its figures.")

    def main(arguments: list[str]) -> int:
        if len(arguments) > 1:
            sys.exit(unexpected_argument(arguments[1]))
        if measure is not None and flags.FLAGS[flag].value:
            # Errors keep their traceback here: the other process shows it.
            print(json.dumps(measure(read(options, flags.FLAGS), str(flags.FLAGS[flag].value))))
            return 0
        return exit_on_error(
            pathlib.Path(sys.argv[0]).stem, lambda: compare(read(options, flags.FLAGS))
        )

    app.run(main, flags_parser=parser_of(options))


def in_process(
    name: str, *more: str, flag: str = "contender", environment: Mapping[str, str] | None = None
) -> Figures:
    """Measure one in a fresh process, with the flags of this one.

    Args:
        name: of what is measured.
        more: flags that come after those of this process.
        flag: see `run_benchmark`.
        environment: variables besides those of this process.

    Raises:
        RuntimeError: it failed; the message has the end of what it said.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:], *more, f"--{flag}={name}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **(environment or {})},
    )
    if done.returncode:
        raise RuntimeError(f"{name}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def try_in_process(name: str, **arguments: Any) -> Figures | None:
    """Measure one in a fresh process; None, and a line that says why, if it fails."""
    try:
        return in_process(name, **arguments)
    except RuntimeError as error:
        print(error, flush=True)
        return None


@dataclasses.dataclass
class Spent:
    """Seconds of a part of a program: of the clock, and of the process with all its threads."""

    wall: float = 0.0
    cpu: float = 0.0


def measure_calls(call: Callable[[], float], warmup: int, calls: int) -> Figures:
    """Return seconds of a call: medians, the least, those of all before; its last value; memory.

    Args:
        call: what is measured; returns a number when it is done.
        warmup: calls that do not count.
        calls: that do.
    """
    with timed() as start:
        for _ in range(warmup):
            call()
    times, value = [], float("nan")
    for _ in range(calls):
        with timed() as spent:
            value = call()
        times.append(spent)
    return {
        "cpu_seconds": statistics.median(spent.cpu for spent in times),
        "wall_seconds": statistics.median(spent.wall for spent in times),
        "least_cpu_seconds": min(spent.cpu for spent in times),
        "least_wall_seconds": min(spent.wall for spent in times),
        "start_seconds": start.wall,
        "loss": value,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@contextlib.contextmanager
def timed() -> Iterator[Spent]:
    """Measure the seconds of what happens within."""
    spent, wall, cpu = Spent(), time.perf_counter(), time.process_time()
    yield spent
    spent.cpu, spent.wall = time.process_time() - cpu, time.perf_counter() - wall


class Table:
    """A table in Markdown, printed row by row as figures come.

    Args:
        columns: names of figures with their formats, as "name cpu_seconds:.3f"; the first column is
            aligned to the left. A figure that a row lacks, or that is None, is an empty cell.
    """

    def __init__(self, columns: str):
        self._columns = [column.partition(":")[::2] for column in columns.split()]
        names = [name for name, _ in self._columns]
        self._widths = [28, *(max(len(name), 8) for name in names[1:])]
        self._print(names)
        self._print(["-" * width for width in self._widths])

    def row(self, figures: Mapping[str, Any]) -> None:
        """Print a row."""
        values = [(figures.get(name), form) for name, form in self._columns]
        self._print(["" if value is None else format(value, form) for value, form in values])

    def _print(self, cells: Sequence[str]) -> None:
        rest = (cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True))
        print("|", " | ".join([cells[0].ljust(self._widths[0]), *list(rest)[1:]]), "|", flush=True)


def write_figures(options: BenchmarkOptions, **figures: Any) -> None:
    """Write options and figures as JSON, where a file is named."""
    if options.output_file:
        figures = {"flags": dataclasses.asdict(options), **figures}
        write_json(options.output_file, figures, sort_keys=False)
