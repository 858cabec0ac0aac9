"""Checkpoint files in TF1 format, strict loading, and what survives damage."""

import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf import checkpoints
from bert_tf.config import BertConfig
from bert_tf.heads import bert_pretrainer
from bert_tf.modeling import bert_encoder
from bert_tf.optimization import create_optimizer
from tests import synthetic_records as synthetic


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return bert_pretrainer(synthetic.small_config())


def values(model):
    return {name: v.numpy() for name, v in checkpoints.weights_by_name(model).items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_written_files_are_a_tf1_checkpoint_that_tensorflow_reads(model, tmp_path):
    prefix = tmp_path / "bert_model.ckpt"
    checkpoints.save_tf1(model, prefix)
    assert sorted(os.listdir(tmp_path)) == [
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
    ]
    reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))
    shapes = reader.get_variable_to_shape_map()
    assert shapes["bert/encoder/layer_1/attention/self/query/kernel"] == [22, 22]
    assert shapes["bert/embeddings/word_embeddings"] == [synthetic.VOCAB_SIZE, 22]
    assert shapes["cls/seq_relationship/output_weights"] == [2, 22]
    assert "global_step" not in shapes and not any("seed" in name for name in shapes)
    assert_same({name: reader.get_tensor(name) for name in shapes}, values(model))


def test_round_trip(model, tmp_path):
    checkpoints.save_tf1(model, tmp_path / "a.ckpt")
    keras.utils.set_random_seed(5)
    other = bert_pretrainer(synthetic.small_config())
    assert not np.array_equal(other.weights[0].numpy(), model.weights[0].numpy())
    assert checkpoints.load_tf1(other, tmp_path / "a.ckpt") == []
    assert_same(values(other), values(model))


def test_the_original_code_checkpoint_loads_and_is_written_back(shared_data, tmp_path):
    folder = shared_data / "tf1_checkpoint"
    config = BertConfig.from_json_file(folder / "bert_config.json")
    model = bert_pretrainer(config)
    found = checkpoints.load_checkpoint(model, folder)
    assert found.vocab_file == str(folder / "vocab.txt")
    reader = tf.train.load_checkpoint(str(folder / "bert_model.ckpt"))
    weights = {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "adam_" not in name and name != "global_step"
    }
    assert len(weights) == 46
    assert_same(values(model), weights)
    checkpoints.save_model_directory(tmp_path, model, config, found.vocab_file)
    assert (tmp_path / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert BertConfig.from_json_file(tmp_path / "bert_config.json") == config
    assert_same(checkpoints.read_tensors(tmp_path / "bert_model.ckpt"), weights)

    # Its Adam slots fit a run's variables by name and shape.
    optimizer = create_optimizer(1e-4, 11, 3)
    optimizer.build(model.trainable_variables)
    ours = checkpoints.training_variables(model, optimizer)
    stored = checkpoints.list_tensors(folder / "bert_model.ckpt")
    assert {n for n in ours if not n.startswith("training/")} == set(stored) - {"global_step"}
    assert all(tuple(ours[n].shape) == stored[n][0] for n in ours if n in stored)


def test_loading_is_strict_both_ways(model, tmp_path):
    prefix = tmp_path / "full.ckpt"
    checkpoints.save_tf1(model, prefix)
    encoder = bert_encoder(synthetic.small_config())
    with pytest.raises(
        ValueError, match="in the checkpoint but not in the model .*cls/predictions"
    ):
        checkpoints.load_tf1(encoder, prefix)
    checkpoints.load_tf1(encoder, prefix, ignore=["^cls/"])
    full = values(model)
    assert_same(values(encoder), {n: full[n] for n in full if n.startswith("bert/")})

    checkpoints.save_tf1(encoder, tmp_path / "encoder.ckpt")
    before = values(model)
    with pytest.raises(
        ValueError, match="in the model but not in the checkpoint .*cls/predictions"
    ):
        checkpoints.load_tf1(model, tmp_path / "encoder.ckpt")
    assert_same(values(model), before)
    kept = checkpoints.load_tf1(model, tmp_path / "encoder.ckpt", allow_missing=["^cls/"])
    assert sorted(kept) == sorted(n for n in full if n.startswith("cls/"))

    other = bert_pretrainer(synthetic.small_config(vocab_size=101))
    with pytest.raises(
        ValueError, match=r"word_embeddings: model \(101, 22\), checkpoint \(97, 22\)"
    ):
        checkpoints.load_tf1(other, prefix)


def test_locate_finds_what_the_user_means(model, tmp_path):
    folder = tmp_path / "model"
    vocab = synthetic.write_vocabulary(tmp_path / "words.txt")
    checkpoints.save_model_directory(folder, model, synthetic.small_config(), vocab)
    prefix = str(folder / "bert_model.ckpt")
    for path in (folder, prefix, f"{prefix}.index", f"{prefix}.data-00000-of-00001"):
        found = checkpoints.locate(path)
        assert found.prefix == prefix and found.config_file and found.vocab_file
    os.unlink(f"{prefix}.index")
    with pytest.raises(FileNotFoundError, match="expected bert_model.ckpt.index or model.ckpt"):
        checkpoints.locate(folder)
    for step in (7, 11, 101):
        checkpoints.save_tf1(model, folder / f"model.ckpt-{step}")
    assert checkpoints.locate(folder).prefix.endswith("model.ckpt-101")
    with pytest.raises(FileNotFoundError, match="no such file"):
        checkpoints.locate(tmp_path / "absent.ckpt")
    with pytest.raises(ValueError, match="pickled weights are not read"):
        checkpoints.locate("pytorch_model.bin")


def make_state():
    return {
        "a/b": tf.Variable(tf.random.stateless_normal([307, 7], [1, 2])),
        "c": tf.Variable(tf.range(1009)),
        "global_step": tf.Variable(tf.constant(0, tf.int64)),
    }


@pytest.fixture
def keeper(tmp_path):
    state = make_state()
    keeper = checkpoints.CheckpointKeeper(tmp_path / "run", state, keep=3)
    for step in (1, 2):
        state["global_step"].assign(step)
        state["c"].assign(tf.range(1009) * step)
        keeper.save(step)
    return keeper


def test_keeper_keeps_the_newest_and_tells_tensorflow(keeper):
    for step in (3, 5, 8):
        keeper.variables["global_step"].assign(step)
        keeper.save(step)
    assert checkpoints.checkpoint_steps(keeper.directory) == [3, 5, 8]
    assert len(list(keeper.directory.glob("model.ckpt-*"))) == 6
    latest = tf.train.latest_checkpoint(str(keeper.directory))
    assert latest == str(keeper.prefix(8))
    keeper.variables["global_step"].assign(99)
    assert keeper.restore() == 8
    assert int(keeper.variables["global_step"].numpy()) == 8
    empty = checkpoints.CheckpointKeeper(keeper.directory / "none", make_state(), keep=1)
    assert empty.restore() is None
    with pytest.raises(ValueError, match="keep: expected at least 1"):
        checkpoints.CheckpointKeeper(keeper.directory, {}, keep=0)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(keeper, tmp_path, part, caplog):
    pristine = tmp_path / "pristine"
    shutil.copytree(keeper.directory, pristine)
    name = f"model.ckpt-2.{part}"
    data = (pristine / name).read_bytes()
    random = np.random.default_rng(0)
    damaged = [data[:n] for n in (0, 1, 47, len(data) // 2, len(data) - 1)]
    for place in random.integers(0, len(data), 25):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        damaged.append(bytes(changed))
    found = []
    for content in damaged:
        shutil.rmtree(keeper.directory)
        shutil.copytree(pristine, keeper.directory)
        (keeper.directory / name).write_bytes(content)
        found.append(keeper.restore())
        # Whatever is restored is whole: padding within an index carries no checksum and no meaning.
        assert int(keeper.variables["global_step"].numpy()) == found[-1]
        np.testing.assert_array_equal(
            keeper.variables["c"].numpy(), np.arange(1009, dtype=np.int32) * found[-1]
        )
    assert found[:5] == [1] * 5
    assert found.count(1) > len(found) / 2
    if part != "index":
        assert set(found) == {1}
    assert "model.ckpt-2 is damaged" in caplog.text and "the one before it is used" in caplog.text
    assert f"{name}.damaged" in os.listdir(keeper.directory) or found[-1] == 2


def test_a_missing_data_file_and_leftovers_of_a_killed_write(keeper):
    (keeper.directory / "model.ckpt-2.data-00000-of-00001").unlink()
    # What SaveV2 leaves when it is killed before, and between, its two renames.
    (keeper.directory / "model.ckpt-3.data-00000-of-00001.tempstate123").write_bytes(b"x")
    (keeper.directory / "model.ckpt-4.data-00000-of-00001").write_bytes(b"x" * 100)
    (keeper.directory / "model.ckpt-4.index.tempstate456").write_bytes(b"y")
    assert keeper.restore() == 1
    assert not list(keeper.directory.glob("*.tempstate*"))
    keeper.save(4)
    assert keeper.restore() == 4


def test_all_damaged_is_an_error_and_not_a_new_start(keeper):
    for step in (1, 2):
        (keeper.directory / f"model.ckpt-{step}.index").write_bytes(b"")
    with pytest.raises(checkpoints.CorruptCheckpointError, match="all checkpoints are damaged"):
        keeper.restore()


def test_a_checkpoint_of_another_model_is_not_taken_for_damage(keeper):
    state = make_state()
    state["d"] = tf.Variable(tf.zeros([2]))
    state["c"] = tf.Variable(tf.range(11))
    other = checkpoints.CheckpointKeeper(keeper.directory, state, keep=3)
    with pytest.raises(
        ValueError, match=r"not in the checkpoint: d; of another shape: c: run \(11"
    ):
        other.restore()
    assert checkpoints.checkpoint_steps(keeper.directory) == [1, 2]


def test_a_write_that_fails_names_the_checkpoint(tmp_path):
    (tmp_path / "full").write_text("a file where a folder should be")
    with pytest.raises(OSError):
        checkpoints.write_tensors(tmp_path / "full" / "x.ckpt", {"a": np.zeros(3)})
    with pytest.raises(FileNotFoundError, match="no such file"):
        checkpoints.read_tensors(tmp_path / "absent")


def test_training_variables_have_the_original_names_and_cover_everything(model):
    optimizer = create_optimizer(1e-4, 11, 3)
    wrapped = keras.optimizers.LossScaleOptimizer(optimizer)
    wrapped.build(model.trainable_variables)
    found = checkpoints.training_variables(model, wrapped)
    assert {id(v) for v in found.values()} == {
        id(v) for v in [*model.variables, *wrapped.variables]
    }
    for path, variable in checkpoints.weights_by_name(model).items():
        for slot in ("adam_m", "adam_v"):
            assert found[f"{path}/{slot}"].shape == variable.shape
    assert (
        found["bert/pooler/dense/kernel/adam_v"]
        is optimizer.slot_variables()["bert/pooler/dense/kernel/adam_v"]
    )
    others = sorted(name for name in found if name.startswith("training/"))
    assert others == [
        "training/optimizer/dynamic_scale",
        "training/optimizer/iteration",
        "training/optimizer/iteration_1",
        "training/optimizer/learning_rate",
        "training/optimizer/step_counter",
        "training/seed_generator/0",
    ]
    json.dumps(others)
