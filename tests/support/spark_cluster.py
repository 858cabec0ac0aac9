"""A standalone cluster of Apache Spark: a master and two workers, as processes of this machine."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

REPOSITORY = pathlib.Path(__file__).parents[2]
# Little is computed by Java, which else compiles and collects with more threads than there is work.
SPARING_JAVA = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}


def environment(host: "Host", path: str | pathlib.Path = REPOSITORY) -> dict[str, str]:
    """Return the environment of a process of the cluster; `path` is where Python looks."""
    spark = {"PYTHONPATH": str(path), "SPARK_LOCAL_IP": host.address}
    return {**os.environ, **SPARING_JAVA, **spark}


@dataclasses.dataclass(frozen=True)
class Host:
    """Where a process runs.

    Attributes:
        address: by which others reach it.
        enter: the command that enters it; () for this machine.
    """

    address: str = "127.0.0.1"
    enter: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        address: of the master.
        master: its process.
        workers: its workers, each of one core; an executor and its Python are their descendants.
        hosts: of the master, where a command is to run too, and of the workers.
    """

    address: str
    master: subprocess.Popen
    workers: Sequence[subprocess.Popen]
    hosts: Sequence[Host]

    def settings(self) -> list[str]:
        """Return flags of a command that is to run beside the master."""
        address = self.hosts[0].address
        return [f"--spark_master={self.address}", f"--spark.driver.host={address}"]


def start(host: Host, log: pathlib.Path, kind: str, *arguments: str) -> subprocess.Popen:
    """Start a master or a worker; it leads a group of processes."""
    import pyspark

    command = pathlib.Path(pyspark.__file__).parent / "bin" / "spark-class"
    with open(log, "wb") as stream:
        return subprocess.Popen(  # noqa: S603
            [
                *host.enter,
                command,
                f"org.apache.spark.deploy.{kind}",
                "--host",
                host.address,
                *arguments,
            ],
            stdout=stream,
            stderr=stream,
            env=environment(host),
            start_new_session=True,
        )


def logged(log: pathlib.Path, pattern: str, seconds: float = 300) -> str:
    """Wait until a log has a pattern; return what matches."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := re.search(pattern, log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"{pattern} did not come: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def running(folder: pathlib.Path, hosts: Sequence[Host] = (Host(),) * 3) -> Iterator[Cluster]:
    """Give a cluster of a master and its workers, two where nothing else is said.

    Args:
        folder: of logs, and the workers' own.
        hosts: of the master and the workers.
    """
    processes = [start(hosts[0], folder / "master.log", "master.Master", "--port", "0")]
    try:
        address = logged(folder / "master.log", r"spark://[\d.]+:\d+")
        workers = []
        for number, host in enumerate(hosts[1:]):
            arguments = ["--webui-port", "0", "--cores", "1", "--memory", "1g"]
            arguments += ["--work-dir", str(folder / f"worker-{number}"), address]
            log = folder / f"worker-{number}.log"
            workers.append(start(host, log, "worker.Worker", *arguments))
            processes.append(workers[-1])
        for number in range(len(workers)):
            logged(folder / f"worker-{number}.log", "Successfully registered with master")
        yield Cluster(address, processes[0], workers, hosts)
    finally:
        for process in processes:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all below it: an executor and its Python are in the worker's session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[list[Host], str]]:
    """Give three network namespaces: one, which forwards, with a cable to each of the others.

    Yields:
        The hosts, and the name of the first; its devices c0 and c1 are the cables' ends.

    Raises:
        PermissionError: none can be made here.
    """

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    head, *others = names = [f"spark-{os.getpid()}-{i}" for i in range(3)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            for i, name in enumerate(others):
                cable = f"link add c{i} netns {head} type veth peer e0 netns {name}"
                ip(*cable.split())
                ip("-n", head, "addr", "add", f"10.78.{i}.1/24", "dev", f"c{i}")
                ip("-n", name, "addr", "add", f"10.78.{i}.2/24", "dev", "e0")
                ip("-n", head, "link", "set", f"c{i}", "up")
                ip("-n", name, "link", "set", "e0", "up")
                ip("-n", name, "route", "add", "default", "via", f"10.78.{i}.1")
            # The first has the address of its first cable also where that is cut.
            ip("-n", head, "addr", "add", "10.78.9.1/32", "dev", "lo")
            forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
            ip("netns", "exec", head, "sh", "-c", forward)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PermissionError(f"no network namespaces can be made here: {error}") from error
        addresses = ["10.78.9.1", "10.78.0.2", "10.78.1.2"]
        yield (
            [
                Host(address, ("ip", "netns", "exec", name))
                for address, name in zip(addresses, names, strict=True)
            ],
            head,
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
