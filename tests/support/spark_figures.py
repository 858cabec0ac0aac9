"""CPU time and memory of commands of data preparation on standalone clusters of Apache Spark.

    python -m tests.support.spark_figures --executors=0,1,2,4 \
        extract_corpus --input_file=wiki --then \
        create_pretraining_data --input_file=wiki.txt --vocab_file=vocab.txt --num_shards=4

runs them locally, by one process (0), and on a master and so many workers of one core, processes
of this machine; `--output_file` is added, in a temporary folder. A row for each tells

- executors_cpu: user and system seconds of the executors with their Pythons, driver_cpu: of the
  command with its Java, cluster_cpu: of the master and the workers, with their start in the first;
- worker_mib, executor_mib, driver_mib: the largest resident set of any worker's Python, of an
  executor's Java, and of the command's Python;
- digest: of the names and bytes of all files but the manifest.

CPU seconds are what the kernel counts of control groups, which takes the rights of root: those of
Spark's Python workers, for which nobody waits, are in no other sum. With `--slow=0.9` the first
worker's executor and Python stand still for so much of the time.
"""

import argparse
import contextlib
import hashlib
import itertools
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

import psutil

from tests.support import spark_cluster
from tests.support.spark_cluster import REPOSITORY, Host

_GROUPS = pathlib.Path("/sys/fs/cgroup")
_SAMPLE_SECONDS = 2.0
_ROLES = {  # role -> what stands in the command line of its processes
    "worker": "pyspark.daemon",
    "executor": "CoarseGrainedExecutorBackend",
    "driver": "python data_prep/",
}


class _Group:
    """A control group: what the kernel counts of all processes that were ever in it."""

    def __init__(self, folder: pathlib.Path):
        unified = _GROUPS / "unified"  # beside those of the first version
        self._path = (unified if unified.exists() else _GROUPS) / folder.name
        self._path.mkdir()

    def host(self) -> Host:
        """Return where processes are of the group."""
        script = f'echo $$ > {self._path}/cgroup.procs && exec "$@"'
        return Host(enter=("sh", "-c", script, "sh"))

    def seconds(self) -> float:
        """Return user and system seconds."""
        line = (self._path / "cpu.stat").read_text().splitlines()[0]
        return int(line.removeprefix("usage_usec ")) / 1e6

    def lives(self) -> bool:
        """Tell whether it has a process."""
        return bool((self._path / "cgroup.procs").read_text())

    def remove(self) -> None:
        """Remove it, once its processes have ended."""
        while self._path.exists():
            with contextlib.suppress(OSError):  # one has not, or its parent has not waited for it
                self._path.rmdir()
            time.sleep(0.1)


class _Watch(threading.Thread):
    """Notes the largest resident sets of the descendants of some processes, by their role."""

    def __init__(self, workers: Sequence[psutil.Process], slow: float):
        super().__init__(daemon=True)
        self.parents = list(workers)
        self._slowed = workers[0] if slow else None
        self.peaks: dict[str, float] = {}
        self._slow = slow
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(_SAMPLE_SECONDS * (1 - self._slow)):
            for parent in list(self.parents):
                for process in [parent, *_family(parent)]:
                    with contextlib.suppress(psutil.Error, OSError, StopIteration):
                        self._note(process)
            if self._slowed is not None:
                stopped = [p for p in _family(self._slowed) if _role(p) in ("worker", "executor")]
                for send in (psutil.Process.suspend, psutil.Process.resume):
                    for process in stopped:
                        with contextlib.suppress(psutil.Error):
                            send(process)
                    if send is psutil.Process.suspend:
                        time.sleep(_SAMPLE_SECONDS * self._slow)

    def _note(self, process: psutil.Process) -> None:
        role = _role(process)
        if role is None:
            return
        with open(f"/proc/{process.pid}/status") as lines:
            kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        self.peaks[role] = max(self.peaks.get(role, 0), kib / 1024)


def _family(parent: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return parent.children(recursive=True)
    return []


def _role(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        line = " ".join(process.cmdline())
        if "SparkSubmit" not in line:
            return next((role for role, part in _ROLES.items() if part in line), None)
    return None


def _run(command: Sequence[str], folder: pathlib.Path, watch: _Watch) -> tuple[float, float]:
    """Run a command to its end; return its seconds by the clock, and of processors."""
    group, log = _Group(folder), folder / "log"
    host, begin = group.host(), time.monotonic()
    with open(log, "wb") as stream:
        process = subprocess.Popen(  # noqa: S603
            [*host.enter, *command],
            cwd=REPOSITORY,
            env=spark_cluster.environment(host),
            stdout=stream,
            stderr=stream,
        )
        watch.parents.append(psutil.Process(process.pid))
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-4000:]}")
    wall = time.monotonic() - begin
    while group.lives():
        time.sleep(0.1)
    seconds = group.seconds()
    group.remove()
    return wall, seconds


class _Bench:
    """Runs commands, on a cluster or without one."""

    def __init__(self, cluster: spark_cluster.Cluster | None, group: _Group, slow: float):
        self._cluster, self._group, self._slow = cluster, group, slow
        self._workers = [psutil.Process(x.pid) for x in cluster.workers] if cluster else []
        self._before = (0.0, 0.0)

    def measure(self, command: Sequence[str]) -> dict[str, float | str]:
        """Run a command of data preparation; return its row."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            (out := folder / "out").mkdir()
            name, *arguments = command
            command = [sys.executable, f"data_prep/{name}.py", f"--output_file={out}/x.tfrecord"]
            if self._cluster:
                arguments = [*self._settings(), *arguments]
            elif name == "create_pretraining_data":
                arguments.append("--num_workers=1")
            watch = _Watch(self._workers, self._slow)
            watch.start()
            try:
                wall, seconds = _run([*command, *arguments], folder, watch)
            finally:
                watch.ended.set()
                watch.join()
            row: dict[str, float | str] = {"command": name, "wall": wall, "driver_cpu": seconds}
            if self._cluster:
                now = self._seconds()
                row["executors_cpu"], row["cluster_cpu"] = (
                    after - before for after, before in zip(now, self._before, strict=True)
                )
                self._before = now
            row |= {f"{role}_mib": peak for role, peak in watch.peaks.items()}
            return {**row, "digest": _digest(out)}

    def _settings(self) -> list[str]:
        assert self._cluster
        return [
            "--runner=spark",
            *self._cluster.settings(),
            "--spark.ui.enabled=false",
            f"--spark.pyspark.python={sys.executable}",
            "--spark.executor.cores=1",
            "--spark.executor.memory=512m",
            f"--spark.executorEnv.PYTHONPATH={REPOSITORY}",
        ]

    def _seconds(self) -> tuple[float, float]:
        """Return what executors took, which have ended, and what master and workers did."""
        assert self._cluster
        while any(_role(process) for worker in self._workers for process in _family(worker)):
            time.sleep(_SAMPLE_SECONDS)
        own = sum(sum(worker.cpu_times()[:2]) for worker in self._workers)
        master = sum(psutil.Process(self._cluster.master.pid).cpu_times()[:2])
        return self._group.seconds() - own, own + master


def _digest(folder: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix != ".json"):
        digest.update(path.name.encode())
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--executors", default="0,1,2,4", help="clusters, one after another")
    parser.add_argument("--slow", type=float, default=0.0, help="share of the time stood still")
    options, words = parser.parse_known_args()
    commands = [
        list(part)
        for is_end, part in itertools.groupby(words, lambda word: word == "--then")
        if not is_end
    ]
    for executors in map(int, options.executors.split(",")):
        with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
            cluster, folder = None, pathlib.Path(temporary)
            group = _Group(folder)
            stack.callback(group.remove)
            if executors:
                hosts = [Host(), *[group.host()] * executors]
                cluster = stack.enter_context(spark_cluster.running(folder, hosts))
            bench = _Bench(cluster, group, options.slow)
            for command in commands:
                row = {"executors": executors, **bench.measure(command)}
                shown = {k: f"{v:.1f}" if isinstance(v, float) else v for k, v in row.items()}
                print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


if __name__ == "__main__":
    main()
