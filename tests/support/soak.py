"""Kills at random moments of data preparation and of training, each continued, to the bit.

    python -m tests.support.soak --kills=100 --minutes=60

Each row of the table is a command. It runs once without interruption; then it is started, killed
after a random time, started again and killed again, until it is let finish; what it then leaves is
compared with the first run, byte by byte. Of what consists of several processes one is killed, or
all. The kills are shared out over the rows of each kind, data preparation and training.

A training run is a fork of this process, which has imported what it needs: so most of its time, in
which the kill comes, is its work.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np

import experiments.pretraining.run  # noqa: F401  that forks have it
from bert_tf.weights.tensor_bundle import read_tensors
from tests.support import distributed_runs, pretraining_runs
from tests.support import synthetic_records as synthetic
from tests.support.pretraining_runs import REPOSITORY, STEPS

GOLDEN = REPOSITORY / "tests" / "golden" / "pretraining_data"
_MOST_KILLS = 8  # of one run, which is then let finish
_PATIENCE_SECONDS = 900  # for a process that should end by itself


class Fork:
    """A script that runs in a fork of this process, with what is wanted of `subprocess.Popen`."""

    def __init__(self, script: str, arguments: list[str], cwd: pathlib.Path, changes: dict):
        """Start it, with some changes to the environment; its output goes into a file in cwd."""
        self.returncode: int | None = None
        self._cpu_seconds = 0.0
        self._log = tempfile.TemporaryFile()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                os.dup2(self._log.fileno(), 1)
                os.dup2(self._log.fileno(), 2)
                os.chdir(cwd)
                os.environ.update(changes)
                sys.argv = [script, *arguments]
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def cpu_seconds(self) -> float:
        """Return what it has taken until now, or in all."""
        if self.returncode is None:
            self._cpu_seconds = time.clock_gettime(~self.pid << 3 | 2)  # as clock_getcpuclockid
        return self._cpu_seconds

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; return what it printed."""
        end = time.monotonic() + timeout
        while self.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self._cpu_seconds = usage.ru_utime + usage.ru_stime
            elif time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            else:
                time.sleep(0.02)
        self._log.seek(0)
        return self._log.read().decode(errors="replace"), ""


Processes = Sequence[subprocess.Popen | Fork]


@dataclasses.dataclass
class Row:
    """A command, and what became of its kills.

    Attributes:
        kind: "preparation" or "training".
        name: what is special about it.
        start: output folder -> the processes that make it.
        differences: two output folders -> what in them differs.
        seconds: of the run without interruption; of a fork those of its CPU.
        kills: processes, or groups of them, that were killed while they ran.
        runs: that were killed at least once, continued and compared.
        faults: what differed, or did not go on.
    """

    kind: str
    name: str
    start: Callable[[pathlib.Path], Processes]
    differences: Callable[[pathlib.Path, pathlib.Path], list[str]]
    seconds: float = 0.0
    kills: int = 0
    runs: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)


# === Data preparation ===


def start_preparation(data: pathlib.Path, folder: pathlib.Path, *flags: str) -> Processes:
    """Start create_pretraining_data.py on the text in a folder, in a group of its own."""
    folder.mkdir(exist_ok=True)
    command = [
        *(sys.executable, "data_prep/create_pretraining_data.py"),
        *(f"--input_file={data}/text.txt", f"--output_file={folder}/x.tfrecord"),
        f"--vocab_file={GOLDEN}/tiny_vocab_uncased.txt",
        *("--num_workers=2", "--num_shards=3", *flags),
    ]
    return [
        subprocess.Popen(  # noqa: S603
            command,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    ]


def different_files(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Name the files of two folders that differ; of manifests the flags hold the folder's name."""

    def content(path: pathlib.Path) -> object:
        if path.suffix != ".json":
            return path.read_bytes()
        return {k: v for k, v in json.loads(path.read_text()).items() if k != "flags"}

    names = {path.name for folder in (first, second) for path in folder.iterdir()}
    paths = {name: (first / name, second / name) for name in sorted(names)}
    return [
        name
        for name, pair in paths.items()
        if not all(path.is_file() for path in pair) or content(pair[0]) != content(pair[1])
    ]


# === Training ===


def start_training(data: pathlib.Path, folder: pathlib.Path, workers: int, **flags) -> Processes:
    """Start run_pretraining.py, as one process or as several workers."""
    configs = [None]
    if workers > 1:
        configs = distributed_runs.tf_configs(distributed_runs.free_addresses(workers))
    arguments = pretraining_runs.arguments(data, folder, save_checkpoints_steps=5, **flags)
    return [
        Fork(
            str(REPOSITORY / "experiments" / "run_pretraining.py"),
            arguments,
            folder.parent,
            {"CUDA_VISIBLE_DEVICES": "", **({"TF_CONFIG": config} if config else {})},
        )
        for config in configs
    ]


def different_state(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Name what differs between two runs: lines of the log, and tensors of the last checkpoint."""
    logs = [pretraining_runs.log_of(folder) for folder in (first, second)]
    states = [read_tensors(folder / f"model.ckpt-{STEPS}") for folder in (first, second)]
    found = [] if logs[0] == logs[1] else ["metrics.jsonl"]
    for name in sorted(states[0].keys() | states[1].keys()):
        pair = [state.get(name) for state in states]
        if any(value is None for value in pair) or not np.array_equal(*pair):
            found.append(name)
    return found


def rows(data: pathlib.Path) -> list[Row]:
    """Return what is to be killed; `data` receives the text and records."""
    (data / "text.txt").write_bytes((GOLDEN / "tiny_1.txt").read_bytes() * 601)
    pretraining_runs.write_data(data)
    synthetic.write(data / "second.tfrecord", 61, 5)
    preparation = {
        "local": ("--dupe_factor=2",),
        "local, gzip, whole words": ("--gzip", "--do_whole_word_mask"),
        "local, dynamic masks": ("--dynamic_masking",),
    }
    if importlib.util.find_spec("apache_beam"):
        preparation["Beam"] = ("--runner=DirectRunner",)
    phase = {
        "second_input_file": data / "second.tfrecord",
        "second_max_seq_length": synthetic.LENGTH,
        "second_max_predictions_per_seq": synthetic.PREDICTIONS,
        "second_train_batch_size": 7,
        "second_phase_steps": 19,
    }
    two = {"train_batch_size": 14, "eval_batch_size": 6}
    training = {
        "one device": {},
        "two phases": phase,
        "dynamic masks": {"input_file": data / "unmasked.tfrecord"},
        "accumulation": {"train_batch_size": 14, "gradient_accumulation_steps": 2},
        "so many tokens": {"train_batch_size": None, "train_batch_tokens": 403},
        "two replicas": {**two, "distribution_strategy": "mirrored", "num_replicas": 2},
        "two workers": {**two, "distribution_strategy": "multi_worker_mirrored"},
    }

    def preparing(flags):
        return lambda folder: start_preparation(data, folder, *flags)

    def running(name, flags):
        workers = 2 if name == "two workers" else 1
        return lambda folder: start_training(data, folder, workers, **flags)

    return [
        *(Row("preparation", n, preparing(f), different_files) for n, f in preparation.items()),
        *(Row("training", n, running(n, f), different_state) for n, f in training.items()),
    ]


# === Kills ===


def wait(processes: Processes, seconds: float) -> bool:
    """Wait until all have ended, or some seconds; return whether all have.

    The seconds are those of a fork's CPU, if it is one, so that what else runs moves no kill.
    """
    begin = time.monotonic()
    for process in processes:
        while True:
            past = time.monotonic() - begin
            patience = _PATIENCE_SECONDS - past
            if isinstance(process, Fork) and patience > 0:
                past = process.cpu_seconds()
            try:
                process.communicate(timeout=max(0.0, min(seconds - past, patience)))
                break
            except subprocess.TimeoutExpired:
                if past >= seconds:
                    return False
    return True


def _cpu_seconds(processes: Processes) -> float:
    """Return what the quickest of some forks took; 0 where they are none."""
    return min((p.cpu_seconds() for p in processes if isinstance(p, Fork)), default=0.0)


def kill(processes: Processes, rng: random.Random) -> None:
    """Kill all processes, or one, so that the others end by themselves or are ended."""
    alone = rng.random() < 0.5
    victims = [rng.choice(processes)] if alone else processes
    for process in victims:
        if process.returncode is None:
            if not alone and os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
    if not wait(processes, _PATIENCE_SECONDS):
        for process in processes:
            process.kill()
        wait(processes, 60)


def try_run(row: Row, kills: int, folder: pathlib.Path, rng: random.Random) -> None:
    """Kill a run up to some times, let it finish, and compare it with the whole one."""
    run, done = folder / "run", 0
    shutil.rmtree(run, ignore_errors=True)
    while True:
        processes = row.start(run)
        # Rather late than early: a process takes much of its time to begin.
        delay = row.seconds * rng.random() ** 0.5
        if wait(processes, delay if done < kills else _PATIENCE_SECONDS):
            break
        if done == kills:
            kill(processes, rng)
            row.faults.append("did not end when it was continued")
            return
        kill(processes, rng)
        done += 1
    if not done:  # the machine has become quicker than it was
        row.seconds = min(_cpu_seconds(processes) or row.seconds * 0.8, row.seconds)
    row.kills += done
    row.runs += bool(done)
    if any(process.returncode for process in processes):
        row.faults.append(f"ended with {[process.returncode for process in processes]}")
    else:
        row.faults += row.differences(folder / "whole", run)


def soak(row: Row, kills: int, end: float, folder: pathlib.Path, rng: random.Random) -> None:
    """Kill a row's command some times, until a moment."""
    begin = time.monotonic()
    processes = row.start(folder / "whole")
    outputs = [process.communicate(timeout=_PATIENCE_SECONDS)[0] for process in processes]
    if any(process.returncode for process in processes):
        row.faults.append(f"fails without any kill: {outputs[-1][-2000:]}")
        return
    row.seconds = _cpu_seconds(processes) or time.monotonic() - begin
    while row.kills < kills and time.monotonic() < end and not row.faults:
        try_run(row, min(_MOST_KILLS, kills - row.kills), folder, rng)
        print(f"{row.kind}, {row.name}: {row.kills} kills, {row.faults or 'all equal'}", flush=True)


def table(done: list[Row]) -> str:
    """Return the table of what was killed, continued and compared."""
    lines = [f"{'':32}{'kills':>6}{'runs':>6}{'seconds':>9}  outcome"]
    for row in done:
        outcome = "; ".join(row.faults[:5]) or ("equal to the bit" if row.runs else "not tried")
        name = f"{row.kind}, {row.name}"
        lines.append(f"{name:32}{row.kills:6}{row.runs:6}{row.seconds:9.1f}  {outcome}")
    for kind in ("preparation", "training"):
        lines.append(f"{kind}: {sum(row.kills for row in done if row.kind == kind)} kills")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=100, help="of data preparation, and of training"
    )
    parser.add_argument("--minutes", type=float, default=60, help="begin no run after these")
    parser.add_argument("--rows", default="", help="only those whose kind and name hold this")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng, begin = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        data = pathlib.Path(name, "data")
        data.mkdir()
        planned = [row for row in rows(data) if options.rows in f"{row.kind}, {row.name}"]
        for number, row in enumerate(planned):
            alike = [other for other in planned if other.kind == row.kind]
            share = -(-options.kills // len(alike))
            end = begin + 60 * options.minutes * (number + 1) / len(planned)
            folder = pathlib.Path(name, str(number))
            folder.mkdir()
            soak(row, share, end, folder, rng)
            shutil.rmtree(folder)
    print(table(planned))
    sys.exit(any(row.faults for row in planned))


if __name__ == "__main__":
    main()
