"""Jobs on Apache Spark."""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pyspark
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkRuntimeError

from data_prep.cluster.jobs import J, Runner, Step

_JAVA = 17  # the oldest that Spark 4 runs on
# Tasks of a step for each core: few enough for a driver to keep track of, many enough that a slow
# worker or one that is lost has a small share.
_TASKS_OF_A_CORE = 16


@contextlib.contextmanager
def spark_context(
    name: str,
    master: str | None,
    num_workers: int = 0,
    spark_arguments: Sequence[str] = (),
    show: bool = False,
) -> Iterator[pyspark.SparkContext]:
    """Give a context of Spark; the one that is there, as in a notebook, stays open.

    Args:
        name: of the application, on Spark's page.
        master: of the cluster, such as spark://HOST:7077 or local[2]; None for the one that
            spark-submit or Spark's settings give, and else all cores of this machine.
        num_workers: executors, of one core each; 0 for what the cluster gives.
        spark_arguments: settings of Spark, each "--spark.name=value".
        show: tell the address of Spark's page on standard error.

    Raises:
        ValueError: a setting is none, there is no Java, or the master cannot be reached.
    """
    settings = {"spark.app.name": name, **_settings(master, num_workers, spark_arguments)}
    _check_java()
    with _context(settings) as context:
        if show and context.uiWebUrl:
            print(f"Spark's page: {context.uiWebUrl}", file=sys.stderr, flush=True)
        yield context


def _settings(master: str | None, num_workers: int, arguments: Sequence[str]) -> dict[str, str]:
    settings = {"spark.ui.showConsoleProgress": "false"}
    if master:
        settings["spark.master"] = master
    if num_workers:
        settings["spark.executor.instances"] = settings["spark.cores.max"] = str(num_workers)
        settings["spark.executor.cores"] = "1"
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--spark.") or not equals:
            raise ValueError(
                f"unexpected argument {argument!r}: expected settings of Spark as "
                "--spark.executor.memory=4g"
            )
        settings[name] = value
    return settings


def _check_java() -> None:
    """See that there is a Java that Spark runs on.

    Raises:
        ValueError: there is none, or an older one.
    """
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    remedy = f"runner: spark needs Java {_JAVA} or newer (such as Debian's openjdk-17-jre-headless)"
    if java is None or not os.path.exists(java):
        where = (
            f"in JAVA_HOME, which is {home}" if home else "on the path, and JAVA_HOME is not set"
        )
        raise ValueError(f"{remedy}; there is none {where}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version and int(version[1]) < _JAVA:
        raise ValueError(f"{remedy}; {java} is Java {version[1]}")


@contextlib.contextmanager
def _context(settings: dict[str, str]) -> Iterator[pyspark.SparkContext]:
    logging.getLogger("py4j").setLevel(logging.ERROR)  # it says again what is raised
    if python := settings.get("spark.pyspark.python"):  # which spark-submit alone would heed
        os.environ["PYSPARK_PYTHON"] = python
    elif settings.get("spark.master", "" if _is_submitted() else "local").startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    active = pyspark.SparkContext._active_spark_context
    configuration = pyspark.SparkConf().setAll(list(settings.items()))
    try:
        # One by one, since a piece of text may be of megabytes, and ten would not spread evenly.
        context = active or pyspark.SparkContext(conf=configuration, batchSize=1)
    except (Py4JJavaError, PySparkRuntimeError) as error:
        master = settings.get("spark.master", "that of Spark's settings")
        raise ValueError(f"spark_master: cannot use {master}: {_reason(error)}") from error
    # What failed is told in one line; on a cluster Spark's notes tell where to look too.
    is_local = (context.master or "").startswith("local")
    context.setLogLevel("OFF" if is_local else "ERROR")
    try:
        workers = settings.get("spark.executor.instances")
        if workers and is_local:
            raise ValueError(
                "num_workers: of a local master they stand in brackets: "
                f"--spark_master='local[{workers}]'"
            )
        yield context
    finally:
        if active is None:
            context.stop()


def _is_submitted() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ  # which spark-submit sets


class SparkRunner(Runner[J]):
    """Runs jobs as those of one context, whose page shows their names, stages and tasks."""

    def __init__(self, job: J, show: bool, context: pyspark.SparkContext):
        """Run the jobs of a context, see `spark_context`; the rest is as of the base class."""
        super().__init__(job, show)
        self._context = context

    def carry_out(self, name: str, items: Sequence[Any], steps: Sequence[Step], path: str) -> None:
        """See the base class."""
        tasks = self._context.defaultParallelism * _TASKS_OF_A_CORE
        self._context.setJobDescription(f"{name}: {', '.join(step.label for step in steps)}")
        elements: Any = self._context.parallelize(items, max(1, min(len(items), tasks)))
        for number, step in enumerate(steps):
            if step.kind == "group":
                elements = elements.groupByKey(tasks)
            elif step.kind == "spread":
                if number:  # what the first one would spread has been dealt out
                    elements = elements.repartition(tasks)
            else:
                elements = elements.mapPartitions(_Part(step))
            elements.setName(step.label)
        self.job.files.write_json(path, sorted(elements.collect()))

    def reason_of(self, error: Exception) -> str:
        """See the base class."""
        return _reason(error)


class _Part:
    """Carries out a step on what a task has, one element after another."""

    def __init__(self, step: Step):
        self._step = step

    def __call__(self, elements: Iterator[Any]) -> Iterator[Any]:
        """Yield what becomes of the elements."""
        function, arguments = self._step.function, self._step.arguments
        assert function is not None  # noqa: S101  (of "map" and "flat_map")
        for element in elements:
            if self._step.kind == "map":
                yield function(element, *arguments)
            else:
                yield from function(element, *arguments)


def _reason(error: Exception) -> str:
    """Return the line that says why: of a worker's Python, or else of Java."""
    text = str(error)
    if isinstance(error, Py4JJavaError):
        text = str(error.java_exception)
    python = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception): .+)$", text, re.MULTILINE)
    if python and "ModuleNotFoundError" in text:
        return (
            f"{python[-1]}; each worker's Python needs bert-tf: name one that has it by "
            "--spark.pyspark.python=PATH"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (python or lines or [type(error).__name__])[-1 if python else 0]
