"""Records made on Apache Spark are those of the local runner, whatever happens to the workers."""

import contextlib
import gzip
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data_prep.pretraining import local_runner
from tests.support import cluster_records
from tests.support.cluster_records import GOLDEN, REPOSITORY, files_of, options_of

pyspark = pytest.importorskip(
    "pyspark", reason="Apache Spark is not installed: pip install '.[spark]'"
)
if shutil.which("java") is None:
    pytest.skip("Apache Spark needs Java 17, and there is no java", allow_module_level=True)

from data_prep.pretraining import spark_runner  # noqa: E402  (what it imports may be missing)

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning:pyspark")

SETTINGS = ["--spark.ui.enabled=false", "--spark.driver.bindAddress=127.0.0.1"]
SETTINGS += ["--spark.driver.host=127.0.0.1"]


@pytest.fixture
def small_steps(monkeypatch, tmp_path):
    """Make steps small, in this process and in those of the workers; returns their settings."""
    cluster_records.make_steps_small(monkeypatch.setattr)
    folder = tmp_path / "small_steps"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from tests.support import cluster_records\ncluster_records.make_steps_small(setattr)\n"
    )
    return [*SETTINGS, f"--spark.executorEnv.PYTHONPATH={folder}:{REPOSITORY}"]


def create(options, settings):
    return spark_runner.create_pretraining_data(options, "local[2]", 0, settings, False)


def test_records_and_manifest_are_the_local_ones(tmp_path, small_steps):
    """Texts here go on over pieces and bundles, and documents over files."""
    compressed = tmp_path / "tiny_2.txt.gz"
    compressed.write_bytes(gzip.compress((GOLDEN / "tiny_2.txt").read_bytes()))
    made = []
    for name in ("local", "spark"):
        options = options_of(
            tmp_path / name,
            output_files=tuple(f"{tmp_path}/{name}/{i}.tfrecord.gz" for i in range(3)),
            input_files=(str(GOLDEN / "tiny_1.txt"), str(compressed)),
            do_whole_word_mask=True,
        )
        if name == "local":
            local_runner.create_pretraining_data(options, 1, show_progress=False)
        else:
            create(options, small_steps)
        made.append(files_of(tmp_path / name))
    assert made[0] == made[1]
    assert len(made[0][0]) == 3 and made[0][1]["0.manifest.json"]["counts"]["instances"] > 29


def test_bad_text_is_one_line_and_leaves_nothing(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"one\n\ntwo\nthr\xe9e\nfour\n")
    options = options_of(tmp_path / "out", input_files=(str(text),))
    with pytest.raises(ValueError, match=r"^[^\n]*text.txt, line 4: not UTF-8[^\n]*$"):
        create(options, SETTINGS)
    assert not list((tmp_path / "out").iterdir())


def test_a_worker_without_the_package_is_told_of(tmp_path):
    settings = [*SETTINGS, f"--spark.executorEnv.PYTHONPATH={tmp_path}"]
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['data_prep'] = None\n")
    with pytest.raises(
        RuntimeError, match=r"tokens failed: ModuleNotFoundError: .*--spark.pyspark.python=PATH$"
    ):
        create(options_of(tmp_path / "out"), settings)


@pytest.mark.parametrize(
    ("java", "message"),
    [
        (None, "needs Java 17 or newer .*; there is none in JAVA_HOME, which is /"),
        ('openjdk version "11.0.2" 2019-01-15', "needs Java 17 or newer .*/bin/java is Java 11$"),
    ],
)
def test_a_missing_or_old_java_is_one_line(tmp_path, monkeypatch, java, message):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    if java:
        (tmp_path / "bin").mkdir()
        path = tmp_path / "bin" / "java"
        path.write_text(f"#!/bin/sh\necho '{java}' >&2\n")
        path.chmod(0o755)
    with pytest.raises(ValueError, match=message):
        create(options_of(tmp_path / "out"), SETTINGS)
    assert not (tmp_path / "out" / "0.tfrecord").exists()


def test_bad_settings_are_refused(tmp_path):
    for argument in ("--executor.memory=4g", "--spark.executor.memory"):
        with pytest.raises(ValueError, match="expected settings of Spark as --spark.executor"):
            create(options_of(tmp_path), [argument])
    with pytest.raises(ValueError, match=r"num_workers: .*--spark_master='local\[3\]'"):
        spark_runner.create_pretraining_data(options_of(tmp_path), "local", 3)
    with pytest.raises(
        ValueError, match=r"spark_master: cannot use local\[no\]: .*Could not parse Master URL"
    ):
        spark_runner.create_pretraining_data(options_of(tmp_path / "out"), "local[no]")


# === A real cluster ===


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """Return a command without its output, on two megabytes of text, and the runner's records."""
    return cluster_records.longer_run(tmp_path_factory.mktemp("longer"))


def _spark(kind, log, *arguments):
    """Start a master or a worker of a standalone cluster; it leads a group of processes."""
    command = pathlib.Path(pyspark.__file__).parent / "bin" / "spark-class"
    with open(log, "wb") as stream:
        return subprocess.Popen(
            [command, f"org.apache.spark.deploy.{kind}", "--host", "127.0.0.1", *arguments],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SPARK_LOCAL_IP": "127.0.0.1"},
            start_new_session=True,
        )


def _logged(log, pattern, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := re.search(pattern, log.read_text()):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{pattern} did not come: {log.read_text()[-2000:]}")


@pytest.fixture
def cluster(tmp_path):
    """A master and two workers of one core each; yields the address and the workers."""
    processes = [_spark("master.Master", tmp_path / "master.log", "--port", "0")]
    try:
        address = _logged(tmp_path / "master.log", r"spark://127.0.0.1:\d+")[0]
        workers = []
        for number in range(2):
            folder = tmp_path / f"worker-{number}"
            arguments = ["--cores", "1", "--memory", "1g", "--work-dir", str(folder), address]
            log = tmp_path / f"worker-{number}.log"
            workers.append(_spark("worker.Worker", log, "--webui-port", "0", *arguments))
            processes.append(workers[-1])
            _logged(log, "Successfully registered with master")
        yield address, workers
    finally:
        for process in processes:
            _kill(process)


def _kill(process):
    """Kill a process and all below it: an executor and its Python are in the worker's session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(840)
@pytest.mark.parametrize("stage", [None, "tokens", "pairs", "records"])
def test_a_cluster_makes_the_same_records_though_a_worker_is_killed(
    tmp_path, longer, cluster, stage
):
    command, expected = longer
    address, workers = cluster
    out, log = tmp_path / "out", tmp_path / "log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [
                *command,
                "--runner=spark",
                f"--spark_master={address}",
                f"--spark.pyspark.python={sys.executable}",
                "--spark.executor.memory=512m",
                "--spark.executor.cores=1",
                *SETTINGS,
                f"--output_file={out}/x.tfrecord",
            ],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SPARK_LOCAL_IP": "127.0.0.1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if stage is not None:
        pattern = {"tokens": "tokens-*", "pairs": "pairs-0*", "records": "chunk-*"}[stage]
        deadline = time.monotonic() + 400
        while not list(out.glob(f"x.work-*/{pattern}")):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        _kill(workers[0])
    assert process.wait(timeout=700) == 0, log.read_text()
    assert files_of(out)[0] == expected
