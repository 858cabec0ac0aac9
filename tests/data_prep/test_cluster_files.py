"""Files that the workers of a cluster share, here and on a remote file system."""

import contextlib
import shutil
import types

import pytest

from bert_tf import files
from data_prep.cluster import jobs
from data_prep.cluster.command import needing, runner_arguments
from data_prep.cluster.files import FsspecFiles
from data_prep.pretraining import cluster_jobs, cluster_steps
from tests.support.cluster_records import VOCABULARY, options_of


@pytest.mark.parametrize("remote", [False, True])
def test_files_are_there_whole_or_not_at_all(tmp_path, remote):
    store = FsspecFiles()
    folder = f"memory://{tmp_path}" if remote else str(tmp_path)
    if remote:
        store.make_folder(folder)
    assert store.exists(folder) and not store.exists(f"{folder}/a.json")
    with pytest.raises(RuntimeError, match="half"), store.write_whole(f"{folder}/a.json") as stream:
        stream.write(b"half")
        raise RuntimeError("half")
    assert not store.exists(f"{folder}/a.json")
    store.write_json(f"{folder}/a.json", [1])
    with store.write_whole(f"{folder}/a.json", replace=True) as stream:
        stream.write(b"[3]")
    assert store.read_json(f"{folder}/a.json") == [3]
    store.write_json(f"{folder}/b.json", [2])
    store.rename(f"{folder}/b.json", f"{folder}/a.json")
    assert store.read_json(f"{folder}/a.json") == [2] and not store.exists(f"{folder}/b.json")
    for _ in range(2):  # what is not there is removed already
        store.remove(f"{folder}/a.json")
    assert not store.exists(f"{folder}/a.json")


def test_a_store_that_does_not_answer_has_not_lost_its_files(monkeypatch):
    system, _ = files.file_system("memory://x")

    def fails(*_, **__):
        raise TimeoutError("no answer")

    monkeypatch.setattr(system, "info", fails)
    with pytest.raises(OSError, match="no answer"):
        FsspecFiles().exists("memory://x/a")


def test_an_attempt_that_is_ended_leaves_what_another_has_written(monkeypatch, tmp_path):
    """As Spark ends the slower of two, of a task that it began again: at any time."""
    store, path = FsspecFiles(), f"memory://{tmp_path}/a.json"
    store.make_folder(f"memory://{tmp_path}")
    store.write_json(path, [1])

    def end(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FsspecFiles, "rename_remote", end)
        with contextlib.suppress(KeyboardInterrupt):
            store.write_json(path, [1])
    assert store.read_json(path) == [1]
    system, name = files.file_system(f"memory://{tmp_path}")
    assert [found.rpartition("/")[2] for found in system.ls(name, False)] == ["a.json"]

    def lost(self, source, target):
        """The other is there first, and the file system does not rename onto it."""
        monkeypatch.undo()
        self.write_json(target, [1])
        raise FileExistsError(target)

    store.remove(path)
    monkeypatch.setattr(FsspecFiles, "rename_remote", lost)
    store.write_json(path, [1])
    assert store.read_json(path) == [1] and len(system.ls(name)) == 1

    def full(*_):
        raise OSError("no space left")

    store.remove(path)
    monkeypatch.setattr(FsspecFiles, "rename_remote", full)
    with pytest.raises(OSError, match="no space left"):  # and no other has written it
        store.write_json(path, [1])


class _Failing(jobs.Runner):
    """A runner that gives the results, or the error, that a test tells it to."""

    results, error = (), None

    def carry_out(self, name, items, steps, path):
        if self.error:
            raise self.error
        self.job.files.write_json(path, list(self.results))


def test_a_job_that_is_done_is_not_run_again(tmp_path):
    runner = _Failing(jobs.Job(str(tmp_path), FsspecFiles()), False)
    runner.results = [1, 2]
    assert runner.run("pairs", [], []) == [1, 2]
    runner.error = OSError("run again")
    assert runner.run("pairs", [], [], 2) == [1, 2]


def test_a_remote_work_folder_stays_where_another_run_can_go_on(tmp_path):
    store, work = FsspecFiles(), f"memory://{tmp_path}/work"
    for error, stays in ((OSError, True), (ValueError, False), (None, False)):
        with (
            contextlib.suppress(OSError, ValueError),
            jobs.remote_work_folder(store, work) as folder,
        ):
            assert folder == work and store.exists(work)
            store.write_json(f"{work}/a.json", [1])
            if error is not None:
                raise error
        assert store.exists(f"{work}/a.json") is stays


def test_arguments_of_runners():
    values = types.SimpleNamespace(spark_master="local[2]", runner="local")
    with pytest.raises(ValueError, match="spark_master: needs runner spark, and runner is local"):
        runner_arguments(["x"], values)
    values.spark_master = None
    assert runner_arguments(["x"], values) == []
    with pytest.raises(ValueError, match="unexpected argument 'b.txt'.*quote"):
        runner_arguments(["x", "b.txt"], values)
    missing = r"runner: spark needs Apache Spark: pip install 'bert-tf\[spark\]' \(no pyspark\)"
    with pytest.raises(ValueError, match=missing), needing("Apache Spark", "spark", "spark"):
        raise ImportError("no pyspark")


def test_lost_results_and_old_errors(tmp_path):
    runner = _Failing(jobs.Job(str(tmp_path), FsspecFiles()), False)
    runner.results = [1, 2]
    with pytest.raises(RuntimeError, match="the job of pairs lost 1 of its results"):
        runner.run("pairs", [], [], 3)
    assert not (tmp_path / "pairs.json").exists()
    # Of an attempt after which another went well: this job fails for another reason.
    (tmp_path / jobs.ERROR_NAME).write_text("text.txt, line 4: not UTF-8")
    runner.error = OSError("the disk is full")
    with pytest.raises(RuntimeError, match="the job of pairs failed: the disk is full"):
        runner.run("pairs", [], [], 2)


def test_small_texts_share_files_of_tokens(tmp_path, monkeypatch):
    """The index and the tokens are those of each text on its own, documents over files too."""
    texts = [b"the man went\n", b"to the store\n\n", b"", b"\n\nhe bought\n\n\n"]
    texts += ["a 漢字 gallon".encode()]
    texts += [b"of milk .\n\n" * 40, b"the end\n"]
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)
    monkeypatch.setattr(cluster_jobs, "PIECE_BYTES", 61)
    groups = cluster_jobs._groups(list(map(str, paths)))
    assert [len(group) for group in groups] == [5, 1, 1]
    made = []
    for number, grouped in enumerate(([[str(path)] for path in paths], groups)):
        work = tmp_path / f"work-{number}"
        work.mkdir()
        shutil.copy(VOCABULARY, work / "vocab.txt")
        job = cluster_steps.Job(str(work), FsspecFiles(), options_of(tmp_path))
        pieces = [
            cluster_steps.tokenize_piece(piece, job)
            for group in enumerate(grouped)
            for piece in cluster_steps.file_pieces(group, 61, job)
        ]
        pieces = [piece for piece in pieces if piece[2] != cluster_steps.END]
        counts = cluster_jobs._write_index(job, pieces)
        tokens = b"".join(
            (work / cluster_steps.tokens_name(group, piece)).read_bytes()
            for group, piece, _ in pieces
        )
        made.append(
            (counts, tokens, *((work / x).read_bytes() for x in ("sentences", "documents")))
        )
        assert len(list(work.glob("tokens-*.npz"))) == len(pieces) == (13, 10)[number]
    assert made[0] == made[1] and made[0][0]["unknown_tokens"] > 0
