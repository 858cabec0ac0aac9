"""Every reader of what comes from elsewhere, fed with inputs that atheris finds by coverage.

    python -m tests.support.fuzz --inputs=1000000 --minutes=10
    python -m tests.support.fuzz --targets=safetensors,rest

A process for each target; an input that ends in an exception which the reader does not document,
takes too much memory or too long stops its target, and lies in the folder of outputs then. Give
such inputs to tests/golden/fuzz/<target>/, from where the tests take them.
"""

import argparse
import contextlib
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["bert_tf", "experiments"]):
    from tests.support.fuzz_targets import TARGETS

_MOST_SECONDS = 30  # for one input
_MOST_MEGABYTES = 6000  # of a whole process, TensorFlow and what it keeps included
_MOST_BYTES = 1 << 15  # of one input


def fuzz(name: str, folder: pathlib.Path, inputs: int, minutes: float) -> None:
    """Feed one target, in this process, which ends with it."""
    target = TARGETS[name]
    work, corpus = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-")), folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")  # readers do on use, longer than an input may take
    for number, seed in enumerate(target.seeds(work)):
        (corpus / f"seed-{number}").write_bytes(seed)
        with contextlib.suppress(*target.refusals):
            target.read(seed, work)  # imports what it needs, which takes time and memory once
    arguments = [
        *("fuzz", str(corpus), f"-runs={inputs}", f"-max_total_time={int(60 * minutes)}"),
        *(f"-timeout={_MOST_SECONDS}", f"-rss_limit_mb={_MOST_MEGABYTES}", "-print_final_stats=1"),
        *(f"-max_len={_MOST_BYTES}", f"-artifact_prefix={folder}/{name}-", "-verbosity=1"),
    ]

    def feed(data: bytes) -> None:
        try:
            target.run(data, work)
        except Exception:
            (folder / f"{name}-found").write_bytes(data)
            raise

    atheris.Setup(arguments, feed)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="fuzz", help="folder of found inputs and the corpus")
    parser.add_argument("--targets", default=",".join(TARGETS), help="parted by commas")
    parser.add_argument("--inputs", type=int, default=20_000, help="for each target")
    parser.add_argument("--minutes", type=float, default=10, help="for each target, at most")
    parser.add_argument("--only", help="feed this target in this process")
    options = parser.parse_args()
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if options.only:
        fuzz(options.only, folder, options.inputs, options.minutes)
        return
    faults = []
    for name in options.targets.split(","):
        command = [sys.executable, "-m", "tests.support.fuzz", f"--only={name}"]
        command += [f"--output={folder}", f"--inputs={options.inputs}"]
        command += [f"--minutes={options.minutes}"]
        with tempfile.TemporaryDirectory(prefix="fuzz-") as work:  # the process removes nothing
            done = subprocess.run(  # noqa: S603
                command,
                env={**os.environ, "TMPDIR": work},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        (folder / f"{name}.log").write_text(done.stdout)
        told = dict(
            line.removeprefix("stat::").split(":", 1)
            for line in done.stdout.splitlines()
            if line.startswith("stat::")
        )
        count = told.get("number_of_executed_units", "no").strip()
        print(f"{name}: {count} inputs, {'a fault' if done.returncode else 'no fault'}", flush=True)
        if done.returncode:
            faults.append(name)
            print(done.stdout[-3000:], flush=True)
    sys.exit(f"faults in {', '.join(faults)}: see {folder}" if faults else 0)


if __name__ == "__main__":
    main()
