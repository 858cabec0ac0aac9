"""Every reader of what comes from elsewhere, fed with inputs that atheris finds by coverage.

    python -m tests.support.fuzz --inputs=1000000 --minutes=10
    python -m tests.support.fuzz --targets=safetensors,rest

A process for each target; an input that ends in an exception which the reader does not document,
takes too much memory or too long stops its target, and lies in the folder of outputs then. Give
such inputs to tests/golden/fuzz/<target>/, from where the tests take them.

Memory is counted exactly for one input in some, and for each that makes the process's peak rise:
to count it for all would make everything several times slower.
"""

import argparse
import contextlib
import gc
import importlib
import itertools
import os
import pathlib
import re
import sys
import tempfile
import traceback

import atheris

with atheris.instrument_imports(include=["bert_tf", "experiments"]):
    from tests.support.fuzz_targets import TARGETS

_MOST_SECONDS = 30  # for one input
_MOST_MEGABYTES = 6000  # of a whole process, TensorFlow and what it keeps included
_COUNTED_EVERY = 50  # inputs
_RISE_KILOBYTES = 1 << 10  # of the peak, after which an input is looked at
_IN_MEMORY = "/dev/shm"  # noqa: S108  where inputs lie as files, if it is there


class _Peaks:
    """The most memory and address space that this process has had."""

    def __init__(self):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets what importing took
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._known = self._kilobytes()

    def _kilobytes(self) -> list[int]:
        text = os.pread(self._status, 4096, 0)
        return [int(size) for size in re.findall(rb"(?:VmPeak|VmHWM):\s+(\d+)", text)]

    def rose(self) -> bool:
        """Tell whether they have risen since this was asked last."""
        known, self._known = self._known, self._kilobytes()
        return any(b - a > _RISE_KILOBYTES for a, b in zip(known, self._known, strict=True))


def fuzz(name: str, folder: pathlib.Path, inputs: int, minutes: float) -> None:
    """Feed one target, in this process, which ends with it."""
    target = TARGETS[name]
    work, corpus = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-")), folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")  # readers do on use, longer than an input may take
    for number, seed in enumerate(target.seeds(work)):
        if len(seed) > target.most_bytes:
            raise ValueError(f"{name}: seed {number} has {len(seed)} bytes and would be cut off")
        (corpus / f"seed-{number}").write_bytes(seed)
        target.refuses(seed, work)  # imports what it needs, which takes time and memory once
    arguments = [
        *("fuzz", str(corpus), f"-runs={inputs}", f"-max_total_time={int(60 * minutes)}"),
        *(f"-timeout={_MOST_SECONDS}", f"-rss_limit_mb={_MOST_MEGABYTES}", "-print_final_stats=1"),
        *(f"-max_len={target.most_bytes}", f"-artifact_prefix={folder}/{name}-", "-verbosity=1"),
    ]
    turns, peaks = itertools.cycle(range(_COUNTED_EVERY)), _Peaks()

    def feed(data: bytes) -> None:
        try:
            if not next(turns):
                target.run(data, work)
            target.refuses(data, work)
            if peaks.rose():
                target.run(data, work)
        except Exception:
            (folder / f"{name}-found").write_bytes(data)
            raise

    gc.collect()
    gc.freeze()  # what is there now stays: a reader that collects garbage need not go through it
    atheris.Setup(arguments, feed)
    atheris.Fuzz()


def run(name: str, options: argparse.Namespace) -> bool:
    """Feed one target in a process of its own, print its row, and return whether all was well."""
    folder = pathlib.Path(options.output)
    log = folder / f"{name}.log"
    memory = _IN_MEMORY if os.path.isdir(_IN_MEMORY) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as work:  # it removes nothing
        child = os.fork()  # what is imported and instrumented need not be so again
        if not child:
            with open(log, "wb") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            tempfile.tempdir = work
            try:
                fuzz(name, folder, options.inputs, options.minutes)
            except BaseException:
                traceback.print_exc()
            os._exit(1)  # libFuzzer ends the process itself
        _, status, usage = os.wait4(child, 0)
    seconds, failed = usage.ru_utime + usage.ru_stime, status != 0
    text = log.read_text(errors="replace")
    told = dict(re.findall(r"^stat::(\w+):\s*(\d+)", text, re.MULTILINE))
    reached = re.findall(r"\bcov: (\d+)", text)
    count = int(told.get("number_of_executed_units", 0))
    print(
        f"{name:15}{count:10,}{seconds:13.1f}{count / seconds:10,.0f}"
        f"{reached[-1] if reached else '-':>8}  {'a fault' if failed else 'no fault'}",
        flush=True,
    )
    if failed:
        print(text[-3000:], flush=True)
    return not failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="fuzz", help="folder of found inputs and the corpus")
    parser.add_argument("--targets", default=",".join(TARGETS), help="parted by commas")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each target")
    parser.add_argument("--minutes", type=float, default=10, help="for each target, at most")
    options = parser.parse_args()
    names, folder = options.targets.split(","), pathlib.Path(options.output)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"--targets: no {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    folder.mkdir(parents=True, exist_ok=True)
    titles = f"{'':15}{'inputs':>10}{'CPU seconds':>13}{'a second':>10}{'places':>8}  outcome"
    print(titles, flush=True)
    faults = [name for name in names if not run(name, options)]
    sys.exit(f"faults in {', '.join(faults)}: see {folder}" if faults else 0)


if __name__ == "__main__":
    main()
