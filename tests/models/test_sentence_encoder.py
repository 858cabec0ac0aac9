"""The vectors of texts are what pooling makes of the encoder's states."""

import keras
import numpy as np
import pytest

import bert_tf
from bert_tf.models.functional import POOLINGS
from bert_tf.models.task_models import bert_sentence_encoder
from bert_tf.tasks import trained_task
from bert_tf.weights.load import load_checkpoint
from bert_tf.weights.save import save_hf
from tests.support.synthetic_records import small_config

# NumPy asks it of TensorFlow, within Keras.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LENGTHS = np.array([7, 3, 5, 2, 7, 4])
CONFIG = small_config(num_hidden_layers=1, initializer_range=0.5)


def inputs_of(length=7):
    rng = np.random.default_rng(5)
    mask = (np.arange(length) < LENGTHS[:, None]).astype(np.int32)
    ids = np.zeros((6, length), np.int32)
    ids[:, :7] = rng.integers(5, CONFIG.vocab_size, (6, 7)) * mask[:, :7]
    return {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(ids)}


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(3)
    return bert_tf.bert_encoder(CONFIG, pooled_output=False)


@pytest.fixture(scope="module")
def states(encoder):
    return np.asarray(encoder(inputs_of())["sequence_output"], np.float64)


def pooled(states, pooling):
    rows = [row[:length] for row, length in zip(states, LENGTHS, strict=True)]
    if pooling == "cls":
        return np.stack([row[0] for row in rows])
    return np.stack([getattr(row, pooling)(axis=0) for row in rows])


def made(encoder, **arguments):
    model = bert_sentence_encoder(CONFIG, **arguments)
    load_checkpoint(model, encoder, heads=False)
    return model


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_pooled_states_whatever_the_padding(encoder, states, pooling):
    expected = pooled(states, pooling)
    found = made(encoder, pooling=pooling)(inputs_of())
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(found, expected, atol=2e-5)
    unit = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    model = made(encoder, pooling=pooling, normalize=True)
    np.testing.assert_allclose(model(inputs_of(11)), unit, atol=2e-5)


def test_groups_have_the_vectors_of_their_texts(encoder, tmp_path):
    model = made(encoder, normalize=True, grouped=True)
    groups = {name: rows.reshape(2, 3, 7) for name, rows in inputs_of().items()}
    expected = np.asarray(made(encoder, normalize=True)(inputs_of()))
    np.testing.assert_allclose(model(groups), expected.reshape(2, 3, -1), atol=1e-6)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(copy.predict(groups, verbose=0), model.predict(groups, verbose=0))


def test_its_weights_are_an_encoder_without_pooler(encoder, tmp_path):
    skipped = save_hf(tmp_path, made(encoder))
    assert all("/pooler/" in name for name in skipped) and len(skipped) == 2
    loaded = bert_tf.load_model(tmp_path)
    assert loaded.kind == "encoder" and "pooled_output" not in loaded.model.output


def test_half_precision_is_pooled_in_float32(encoder):
    model = made(encoder, dtype="mixed_bfloat16", normalize=True)
    found = model(inputs_of())
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match="pooling: expected one of mean, cls, max, got 'sum'"):
        bert_sentence_encoder(CONFIG, pooling="sum")
    with pytest.raises(ValueError, match="config: a sentence encoder has no BiLSTM"):
        bert_sentence_encoder(small_config(bilstm=True))


def test_poolings_are_the_same_where_keras_is_not():
    assert trained_task.POOLINGS == POOLINGS
