"""What Keras' own methods and callbacks do on the package's models and data sets."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.models.task_models import bert_classifier, bert_pretrainer
from bert_tf.tokenization.keras_preprocessor import BertPreprocessor
from bert_tf.training.finetuning import make_model
from bert_tf.training.objectives import (
    FineTuningObjective,
    PretrainingObjective,
    finetuning_compile_arguments,
    pretraining_compile_arguments,
)
from bert_tf.training.optimizers import AdamWeightDecay, create_optimizer
from tests.input_pipeline.test_finetuning import COUNT, KINDS, make_records, num_labels_of
from tests.support import synthetic_records as synthetic

# Of Keras, where it reads a variable.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZES = (7, 97, COUNT)  # of batches: the last holds 3 records, 4 and all

# === Evaluation and prediction ===


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {kind: make_records(folder, kind) for kind in KINDS}


def make(kind, **config):
    keras.utils.set_random_seed(7)
    config = synthetic.small_config(num_hidden_layers=1, **config)
    return make_model(kind, config, num_labels_of(kind))


def whole(tasks):
    """All records as one batch."""
    ((inputs, labels, weights),) = tasks.evaluation_dataset(batch_size=COUNT, pad_to_max=True)
    return inputs, labels, weights


def means(objective, model, inputs, labels, weights):
    figures = objective(model(inputs, training=False), labels, weights)[1]
    return {name: float(total / weight) for name, (total, weight) in figures.items()}


# The losses of retrieval depend on its batches: their negatives are of these.
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"retrieval"}))
def test_evaluate_and_predict_are_of_the_records_whatever_the_batch_size(all_kinds, kind):
    tasks, _ = all_kinds[kind]
    model = make(kind, initializer_range=0.5)
    model.compile(**finetuning_compile_arguments(kind), jit_compile=False)
    exact = means(FineTuningObjective(kind), model, *whole(tasks))
    # Keras adds the losses of outputs, of which the objective takes the mean.
    expected = {"loss": exact["loss"] * (2 if kind == "span" else 1)}
    if kind == "token_classification":
        expected["cross_entropy"] = exact["loss"]
    if kind == "span":
        labels, names = whole(tasks)[1], ("start_logits", "end_logits")
        outputs = model(whole(tasks)[0], training=False)
        for name in names:
            each = ops.sparse_categorical_crossentropy(labels[name], outputs[name], True)
            expected[f"{name}_cross_entropy"] = float(ops.mean(each))
    for name in exact.keys() - {"loss"}:
        expected[name.replace("_accuracy", "_logits_accuracy")] = exact[name]
    outputs = keras.tree.flatten(model(whole(tasks)[0], training=False))
    for size in SIZES:
        dataset = tasks.evaluation_dataset(batch_size=size)
        found = model.evaluate(dataset, verbose=0, return_dict=True)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5), size
        predicted = keras.tree.flatten(model.predict(dataset, verbose=0))
        for one, other in zip(predicted, outputs, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_a_loss_of_keras_needs_no_more_than_its_name(all_kinds, kind):
    """With the reduction that it has by itself, and metrics without weights."""
    tasks, _ = all_kinds[kind]
    model = make(kind, initializer_range=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=["accuracy"], jit_compile=False)
    exact = means(FineTuningObjective(kind), model, *whole(tasks))
    dataset = tasks.evaluation_dataset(batch_size=32)
    assert model.evaluate(dataset, verbose=0, return_dict=True) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(("next_sentence", "weight"), [(True, 1.0), (True, 0.25), (False, 0.25)])
def test_evaluate_and_predict_in_pretraining(tmp_path, next_sentence, weight):
    count = 59
    path = synthetic.write(tmp_path / "x.tfrecord", count, 4)
    config = synthetic.small_config(
        num_hidden_layers=1, initializer_range=0.5, next_sentence_prediction=next_sentence
    )
    keras.utils.set_random_seed(7)
    model = bert_pretrainer(config)
    model.compile(**pretraining_compile_arguments(config, weight), jit_compile=False)

    def dataset(size):
        return pretraining_dataset(
            str(path),
            batch_size=size,
            max_seq_length=synthetic.LENGTH,
            max_predictions_per_seq=synthetic.PREDICTIONS,
            is_training=False,
            next_sentence=next_sentence,
        )

    (batch,) = dataset(count)
    objective = PretrainingObjective(next_sentence, next_sentence_weight=weight)
    exact = means(objective, model, *batch)
    of_output = "masked_lm_logits_" if next_sentence else ""
    expected = {
        f"{of_output}cross_entropy": exact["mlm_loss"],
        f"{of_output}accuracy": exact["mlm_accuracy"],
    }
    if next_sentence:
        expected["next_sentence_logits_cross_entropy"] = exact["nsp_loss"]
        expected["next_sentence_logits_accuracy"] = exact["nsp_accuracy"]
        expected["masked_lm_logits_loss"] = exact["mlm_loss"]
        expected["next_sentence_logits_loss"] = exact["nsp_loss"]
    expected["loss"] = exact["loss"]
    outputs = model(batch[0], training=False)
    for size in (7, 13, count):
        found = model.evaluate(dataset(size), verbose=0, return_dict=True)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5), size
        listed = model.evaluate(dataset(size), verbose=0)
        assert listed[0] == pytest.approx(exact["loss"], rel=1e-5)
        predicted = model.predict(dataset(size), verbose=0)
        for name, values in outputs.items():
            np.testing.assert_allclose(predicted[name], values, atol=2e-5)


def test_a_loss_that_is_not_the_mean_is_reported_as_it_is(all_kinds):
    """With weights of losses, or a loss of the user's own."""
    tasks, _ = all_kinds["token_classification"]
    arguments = finetuning_compile_arguments("token_classification")
    own = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    labels = float(ops.sum(whole(tasks)[2]))
    model = make("token_classification")
    for changed, times in (({}, 1.0), ({"loss_weights": 3.0}, 3.0), ({"loss": own}, labels)):
        model.compile(**{**arguments, **changed}, jit_compile=False)
        dataset = tasks.evaluation_dataset(batch_size=COUNT)
        found = model.evaluate(dataset, verbose=0, return_dict=True)
        assert found["loss"] == pytest.approx(times * found["cross_entropy"], rel=1e-5)


@pytest.mark.parametrize("changed", [{"ignore_class": 1}, {"from_logits": False}])
def test_a_mean_of_other_predictions_is_reported_as_it_is(all_kinds, changed):
    tasks, _ = all_kinds["token_classification"]
    settings = {"from_logits": True, "reduction": "mean_with_sample_weight", **changed}
    own = keras.losses.SparseCategoricalCrossentropy(**settings)
    model = make("token_classification")
    arguments = {**finetuning_compile_arguments("token_classification"), "loss": own}
    model.compile(**arguments, jit_compile=False)
    inputs, labels, weights = whole(tasks)
    expected = float(own(labels, model(inputs), sample_weight=weights))
    dataset = tasks.evaluation_dataset(batch_size=COUNT)
    found = model.evaluate(dataset, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["loss"] != pytest.approx(found["cross_entropy"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_loaded_model_reports_the_same(all_kinds, tmp_path, suffix):
    tasks, _ = all_kinds["token_classification"]
    model = make("token_classification", initializer_range=0.5)
    model.compile("sgd", **finetuning_compile_arguments("token_classification"), jit_compile=False)
    model.save(tmp_path / f"m.{suffix}")
    loaded = keras.saving.load_model(tmp_path / f"m.{suffix}")
    exact = means(FineTuningObjective("token_classification"), model, *whole(tasks))
    for tagger in (loaded, keras.models.clone_model(model)):
        tagger.set_weights(model.get_weights())
        if not tagger.compiled:
            tagger.compile(**finetuning_compile_arguments("token_classification"))
        found = tagger.evaluate(tasks.evaluation_dataset(batch_size=7), verbose=0, return_dict=True)
        assert found["loss"] == pytest.approx(exact["loss"], rel=1e-5)


# === Weights of classes and of examples ===


def trained(tasks, kind, dataset, **arguments):
    """The weights of a model after some steps on a dataset."""
    model = make(
        kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.5
    )
    model.get_layer("dropout").rate = 0.0
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    model.fit(dataset, steps_per_epoch=3, shuffle=False, verbose=0, **arguments)
    return [weight.numpy() for weight in model.trainable_weights]


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_weights_of_classes_are_weights_of_their_examples(all_kinds, kind):
    tasks, _ = all_kinds[kind]
    weights = {0: 3.0, 1: 0.0, 2: 1.0, 3: 0.5, 4: 7.0}
    table = tf.constant(list(weights.values()))
    dataset = tasks.training_dataset(batch_size=13, seed=3)
    found = trained(tasks, kind, dataset, class_weight=weights)
    by_example = dataset.map(lambda inputs, labels: (inputs, labels, tf.gather(table, labels)))
    expected, without = trained(tasks, kind, by_example), trained(tasks, kind, dataset)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(found, without, strict=True)) > 1e-3


# === Callbacks ===


@pytest.fixture
def fitted(all_kinds):
    """Return a function that fits a model with callbacks, and gives it with its history."""
    tasks, _ = all_kinds["classification"]

    def fit(callbacks, epochs=3, rate=1e-2, model=None):
        model = model or make("classification")
        if not model.compiled:
            optimizer = create_optimizer(rate, 100, 1, bias_correction=True)
            arguments = finetuning_compile_arguments("classification")
            model.compile(optimizer, **arguments, jit_compile=False)
        history = model.fit(
            tasks.training_dataset(batch_size=13, seed=3),
            steps_per_epoch=5,
            epochs=epochs,
            shuffle=False,  # these datasets are shuffled already
            validation_data=tasks.evaluation_dataset(batch_size=13),
            callbacks=callbacks,
            verbose=0,
        )
        return model, history

    return fit


def exact_loss(all_kinds, model):
    tasks, _ = all_kinds["classification"]
    return means(FineTuningObjective("classification"), model, *whole(tasks))["loss"]


@pytest.mark.thorough
def test_early_stopping_restores_the_epoch_of_the_lowest_loss(all_kinds, fitted):
    callback = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    model, history = fitted([callback], epochs=9, rate=0.3)
    losses = history.history["val_loss"]
    assert len(losses) == losses.index(min(losses)) + 2 < 9
    assert exact_loss(all_kinds, model) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.thorough
def test_the_best_checkpoint_is_that_of_the_lowest_loss(all_kinds, fitted, tmp_path):
    path = tmp_path / "best.keras"
    _, history = fitted([keras.callbacks.ModelCheckpoint(path, save_best_only=True)], rate=0.1)
    model = keras.saving.load_model(path)
    lowest = min(history.history["val_loss"])
    assert exact_loss(all_kinds, model) == pytest.approx(lowest, rel=1e-5)
    tasks, _ = all_kinds["classification"]
    found = model.evaluate(tasks.evaluation_dataset(batch_size=32), verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(lowest, rel=1e-5)


@pytest.mark.thorough
def test_the_rate_is_lowered_where_the_loss_does_not_fall(all_kinds, fitted):
    model = make("classification")
    optimizer = AdamWeightDecay(1.0)  # a schedule's rate no callback can set
    arguments = finetuning_compile_arguments("classification")
    model.compile(optimizer, **arguments, jit_compile=False)
    callback = keras.callbacks.ReduceLROnPlateau(factor=0.1, patience=1, min_delta=1e9)
    _, history = fitted([callback], model=model)
    assert history.history["learning_rate"] == pytest.approx([1.0, 1.0, 0.1])
    assert float(optimizer.learning_rate) == pytest.approx(0.01)


@pytest.mark.thorough
def test_a_fit_that_was_interrupted_goes_on_at_its_epoch(fitted, tmp_path):
    folder = tmp_path / "backup"

    class Interruption(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted([keras.callbacks.BackupAndRestore(folder), Interruption()], epochs=4)
    model, history = fitted([keras.callbacks.BackupAndRestore(folder)], epochs=4)
    assert history.epoch == [2, 3]
    assert model.optimizer.iterations == 4 * 5


# === Saved models ===

LOADED = """
import sys
import keras, bert_tf
import tensorflow as tf
model = keras.saving.load_model(sys.argv[1])
print(model(tf.constant(["one two", "three"])).numpy().tolist())
"""


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("suffix", ["keras", pytest.param("h5", marks=pytest.mark.thorough)])
def test_a_model_that_takes_strings_is_loaded_by_keras_alone(tmp_path, suffix):
    vocab = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"])
    vocab = {piece: number for number, piece in enumerate(vocab)}
    texts = keras.Input((), dtype="string")
    classifier = bert_classifier(synthetic.small_config(num_hidden_layers=1), num_labels=3)
    logits = classifier(BertPreprocessor(vocab, max_seq_length=7)(texts))
    model = keras.Model(texts, logits)
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = np.array(eval(done.stdout))  # noqa: S307
    np.testing.assert_allclose(found, model(tf.constant(["one two", "three"])), atol=1e-6)
