"""Records made by jobs that follow each other in this process: what they do again, or miss."""

import functools
import os

import pytest

from data_prep.cluster import jobs
from data_prep.cluster.files import FsspecFiles
from data_prep.pretraining import cluster_jobs, cluster_steps, local_runner
from tests.support import cluster_records
from tests.support.cluster_records import options_of


class InOneProcess(jobs.Runner):
    """Carries jobs out step by step, in this process.

    Attributes:
        fails: jobs that fail once, at their end.
        loses: label of a step -> of what reaches it, what is kept.
    """

    fails, loses = (), {}

    def carry_out(self, name, items, steps, path):
        elements = list(items)
        for step in steps:
            elements = [x for x in elements if self.loses.get(step.label, lambda _: True)(x)]
            if step.kind == "group":
                groups = {}
                for key, value in elements:
                    groups.setdefault(key, []).append(value)
                elements = list(groups.items())
            elif step.kind == "map":
                elements = [step.function(x, *step.arguments) for x in elements]
            elif step.kind == "flat_map":
                elements = [y for x in elements for y in step.function(x, *step.arguments)]
        if name in self.fails:
            self.fails.remove(name)
            raise OSError("the machine is gone")
        self.job.files.write_json(path, sorted(elements))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    cluster_records.make_steps_small(monkeypatch.setattr)


def create(options, **attributes):
    def runner(job):
        made = InOneProcess(job, False)
        made.__dict__.update(attributes)
        return made

    return cluster_jobs.create_pretraining_data(options, FsspecFiles(), runner)


def contents(options):
    return [FsspecFiles().read(path) for path in options.output_files]


@pytest.mark.parametrize("remote", [False, True])
def test_nothing_is_made_twice_after_a_failure(tmp_path, monkeypatch, remote):
    local = options_of(tmp_path / "a")
    expected = local_runner.create_pretraining_data(local, 1, show_progress=False)
    folder = f"memory://{tmp_path}" if remote else str(tmp_path / "b")
    options = options_of(folder)
    made = []
    for module, name in [
        (cluster_steps.token_store, "tokenize_piece"),
        (cluster_steps.token_store, "StoreWriter"),
        (cluster_steps, "block_pairs"),
        (cluster_steps, "write_chunk_records"),
    ]:
        function = getattr(module, name)
        counted = functools.partial(
            lambda f, n, *given: made.append(n) or f(*given), function, name
        )
        monkeypatch.setattr(module, name, counted)
    fails = ["tokens", "pairs", "records"]
    for name, works in (("tokens", 1), ("pairs", 3), ("records", 4)):
        with pytest.raises(RuntimeError, match=f"the job of {name} failed: the machine is gone"):
            create(options, fails=fails)
        assert len(set(made)) == works
    before = list(made)
    manifest = create(options, fails=fails)
    assert made == before and made.count("write_chunk_records") > len(options.output_files)
    assert contents(options) == contents(local)
    assert manifest["counts"] == expected["counts"]


def test_outputs_get_their_names_once_all_are_made(tmp_path, monkeypatch):
    local = options_of(tmp_path / "a")
    local_runner.create_pretraining_data(local, 1, show_progress=False)
    options = options_of(tmp_path / "b")
    rename = FsspecFiles.rename

    def full(files, source, target):
        if target == options.output_files[1]:
            raise OSError("no space left")
        rename(files, source, target)

    with monkeypatch.context() as patched:
        patched.setattr(FsspecFiles, "rename", full)
        with pytest.raises(OSError, match="no space left"):
            create(options)
    assert os.path.exists(options.output_files[0])
    # All jobs are done: nothing is lost any more, and the first output has its name already.
    create(options, loses=dict.fromkeys(("spread files", "spread parts"), lambda _: False))
    assert contents(options) == contents(local)
    with monkeypatch.context() as patched:
        patched.setattr(FsspecFiles, "rename", full)
        with pytest.raises(OSError, match="no space left"):
            create(options)
    os.remove(options.output_files[0])
    with pytest.raises(OSError, match="0.tfrecord: neither it nor .*/output-00000 is there"):
        create(options)


LOSSES = {
    "a piece": ("tokenize", lambda x: x[2] is not None or x[0] != 1),
    "all pairs": ("to chunks", lambda x: x[1][0] == cluster_steps._TOKENS or x[0] != 1),
    "a part's pairs": ("to chunks", lambda x: x[1][0] != 2),
    "tokens": ("to chunks", lambda x: x[1][0] != cluster_steps._TOKENS or x[0] != 2),
    "a chunk": ("to outputs", lambda x: x[1] != 0),
}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("a piece", "the job of tokens lost some of its results"),
        ("all pairs", "records failed: a chunk got 0 of its 15 pairs"),
        ("a part's pairs", "records failed: a chunk got 12 of its 15 pairs"),
        ("tokens", r"records failed: a chunk got 0 of its \d+ tokens"),
        ("a chunk", "records failed: a file got 1 of its 2 chunks"),
    ],
)
def test_what_a_runner_loses_is_missed(tmp_path, loss, message):
    options = options_of(tmp_path / "out")
    with pytest.raises(RuntimeError, match=message):
        create(options, loses=dict([LOSSES[loss]]))
    (work,) = (tmp_path / "out").iterdir()
    assert not (work / "finished.json").exists()
    if loss == "a piece":  # so that the job is run again
        assert not (work / "tokens.json").exists()


def test_what_a_cluster_cannot_make_is_refused(tmp_path):
    outputs = (f"memory://{tmp_path}/a", f"{tmp_path}/b")
    message = f"output_file: expected files on one file system with runner, got {outputs[0]}, /"
    with pytest.raises(ValueError, match=message):
        cluster_jobs.check_options(options_of(tmp_path, output_files=outputs))
    with pytest.raises(ValueError, match="compatible: .*; drop runner"):
        cluster_jobs.check_options(options_of(tmp_path, compatible=True))
