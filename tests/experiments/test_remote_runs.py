"""Commands whose data, models and output folders lie in an object store."""

import dataclasses
import functools
import json
import pathlib
import time

import pytest

from bert_tf import files
from bert_tf.options import option
from bert_tf.serving.predictor import Predictor
from bert_tf.weights.keras_hub import save_keras_hub
from bert_tf.weights.load import load_bert
from bert_tf.weights.locate import locate
from bert_tf.weights.save import save_hf, save_model_directory
from experiments.command_line import remote_folders
from experiments.command_line.remote_folders import RemoteFolder, on_this_machine
from experiments.conversion import convert, export
from experiments.conversion.options import ConversionOptions, ExportOptions
from experiments.finetuning import classification
from experiments.finetuning.options import ClassifierOptions
from experiments.pretraining import run as pretraining
from experiments.pretraining.options import PretrainingOptions
from tests.experiments import test_run_classifier
from tests.support import command_options, object_store
from tests.support.pretraining_runs import arguments, finish, log_of, start, write_data

model_dir, tables = test_run_classifier.model_dir, test_run_classifier.tables  # fixtures


def _run(work, options, **given):
    with on_this_machine(command_options.of(options, **given)) as made:
        work.run(made)


def _upload(folder, path):
    for file in folder.rglob("*"):
        if file.is_file():
            object_store.put(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


# === Folders that stand in ===


def test_what_changed_is_sent_and_what_is_gone_is_removed(store):
    for name in ("a", "deep/b", "records/c", "lock"):
        object_store.put(f"b/run/{name}", name)
    folder = RemoteFolder("bucket://b/run/")
    here = {p.relative_to(folder.here).as_posix() for p in folder.here.rglob("*") if p.is_file()}
    assert here == {"a", "deep/b"}
    assert files.local_copy("bucket://b/run/a") == str(folder.here / "a")
    (folder.here / "a").unlink()
    (folder.here / "records").mkdir()
    for name in ("new", "records/c", "lock", "x.tmp-1"):
        (folder.here / name).write_text("changed")
    before = (store / "b%2Frun%2Fdeep%2Fb").stat().st_mtime_ns
    folder.send()
    assert object_store.names() == ["b/run/deep/b", "b/run/lock", "b/run/new", "b/run/records/c"]
    assert object_store.get("b/run/records/c") == b"records/c"
    assert (store / "b%2Frun%2Fdeep%2Fb").stat().st_mtime_ns == before  # not sent again
    folder.close()
    assert not folder.here.exists()


def test_the_index_of_a_checkpoint_is_sent_last_and_removed_first(store, monkeypatch):
    for name in ("m.index", "m.data-00000-of-00001", "old.index", "old.data-00000-of-00001"):
        object_store.put(f"b/run/{name}", name)
    folder = RemoteFolder("bucket://b/run")
    for name in ("m.index", "m.data-00000-of-00001"):
        (folder.here / name).write_text(f"new {name}")
    for path in folder.here.glob("old.*"):
        path.unlink()
    done = []

    def noted(name, do, *arguments):
        done.append((name, arguments[-1].rpartition("/")[-1]))
        do(*arguments)

    for name in ("send", "remove"):
        do = functools.partial(noted, name, getattr(remote_folders, name))
        monkeypatch.setattr(remote_folders, name, do)
    folder.send()
    assert done == [
        ("remove", "m.index"),
        ("send", "m.data-00000-of-00001"),
        ("send", "m.index"),
        ("remove", "old.index"),
        ("remove", "old.data-00000-of-00001"),
    ]


def test_what_lies_around_a_folder_that_stands_in_is_copied(store):
    for name in ("vocab.txt", "m.index", "m.data-00000-of-00001", "ft/a", "m.index-ft/b"):
        object_store.put(f"b/m/{name}", name)
    folders = [RemoteFolder(f"bucket://b/m/{name}") for name in ("ft", "m.index-ft")]
    copy = pathlib.Path(files.local_copy("bucket://b/m"))
    assert (copy / "vocab.txt").exists() and (copy / "ft" / "a").exists()
    assert pathlib.Path(locate("bucket://b/m/m").path) == copy / "m"
    assert files.local_copy("bucket://b/m/ft/a") == str(folders[0].here / "a")
    for folder in folders:
        folder.close()
    assert files.local_copy("bucket://b/m/ft/a") == str(copy / "ft" / "a")


def test_folders_are_closed_where_another_cannot_be_read(store, monkeypatch):
    for name in ("a", "b"):
        object_store.put(f"b/{name}/x", name)
    read = object_store.ObjectStore._open

    def refuse_b(self, path, *arguments, **kwargs):
        if path == "b/b/x":
            raise RuntimeError("no credentials")
        return read(self, path, *arguments, **kwargs)

    monkeypatch.setattr(object_store.ObjectStore, "_open", refuse_b)
    options = _TwoFolders("bucket://b/a", "bucket://b/b")
    for _ in range(2):  # nothing of the first is in the way of the second
        with pytest.raises(OSError, match="^bucket://b/b: no cred"), on_this_machine(options):
            pass
        assert not remote_folders._active
        assert not pathlib.Path(files.local_place("bucket://b/a", "folders")).exists()


@pytest.mark.parametrize(
    ("one", "other", "within"),
    [
        ("bucket://b/a", "bucket://b/a", "."),
        ("bucket://b/a/", "bucket://b/a/deep", "deep"),
        ("bucket://b/a", "bucket://b/ab", "../ab"),
        ("bucket://b/a/m.keras", "bucket://b/a", ".."),
    ],
)
def test_two_options_may_name_one_folder(store, one, other, within):
    for name in ("a/x", "a/deep/y", "ab/z"):
        object_store.put(f"b/{name}", name)
    for options in (_TwoFolders(one, other), _TwoFolders(other, one)):
        with on_this_machine(options) as made:
            first, second = pathlib.Path(made.one), pathlib.Path(made.other)
            if options.one == other:
                first, second = second, first
            assert second == (first / within).resolve()
            (second / "new").write_text(other)
            written = f"{second}/new".partition("/b/")[2]
        assert object_store.get(f"b/{written}") == other.encode()
        assert object_store.get("b/a/x") == b"a/x" and not remote_folders._active


@dataclasses.dataclass(frozen=True)
class _TwoFolders:
    one: str = option(None, "To work in.", path="folder")
    other: str = option(None, "To work in.", path="folder")


# === Commands ===


@pytest.mark.thorough
def test_pretraining_from_and_to_a_store(store, data, tmp_path):
    _upload(data, "b/data")
    given = {"num_train_steps": 4, "save_checkpoints_steps": 2, "log_steps": 2}
    for place, output in ((data, tmp_path / "here"), ("bucket://b/data", "bucket://b/run")):
        flags = arguments(place, output, **given)
        with on_this_machine(command_options.parse(PretrainingOptions, flags)) as options:
            pretraining.run(options)
    for name in ("bert_model.ckpt.data-00000-of-00001", "eval_results.json", "vocab.txt"):
        assert object_store.get(f"b/run/{name}") == (tmp_path / "here" / name).read_bytes()
    assert "b/run/model.ckpt-2.index" in object_store.names()
    config = json.loads(object_store.get("b/run/config.json"))
    assert config["flags"]["output_dir"] == "bucket://b/run"
    assert config["train_records"] == {
        "bucket://b/data/train-0.tfrecord": 101,
        "bucket://b/data/train-1.tfrecord.gz": 53,
    }
    assert config["eval_files"] == ["bucket://b/data/dev.tfrecord"]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_store(store, data, tmp_path):
    finish(start(data, tmp_path / "whole"))
    _upload(data, "b/data")
    process = start("bucket://b/data", "bucket://b/run", cwd=tmp_path)
    while process.poll() is None and "b/run/model.ckpt-22.index" not in object_store.names():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert "(continued)" in finish(start("bucket://b/data", "bucket://b/run", cwd=tmp_path))
    back = tmp_path / "back"
    back.mkdir()
    for name in ("metrics.jsonl", "bert_model.ckpt.data-00000-of-00001"):
        (back / name).write_bytes(object_store.get(f"b/run/{name}"))
    assert log_of(back) == log_of(tmp_path / "whole")
    name = "bert_model.ckpt.data-00000-of-00001"
    assert (back / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not any("lock" in name or "tmp" in name for name in object_store.names())


@pytest.mark.thorough(traced=True)
def test_fine_tuning_conversion_and_export(store, tmp_path, capsys, model_dir, tables):
    _upload(model_dir, "b/model")
    _upload(tables, "b/tables")
    given = {"text_column": "text", "label_column": "label", "max_seq_length": 13}
    given |= {"num_train_epochs": 1, "do_train": True, "do_eval": True, "do_predict": True}
    for model, place, output in (
        (model_dir, tables, tmp_path / "here"),
        ("bucket://b/model", "bucket://b/tables", "bucket://b/run"),
    ):
        named = {f"{x}_file": f"{place}/{x}.csv" for x in ("train", "dev", "test")}
        _run(
            classification,
            ClassifierOptions,
            model_dir=model,
            output_dir=output,
            **named,
            **given,
        )
    for name in ("bert_model.ckpt.data-00000-of-00001", "predictions.csv", "labels.txt"):
        assert object_store.get(f"b/run/{name}") == (tmp_path / "here" / name).read_bytes()
    capsys.readouterr()
    changes = {"from": "bucket://b/run", "to": "bucket://b/hf", "format": "hf"}
    _run(convert, ConversionOptions, **changes)
    assert "wrote bucket://b/hf (" in capsys.readouterr().out
    assert "b/hf/model.safetensors" in object_store.names()
    with pytest.raises(ValueError, match="--to: .* exists; --overwrite writes into it"):
        _run(convert, ConversionOptions, **changes)
    with pytest.raises(ValueError, match="--to: is where --from lies: bucket://b/hf"):
        _run(convert, ConversionOptions, **{**changes, "from": "bucket://b/hf", "overwrite": True})
    for version in (1, 2):
        _run(export, ExportOptions, model_dir="bucket://b/hf", output_dir="bucket://b/served/cls")
        assert f"exported to bucket://b/served/cls/{version} (" in capsys.readouterr().out
    assert "b/served/cls/2/saved_model.pb" in object_store.names()
    predictor = Predictor("bucket://b/served/cls")
    assert predictor.predict(["the film was good"])["label"].tolist() == [b"yes"]


def test_weights_of_each_format(store, tmp_path, model_dir):
    _upload(model_dir, "b/m")
    for path in ("bucket://b/m", "bucket://b/m/bert_model.ckpt"):
        loaded = load_bert(path)
        assert loaded.tokenizer is not None and loaded.config.hidden_size == 22
    for save in (save_hf, save_model_directory, save_keras_hub):
        with pytest.raises(ValueError, match="^bucket://b/x: expected a path on this machine"):
            save("bucket://b/x", loaded.encoder)
    with pytest.raises(FileNotFoundError, match="^bucket://b/nothing: no such file or directory"):
        load_bert("bucket://b/nothing")
    with pytest.raises(ValueError, match="nowhere://x: no such file system here: Protocol not"):
        load_bert("nowhere://x")
