"""The exact state of a run in TF1-format files, and what survives damage."""

import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.models.variables import weights_by_name
from bert_tf.training.optimizers import create_optimizer
from bert_tf.training.state import CheckpointKeeper, training_variables
from bert_tf.weights.tensor_bundle import (
    list_tensors,
    read_tensors,
    rename_tensors,
    write_tensors,
)
from bert_tf.weights.tensor_files import CorruptCheckpointError, checkpoint_steps
from tests.support import synthetic_records as synthetic
from tests.support.optimizer_slots import slot_variables


def make_state():
    return {
        "a/b": tf.Variable(tf.random.stateless_normal([307, 7], [1, 2])),
        "c": tf.Variable(tf.range(1009)),
        "global_step": tf.Variable(tf.constant(0, tf.int64)),
    }


@pytest.fixture
def keeper(tmp_path):
    state = make_state()
    keeper = CheckpointKeeper(tmp_path / "run", state, keep=3)
    for step in (1, 2):
        state["global_step"].assign(step)
        state["c"].assign(tf.range(1009) * step)
        keeper.save(step)
    return keeper


def test_keeper_keeps_the_newest_and_tells_tensorflow(keeper):
    for step in (3, 5, 8):
        keeper.variables["global_step"].assign(step)
        keeper.save(step)
    assert checkpoint_steps(keeper.directory) == [3, 5, 8]
    assert len(list(keeper.directory.glob("model.ckpt-*"))) == 6
    latest = tf.train.latest_checkpoint(str(keeper.directory))
    assert latest == str(keeper.prefix(8))
    keeper.variables["global_step"].assign(99)
    assert keeper.restore() == 8
    assert int(keeper.variables["global_step"].numpy()) == 8
    empty = CheckpointKeeper(keeper.directory / "none", make_state(), keep=1)
    assert empty.restore() is None
    with pytest.raises(ValueError, match="keep: expected at least 1"):
        CheckpointKeeper(keeper.directory, {}, keep=0)


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
    # And what was put aside before stays as it is.
    (keeper.directory / "model.ckpt-2.data-00000-of-00001.damaged").write_bytes(b"z")
    assert keeper.restore() == 1
    assert not list(keeper.directory.glob("*.tempstate*"))
    assert not list(keeper.directory.glob("*.damaged.damaged"))
    keeper.save(4)
    assert keeper.restore() == 4


def test_a_kill_between_any_two_deletions_leaves_whole_checkpoints(keeper, monkeypatch):
    """The list that TensorFlow reads, then each index, then the data of that index."""
    unlink, seen = pathlib.Path.unlink, []

    def spy(path, missing_ok=False):
        if path.exists():
            listed = (keeper.directory / "checkpoint").read_text()
            assert path.name.removesuffix(".index").partition(".data")[0] + '"' not in listed
            seen.append(path.name)
        unlink(path, missing_ok=missing_ok)
        for step in checkpoint_steps(keeper.directory):
            read_tensors(keeper.prefix(step))

    monkeypatch.setattr(pathlib.Path, "unlink", spy)
    for step in (3, 4, 5):
        keeper.save(step)
    assert seen == [
        f"model.ckpt-{step}.{part}" for step in (1, 2) for part in ("index", "data-00000-of-00001")
    ]


@pytest.mark.parametrize("call", ["write", "rename"])
def test_a_kill_while_a_checkpoint_is_replaced_leaves_no_index_of_other_data(
    tmp_path, monkeypatch, call
):
    prefix = tmp_path / "x.ckpt"
    write_tensors(prefix, {"a": np.zeros(3)})
    write_tensors(tmp_path / "y.ckpt", {"a": np.ones(3)})

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with pytest.raises(Killed):
        if call == "write":
            monkeypatch.setattr(tf.raw_ops, "SaveV2", kill)
            write_tensors(prefix, {"a": np.ones(3)})
        renamed = []

        def second_fails(source, target):
            renamed.append(target)
            return kill() if len(renamed) == 2 else replace(source, target)

        replace = os.replace
        monkeypatch.setattr(os, "replace", second_fails)
        rename_tensors(tmp_path / "y.ckpt", prefix)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tensors(prefix)


def test_all_damaged_is_an_error_and_not_a_new_start(keeper):
    for step in (1, 2):
        (keeper.directory / f"model.ckpt-{step}.index").write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match="all checkpoints are damaged"):
        keeper.restore()


def test_a_checkpoint_of_another_model_is_not_taken_for_damage(keeper):
    state = make_state()
    state["d"] = tf.Variable(tf.zeros([2]))
    state["c"] = tf.Variable(tf.range(11))
    other = CheckpointKeeper(keeper.directory, state, keep=3)
    with pytest.raises(
        ValueError, match=r"not in the checkpoint: d; of another shape: c: run \(11"
    ):
        other.restore()
    assert checkpoint_steps(keeper.directory) == [1, 2]


def test_a_write_that_fails_names_the_checkpoint(tmp_path):
    (tmp_path / "full").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="full"):
        write_tensors(tmp_path / "full" / "x.ckpt", {"a": np.zeros(3)})
    # Where TensorFlow fails half way nothing is left.
    (tmp_path / "x.ckpt.data-00000-of-00001").mkdir()
    with pytest.raises(OSError, match=r"x\.ckpt: cannot write the checkpoint"):
        write_tensors(tmp_path / "x.ckpt", {"a": np.zeros(3)})
    assert sorted(os.listdir(tmp_path)) == ["full", "x.ckpt.data-00000-of-00001"]
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tensors(tmp_path / "absent")


def test_training_variables_have_the_original_names_and_cover_everything():
    model = bert_pretrainer(synthetic.small_config())
    optimizer = create_optimizer(1e-4, 11, 3)
    wrapped = keras.optimizers.LossScaleOptimizer(optimizer)
    wrapped.build(model.trainable_variables)
    found = training_variables(model, wrapped)
    assert {id(v) for v in found.values()} == {
        id(v) for v in [*model.variables, *wrapped.variables]
    }
    for path, variable in weights_by_name(model).items():
        for slot in ("adam_m", "adam_v"):
            assert found[f"{path}/{slot}"].shape == variable.shape
    assert (
        found["bert/pooler/dense/kernel/adam_v"]
        is slot_variables(optimizer)["bert/pooler/dense/kernel/adam_v"]
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


def test_the_original_checkpoint_has_the_names_and_shapes_of_a_run(shared_data):
    folder = shared_data / "tf1_checkpoint"
    model = bert_pretrainer(BertConfig.from_json_file(folder / "bert_config.json"))
    optimizer = create_optimizer(1e-4, 11, 3)
    optimizer.build(model.trainable_variables)
    ours = training_variables(model, optimizer)
    stored = list_tensors(folder / "bert_model.ckpt")
    assert {n for n in ours if not n.startswith("training/")} == set(stored) - {"global_step"}
    assert all(tuple(ours[n].shape) == stored[n][0] for n in ours if n in stored)
