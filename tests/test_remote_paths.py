"""Text, vocabularies and records on object stores: what comes is what comes on this machine."""

import dataclasses
import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bert_tf import files
from bert_tf.options import check, option
from bert_tf.records.files import RecordWriter, output_base, read_records
from experiments.command_line.remote_folders import RemoteFolder
from tests.support import object_store

ROOT = pathlib.Path(__file__).parents[1]
VOCAB = ROOT / "tests" / "golden" / "tokenization" / "tiny_vocab.txt"
TEXT = "hello world\nstop now\nthis is a word\n\nhello now\nstop the world\nanother word\n\n"


def _run(command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", command, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


# === Files ===


@pytest.mark.parametrize("folder", ["bucket://b/deep", "memory://b/deep"])
def test_objects_appear_whole_or_not_at_all(store, folder):
    path = f"{folder}/x.txt"
    assert not files.is_file(path) and files.read_text_or_none(path) is None
    files.write_text(path, "before")
    with pytest.raises(RuntimeError, match="half"), files.write_whole(path, "w") as stream:
        stream.write("aft")
        raise RuntimeError("half way")
    assert files.read_text(path) == "before"
    with files.write_whole(path) as stream:
        stream.write(b"after")
        assert files.read_text(path) == "before"
    assert files.read_text(path) == "after" and files.size_of(path) == 5
    assert files.is_folder(folder) and not files.is_folder(path)
    files.write_json(f"{folder}/[y].json", {"a": 1})
    assert files.read_json(f"{folder}/[y].json") == {"a": 1}
    found = files.expand(f"{folder}/*.txt,{folder}/[y].json", "input_file")
    assert [pathlib.PurePath(name).name for name in found] == ["x.txt", "[y].json"]
    with pytest.raises(FileNotFoundError, match=r"input_file: .*no\*' matches no file"):
        files.expand(f"{folder}/no*", "input_file")
    files.remove(path)
    files.remove(path)
    assert not files.is_file(path)


def test_an_upload_that_fails_leaves_what_was_there(store, monkeypatch):
    path = object_store.put("b/x", "before")

    def fail(self):
        raise OSError(errno.EIO, "the connection is lost")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="connection is lost"):
        patch.setattr("tests.support.object_store._Upload.commit", fail)
        files.write_text(path, "after")
    assert object_store.get("b/x") == b"before"
    files.write_text(path, "after")  # no transaction of the failed one is left
    assert object_store.get("b/x") == b"after"


class _Renaming(MemoryFileSystem):
    """A file system as HDFS is to fsspec: what is opened for writing is there at once."""

    protocol = ("hdfs",)

    def _open(self, path, mode="rb", **kwargs):
        assert mode == "rb" or ".tmp-" in path
        return super()._open(path, mode, **kwargs)


def test_files_that_cannot_be_held_back_are_renamed(monkeypatch):
    system = _Renaming()
    monkeypatch.setattr(files, "file_system", lambda path: (system, path.partition(":/")[2]))
    for text in ("before", "after"):
        files.write_text("hdfs://renamed/x", text)
        assert files.read_text("hdfs://renamed/x") == text
    assert [name for name in system.store if "renamed" in name] == ["/renamed/x"]


@pytest.mark.parametrize(
    ("method", "use"),
    [
        ("_open", files.read_text),
        ("_open", files.local_copy),
        ("info", files.is_file),
        ("info", files.is_folder),
        ("info", files.size_of),
        ("info", files.stamp_of),
        ("_rm", files.remove),
        ("info", lambda path: files.expand(path, "input_file")),
        ("isdir", RemoteFolder),
        ("find", RemoteFolder),
        ("_open", RemoteFolder),
    ],
)
def test_what_a_file_system_raises_names_the_path(store, monkeypatch, method, use):
    object_store.put("b/x/y", "y")
    monkeypatch.setattr(object_store.ObjectStore, method, _refuse)
    with pytest.raises(OSError, match="^bucket://b/x: no credentials$"):
        use("bucket://b/x")


def test_what_a_file_system_raises_names_the_pattern_or_flag(store, monkeypatch):
    monkeypatch.setattr(object_store.ObjectStore, "find", _refuse)
    with pytest.raises(OSError, match=r"^bucket://b/x\*: no credentials$"):
        files.expand("bucket://b/x*", "input_file")
    monkeypatch.setattr(object_store.ObjectStore, "isdir", _refuse)
    with pytest.raises(ValueError, match="^output_file: cannot write to bucket://b/x: no cred"):
        files.check_output("bucket://b/x", "output_file")
    monkeypatch.setattr(object_store.ObjectStore, "__init__", _refuse)
    with pytest.raises(ValueError, match="^bucket://b/x: no such file system here: no cred"):
        files.file_system("bucket://b/x")


def _refuse(self, *arguments, **kwargs):
    raise RuntimeError("no credentials\nin 7 places")


def test_stamps_change_with_the_object(store):
    path = object_store.put("b/x", "one")
    stamp = files.stamp_of(path)
    assert files.stamp_of(path) == stamp
    object_store.put("b/x", "two!")
    assert files.stamp_of(path) != stamp


def test_copies_are_told_by_the_names_of_what_they_are_of(store):
    object_store.put("b/model/vocab.txt", "[PAD]\n")
    object_store.put("b/model/assets/x", "x")
    object_store.put("b/model/records/y", "y")
    copy = files.local_copy("bucket://b/model", lambda name: not name.startswith("records/"))
    found = [p.relative_to(copy).as_posix() for p in pathlib.Path(copy).rglob("*") if p.is_file()]
    assert sorted(found) == ["assets/x", "vocab.txt"]
    message = files.original_names(f"{copy}/vocab.txt, line 1: not UTF-8")
    assert message == "bucket://b/model/vocab.txt, line 1: not UTF-8"
    assert files.local_copy(VOCAB) == str(VOCAB)


def test_log_lines_have_the_original_names(store):
    object_store.put("b/x", "x")
    script = """
import logging
from absl import app
from bert_tf import files

def main(_):
    copy = files.local_copy("bucket://b/x")
    with files.printing_original_names():
        logging.warning("within: %s", copy)
    logging.warning("after: %s", copy)

app.run(main)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    within, after = done.stderr.splitlines()
    assert within.endswith("within: bucket://b/x")
    assert after.endswith("/copies/bucket:/b/x")  # the stream is what it was


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_records(store, compression):
    path = "bucket://b/x.tfrecord"
    with RecordWriter(path, compression) as writer:
        writer.write(b"one")
        writer.write(b"two")
        assert object_store.names() == []
    assert list(read_records(path)) == [b"one", b"two"]
    with pytest.raises(KeyError), RecordWriter(path) as writer:
        writer.write(b"three")
        raise KeyError
    assert list(read_records(path)) == [b"one", b"two"]
    assert output_base("bucket://x-00000-of-00002.tfrecord.gz") == "bucket://x"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere://b/x", "nowhere://b/x: no such file system here: Protocol not known: nowhere"),
        ("bucket:/b/x", "bucket:/b/x: expected two slashes after the scheme"),
        ("bucket://b/", "bucket://b/ is a folder, expected a file's name"),
        ("bucket://b/folder", "bucket://b/folder is a folder, expected a file's name"),
        ("/dev/null", "/dev/null is a device or a pipe, which a file would take the place of"),
        ("http://127.0.0.1:9/x", "(cannot write to )?http://127.0.0.1:9/x: "),
    ],
)
def test_outputs_that_cannot_be_are_refused(store, path, reason):
    object_store.put("b/folder/x", "x")
    with pytest.raises(ValueError, match=f"^output_file: ({reason})"):
        files.check_output(path, "output_file")
    assert object_store.names() == ["b/folder/x"]


def test_shards_come_with_the_index_that_names_them(store):
    from bert_tf.weights.locate import locate

    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    there = {
        "model.safetensors.index.json": json.dumps(index),
        "model-00001-of-00001.safetensors": "x",
        "config.json": "{}",
        "other.txt": "",
        "training_state.pt": "left there",
    }
    for name, text in there.items():
        files.write_text(f"bucket://b/m/{name}", text)
    found = locate("bucket://b/m/model.safetensors.index.json")
    place = pathlib.Path(found.path)
    assert found.format == "hf" and place.name == "model.safetensors.index.json"
    assert {path.name for path in place.parent.iterdir()} == set(there) - {"training_state.pt"}


def test_pipes_and_devices_stay_what_they_are(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (lambda: files.write_text(pipe, "x"), lambda: RecordWriter(pipe)):
        with pytest.raises(ValueError, match="pipe is a device or a pipe"):
            write()
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_files_move_from_one_file_system_to_another(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "x").write_text("x")
    replace = os.replace

    def within_a_folder(source, target):
        if os.path.dirname(source) != os.path.dirname(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", within_a_folder)
    files.move(tmp_path / "x", str(tmp_path / "there" / "y"))
    assert (tmp_path / "there" / "y").read_text() == "x" and not (tmp_path / "x").exists()
    assert os.listdir(tmp_path / "there") == ["y"]


# === Commands ===


def test_pretraining_records(store, tmp_path):
    (tmp_path / "1.txt").write_text(TEXT * 5)
    (tmp_path / "2.txt").write_text(TEXT * 3)
    for name in ("1.txt", "2.txt"):
        object_store.put(f"b/text/{name}", (tmp_path / name).read_bytes())
    vocab = object_store.put("b/vocab.txt", VOCAB.read_bytes())
    shared = ["--max_seq_length=13", "--max_predictions_per_seq=3", "--num_shards=2"]
    for more in ([], ["--compatible"], ["--gzip"]):
        here = _run(
            "data_prep.create_pretraining_data",
            f"--input_file={tmp_path}/*.txt",
            f"--vocab_file={VOCAB}",
            f"--output_file={tmp_path}/here/x.tfrecord",
            *shared,
            *more,
        )
        there = _run(
            "data_prep.create_pretraining_data",
            "--input_file=bucket://b/text/*.txt",
            f"--vocab_file={vocab}",
            "--output_file=bucket://b/out/x.tfrecord",
            "--num_workers=2",
            *shared,
            *more,
        )
        assert here.returncode == there.returncode == 0, here.stderr + there.stderr
        assert there.stdout == here.stdout.replace(f"{tmp_path}/here", "bucket://b/out")
        for path in (tmp_path / "here").glob("*.tfrecord*"):
            assert object_store.get(f"b/out/{path.name}") == path.read_bytes()
        assert "b/out/x.manifest.json" in object_store.names()
    assert not any("work" in name or "probe" in name for name in object_store.names())


def test_text_vocabulary_and_task_records(store, tmp_path):
    (tmp_path / "raw.txt").write_text("Hello world. Stop now!\n\nThis is a word.\n" * 9)
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nhello world\t1\nstop\t0\n")
    for name in ("raw.txt", "train.tsv"):
        object_store.put(f"b/{name}", (tmp_path / name).read_bytes())
    for place in (str(tmp_path), "bucket://b"):
        for command, *arguments in (
            (
                "data_prep.extract_corpus",
                f"--input_file={place}/raw.txt",
                f"--output_file={place}/text.txt.gz",
                "--text_documents=blank_line",
                "--heldout_fraction=0.5",
                f"--heldout_output_file={place}/heldout.txt",
            ),
            (
                "data_prep.learn_vocab",
                f"--input_file={place}/*.txt.gz,{place}/raw.txt",
                f"--output_file={place}/vocab.txt",
                "--num_unused=2",
                "--vocab_size=61",
            ),
            (
                "data_prep.create_finetuning_data",
                "--task_name=SST2",
                f"--data_dir={place}",
                f"--vocab_file={place}/vocab.txt",
                f"--output_dir={place}/sst",
            ),
        ):
            done = _run(command, *arguments)
            assert done.returncode == 0, done.stderr
    written = ["text.txt.gz", "heldout.txt", "vocab.txt", "sst/train.tfrecord"]
    written.append("sst/train.lengths.npy")
    for name in written:
        assert object_store.get(f"b/{name}") == (tmp_path / name).read_bytes(), name
    manifest = files.read_json("bucket://b/sst/train.manifest.json")
    assert [file["path"] for file in manifest["input_files"]] == ["bucket://b/train.tsv"]
    assert done.stdout.splitlines()[-1].startswith("wrote bucket://b/sst/train.tfrecord (")
    again = _run(command, *arguments)
    assert again.stdout.splitlines()[-1].startswith("found bucket://b/sst/train.tfrecord (")


# === Options ===


@dataclasses.dataclass(frozen=True)
class _Options:
    there: str | None = option(None, "Anywhere.", path="any")
    here: tuple[str, ...] | None = option(None, "On this machine.", path="local")
    folder: str | None = option(None, "To work in.", path="folder")
    model: str | None = option(None, "Of weights.", path="model")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"here": ("a", "gs://b/x")}, "here: expected a path on this machine, got 'gs://b/x'"),
        ({"there": "nowhere://b/x"}, "there: nowhere://b/x: no such file system here: Protocol"),
        ({"there": "memory://b/x, nowhere://b/x"}, "there: nowhere://b/x: no such file system"),
        ({"here": ("a, gs://b/x",)}, "here: expected a path on this machine, got 'gs://b/x'"),
        ({"folder": "a,memory://b/x"}, "folder: a,memory://b/x: no such file system"),
        ({"model": "nowhere://b/x"}, "model: nowhere://b/x: no such file system here: Protocol"),
        ({"there": "google://x"}, "there: google://x: no such file system here: Protocol"),
    ],
)
def test_options_refuse_paths_that_cannot_serve(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check(_Options(**given))
    check(_Options(there="memory://b/x,memory://b/y", here=("a", "b")))
    check(_Options(there="here/a.txt, memory://b/x"))
    for model in ("a,b", "memory://b/x", "google://x", "kaggle://a/b/c/d", "hf://a/b@main/c"):
        check(_Options(model=model))


def test_every_path_says_where_it_may_lie():
    """What a flag of a user's command names is a path by its name, and then says which."""
    commands = (*ROOT.glob("data_prep/**/*.py"), *ROOT.glob("experiments/**/*.py"))
    paths = re.compile(
        r"^    (\w+_(?:dir|file|files|path|checkpoint)|source|target): (?:str|tuple)"
    )
    for file in commands:
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            # Beam may know what fsspec does not.
            if "benchmarks" in file.parts or not (found := paths.match(line)):
                continue
            if file.match("data_prep/pretraining/options.py") and found[1] != "vocab_file":
                continue
            if "option(" in line:
                definition = "\n".join(lines[number : number + 6]).split("\n    )")[0]
                assert "path=" in definition, f"{file}:{number + 1}"
