"""Run a grid of commands as processes: skip what is finished, go on with what was stopped.

Each run has a folder of its own under the grid's; beside it lie NAME.log, what it printed, and
NAME.run.json, what it was and how it ended. A run waits for those it needs. Several go on at once,
as many as there are GPUs, or as the cores and the memory of the machine allow.
"""

import dataclasses
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bert_tf.files import read_json, write_json
from data_prep.processes.folder_lock import lock_folder
from experiments.command_line import preemption
from experiments.command_line.memory import free_bytes

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class GridError(ValueError):
    """A grid that cannot be run."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        name: its folder under the grid's, as "table7/base/features-last"; unlike all others.
        script: path from the repository's root.
        flags: name and value of each flag but the one that names the folder; a value of True or
            False stands for --name or --noname.
        needs: names of the runs that have to be finished before.
        result: the file in the folder that a finished run has left.
        output_flag: the flag that names the folder.
        train_flops: floating point operations of its training, for the estimate of its cost.
        memory_bytes: what it takes at most; no other begins while less than this is free.
    """

    name: str
    script: str
    flags: tuple[tuple[str, Any], ...]
    needs: tuple[str, ...] = ()
    result: str = "eval_results.json"
    output_flag: str = "output_dir"
    train_flops: float = 0.0
    memory_bytes: int = 2 << 30

    def command(self, root: str | os.PathLike[str]) -> list[str]:
        """Return the command without the interpreter, for the grid in `root`."""
        arguments = []
        for name, value in (*self.flags, (self.output_flag, pathlib.Path(root) / self.name)):
            if isinstance(value, bool):
                arguments.append(f"--{name}" if value else f"--no{name}")
            else:
                arguments.append(f"--{name}={value}")
        return [self.script, *arguments]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        command: what was run, without the interpreter.
        status: exit status of the process; negative for the signal that killed it.
        wall_seconds: from its start to its end, summed over all attempts.
        cpu_seconds: processor time of it and of its own processes, likewise.
        peak_bytes: largest resident memory of the process.
        commit: of the repository when it began, the last time.
        last_line: what it printed last, where it failed.
    """

    command: tuple[str, ...]
    status: int
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    commit: str
    last_line: str = ""

    @property
    def finished(self) -> bool:
        """Whether the run ended well."""
        return self.status == 0


def shell_line(command: Sequence[str]) -> str:
    """Return a command as one types it."""
    return " ".join(["python", *map(shlex.quote, command)])


def read_outcome(root: str | os.PathLike[str], name: str) -> Outcome | None:
    """Return how a run ended the last time, or None if it never did.

    Raises:
        GridError: the file that says so is damaged.
    """
    path = _beside(root, name, ".run.json")
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        return Outcome(**{**stored, "command": tuple(stored["command"])})
    except (ValueError, TypeError, KeyError) as error:
        raise GridError(f"{path}: not what a run leaves: {error}") from error


def _beside(root: str | os.PathLike[str], name: str, suffix: str) -> pathlib.Path:
    return pathlib.Path(root) / f"{name}{suffix}"


def check_grid(runs: Sequence[Run]) -> None:
    """Refuse a grid with two runs of one name, an unknown need, or needs that go round.

    Raises:
        GridError: one line says what.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise GridError(f"two runs have the name {twice[0]!r}")
    waiting = {run.name: set(run.needs) for run in runs}
    for name, needs in waiting.items():
        if needs - set(names):
            raise GridError(f"{name} needs {sorted(needs - set(names))[0]!r}, which is not there")
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & set(waiting)}
        if not free:
            raise GridError(f"these runs need each other: {', '.join(sorted(waiting))}")
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


def gpus() -> list[str]:
    """Return the GPUs that runs may take, by the names that CUDA_VISIBLE_DEVICES knows."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(  # noqa: S603
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return listed.stdout.split() if listed.returncode == 0 else []


def commit() -> str:
    """Return the commit of the repository, marked where files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown (not a git checkout)"


def run_grid(
    runs: Sequence[Run],
    root: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Outcome]:
    """Run all that is not finished.

    Args:
        runs: the grid.
        root: folder of the runs' folders.
        jobs: how many run at once; None for one on each GPU, or one on each core without GPUs.
            Those that run at once share the cores.
        log: takes a line for each run that begins or ends.

    Returns:
        name -> outcome, of those that ended, now or before. A run whose needs failed has none.

    Raises:
        GridError: the grid is at fault, another one runs in the folder, or a run's folder holds a
            finished run of another command.
        KeyboardInterrupt, SystemExit: on SIGINT and SIGTERM, after the processes have been stopped;
            they go on at the next call.
    """
    check_grid(runs)
    os.makedirs(root, exist_ok=True)
    lock = lock_folder(root)
    if lock is None:  # grids of one folder share runs
        raise GridError(f"{root}: another grid runs in this folder; let it end, or take another")
    with lock, preemption.exiting():
        return _Scheduler(runs, pathlib.Path(root), jobs, log).run()


@dataclasses.dataclass(frozen=True)
class _Process:
    """The process of a run: when and on which device it began, and at which commit."""

    run: Run
    process: subprocess.Popen
    since: float
    device: str | None
    commit: str


class _Scheduler:
    """Starts each run when those that it needs are finished, and writes how it ended."""

    def __init__(
        self, runs: Sequence[Run], root: pathlib.Path, jobs: int | None, log: Callable[[str], None]
    ):
        self.root, self.log = root, log
        self.devices = gpus()
        self.cores = len(os.sched_getaffinity(0))
        self.jobs = jobs or len(self.devices) or self.cores
        if self.jobs < 1:
            raise GridError(f"jobs: expected at least 1, got {jobs}")
        self.outcomes: dict[str, Outcome] = {}
        self.waiting: list[Run] = []
        self.processes: dict[int, _Process] = {}
        self.count = len(runs)
        for run in runs:
            before = read_outcome(root, run.name)
            if before is not None and before.finished and (root / run.name / run.result).exists():
                if before.command != tuple(run.command(root)):
                    raise GridError(
                        f"{root / run.name} holds a finished run of another command: "
                        f"{shell_line(before.command)}; use another folder, or remove it"
                    )
                self.outcomes[run.name] = before
            else:
                self.waiting.append(run)

    def run(self) -> dict[str, Outcome]:
        if self.outcomes:
            self.log(f"{len(self.outcomes)} of {self.count} runs are finished already")
        try:
            while self.waiting or self.processes:
                self._begin_ready_runs()
                if not self.processes:
                    break  # what waits needs a run that failed
                self._end_one()
        finally:
            self._stop_all()
        return self.outcomes

    def _ready(self) -> list[Run]:
        def is_done(name: str) -> bool:
            return name in self.outcomes and self.outcomes[name].finished

        # First what others wait for: a long pre-training that begins last would go on alone.
        needed = {name for run in self.waiting for name in run.needs}
        ready = [run for run in self.waiting if all(map(is_done, run.needs))]
        return sorted(ready, key=lambda run: run.name not in needed)

    def _begin_ready_runs(self) -> None:
        ready = self._ready()
        share = max(1, self.cores // max(1, min(self.jobs, len(ready) + len(self.processes))))
        for run in ready:
            if len(self.processes) >= self.jobs:
                return
            free = free_bytes()
            if self.processes and free is not None and free < run.memory_bytes:
                return
            self.waiting.remove(run)
            self._begin(run, share)

    def _begin(self, run: Run, threads: int) -> None:
        log_file = _beside(self.root, run.name, ".log")
        log_file.parent.mkdir(parents=True, exist_ok=True)
        # Settings of the user's own come first, but for the device: one run, one device.
        environment = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "TF_NUM_INTEROP_THREADS": "1",
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
        }
        device = None
        if self.devices:
            taken = [other.device for other in self.processes.values()]
            device = min(self.devices, key=taken.count)
            environment["CUDA_VISIBLE_DEVICES"] = device
        command, current_commit = run.command(self.root), commit()
        with open(log_file, "ab") as stream:
            stream.write(f"$ {shell_line(command)}\n".encode())
            stream.flush()
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, *command],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.processes[process.pid] = _Process(
            run, process, time.monotonic(), device, current_commit
        )
        self.log(f"{self._progress()} begins  {run.name}")

    def _progress(self) -> str:
        return f"[{len(self.outcomes):>3}/{self.count}]"

    def _end_one(self) -> None:
        pid, status, usage = os.wait4(-1, 0)
        ended = self.processes.pop(pid, None)
        if ended is None:
            return
        code = ended.process.returncode = os.waitstatus_to_exitcode(status)
        run, log_file = ended.run, _beside(self.root, ended.run.name, ".log")
        if code == 0 and not (self.root / run.name / run.result).exists():
            code = 1
        before = read_outcome(self.root, run.name)
        outcome = Outcome(
            command=tuple(run.command(self.root)),
            status=code,
            wall_seconds=time.monotonic() - ended.since + (before.wall_seconds if before else 0),
            cpu_seconds=usage.ru_utime + usage.ru_stime + (before.cpu_seconds if before else 0),
            peak_bytes=usage.ru_maxrss * 1024,
            commit=ended.commit,
            last_line="" if code == 0 else _last_line(log_file),
        )
        path = _beside(self.root, run.name, ".run.json")
        write_json(path, dataclasses.asdict(outcome), sort_keys=False)
        self.outcomes[run.name] = outcome
        how = "ended " if code == 0 else f"FAILED ({outcome.last_line or code})"
        self.log(f"{self._progress()} {how}  {run.name}  {outcome.wall_seconds:.0f} s")

    def _stop_all(self) -> None:
        for running in self.processes.values():
            running.process.send_signal(signal.SIGTERM)
        for running in self.processes.values():
            try:
                running.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
        self.processes.clear()


def _last_line(log: pathlib.Path) -> str:
    with open(log, "rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def flags_of(**values: Any) -> tuple[tuple[str, Any], ...]:
    """Return flags for `Run`, without those that are None."""
    return tuple((name, value) for name, value in values.items() if value is not None)


def totals(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Return the wall and processor seconds of all outcomes."""
    return sum(o.wall_seconds for o in outcomes), sum(o.cpu_seconds for o in outcomes)
