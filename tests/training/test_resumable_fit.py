"""A fit that was stopped goes on to the bit, wherever it was."""

import keras
import numpy as np
import pytest

from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.training import ResumableFit
from bert_tf.training.objectives import pretraining_compile_arguments
from bert_tf.training.optimizers import create_optimizer
from bert_tf.weights.tensor_files import checkpoint_steps
from tests.support import synthetic_records as synthetic
from tests.support.synthetic_records import LENGTH, PREDICTIONS

# Of Keras, where it reads a variable.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEPS_PER_EPOCH, EPOCHS = 4, 3


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("records") / "t.tfrecord", 101, 1)


def dataset_of(path, step=0, **settings):
    return pretraining_dataset(
        str(path),
        batch_size=settings.pop("batch_size", 13),
        max_seq_length=LENGTH,
        max_predictions_per_seq=PREDICTIONS,
        is_training=settings.pop("is_training", True),
        seed=7,
        start_step=step,
        **settings,
    )


def make_model(seed=3, **settings):
    keras.utils.set_random_seed(seed)
    config = synthetic.small_config(num_hidden_layers=1)
    model = bert_pretrainer(config)
    optimizer = create_optimizer(1e-2, STEPS_PER_EPOCH * EPOCHS, 3)
    arguments = pretraining_compile_arguments(config)
    model.compile(optimizer, **arguments, jit_compile=False, **settings)
    return model


class Kill(keras.callbacks.Callback):
    """Keeps the logs of batches, and ends the process in effect after a batch or in validation."""

    def __init__(self, after=None, in_validation_of=None):
        super().__init__()
        self.after, self.in_validation_of, self.logs = after, in_validation_of, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))
        if len(self.logs) == self.after:
            raise KeyboardInterrupt

    def on_test_begin(self, logs=None):
        if self.in_validation_of == self.epoch:
            raise KeyboardInterrupt


def fit(model, path, folder, *callbacks, save_steps=2, epochs=EPOCHS):
    resumable = ResumableFit(folder, steps_per_epoch=STEPS_PER_EPOCH, save_steps=save_steps)
    return resumable.fit(
        model,
        lambda step: dataset_of(path, step),
        epochs=epochs,
        callbacks=callbacks,
        validation_data=dataset_of(path, is_training=False, batch_size=51),
        verbose=0,
    )


@pytest.fixture(scope="module")
def unbroken(records_file):
    """Return a model, its history and the logs of its batches, of Keras alone."""
    model, log = make_model(), Kill()
    history = model.fit(
        dataset_of(records_file),
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=EPOCHS,
        validation_data=dataset_of(records_file, is_training=False, batch_size=51),
        callbacks=[log],
        shuffle=False,
        verbose=0,
    )
    return model, history, log.logs


def assert_ends_as(model, history, begin, unbroken):
    expected, whole, _ = unbroken
    assert history.epoch == whole.epoch[begin:]
    assert history.history == {name: values[begin:] for name, values in whole.history.items()}
    for one, other in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
    for one, other in zip(model.optimizer.variables, expected.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


@pytest.mark.thorough
def test_a_fit_goes_on_in_mid_epoch_to_the_bit(records_file, tmp_path, unbroken):
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), records_file, tmp_path, Kill(after=7))
    assert checkpoint_steps(tmp_path) == [4, 6]
    log = Kill(in_validation_of=2)  # which is not run: nothing is killed before step 12
    model = make_model(seed=17)
    with pytest.raises(KeyboardInterrupt):
        fit(model, records_file, tmp_path, log)
    assert log.logs == unbroken[2][6:]
    # Killed in the validation of the last epoch, so that its steps are not the state's yet.
    assert checkpoint_steps(tmp_path) == [8, 10]
    log, model = Kill(), make_model(seed=27)
    history = fit(model, records_file, tmp_path, log)
    assert log.logs == unbroken[2][10:]
    assert_ends_as(model, history, 2, unbroken)
    # What is done is not done again.
    model = make_model(seed=37)
    history = fit(model, records_file, tmp_path, Kill(after=1))
    assert history.epoch == [] and history.history == {}
    for one, other in zip(model.weights, unbroken[0].weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_fit_goes_on_from_the_checkpoint_before_a_damaged_one(records_file, tmp_path, unbroken):
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), records_file, tmp_path, Kill(after=6), save_steps=5)
    (tmp_path / "model.ckpt-5.data-00000-of-00001").write_bytes(b"damaged")
    model = make_model(seed=17)
    history = fit(model, records_file, tmp_path, save_steps=1)
    assert_ends_as(model, history, 1, unbroken)


@pytest.mark.thorough(traced=True)
def test_a_callback_may_end_a_fit_that_went_on(records_file, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    fit(make_model(), records_file, tmp_path, Stop(), save_steps=1)
    assert checkpoint_steps(tmp_path) == [1]
    history = fit(make_model(), records_file, tmp_path, Stop(), save_steps=3)
    assert history.epoch == [0]
    assert checkpoint_steps(tmp_path) == [1]  # not of an epoch whose metrics validation cleared


def test_what_cannot_go_on_is_refused(records_file, tmp_path):
    with pytest.raises(ValueError, match="save_steps: expected at least 1, got 0"):
        ResumableFit(tmp_path, steps_per_epoch=4, save_steps=0)
    resumable = ResumableFit(tmp_path, steps_per_epoch=4, save_steps=9)
    make = lambda step: dataset_of(records_file, step).take(3)  # noqa: E731
    with (
        pytest.warns(UserWarning, match="ran out of data"),
        pytest.raises(ValueError, match="make_dataset: expected batches without an end, got.* 3"),
    ):
        resumable.fit(make_model(), make, epochs=2, verbose=0)
    with pytest.raises(ValueError, match="a multiple of the model's steps_per_execution, 3, got 4"):
        resumable.fit(make_model(steps_per_execution=3), make, epochs=2, verbose=0)
