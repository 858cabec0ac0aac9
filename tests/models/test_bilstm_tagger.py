"""The tagger of features: padding and order, what it learns, and the choices of the paper."""

import keras
import numpy as np
import pytest

from bert_tf.models.bilstm_tagger import FEATURE_CHOICES, ScalarMix, bilstm_tagger
from bert_tf.models.variables import to_numpy

LABELS, SIZE, MIXED, UNITS = 5, 7, 3, 11

# Keras' own writing of weights warns of NumPy's future.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def batch(shape, lengths, seed=3):
    random = np.random.default_rng(seed)
    features = random.normal(size=shape).astype(np.float32)
    mask = (np.arange(shape[1]) < np.asarray(lengths)[:, None]).astype(np.int32)
    return {"features": features, "input_mask": mask}


def logits_of(model, inputs):
    return keras.ops.convert_to_numpy(model(inputs, training=False))


@pytest.mark.parametrize("mixed", [None, MIXED])
def test_padding_changes_nothing(mixed):
    layers = () if mixed is None else (mixed,)
    model = bilstm_tagger(SIZE, LABELS, mixed, lstm_size=UNITS)
    lengths = (13, 1, 6)
    padded = batch((3, 17, *layers, SIZE), lengths)
    found = logits_of(model, padded)
    assert found.shape == (3, 17, LABELS) and found.dtype == np.float32
    for row, length in enumerate(lengths):
        own = {name: value[row : row + 1, :length] for name, value in padded.items()}
        np.testing.assert_allclose(found[row, :length], logits_of(model, own)[0], atol=1e-5)


def test_both_directions_and_all_layers_of_lstm_count():
    model = bilstm_tagger(SIZE, LABELS, lstm_size=UNITS)
    one = batch((1, 17, SIZE), [17])
    before = logits_of(model, one)
    for changed in (0, 16):
        other = {**one, "features": one["features"].copy()}
        other["features"][0, changed] += 1
        assert (np.abs(logits_of(model, other) - before).max(axis=-1) > 0).all()
    shapes = sorted(tuple(weight.shape) for weight in model.weights)
    lstm = [(4 * UNITS,), (UNITS, 4 * UNITS)] * 4
    kernels = [(SIZE, 4 * UNITS)] * 2 + [(2 * UNITS, 4 * UNITS)] * 2
    assert shapes == sorted([*lstm, *kernels, (2 * UNITS, LABELS), (LABELS,)])
    assert len(bilstm_tagger(SIZE, LABELS, num_lstm_layers=1).weights) == 6 + 2


def test_the_mix_is_that_of_elmo():
    layer = ScalarMix()
    features = batch((2, 5, MIXED, SIZE), [5, 5])["features"]
    mixed = keras.ops.convert_to_numpy(layer(features))
    np.testing.assert_allclose(mixed, features.mean(axis=2), atol=1e-6)
    weights, scale = np.array([0.3, -1.1, 2.3], np.float32), np.float32(1.7)
    layer.mix_weights.assign(weights)
    layer.scale.assign(scale)
    softmax = np.exp(weights) / np.exp(weights).sum()
    expected = scale * (features * softmax[:, None]).sum(axis=2)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(features)), expected, atol=1e-5)
    assert {weight.path.rpartition("/")[2] for weight in layer.weights} == {"mix_weights", "scale"}


@pytest.mark.thorough
def test_the_mix_is_learned_and_saved(tmp_path):
    """Labels depend on one of the layers mixed: its weight grows."""
    keras.utils.set_random_seed(7)
    model = bilstm_tagger(SIZE, 2, MIXED, lstm_size=UNITS, num_lstm_layers=1, dropout_rate=0.0)
    inputs = batch((64, 5, MIXED, SIZE), [5] * 64)
    labels = (inputs["features"][:, :, 1, 0] > 0).astype(np.int32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss)
    model.fit(inputs, labels, epochs=15, verbose=0)
    weights = to_numpy(model.get_layer("scalar_mix").mix_weights)
    assert weights.argmax() == 1 and weights[1] > max(weights[0], weights[2]) + 0.3
    assert (logits_of(model, inputs).argmax(axis=-1) == labels).mean() > 0.8
    model.save(tmp_path / "tagger.keras")
    again = keras.models.load_model(tmp_path / "tagger.keras")
    np.testing.assert_allclose(logits_of(again, inputs), logits_of(model, inputs), atol=1e-6)


def test_dropout_is_in_training_only():
    model = bilstm_tagger(SIZE, LABELS, lstm_size=UNITS, dropout_rate=0.5)
    one = batch((1, 17, SIZE), [17])
    np.testing.assert_array_equal(logits_of(model, one), logits_of(model, one))
    first, second = (
        keras.ops.convert_to_numpy(model(one, training=True)).ravel() for _ in range(2)
    )
    assert np.abs(first - second).max() > 1e-3
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.5] * 3


def test_the_choices_of_the_paper():
    found = {
        name: (choice.hidden_states(12), choice.weighted)
        for name, choice in FEATURE_CHOICES.items()
    }
    assert found == {
        "embeddings": ((0,), False),
        "second_to_last": ((11,), False),
        "last": ((12,), False),
        "weighted_sum_last_four": ((9, 10, 11, 12), True),
        "concat_last_four": ((9, 10, 11, 12), False),
        "weighted_sum_all": (tuple(range(1, 13)), True),
    }
    assert FEATURE_CHOICES["concat_last_four"].hidden_states(4) == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="at least 4 layers, the model has 3"):
        FEATURE_CHOICES["concat_last_four"].hidden_states(3)
    with pytest.raises(ValueError, match="at least 2 layers, the model has 1"):
        FEATURE_CHOICES["second_to_last"].hidden_states(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature_size": 0}, "feature_size: expected an integer of at least 1, got 0"),
        ({"num_labels": True}, "num_labels: expected an integer of at least 1, got True"),
        ({"layers_to_mix": 0}, "layers_to_mix: expected an integer of at least 1, got 0"),
        ({"lstm_size": 2.5}, "lstm_size: expected an integer of at least 1, got 2.5"),
        ({"num_lstm_layers": 0}, "num_lstm_layers: expected an integer"),
        ({"dropout_rate": 1.0}, "dropout_rate: expected at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        bilstm_tagger(**{"feature_size": SIZE, "num_labels": LABELS, **arguments})
