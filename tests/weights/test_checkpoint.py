"""What a path is taken for, and what opening it says of files that are damaged or of others."""

import json
import os
import re
import shutil
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from bert_tf import weights
from bert_tf.models.task_models import HEADS
from bert_tf.models.variables import weights_by_name
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.checkpoint import open_checkpoint
from bert_tf.weights.hdf5 import Hdf5File
from bert_tf.weights.keras_hub import save_keras_hub
from bert_tf.weights.layouts import HF, KERAS_HUB, OURS, TF1
from bert_tf.weights.load import load_bert, load_checkpoint, load_model
from bert_tf.weights.locate import locate, read_json
from bert_tf.weights.model_weights import import_tensor_bundle
from bert_tf.weights.save import save_hf, save_keras, save_model_directory, save_tf1
from bert_tf.weights.tensor_bundle import write_tensors
from bert_tf.weights.tensor_files import CorruptCheckpointError
from tests.support import synthetic_records as synthetic

REFUSALS = (CorruptCheckpointError, ValueError)
# Keras of itself reads its variables in a way that NumPy is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
DATA = "data-00000-of-00001"


def values(model):
    return {name: weight.numpy() for name, weight in weights_by_name(model).items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture(scope="module")
def config():
    return synthetic.small_config(num_hidden_layers=1)


@pytest.fixture(scope="module")
def encoder(config):
    keras.utils.set_random_seed(7)
    return HEADS["encoder"].make(config)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return FullTokenizer(synthetic.write_vocabulary(tmp_path_factory.mktemp("v") / "words.txt"))


@pytest.fixture(scope="module")
def library(encoder, tokenizer, tmp_path_factory):
    """Return a folder with the same encoder in every format."""
    folder = tmp_path_factory.mktemp("library")
    save_model_directory(folder / "tf", encoder, tokenizer.vocab_file)
    save_hf(folder / "hf", encoder, tokenizer)
    save_keras(folder / "keras" / "model.keras", encoder, tokenizer)
    save_keras(folder / "h5" / "model.weights.h5", encoder, tokenizer)
    return folder


@pytest.fixture
def folder(library, tmp_path):
    """Return a copy of it to be damaged."""
    shutil.copytree(library, tmp_path / "library")
    return tmp_path / "library"


# === locate ===


def test_a_tensorflow_checkpoint_is_found_by_any_of_its_names(library):
    prefix = str(library / "tf" / "bert_model.ckpt")
    for path in (library / "tf", prefix, f"{prefix}.index", f"{prefix}.{DATA}", f"{prefix}.meta"):
        found = locate(path)
        assert (found.format, found.path) == ("tf", prefix)
        assert found.config_file == str(library / "tf" / "bert_config.json")
        assert found.vocab_file == str(library / "tf" / "vocab.txt")
        assert prefix in found.description


@pytest.mark.parametrize(
    ("name", "file", "kind", "config_name"),
    [
        ("hf", "model.safetensors", "hf", "config.json"),
        ("keras", "model.keras", "keras", "bert_config.json"),
        ("h5", "model.weights.h5", "keras_weights", "bert_config.json"),
    ],
)
def test_a_file_is_found_by_its_folder_and_by_its_name(library, name, file, kind, config_name):
    for path in (library / name, str(library / name), library / name / file):
        found = locate(path)
        assert (found.format, found.path) == (kind, str(library / name / file))
        assert found.config_file == str(library / name / config_name)
        assert found.vocab_file == str(library / name / "vocab.txt")


def test_nothing_beside_the_weights_is_told(folder):
    shutil.copy(folder / "hf" / "model.safetensors", folder / "alone.safetensors")
    found = locate(folder / "alone.safetensors")
    assert (found.format, found.config_file, found.vocab_file) == ("hf", None, None)


def test_of_several_formats_in_a_folder_the_first_in_order_counts(folder, encoder, config):
    keras_hub = pytest.importorskip("keras_hub")
    assert keras_hub.models
    both = folder / "all"
    save_keras_hub(both, encoder)
    preset_config = (both / "config.json").read_bytes()
    shutil.copy(folder / "keras" / "model.keras", both)
    (both / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (both / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')
    for step in (7, 11, 101):
        write_tensors(both / f"model.ckpt-{step}", {"a": np.zeros(3, np.float32)})
    shutil.copy(folder / "hf" / "model.safetensors", both)
    (both / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    save_tf1(both / "bert_model.ckpt", encoder)

    def found():
        located = locate(both)
        return located.format, os.path.relpath(located.path, both)

    assert found() == ("tf", "bert_model.ckpt")
    (both / "bert_model.ckpt.index").unlink()
    assert found() == ("hf", "model.safetensors")
    (both / "model.safetensors").unlink()
    assert found() == ("hf", "model.safetensors.index.json")
    (both / "model.safetensors.index.json").unlink()
    assert found() == ("keras_hub", ".")
    assert (both / "config.json").read_bytes() == preset_config
    (both / "model.weights.h5").unlink()
    assert found() == ("tf", "model.ckpt-101")
    (both / "model.ckpt-101.index").unlink()
    assert found() == ("tf", "model.ckpt-11")
    for step in (7, 11):
        (both / f"model.ckpt-{step}.index").unlink()
    assert found() == ("hf", "pytorch_model.bin")
    (both / "pytorch_model.bin").unlink()
    assert found() == ("hf", "pytorch_model.bin.index.json")
    (both / "pytorch_model.bin.index.json").unlink()
    assert found() == ("keras", "model.keras")
    shutil.copy(folder / "h5" / "model.weights.h5", both / "other.weights.h5")
    with pytest.raises(
        FileNotFoundError,
        match="expected bert_model.ckpt.index, model.safetensors, a KerasHub preset or .*"
        "name one of model.keras, other.weights.h5",
    ):
        locate(both)
    (both / "model.keras").unlink()
    assert found() == ("keras_weights", "other.weights.h5")


def test_a_run_has_no_configuration_of_transformers(tmp_path):
    write_tensors(tmp_path / "model.ckpt-7", {"a": np.zeros(3, np.float32)})
    (tmp_path / "config.json").write_text('{"batch_size": 3}')
    assert locate(tmp_path).config_file is None
    (tmp_path / "bert_config.json").write_text("{}")
    assert locate(tmp_path).config_file == str(tmp_path / "bert_config.json")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or directory; expected a model dir"):
        locate(tmp_path / "absent.ckpt")
    with pytest.raises(FileNotFoundError, match="expected bert_model.ckpt.index") as error:
        locate(tmp_path)
    assert str(tmp_path) in str(error.value) and "name one of" not in str(error.value)
    write_tensors(tmp_path / "other.ckpt", {"a": np.zeros(3, np.float32)})
    with pytest.raises(FileNotFoundError, match="name one of other.ckpt.index"):
        locate(tmp_path)
    assert locate(tmp_path / "other.ckpt").path == str(tmp_path / "other.ckpt")


def test_files_of_no_format_are_refused(tmp_path):
    for name, content in {
        "vocab.txt": b"[PAD]\n[UNK]\n",
        "config.json": b'{"model_type": "bert"}',
        "empty": b"",
        "weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(101),
        "bert_model.ckpt.meta": b"\x0a\x00",
        "archive.zip": b"PK\x03\x04" + bytes(101),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a format that is read; expected safet") as error:
            locate(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "x.bin", "x.pt", "x.pth", "x.keras", "x.weights.h5"]
)
@pytest.mark.parametrize("content", [b"", b"version 3", b"{}"])
def test_a_file_whose_content_is_not_what_its_name_says_is_called_damaged(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=re.escape(f"{path}: its content is not")):
        locate(path)
    with pytest.raises(CorruptCheckpointError, match=re.escape(str(path))):
        open_checkpoint(path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    "name",
    [
        "hf/model.safetensors",
        "hf/config.json",
        "hf/vocab.txt",
        "keras/model.keras",
        "h5/model.weights.h5",
        "tf/bert_model.ckpt.index",
        f"tf/bert_model.ckpt.{DATA}",
    ],
)
def test_a_pointer_of_git_lfs_is_told_from_damage(name, folder):
    path = folder / name
    path.write_bytes(POINTER)
    with pytest.raises(CorruptCheckpointError, match="a pointer of git-lfs.*git lfs pull") as error:
        open_checkpoint(path.parent)
    assert str(path) in str(error.value)


def test_a_pointer_in_place_of_a_tokenizer_is_told(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(CorruptCheckpointError, match="tokenizer.json: a pointer of git-lfs"):
        read_json(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("name", "framework"),
    [
        ("tf_model.h5", "TensorFlow"),
        ("tf_model.h5.index.json", "TensorFlow"),
        ("tf_model-00001-of-00002.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("flax_model.msgpack.index.json", "Flax"),
    ],
)
def test_weights_of_transformers_for_other_frameworks_are_told(name, framework, tmp_path):
    (tmp_path / name).write_bytes(b"{}" if name.endswith("json") else b"\x89HDF\r\n\x1a\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=f"that transformers wrote for {framework}") as error:
            locate(path)
        assert str(tmp_path / name) in str(error.value)
        assert "get model.safetensors or pytorch_model.bin" in str(error.value)
        assert "with transformers 4, the last that reads it" in str(error.value)
        assert f"from_{'tf' if framework == 'TensorFlow' else 'flax'}=True" in str(error.value)


def test_a_folder_of_the_cache_of_hugging_face_tells_which_folder_to_name(folder, tmp_path):
    snapshot = tmp_path / "models--bert" / "snapshots" / "0a1b"
    shutil.copytree(folder / "hf", snapshot)
    with pytest.raises(FileNotFoundError, match=f"of the cache of Hugging Face.*; name {snapshot}"):
        locate(tmp_path / "models--bert")


def test_pytorch_weights_count_before_those_for_other_frameworks(folder):
    (folder / "hf" / "tf_model.h5").touch()
    assert locate(folder / "hf").path == str(folder / "hf" / "model.safetensors")


@pytest.mark.parametrize("name", ["0_Transformer", "0_BERT", "inner"])
def test_a_folder_of_sentence_transformers_tells_which_folder_to_name(name, folder):
    outer = folder / "sentence"
    shutil.copytree(folder / "hf", outer / name)
    modules = [{"idx": 0, "path": name}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2}, 3]
    if name == "inner":
        (outer / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(FileNotFoundError, match="a folder of sentence-transformers") as error:
        locate(outer)
    assert str(error.value).endswith(f"name {outer / name}")
    assert locate(outer / name).format == "hf"
    if name == "inner":  # a module that is not there
        (outer / "modules.json").write_text(json.dumps([{"path": "0_Gone"}, *modules]))
        with pytest.raises(FileNotFoundError, match=f"name {outer / name}$"):
            locate(outer)


@pytest.mark.parametrize("modules", ["", "{}", "[3]", '[{"path": ""}]', '[{"path": "\\u0000"}]'])
def test_a_folder_with_other_modules_is_only_empty(modules, tmp_path):
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(FileNotFoundError, match="expected bert_model.ckpt.index"):
        locate(tmp_path)


def test_data_without_their_index_are_told(folder):
    prefix = folder / "tf" / "bert_model.ckpt"
    os.unlink(f"{prefix}.index")
    for path in (prefix, f"{prefix}.{DATA}", folder / "tf"):
        with pytest.raises(FileNotFoundError, match=f"ckpt.index: no such file; .*{DATA}") as error:
            locate(path)
        assert str(prefix) in str(error.value)


def test_the_content_of_a_file_counts_and_not_its_name(folder):
    path = folder / "h5" / "model.safetensors"
    os.rename(folder / "h5" / "model.weights.h5", path)
    with pytest.raises(REFUSALS, match=re.escape(str(path))):
        open_checkpoint(path)
    with pytest.raises(REFUSALS, match=re.escape(str(path))):
        open_checkpoint(folder / "h5")
    named = folder / "hf" / "model.bin"
    os.rename(folder / "hf" / "model.safetensors", named)
    assert open_checkpoint(named).layout is HF


@pytest.mark.parametrize("name", ["model", "model.weights.h5", "model.safetensors"])
def test_a_keras_file_of_another_name_is_opened_or_refused_by_name(folder, name):
    path = folder / "keras" / name
    os.rename(folder / "keras" / "model.keras", path)
    assert locate(path).format == "keras"
    assert open_checkpoint(path).layout is OURS


# === Opening ===


@pytest.mark.parametrize(
    ("name", "layout", "has_model"),
    [
        ("tf", TF1, False),
        ("hf", HF, False),
        ("keras", OURS, True),
        ("h5", OURS, False),
    ],
)
def test_every_format_opens_with_its_layout_and_configuration(
    library, name, layout, has_model, config, encoder
):
    checkpoint = open_checkpoint(library / name)
    assert checkpoint.layout is layout
    assert checkpoint.config == config
    assert (checkpoint.model is not None) == has_model
    assert checkpoint.located is not None
    assert checkpoint.description == checkpoint.located.path
    assert len(checkpoint.canonical()) == len(encoder.weights)
    assert open_checkpoint(checkpoint) is checkpoint
    (_, array), *_ = checkpoint.source.read([next(iter(checkpoint.source.shapes))])
    assert array.dtype == np.float32


def test_a_model_in_memory_is_a_checkpoint(encoder, config):
    checkpoint = open_checkpoint(encoder)
    assert checkpoint.located is None and checkpoint.config == config
    assert checkpoint.description == "bert_tf model"
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="mine")
    with pytest.raises(ValueError, match="expected a model of bert_tf, got Sequential 'mine'"):
        open_checkpoint(other)


def test_what_a_checkpoint_holds_besides_weights_is_its_state(tmp_path, encoder, config):
    weights = values(encoder)
    slots = [f"{name}/adam_{slot}" for name in weights for slot in "mv"]
    state = ["global_step", *slots]
    tensors = weights | {name: np.zeros(3, np.float32) for name in state}
    write_tensors(tmp_path / "model.ckpt-7", tensors)
    (tmp_path / "bert_config.json").write_text(config.to_json_string())
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.state == tuple(sorted(state))
    assert set(checkpoint.canonical()) == set(weights)
    assert open_checkpoint(encoder).state == ()


def test_state_has_the_names_of_the_file(folder):
    path = folder / "hf" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["embeddings.position_ids"] = np.arange(41)
    safetensors.numpy.save_file(tensors, path)
    assert open_checkpoint(path).state == ("embeddings.position_ids",)


@pytest.mark.parametrize("part", ["index", DATA])
def test_a_truncated_tensorflow_checkpoint_is_called_damaged(folder, part, encoder, config):
    path = folder / "tf" / f"bert_model.ckpt.{part}"
    content = path.read_bytes()
    model = HEADS["encoder"].make(config)
    before = values(model)
    for size in (0, 1, 47, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptCheckpointError, match="bert_model.ckpt: cannot read"):
            load_checkpoint(model, folder / "tf")
    assert_same(values(model), before)
    with pytest.raises(CorruptCheckpointError, match="bert_model.ckpt: cannot read"):
        load_bert(folder / "tf")
    path.write_bytes(content)
    load_checkpoint(model, folder / "tf")
    assert_same(values(model), values(encoder))


def test_a_flipped_bit_in_the_last_tensor_changes_no_weight(folder, config):
    path = folder / "tf" / f"bert_model.ckpt.{DATA}"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    model = HEADS["encoder"].make(config)
    before = values(model)
    with pytest.raises(CorruptCheckpointError, match="cannot read"):
        load_checkpoint(model, folder / "tf")
    assert_same(values(model), before)


def test_a_missing_data_file_is_called_damage(folder, config):
    (folder / "tf" / f"bert_model.ckpt.{DATA}").unlink()
    with pytest.raises(CorruptCheckpointError, match="bert_model.ckpt: cannot read"):
        load_checkpoint(HEADS["encoder"].make(config), folder / "tf")


@pytest.mark.parametrize("name", ["a[1]", "a[", "b*", "c?", "d\\e", "{f,g}"])
def test_a_path_that_looks_like_a_pattern_is_a_name(name, folder, config, encoder):
    os.rename(folder / "tf", folder / name)
    model = HEADS["encoder"].make(config)
    load_checkpoint(model, folder / name)
    assert_same(values(model), values(encoder))
    path = folder / name / f"bert_model.ckpt.{DATA}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match="cannot read") as error:
        load_checkpoint(model, folder / name)
    # Where TensorFlow is given another name, that is gone by now, and says nothing to anyone.
    paths = re.findall(r"/\S*model\.ckpt", str(error.value))
    assert set(paths) == {str(folder / name / "bert_model.ckpt")}
    path.unlink()
    with pytest.raises(CorruptCheckpointError, match=re.escape(str(folder / name))):
        load_checkpoint(model, folder / name)


def test_an_object_checkpoint_of_another_model_is_refused(tmp_path, config):
    prefix = tf.train.Checkpoint(x=tf.Variable([1.0, 2.0])).write(str(tmp_path / "other"))
    (tmp_path / "bert_config.json").write_text(config.to_json_string())
    assert locate(prefix).format == "tf"
    with pytest.raises(
        ValueError, match="TensorFlow 2 object checkpoint, but not of Model Garden's BERT encoder"
    ) as error:
        open_checkpoint(prefix)
    assert prefix in str(error.value) and "x/.ATTRIBUTES/VARIABLE_VALUE" in str(error.value)


def test_keras_models_of_others_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="mine")
    model.save(tmp_path / "mine.keras")
    with pytest.raises(ValueError, match="mine.keras: expected a model of bert_tf, got Sequential"):
        open_checkpoint(tmp_path / "mine.keras")
    (tmp_path / "bert_config.json").write_text(synthetic.small_config().to_json_string())
    model.save_weights(tmp_path / "mine.weights.h5")
    with pytest.raises(ValueError, match="weights.h5: expected the weights of a model of bert_tf"):
        open_checkpoint(tmp_path / "mine.weights.h5")


@pytest.mark.parametrize("kind", ["custom", "lambda"])
def test_a_keras_model_that_takes_code_is_refused_by_name(kind, tmp_path):
    class Odd(keras.layers.Layer):
        def call(self, x):
            return x

    layer = Odd() if kind == "custom" else keras.layers.Lambda(lambda x: x + 1)
    path = tmp_path / "odd.keras"
    keras.Sequential([keras.Input((3,)), layer]).save(path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        open_checkpoint(path)


def with_another_layer(encoder, layer):
    return keras.Model(encoder.input, layer(encoder.output["sequence_output"]))


def test_a_layer_that_keras_does_not_know_is_named(encoder, tmp_path):
    class Unregistered(keras.layers.Layer):
        def call(self, x):
            return x

    path = tmp_path / "odd.keras"
    with_another_layer(encoder, Unregistered()).save(path)
    with pytest.raises(ValueError, match="Unregistered, which Keras does not know; imp") as error:
        open_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "register_keras_serializable" in str(error.value)
    with keras.saving.custom_object_scope({"Unregistered": Unregistered}):
        assert_same(values(open_checkpoint(path).model), values(encoder))


def test_a_layer_whose_arguments_do_not_fit_is_refused_by_file(encoder, tmp_path):
    path = tmp_path / "odd.keras"
    with_another_layer(encoder, keras.layers.Lambda(lambda x: x + 1)).save(path)
    with pytest.raises(ValueError, match="Keras cannot make its model: .*Lambda") as error:
        open_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", ["vocab_size", "intermediate_size", "hidden_size"])
def test_a_keras_file_of_another_size_is_refused_before_a_model_is_made(size, folder):
    path = folder / "keras" / "model.keras"
    change_config_in(path, size, 22 * 10**12)
    with pytest.raises(ValueError, match=f"does not fit the configuration .*{size} ") as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("value", [-1, "97", None, [97]])
def test_a_keras_file_whose_configuration_is_none_is_refused(value, folder):
    path = folder / "keras" / "model.keras"
    change_config_in(path, "vocab_size", value)
    with pytest.raises(ValueError, match="not one of BERT: vocab_size must be") as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[1]", "list"),
        ("{}", "None"),
        ('{"class_name": "X", "config": []}', "X"),
        ('{"class_name": "X", "config": {"layers": 5}}', "X"),
        ('{"class_name": "X", "config": {"layers": [5]}}', "X"),
        ('{"class_name": "X", "config": {"layers": [{"registered_name": "y>Bert"}]}}', "X"),
    ],
)
def test_a_keras_file_whose_configuration_is_of_something_else_is_refused(text, what, folder):
    path = folder / "keras" / "model.keras"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, "config.json": text}.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=f"expected a model of bert_tf, got {what}") as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)


def change_config_in(path, key, value):
    """Rewrite a .keras file with another value in the configuration of its encoder."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    (bert,) = [layer for layer in config["config"]["layers"] if layer["class_name"] == "Bert"]
    bert["config"]["config"][key] = value
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_truncated_keras_file_is_called_damaged(folder):
    path = folder / "keras" / "model.keras"
    content = path.read_bytes()
    for size in (0, 1, 4, 101, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptCheckpointError, match=re.escape(str(path))):
            open_checkpoint(path)


def test_flipped_bytes_in_a_keras_file_are_damage(folder):
    path = folder / "keras" / "model.keras"
    content = path.read_bytes()
    random = np.random.default_rng(5)
    for place in random.integers(3001, len(content) - 1009, 11):  # within the weights
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(CorruptCheckpointError, match=re.escape(str(path))):
            open_checkpoint(path)


def test_a_damaged_directory_of_a_keras_file_never_ends_in_another_exception(folder):
    path = folder / "keras" / "model.keras"
    content = path.read_bytes()
    start, refused = content.index(b"PK\x01\x02"), 0
    random = np.random.default_rng(5)
    for place in random.integers(start, len(content), 31):
        changed = bytearray(content)
        changed[place] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(changed)
        try:
            open_checkpoint(path)
        except REFUSALS as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 7  # of the rest the bytes mean nothing, as times and comments do


def test_truncated_keras_weights_are_called_damaged(folder):
    path = folder / "h5" / "model.weights.h5"
    content = path.read_bytes()
    for size in (0, 1, 8, 101, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptCheckpointError, match=re.escape(str(path))):
            open_checkpoint(path)


def change_weights_in(path, change):
    """Let `change` alter the weights within a .keras file or in a .weights.h5 file."""
    if path.suffix != ".keras":
        with h5py.File(path, "a") as file:
            change(file)
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    inner = path.with_name("inner")
    inner.write_bytes(members["model.weights.h5"])
    with h5py.File(inner, "a") as file:
        change(file)
    members["model.weights.h5"] = inner.read_bytes()
    inner.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


WORDS = "layers/bert/embeddings/vars/0"
BOTH_KERAS = pytest.mark.parametrize("name", ["keras/model.keras", "h5/model.weights.h5"])


def put(file, name, *arguments, **options):
    del file[name]
    return file.create_dataset(name, *arguments, **options)


@BOTH_KERAS
@pytest.mark.parametrize("shape", [(10**12,), (10**12, 22), (97, 22)])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}], ids=["plain", "gzip"])
def test_weights_that_are_claimed_and_not_there_are_damage(name, shape, options, folder):
    def change(file):
        put(file, WORDS, shape, "f4", chunks=(97, 22)[: len(shape)], **options)

    change_weights_in(folder / name, change)
    with pytest.raises(CorruptCheckpointError, match=f"{WORDS} has shape .* not hold") as error:
        open_checkpoint(folder / name)
    assert str(folder / name) in str(error.value)


def test_a_head_of_more_labels_than_the_file_holds_is_damage(config, tmp_path):
    path = tmp_path / "model.weights.h5"
    save_keras(path, HEADS["classification"].make(config, num_labels=3))
    with h5py.File(path, "a") as file:
        put(file, "layers/classification_head/vars/1", (10**12,), "f4", chunks=(101,))
    with pytest.raises(CorruptCheckpointError, match="vars/1 has shape .1000000000000,., but"):
        open_checkpoint(path)


def put_virtual(file, name):
    """Put a dataset in place of another whose values are those of one elsewhere in the file."""
    layout = h5py.VirtualLayout((97, 22), "f4")
    source = file.create_dataset("elsewhere", data=np.ones((97, 22), np.float32))
    layout[...] = h5py.VirtualSource(source)
    del file[name]
    file.create_virtual_dataset(name, layout)


@BOTH_KERAS
def test_what_are_no_weights_is_refused_before_it_is_read(name, folder, monkeypatch):
    path = folder / name
    original = path.read_bytes()
    monkeypatch.setattr(keras.Model, "load_weights", None)  # nothing may come so far
    monkeypatch.setattr(Hdf5File, "read", None)
    for what, change in {
        "of a type that weights do not have": lambda file: put(
            file, WORDS, data=np.ones((97, 22), np.int64)
        ),
        "dropout_seed has shape": lambda file: put(
            file, "layers/bert/vars/dropout_seed", data=np.ones(10007, np.int64)
        ),
        "is kept in another file": lambda file: put(
            file, WORDS, (97, 22), "f4", external=[(os.fspath(path), 0, 97 * 22 * 4)]
        ),
        f"{re.escape(WORDS)} is kept in another file": lambda file: put_virtual(file, WORDS),
        "vocab_size 97 and hidden_size 22 take": lambda file: put(
            file, WORDS, data=np.ones((22, 97), np.float32)
        ),
        r"in place of some of .*vars/1 .23,.|model .22,., checkpoint .23,.": lambda file: put(
            file, "layers/bert/pooler/dense/vars/1", data=np.ones(23, np.float32)
        ),
        "holds 24 weights|not of this package: layers/a/vars/0": lambda file: file.create_dataset(
            "layers/a/vars/0", data=[1.0]
        ),
        "num_hidden_layers 1 take 16 weights": lambda file: file.pop(
            "layers/bert/encoder/transformer_layers/transformer_layer/attention"
        ),
    }.items():
        change_weights_in(path, change)
        with pytest.raises(REFUSALS, match=what) as error:
            load_model(path)
        assert str(path) in str(error.value)
        path.write_bytes(original)


@BOTH_KERAS
def test_weights_under_other_names_are_refused_in_one_line(name, folder):
    path = folder / name
    dense = "layers/bert/pooler/dense"
    change_weights_in(path, lambda file: file.move(dense, "layers/bert/pooler/dense_1"))
    with pytest.raises(ValueError, match="does not fit the configuration|pooler/dense_1") as error:
        load_model(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@BOTH_KERAS
def test_weights_that_cannot_be_unpacked_are_damage(name, folder, config):
    path, places = folder / name, []

    def change(file):
        array = np.random.default_rng(3).normal(size=(97, 22)).astype(np.float32)
        words = put(file, WORDS, data=array, chunks=(97, 22), compression="gzip", shuffle=True)
        file.flush()
        places.append(words.id.get_chunk_info(0).byte_offset)

    change_weights_in(path, change)

    def damage(file):
        with open(file.filename, "r+b") as raw:
            raw.seek(places[0] + 101)
            raw.write(bytes(211))

    change_weights_in(path, damage)
    model = HEADS["encoder"].make(config)
    before = values(model)
    with pytest.raises(CorruptCheckpointError, match="not a whole HDF5 file") as error:
        load_checkpoint(model, path)
    assert str(path) in str(error.value)
    assert_same(values(model), before)


def test_altered_bytes_in_keras_weights_never_end_in_another_exception(folder):
    path = folder / "h5" / "model.weights.h5"
    content = path.read_bytes()
    values: set[int] = set()

    def visit(_, node):
        if isinstance(node, h5py.Dataset):
            start = node.id.get_offset()
            values.update(range(start, start + node.id.get_storage_size()))

    with h5py.File(path) as file:
        file.visititems(visit)
    random, refused = np.random.default_rng(5), 0
    for place in random.choice([i for i in range(len(content)) if i not in values], 7):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            open_checkpoint(path)
        except REFUSALS as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0


def test_keras_weights_need_a_configuration(folder, config):
    (folder / "h5" / "bert_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no bert_config.json .* beside it; give config="):
        load_bert(folder / "h5")
    assert open_checkpoint(folder / "h5", config=config).config == config


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 101},
        {"hidden_size": 26},
        {"intermediate_size": 41},
        {"max_position_embeddings": 43},
        {"type_vocab_size": 3},
        {"num_hidden_layers": 2},
        {"vocab_size": 10**12},
        {"hidden_size": 22 * 10**9},
        {"num_hidden_layers": 10**9},
    ],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_keras_weights_of_another_configuration_are_refused(folder, changes):
    changed = synthetic.small_config(**{"num_hidden_layers": 1, **changes})
    (folder / "h5" / "bert_config.json").write_text(changed.to_json_string())
    with pytest.raises(ValueError, match="the configuration with it") as error:
        open_checkpoint(folder / "h5")
    assert str(folder / "h5" / "model.weights.h5") in str(error.value)
    assert next(iter(changes)) in str(error.value)


def test_keras_weights_of_more_layers_than_the_configuration_has_are_refused(tmp_path):
    encoder = HEADS["encoder"].make(synthetic.small_config(num_hidden_layers=3))
    save_keras(tmp_path / "model.weights.h5", encoder)
    config = synthetic.small_config(num_hidden_layers=2)
    (tmp_path / "bert_config.json").write_text(config.to_json_string())
    with pytest.raises(ValueError, match="model.weights.h5"):
        open_checkpoint(tmp_path)


def test_keras_weights_whose_head_is_incomplete_are_refused(tmp_path, config):
    path = tmp_path / "model.weights.h5"
    save_keras(path, HEADS["classification"].make(config, num_labels=3))
    with h5py.File(path, "a") as file:
        del file["layers/classification_head/vars/1"]
    with pytest.raises(REFUSALS, match=re.escape(str(path))):
        load_model(path)
    with pytest.raises(REFUSALS, match=re.escape(str(path))):
        load_model(path, kind="classification")


def test_a_file_that_is_not_json_is_named(folder):
    for content in ("", "{", "[1]", "\x00"):
        (folder / "hf" / "config.json").write_text(content)
        with pytest.raises(ValueError, match=re.escape(str(folder / "hf" / "config.json"))):
            open_checkpoint(folder / "hf")


def test_the_same_weight_under_two_names_is_refused_by_name(folder):
    path = folder / "hf" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["bert.pooler.dense.bias"] = tensors["pooler.dense.bias"] + 1
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match="are the same weight") as error:
        open_checkpoint(path).canonical()
    assert str(path) in str(error.value) and "'bert.pooler.dense.bias'" in str(error.value)


# === KerasHub ===


@pytest.fixture
def preset(encoder, tokenizer, tmp_path):
    pytest.importorskip("keras_hub")
    save_keras_hub(tmp_path / "preset", encoder, tokenizer)
    return tmp_path / "preset"


def test_a_preset_is_found_by_its_folder_and_its_weights(preset, config):
    for path in (preset, preset / "model.weights.h5"):
        found = locate(path)
        assert (found.format, found.path) == ("keras_hub", str(preset))
        assert found.vocab_file == str(preset / "assets" / "tokenizer" / "vocabulary.txt")
    checkpoint = open_checkpoint(preset)
    assert checkpoint.layout is KERAS_HUB and checkpoint.config == config


def test_a_preset_of_another_class_is_refused(preset):
    values = json.loads((preset / "config.json").read_text())
    values["registered_name"] = "keras_hub>RobertaBackbone"
    (preset / "config.json").write_text(json.dumps(values))
    for path in (preset, preset / "model.weights.h5"):
        with pytest.raises(
            ValueError,
            match="a preset of keras_hub>RobertaBackbone; expected keras_hub>BertBackbone",
        ) as error:
            open_checkpoint(path)
        assert str(preset) in str(error.value)


def test_a_preset_is_read_without_keras_hub(preset, encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    assert_same(values(load_bert(preset).encoder), values(encoder))


def test_without_tensorflow_its_checkpoints_cannot_be_read(library, monkeypatch):
    monkeypatch.delitem(sys.modules, "bert_tf.weights.tensor_bundle")
    monkeypatch.delattr(weights, "tensor_bundle")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match="a TensorFlow checkpoint takes TensorFlow to read or wr"):
        import_tensor_bundle("a.ckpt")


@pytest.mark.parametrize("sizes", [(4, 4), (2, 8)])
def test_an_hdf5_file_of_other_addresses_is_refused(tmp_path, sizes):
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_sizes(*sizes)
    path = tmp_path / "model.weights.h5"
    with h5py.File(h5py.h5f.create(os.fsencode(path), fcpl=creation)) as file:
        dataset = file.create_dataset("layers/a/vars/0", data=np.ones(3, np.float32))
        dataset.attrs["dtype"] = "bfloat16"  # as Keras has it in a heap of strings
    with pytest.raises(CorruptCheckpointError, match=rf"addresses and lengths have \({sizes[0]}, "):
        dict(Hdf5File(path).read(["layers/a/vars/0"]))


@pytest.mark.parametrize("value", [10**12, -1, None])
def test_a_preset_of_another_size_is_refused_before_a_model_is_made(value, preset):
    values = json.loads((preset / "config.json").read_text())
    values["config"]["vocabulary_size"] = value
    (preset / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="vocab_size") as error:
        open_checkpoint(preset)
    assert str(preset) in str(error.value)


def test_a_truncated_preset_is_called_damaged(preset):
    path = preset / "model.weights.h5"
    content = path.read_bytes()
    for size in (0, 101, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptCheckpointError, match=re.escape(str(path))):
            open_checkpoint(preset)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_preset_whose_configuration_does_not_fit_its_weights_is_refused(layers, tmp_path):
    pytest.importorskip("keras_hub")
    encoder = HEADS["encoder"].make(synthetic.small_config(num_hidden_layers=2))
    save_keras_hub(tmp_path, encoder)
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"]["num_layers"] = layers
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        open_checkpoint(tmp_path)


@pytest.mark.slow
def test_a_compiled_and_trained_model_is_read_without_its_optimizer(tmp_path):
    model = HEADS["classification"].make(synthetic.small_config(), 3)
    model.compile("adam", "mse", jit_compile=False)
    ids = np.ones((2, 5), np.int32)
    inputs = {"input_ids": ids, "input_mask": ids, "segment_ids": ids * 0}
    model.fit(inputs, np.ones((2, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    checkpoint = open_checkpoint(tmp_path / "model.keras")
    for name, weight in weights_by_name(model).items():
        found = weights_by_name(checkpoint.model)[name]
        np.testing.assert_array_equal(found.numpy(), weight.numpy(), err_msg=name)
