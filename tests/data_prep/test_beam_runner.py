"""Records made on Apache Beam are those of the local runner, whatever happens to the workers."""

import gzip
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

import pytest
from absl import flags

from bert_tf.records.files import scan_records
from data_prep.cluster.command import runner_arguments
from data_prep.corpus import text_files
from data_prep.pretraining import local_runner
from data_prep.pretraining.options import define_flags
from tests.support import cluster_records
from tests.support.cluster_records import GOLDEN, REPOSITORY, files_of, options_of

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install '.[beam]'")

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

from data_prep.pretraining import beam_runner, cluster_steps

pytestmark = [
    pytest.mark.beam,
    # Beam's coders look at types that NumPy is about to rename; its channels close when collected.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:apache_beam"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning:apache_beam"),
]


@pytest.fixture
def small_steps(monkeypatch):
    """Many pieces, bundles, blocks, files of pairs and chunks from little text."""
    cluster_records.make_steps_small(monkeypatch.setattr)


@pytest.mark.parametrize(
    "changes",
    [
        {"suffix": ".gz", "do_whole_word_mask": True, "word_list": "words.txt"},
        pytest.param({"dynamic_masking": True, "dupe_factor": 1}, marks=pytest.mark.slow),
    ],
    ids=["masked_gzip", "unmasked"],
)
def test_records_and_manifest_are_the_local_ones(tmp_path, small_steps, changes):
    """Texts here go on over pieces and bundles, and documents over files."""
    suffix = changes.pop("suffix", "")
    made = []
    if "word_list" in changes:  # punctuation makes several pieces of some
        words = (GOLDEN / "tiny_1.txt").read_text().split()
        (tmp_path / "words.txt").write_text("\n".join(words))
        changes = {**changes, "word_list": str(tmp_path / "words.txt")}
    compressed = tmp_path / "tiny_2.txt.gz"
    compressed.write_bytes(gzip.compress((GOLDEN / "tiny_2.txt").read_bytes()))
    for name in ("local", "beam"):
        folder = tmp_path / name
        options = options_of(
            folder,
            output_files=tuple(f"{folder}/{i}.tfrecord{suffix}" for i in range(3)),
            input_files=(str(GOLDEN / "tiny_1.txt"), str(compressed)),
            **changes,
        )
        if name == "local":
            local_runner.create_pretraining_data(options, 1, show_progress=False)
        else:
            beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
        made.append(files_of(folder))
    assert made[0] == made[1]
    assert len(made[0][0]) == 3 and made[0][1]["0.manifest.json"]["counts"]["instances"] > 29


def test_manifest_tells_the_files_apart(tmp_path, small_steps):
    options = options_of(tmp_path)
    manifest = local_runner.create_pretraining_data(options, 1, show_progress=False)
    assert manifest["file_bytes"] == [os.path.getsize(path) for path in options.output_files]
    assert manifest["file_instances"] == [scan_records(p) for p in options.output_files]


class MappedFileSystem(LocalFileSystem):
    """Files under mapped:// that only Beam can open; they lie in `root`."""

    root = ""

    @classmethod
    def scheme(cls):
        return "mapped"

    @classmethod
    def here(cls, path):
        return path.replace("mapped:/", cls.root)

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def match(self, patterns, limits=None):
        found = super().match([self.here(pattern) for pattern in patterns], limits)
        for result in found:
            result.metadata_list = [
                FileMetadata(m.path.replace(self.root, "mapped:/"), m.size_in_bytes, 17.0)
                for m in result.metadata_list
            ]
        return found

    def mkdirs(self, path):
        super().mkdirs(self.here(path))

    def exists(self, path):
        return super().exists(self.here(path))

    def create(self, path, *arguments, **keywords):
        return super().create(self.here(path), *arguments, **keywords)

    def open(self, path, *arguments, **keywords):
        return super().open(self.here(path), *arguments, **keywords)

    def rename(self, sources, targets):
        assert not any(map(self.exists, targets))  # as HDFS: it does not rename onto a file
        super().rename(list(map(self.here, sources)), list(map(self.here, targets)))

    def delete(self, paths):
        for path in map(self.here, paths):
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def test_text_and_records_may_lie_on_other_file_systems(tmp_path, small_steps, monkeypatch):
    monkeypatch.setattr(MappedFileSystem, "root", str(tmp_path))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "1.txt").write_bytes((GOLDEN / "tiny_1.txt").read_bytes())
    (tmp_path / "text" / "2.txt.gz").write_bytes(
        gzip.compress((GOLDEN / "tiny_2.txt").read_bytes())
    )
    inputs = tuple(text_files.expand_patterns("mapped://text/1.txt,mapped://text/*.gz"))
    assert inputs == ("mapped://text/1.txt", "mapped://text/2.txt.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.tfrecord").write_bytes(b"of an earlier run")
    options = options_of("mapped://out", input_files=inputs)
    beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
    local = options_of(tmp_path / "local", input_files=tuple(map(MappedFileSystem.here, inputs)))
    local_runner.create_pretraining_data(local, 1, show_progress=False)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "local")


def test_bad_text_is_one_line_and_leaves_nothing(tmp_path, small_steps):
    text = tmp_path / "text.txt"
    text.write_bytes(b"one\n\ntwo\nthr\xe9e\nfour\n")
    options = options_of(tmp_path / "out", input_files=(str(text),))
    with pytest.raises(ValueError, match=r"^[^\n]*text.txt, line 4: not UTF-8[^\n]*$"):
        beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
    assert not list((tmp_path / "out").iterdir())
    text.write_bytes(b"\n \n")
    with pytest.raises(ValueError, match="text.txt: no documents"):
        beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
    with pytest.raises(ValueError, match="compatible: .* drop runner"):
        options = options_of(tmp_path, compatible=True)
        beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)


@pytest.mark.slow
def test_a_failed_job_leaves_no_output_and_is_continued(tmp_path, small_steps, monkeypatch):
    """Fail within each job in turn, where a file is to get its name."""
    local_runner.create_pretraining_data(options_of(tmp_path / "a"), 1, False)
    options = options_of(tmp_path / "b")
    rename = beam_runner.BeamFiles.rename
    left = ["tokens-000001-0000000", "block-000001.json", "chunk-0000002", "output-00001.npz"]

    def failing(files, source, target):
        if os.path.basename(target) == left[0]:
            raise OSError("the disk is full")
        rename(files, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(beam_runner.BeamFiles, "rename", failing)
        while left[1:]:
            with pytest.raises(RuntimeError, match="the job of .* failed: .*the disk is full"):
                beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
            assert [path.name[:7] for path in (tmp_path / "b").iterdir()] == ["0.work-"]
            del left[0]
    beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "a")


LOST = {
    "file_pieces": "the job of tokens lost some of its results",
    "_part_shares": "a chunk got .* of its .*pairs",
    "_fetch": "a chunk got .* of its .* tokens",
}


@pytest.mark.parametrize(
    "step", ["_fetch", *(pytest.param(x, marks=pytest.mark.slow) for x in LOST if x != "_fetch")]
)
def test_what_a_runner_loses_is_missed(tmp_path, small_steps, monkeypatch, step):
    """The last element that a step gives goes nowhere."""
    function = getattr(cluster_steps, step)
    monkeypatch.setattr(cluster_steps, step, lambda *given: iter(list(function(*given))[:-1]))
    options = options_of(tmp_path / "out", dupe_factor=1)
    with pytest.raises(RuntimeError, match=f"{LOST[step]}"):
        beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
    assert [path.name[:7] for path in (tmp_path / "out").iterdir()] == ["0.work-"]


def test_more_files_than_records(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"a b c.\nd e f.\n\nthe a\nof to\n")
    options = options_of(
        tmp_path / "out",
        input_files=(str(text),),
        output_files=tuple(f"{tmp_path}/out/{i}" for i in range(17)),
    )
    manifest = beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
    counts = [scan_records(path) for path in options.output_files]
    assert counts == manifest["file_instances"] and counts[0] == 1 and counts[-1] == 0
    assert manifest["file_bytes"] == [os.path.getsize(path) for path in options.output_files]


def _arguments(line):
    values = flags.FlagValues()
    define_flags(values)
    left = values(["x", "--input_file=a", "--output_file=b", "--vocab_file=c", *line], True)
    return runner_arguments(left, values)


def test_flags_of_the_runner_pass_through():
    left = _arguments(["--runner=FlinkRunner", "--flink_master=h:1", "--max_num_workers=3"])
    assert left == ["--flink_master=h:1", "--max_num_workers=3"]
    assert beam_runner._pipeline_arguments("FlinkRunner", 5, left) == [
        "--runner=FlinkRunner",
        "--num_workers=5",
        *left,
    ]
    direct = beam_runner._pipeline_arguments("DirectRunner", 2, [])
    assert direct[1:3] == ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    assert "PrismRunner" not in direct[0]  # which would be downloaded
    with pytest.raises(ValueError, match="unknown flag --dup_factor; did you mean --dupe_factor?"):
        _arguments(["--runner=FlinkRunner", "--dup_factor=3"])
    with pytest.raises(ValueError, match="unexpected argument 'more.txt': quote globs"):
        _arguments(["--runner=FlinkRunner", "more.txt"])


# === Real worker processes ===


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """Return a command without its output, on two megabytes of text, and the runner's records."""
    command, expected = cluster_records.longer_run(tmp_path_factory.mktemp("longer"))
    command += ["--runner=DirectRunner", "--num_workers=2"]
    return command, expected


def _start(command, folder, log):
    with open(log, "wb") as stream:
        return subprocess.Popen(
            [*command, f"--output_file={folder}/x.tfrecord"],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )


def _workers(process):
    """Return the processes of Beam's workers below a process."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue  # it has just ended
    found = []
    for pid in parents:
        above = pid
        while above in parents and above != process.pid:
            above = parents[above]
        try:
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        is_worker = b"apache_beam.runners.worker.sdk_worker_main" in command
        if above == process.pid and is_worker:
            found.append(pid)
    return found


@pytest.mark.slow
def test_two_worker_processes_make_the_same_records(tmp_path, longer):
    command, expected = longer
    log = tmp_path / "log"
    process = _start(command, tmp_path / "out", log)
    seen = set()
    while process.poll() is None:
        seen.update(_workers(process))
        time.sleep(0.05)
    assert process.returncode == 0, log.read_text()
    assert len(seen) == 3 * 2  # in each of the jobs
    assert files_of(tmp_path / "out")[0] == expected


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "whole run"])
def test_a_killed_process_leaves_no_output_and_the_run_is_continued(tmp_path, longer, victim):
    command, expected = longer
    out, log = tmp_path / "out", tmp_path / "log"
    process = _start(command, out, log)
    deadline = time.monotonic() + 200
    earlier, workers = set(), []
    while not workers:  # of the last job
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        if list(out.glob("x.work-*/pairs.json")):
            workers = sorted(set(_workers(process)) - earlier)
        else:
            earlier.update(_workers(process))
        time.sleep(0.05)
    if victim == "worker":
        os.kill(workers[0], signal.SIGKILL)
        try:
            assert process.wait(timeout=100) == 1
        finally:
            process.kill()
            process.wait()
        assert "failed: Worker subprocess exited with return code 137" in log.read_text()
    else:
        process.kill()
        process.wait()
    assert [path.name[:7] for path in out.iterdir()] == ["x.work-"]
    again = _start(command, out, log)
    assert again.wait() == 0, log.read_text()
    assert "tokens: done" not in log.read_text() and "records: done" in log.read_text()
    assert files_of(out)[0] == expected


@pytest.mark.slow
def test_real_text_gives_the_same_records(tmp_path, shared_data):
    """Eight megabytes of Wikipedia, several pieces and parts, one process of Beam."""
    with gzip.open(shared_data / "corpus" / "wikipedia_en_extract.txt.gz", "rb") as stream:
        text = stream.read(9_000_000).rsplit(b"</doc>", 1)[0]
    lines = [line for line in text.split(b"\n") if not line.startswith(b"<")]
    (tmp_path / "text.txt").write_bytes(b"\n".join(lines))
    made = []
    for name in ("local", "beam"):
        folder = tmp_path / name
        options = options_of(
            folder,
            input_files=(str(tmp_path / "text.txt"),),
            vocab_file=str(shared_data / "vocab" / "bert-base-uncased-vocab.txt"),
            max_seq_length=128,
            max_predictions_per_seq=20,
        )
        if name == "local":
            local_runner.create_pretraining_data(options, 1, show_progress=False)
        else:
            beam_runner.create_pretraining_data(options, "DirectRunner", 1, (), False)
        made.append(files_of(folder))
    assert made[0] == made[1]
    counts = made[0][1]["0.manifest.json"]["counts"]
    assert counts["instances"] > 10_000


# === Threads of the runner, without one ===


@pytest.fixture
def interrupts():
    """Let SIGINT be what it is in a command, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _fail(message):
    raise OSError(message)


def test_threads_that_fail_end_the_job_once(interrupts):
    hook, problems = threading.excepthook, []

    def fail():
        for message in ("a worker is gone", "and another"):
            try:
                _fail(message)
            except OSError as error:
                arguments = threading.ExceptHookArgs((OSError, error, None, None))
            try:
                threading.excepthook(arguments)
            except Exception as error:
                problems.append(error)

    thread = threading.Thread(target=fail)
    with pytest.raises(RuntimeError, match="^a worker is gone$"):
        with beam_runner._failing_with_workers():
            thread.start()
            try:
                time.sleep(60)  # the job, which waits for what does not come
            finally:
                thread.join()
    assert not problems
    assert threading.excepthook is hook
    with pytest.raises(KeyboardInterrupt), beam_runner._failing_with_workers():
        raise KeyboardInterrupt  # of the user


def test_a_job_that_cannot_tidy_up_is_ended(interrupts, monkeypatch, capsys):
    ended = threading.Event()
    statuses = []
    monkeypatch.setattr(beam_runner, "_TIDYING_SECONDS", 0)
    monkeypatch.setattr(beam_runner.os, "_exit", lambda x: statuses.append(x) or ended.set())
    with pytest.raises(RuntimeError, match="^a worker is gone$"):
        with beam_runner._failing_with_workers():
            thread = threading.Thread(target=_fail, args=("a worker is gone",))
            thread.start()
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                assert ended.wait(60)
                raise
    assert statuses == [1]
    told = "create_pretraining_data: a job failed: a worker is gone"
    assert told in capsys.readouterr().err


def test_how_much_beam_tells_can_be_chosen():
    quiet = "--default_sdk_harness_log_level=WARNING"
    assert quiet in beam_runner._pipeline_arguments("DirectRunner", 1, [])
    chosen = ["--default_sdk_harness_log_level=DEBUG"]
    assert quiet not in beam_runner._pipeline_arguments("DirectRunner", 1, chosen)
