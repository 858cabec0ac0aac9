"""Records and text made on Apache Spark are the local runner's, whatever happens to workers."""

import contextlib
import gzip
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

from data_prep.cluster import jobs
from data_prep.corpus import cluster_extraction, extraction
from data_prep.pretraining import local_runner
from data_prep.pretraining.options import shard_names
from tests.support import cluster_records, spark_cluster
from tests.support.cluster_records import GOLDEN, REPOSITORY, files_of, options_of

pyspark = pytest.importorskip(
    "pyspark", reason="Apache Spark is not installed: pip install '.[spark]'"
)
if shutil.which("java") is None:
    pytest.skip("Apache Spark needs Java 17, and there is no java", allow_module_level=True)

from data_prep.cluster import spark_jobs  # noqa: E402  (what it imports may be missing)
from data_prep.corpus import spark_extraction  # noqa: E402
from data_prep.pretraining import spark_runner  # noqa: E402

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


class _Context:
    """What of a context is asked for."""

    _active_spark_context = None
    master, uiWebUrl = "spark://h:1", "http://h:4040"

    def __init__(self, conf=None, batchSize=None):
        self.settings, self.is_stopped = dict(conf.getAll()) if conf else {}, False

    def setLogLevel(self, level):
        self.level = level

    def stop(self):
        self.is_stopped = True


def test_settings_of_a_cluster(monkeypatch, capsys):
    monkeypatch.setattr(spark_jobs, "_check_java", lambda: None)
    monkeypatch.setattr(pyspark, "SparkContext", _Context)
    monkeypatch.setenv("PYSPARK_PYTHON", "before")
    python = ["--spark.pyspark.python=/of/workers"]
    with spark_jobs.spark_context("x", "spark://h:1", 3, python, show=True) as context:
        assert os.environ["PYSPARK_PYTHON"] == "/of/workers"
        assert context.settings["spark.cores.max"] == "3" and context.level == "ERROR"
    assert context.is_stopped and "Spark's page: http://h:4040" in capsys.readouterr().err
    # Those of spark-submit, and a context that is there already, which stays.
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    monkeypatch.setenv("PYSPARK_PYTHON", "before")
    monkeypatch.setattr(_Context, "_active_spark_context", _Context())
    with spark_jobs.spark_context("x", None, 0, [], show=False) as context:
        assert context is _Context._active_spark_context
        assert os.environ["PYSPARK_PYTHON"] == "before"
    assert not context.is_stopped and not capsys.readouterr().err


def test_the_line_of_an_error():
    assert spark_jobs._reason(RuntimeError("\n  it ended\n  here")) == "it ended"
    assert spark_jobs._reason(RuntimeError()) == "RuntimeError"
    text = "Caused by:\npickle.PicklingError: first\na.b.ModuleNotFoundError: No module named 'x'\n"
    assert "named 'x'; each worker's Python needs bert-tf" in spark_jobs._reason(RuntimeError(text))


# === Extraction ===


def wiki_of(documents):
    return "".join(
        f'<doc id="{i}" title="T{i}">\nT{i}\n\nHello {i}. ' + "It is so. " * (i % 5) + "\n</doc>\n"
        for i in documents
    )


def test_extracted_text_is_the_local_one(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_extraction, "UNIT_BYTES", 499)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "large").write_text(wiki_of(range(53)))
    for number in range(17):
        (folder / f"small-{number:02}").write_text(wiki_of(range(number, number + 3)))
    made = []
    for name in ("local", "spark"):
        out = tmp_path / name
        out.mkdir()
        arguments = ([f"{folder}/*"], f"{out}/train.txt.gz")
        more: dict[str, Any] = {"options": extraction.Options(heldout_fraction=0.2)}
        more["heldout_output_file"] = f"{out}/heldout.txt"
        if name == "local":
            counts = extraction.extract_corpus(*arguments, **more)
        else:
            more |= {"master": "local[2]", "spark_arguments": SETTINGS}
            counts = spark_extraction.extract_corpus(*arguments, **more)
        made.append((files_of(out), counts))
    assert made[0] == made[1] and made[0][1].documents_read == 53 + 17 * 3


def test_extraction_tells_what_is_wrong_and_leaves_nothing(tmp_path):
    (tmp_path / "in").write_text(wiki_of(range(3)) + "<doc\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"^[^\n]*in:16: expected <doc id=...>, got b'<doc'$"):
        spark_extraction.extract_corpus(
            [f"{tmp_path}/in"],
            f"{tmp_path}/out/x",
            master="local[2]",
            spark_arguments=SETTINGS,
        )
    assert not list((tmp_path / "out").iterdir())


# === A real cluster ===


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """Return a command without its output, on two megabytes of text, and the runner's records."""
    return cluster_records.longer_run(tmp_path_factory.mktemp("longer"))


@pytest.fixture
def cluster(tmp_path):
    """A master and two workers of one core each."""
    with spark_cluster.running(tmp_path) as running:
        yield running


@contextlib.contextmanager
def _started(cluster, command, log, *settings, path=str(REPOSITORY)):
    """Give a command that has been started beside the master; it is killed where a test fails."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [
                *cluster.hosts[0].enter,
                *command,
                "--runner=spark",
                *cluster.settings(),
                f"--spark.pyspark.python={sys.executable}",
                "--spark.executor.memory=512m",
                "--spark.executor.cores=1",
                "--spark.ui.enabled=false",
                f"--spark.executorEnv.PYTHONPATH={path}",
                *settings,
            ],
            cwd=REPOSITORY,
            env=spark_cluster.environment(cluster.hosts[0], path),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        spark_cluster.kill(process)


def _await(process, folder, pattern, log, seconds=1000):
    """Wait until a file is there."""
    deadline = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("stage", [None, "tokens", "pairs", "records"])
def test_a_cluster_makes_the_same_records_though_a_worker_is_killed(
    tmp_path, longer, cluster, stage
):
    command, expected = longer
    out, log = tmp_path / "out", tmp_path / "log"
    with _started(cluster, [*command, f"--output_file={out}/x.tfrecord"], log) as process:
        if stage is not None:
            pattern = {"tokens": "tokens-*", "pairs": "pairs-0*", "records": "chunk-*"}[stage]
            _await(process, out, f"x.work-*/{pattern}", log)
            spark_cluster.kill(cluster.workers[0])
        assert process.wait(timeout=1000) == 0, log.read_text()
    assert files_of(out)[0] == expected


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_cluster_extracts_the_same_text_though_a_worker_is_killed(tmp_path, cluster):
    folder, out, local, log = (tmp_path / name for name in ("in", "out", "local", "log"))
    for made in (folder, out, local):
        made.mkdir()
    (folder / "large").write_text(wiki_of(range(40_000)))  # some 3 MB, in 40 parts
    for number in range(1_000):
        (folder / f"small-{number:04}").write_text(wiki_of(range(number, number + 3)))
    (tmp_path / "sitecustomize.py").write_text(
        "from data_prep.corpus import cluster_extraction\ncluster_extraction.UNIT_BYTES = 1 << 16\n"
    )
    extraction.extract_corpus(
        [f"{folder}/*"],
        f"{local}/train.txt.gz",
        options=extraction.Options(heldout_fraction=0.1),
        heldout_output_file=f"{local}/heldout.txt",
    )
    command = [sys.executable, "data_prep/extract_corpus.py", f"--input_file={folder}/*"]
    command += [f"--output_file={out}/train.txt.gz", f"--heldout_output_file={out}/heldout.txt"]
    command += ["--heldout_fraction=0.1"]
    with _started(cluster, command, log, path=f"{tmp_path}:{REPOSITORY}") as process:
        _await(process, out, "train.txt.gz.work-*/counts-*", log)
        spark_cluster.kill(cluster.workers[0])
        assert process.wait(timeout=1000) == 0, log.read_text()
    assert files_of(out) == files_of(local)
    assert f"read {40_000 + 3_000:,} documents" in log.read_text()


@contextlib.contextmanager
def _troubled(trouble, folder):
    """A cluster, and what stops its first worker and what lets it go on."""
    if trouble != "cut off":
        psutil = pytest.importorskip("psutil")
        with spark_cluster.running(folder) as running:
            stopped = []

            def stop():
                worker = psutil.Process(running.workers[0].pid)
                stopped.extend(worker.children(recursive=True))  # an executor and its Python
                for process in stopped:
                    process.suspend()

            def go_on():
                for process in stopped:
                    with contextlib.suppress(psutil.NoSuchProcess):  # the cluster gave it up
                        process.resume()

            yield running, stop, go_on
        return
    with contextlib.ExitStack() as stack:
        try:
            hosts, head = stack.enter_context(spark_cluster.namespaces())
        except PermissionError as error:
            pytest.skip(str(error))
        cable = ["ip", "-n", head, "link", "set", "c0"]
        running = stack.enter_context(spark_cluster.running(folder, hosts))
        yield (
            running,
            lambda: subprocess.run([*cable, "down"], check=True),
            lambda: subprocess.run([*cable, "up"], check=True),
        )


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("trouble", ["waited for", "overtaken", "cut off"])
def test_a_worker_that_stands_still_changes_nothing(tmp_path, small_steps, trouble):
    """Its tasks wait, are begun again by speculation, or are given to the other when it is lost."""
    expected_folder, out, log = tmp_path / "local", tmp_path / "out", tmp_path / "log"
    outputs = shard_names(str(expected_folder / "x.tfrecord"), 3)
    local_runner.create_pretraining_data(options_of(expected_folder, output_files=outputs), 1)
    names = ("dupe_factor", "max_seq_length", "max_predictions_per_seq", "vocab_file")
    options = options_of(out)
    command = [sys.executable, "data_prep/create_pretraining_data.py", "--num_shards=3"]
    command += [f"--{name}={getattr(options, name)}" for name in names]
    command += [f"--input_file={','.join(options.input_files)}", f"--output_file={out}/x.tfrecord"]
    settings = ["--spark.speculation=true", "--spark.speculation.quantile=0.3"]
    settings += ["--spark.speculation.minTaskRuntime=1s"]
    lost = ["--spark.network.timeout=40s", "--spark.executor.heartbeatInterval=4s"]
    lost += ["--spark.network.timeoutInterval=5s", "--spark.shuffle.io.retryWait=1s"]
    path = small_steps[-1].partition("PYTHONPATH=")[2]
    with _troubled(trouble, tmp_path) as (running, stop, go_on):
        more = {"waited for": [], "overtaken": [*settings, *lost], "cut off": lost}[trouble]
        with _started(running, command, log, *more, path=path) as process:
            _await(process, out, "x.work-*/tokens-*", log)
            stop()
            if trouble == "waited for":
                time.sleep(20)
            else:  # the other makes all that comes before
                _await(process, out, "x.work-*/chunk-*", log)
            go_on()
            assert process.wait(timeout=1000) == 0, log.read_text()
    assert files_of(out)[0] == files_of(expected_folder)[0]
    assert not list(out.glob("x.work-*"))


def test_a_part_may_give_any_number_of_elements():
    def times(number, factor):
        return [number * factor] * number

    step = jobs.Step("x", "flat_map", times, (10,))
    assert [*spark_jobs._Part(step)(iter([2, 0, 1]))] == [20, 20, 10]
    step = jobs.Step("x", "map", times, (10,))
    assert [*spark_jobs._Part(step)(iter([2, 0, 1]))] == [[20, 20], [], [10]]
