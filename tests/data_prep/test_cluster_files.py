"""Files that the workers of a cluster share, here and on a remote file system."""

import pytest

from bert_tf import files
from data_prep.cluster import jobs
from data_prep.cluster.files import FsspecFiles


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


class _Failing(jobs.Runner):
    """A runner that gives the results, or the error, that a test tells it to."""

    results, error = (), None

    def carry_out(self, name, items, steps, path):
        if self.error:
            raise self.error
        self.job.files.write_json(path, list(self.results))


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
