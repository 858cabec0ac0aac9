"""Keras callbacks in a Trainer, and profiles of its steps."""

import csv
import pathlib

import keras
import numpy as np
import pytest

from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.training import callbacks
from bert_tf.training.callbacks import FitCalls
from bert_tf.training.objectives import pretraining_compile_arguments
from bert_tf.training.optimizers import create_optimizer
from bert_tf.training.options import TrainerOptions
from bert_tf.weights.tensor_files import checkpoint_steps
from tests.support import synthetic_records as synthetic
from tests.support.synthetic_records import PREDICTIONS
from tests.training.test_trainer import (
    STEPS,
    assert_same_state,
    dataset_of,
    log_of,
    make_trainer,
    train,
)

# Of Keras, where it reads a variable.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
# Keras' names of the same means.
NAMES = {
    "mlm_loss": "masked_lm_logits_cross_entropy",
    "mlm_accuracy": "masked_lm_logits_accuracy",
    "nsp_loss": "next_sentence_logits_cross_entropy",
    "nsp_accuracy": "next_sentence_logits_accuracy",
}


class Recorder(keras.callbacks.Callback):
    """Keeps what it is told, as a tracker of experiments does."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def _keep(self, name, number=None, logs=None):
        self.calls.append((name, number, dict(logs or {})))

    def on_train_begin(self, logs=None):
        self._keep("train_begin", self.params["steps"], {"epochs": self.params["epochs"]})

    def on_train_end(self, logs=None):
        self._keep("train_end", None, logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._keep("epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._keep("epoch_end", epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self._keep("batch_begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self._keep("batch_end", batch, logs)

    def on_test_begin(self, logs=None):
        self._keep("test_begin", None, logs)

    def on_test_end(self, logs=None):
        self._keep("test_end", None, logs)

    def names(self):
        return [(name, number) for name, number, _ in self.calls]


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("records") / "t.tfrecord", 101, 1)


@pytest.fixture(scope="module")
def whole(records_file, tmp_path_factory):
    """Return a run without callbacks."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    train(trainer, records_file)
    return trainer


def held_out(path):
    settings = {"max_seq_length": synthetic.LENGTH, "max_predictions_per_seq": PREDICTIONS}
    return pretraining_dataset(path, batch_size=51, is_training=False, **settings)


def train_with(trainer, path, steps=STEPS, every=4, **settings):
    evaluate = lambda: trainer.evaluate(held_out(path))  # noqa: E731
    return train(trainer, path, steps, eval_every_steps=every, evaluate=evaluate, **settings)


def test_callbacks_are_told_what_fit_tells_them(records_file, tmp_path):
    ours, theirs = Recorder(), Recorder()
    trainer = make_trainer(tmp_path, callbacks=[ours], steps_per_call=1, log_steps=3)
    train_with(trainer, records_file, steps=8)

    keras.utils.set_random_seed(3)
    config = synthetic.small_config(num_hidden_layers=1)
    model = bert_pretrainer(config)
    model.compile(
        create_optimizer(1e-2, STEPS, 3), **pretraining_compile_arguments(config), jit_compile=False
    )
    model.fit(
        dataset_of(records_file),
        steps_per_epoch=4,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=held_out(records_file),
        callbacks=[theirs],
    )
    assert ours.names() == theirs.names()
    assert ours.calls[0] == theirs.calls[0] == ("train_begin", 4, {"epochs": 2})
    compared = 0
    for (name, number, logs), (_, _, expected) in zip(ours.calls, theirs.calls, strict=True):
        prefixes = ("", "val_") if name in ("epoch_end", "train_end") else ("",)
        for prefix, (one, other) in ((p, x) for p in prefixes for x in NAMES.items()):
            if prefix + other in expected:
                found = logs[prefix + one]
                assert found == pytest.approx(expected[prefix + other], rel=1e-5), (name, number)
                compared += 1
    assert compared == len(NAMES) * (8 + 2 + 2 * 2 + 2)  # batches, evaluations, epochs, the end


@pytest.mark.thorough
def test_callbacks_of_keras_work_and_change_no_step(records_file, tmp_path, whole):
    said = []
    path = tmp_path / "best.keras"
    callbacks = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TensorBoard(tmp_path / "board", update_freq="batch"),
        keras.callbacks.EarlyStopping("val_loss", patience=3),
        keras.callbacks.ModelCheckpoint(path, "val_loss", save_best_only=True),
        keras.callbacks.LambdaCallback(on_train_end=said.append),
    ]
    trainer = make_trainer(tmp_path / "run", callbacks=callbacks)
    train_with(trainer, records_file, every=5)
    assert_same_state(trainer, whole)
    assert log_of(tmp_path / "run") == log_of(whole.output_dir)

    # Of the three epochs the last is of one step; it is evaluated as well.
    evaluations = log_of(tmp_path / "run", "eval")
    assert [line["step"] for line in evaluations] == [5, 10, STEPS]
    with open(tmp_path / "log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    losses = [line["eval_loss"] for line in evaluations]
    assert [float(row["val_loss"]) for row in rows] == losses
    assert said[0]["val_loss"] == losses[-1] and said[0]["loss"] == float(rows[-1]["loss"])
    assert sorted(p.name for p in (tmp_path / "board").iterdir()) == ["train", "validation"]

    best = int(np.argmin(losses))
    model = keras.saving.load_model(path)
    assert int(model.optimizer.iterations) == evaluations[best]["step"]
    other = make_trainer(tmp_path / "other")
    other.model.set_weights(model.get_weights())
    assert other.evaluate(held_out(records_file))["loss"] == pytest.approx(losses[best], rel=1e-6)


class Stop(keras.callbacks.Callback):
    """Ends training within an epoch, or at its end."""

    def __init__(self, step=None, epoch=None):
        super().__init__()
        self.step, self.epoch = step, epoch

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = self.model.stop_training or batch + 1 == self.step

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = self.model.stop_training or epoch == self.epoch


@pytest.mark.thorough
def test_a_callback_ends_training_and_a_run_goes_on_from_there(records_file, tmp_path, whole):
    first = make_trainer(tmp_path, callbacks=[Stop(step=2), Recorder()], steps_per_call=2)
    train_with(first, records_file)
    assert first.step == 2 and checkpoint_steps(tmp_path) == [2]
    assert first.callbacks[1].names()[-4:] == [
        *(("test_begin", None), ("test_end", None)),  # fit evaluates such an epoch as well
        *(("epoch_end", 0), ("train_end", None)),
    ]
    second = make_trainer(tmp_path, callbacks=[Stop(epoch=1), Recorder()], seed=17)
    assert second.restore() == 2
    train_with(second, records_file)
    assert second.step == 8 and checkpoint_steps(tmp_path) == [2, 5, 8]
    names = second.callbacks[1].names()
    assert [number for name, number in names if name == "epoch_begin"] == [0, 1]
    third = make_trainer(tmp_path, callbacks=[Recorder()], seed=27)
    third.restore()
    train_with(third, records_file)
    assert_same_state(third, whole)
    assert [n for name, n in third.callbacks[0].names() if name == "epoch_end"] == [2]


def test_without_evaluations_an_epoch_is_what_a_log_line_is_of(records_file, tmp_path):
    recorder = Recorder()
    train(make_trainer(tmp_path, callbacks=[recorder], log_steps=4), records_file, steps=10)
    ends = [(number, logs) for name, number, logs in recorder.calls if name == "epoch_end"]
    assert [number for number, _ in ends] == [0, 1, 2]
    for (_, logs), line in zip(ends, log_of(tmp_path), strict=True):
        assert logs == pytest.approx({name: line[name] for name in logs}, rel=1e-12)
    # Batches are calls of the graph, which ends at step 5 for a checkpoint.
    batches = [number for name, number, _ in recorder.calls if name == "batch_end"]
    assert batches == [3, 0, 3, 1]


def test_callbacks_that_cannot_work_are_refused(tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(ValueError, match="callbacks: a Trainer saves.*leave BackupAndRestore out"):
        make_trainer(tmp_path, callbacks=[backup])
    trainer = make_trainer(tmp_path)
    assert not trainer.model.compiled
    trainer.model.compile("sgd")
    with pytest.raises(ValueError, match="callbacks: the model is compiled with another optimizer"):
        type(trainer)(
            trainer.model,
            trainer.optimizer,
            trainer.objective,
            tmp_path,
            trainer.options,
            callbacks=[Recorder()],
        )


def test_hosts_have_callbacks_all_or_none(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    settings = {"num_train_steps": STEPS, "steps_per_epoch": 4}
    none = FitCalls((), trainer.train_step, **settings)
    assert not none and none.evaluate(lambda: {"loss": 2.0}) == {"loss": 2.0}
    none.end_epoch({"loss": 2.0})  # of no epoch
    monkeypatch.setattr(callbacks, "any_worker", lambda strategy, value: True)
    with pytest.raises(ValueError, match="callbacks: other hosts have some, and this one has none"):
        FitCalls((), trainer.train_step, **settings)


# === Profiles ===


def profiles(folder):
    return sorted(pathlib.Path(folder).glob("tensorboard/plugins/profile/*/*.xplane.pb"))


@pytest.mark.thorough(traced=True)
def test_some_steps_are_profiled_and_all_are_the_same(records_file, tmp_path, whole, caplog):
    trainer = make_trainer(tmp_path / "a", profile_steps=(3, 6))
    taken = []
    run = trainer.train_step.run

    def observed(batches, count):
        begin = trainer.step
        run(batches, count)
        taken.append((begin + 1, trainer.step, trainer.step_profile._is_on))

    trainer.train_step.run = observed
    train(trainer, records_file)
    assert taken == [
        *((1, 2, False), (3, 4, True), (5, 5, True), (6, 6, True)),
        *((7, 8, False), (9, 10, False), (11, 11, False)),
    ]
    (profile,) = profiles(tmp_path / "a")
    assert profile.stat().st_size > 1000
    assert b"MatMul" in profile.read_bytes()
    assert_same_state(trainer, whole)

    # A profile that a run's end cuts short is written, and one that lies behind is not.
    train(make_trainer(tmp_path / "b", profile_steps=(2, 99)), records_file, steps=3)
    assert len(profiles(tmp_path / "b")) == 1
    again = make_trainer(tmp_path / "b", profile_steps=(1, 3))
    with caplog.at_level("WARNING"):
        again.restore()
    assert "profile_steps: all lie before step 3, so no profile is written" in caplog.text
    train(again, records_file, steps=5)
    assert len(profiles(tmp_path / "b")) == 1


@pytest.mark.parametrize("steps", [(10,), (20, 10), (1, 2, 3), (0, 4)])
def test_steps_to_profile_are_a_first_and_a_last_one(steps):
    with pytest.raises(ValueError, match=r"profile_steps: expected .*, got (0|10|20,10|1,2,3)$"):
        TrainerOptions(profile_steps=steps)
