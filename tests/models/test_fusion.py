"""Graphs with compiled loops between the matrix products, against graphs without."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.models import fused_kernels, fusion
from bert_tf.models.dropout import dropout
from bert_tf.models.encoder import INPUT_NAMES, bert_encoder
from bert_tf.models.functional import layer_norm, residual_norm
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.training.losses import classification_loss

CONFIG = BertConfig(
    vocab_size=37,
    hidden_size=14,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=19,
    max_position_embeddings=13,
    type_vocab_size=2,
    hidden_dropout_prob=0.3,
    attention_probs_dropout_prob=0.4,
    initializer_range=0.3,
)
KEY = tf.constant([123456789, 987654321], tf.uint32)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(5)
    mask = np.arange(11) < np.array([11, 7, 1])[:, None]
    return {
        "input_ids": rng.integers(0, 37, (3, 11)).astype(np.int32),
        "input_mask": mask.astype(np.int32),
        "segment_ids": rng.integers(0, 2, (3, 11)).astype(np.int32),
        "masked_lm_positions": rng.integers(0, 7, (3, 5)).astype(np.int32),
    }


def results_of(batch, *, policy="float32", fuses, **arguments):
    """Return the loss, the logits and the gradients of a training step's graph."""
    keras.utils.set_random_seed(3)
    model = bert_pretrainer(CONFIG, dtype=policy, **arguments)
    labels = tf.constant(np.random.default_rng(7).integers(0, 37, (3, 5)), tf.int32)

    @tf.function
    def step(inputs):
        with fusion.fusing(fuses):
            with tf.GradientTape() as tape:
                outputs = model(inputs, training=True)
                loss, _ = classification_loss(outputs["masked_lm_logits"], labels)
                loss += tf.reduce_sum(tf.cast(outputs["next_sentence_logits"], tf.float32))
            return loss, outputs, tape.gradient(loss, model.trainable_variables)

    loss, outputs, gradients = step({name: tf.constant(value) for name, value in batch.items()})
    paths = [variable.path for variable in model.trainable_variables]
    gradients = dict(zip(paths, map(tf.convert_to_tensor, gradients), strict=True))
    nodes = str(step.get_concrete_function(batch).graph.as_graph_def())
    assert ("_XlaMustCompile" in nodes) == fuses
    return {"loss": loss, **outputs, **gradients}


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        one, other = (np.asarray(tf.cast(x, tf.float32)) for x in (found[name], value))
        assert np.abs(one - other).max() <= 1e-6 + tolerance * np.abs(other).max(), name


@pytest.fixture(scope="module")
def expected(batch):
    return results_of(batch, fuses=False)


def test_float32_differs_in_the_last_digits_only(batch, expected):
    assert_close(results_of(batch, fuses=True), expected, 1e-5)


def test_recomputed_layers(batch, expected):
    assert_close(results_of(batch, fuses=True, recompute="all"), expected, 1e-5)


def test_bfloat16_is_near_float32(batch, expected):
    fused = results_of(batch, policy="mixed_bfloat16", fuses=True)
    assert_close({"loss": fused["loss"]}, {"loss": expected["loss"]}, 0.02)
    for name, value in expected.items():
        one, other = (np.asarray(tf.cast(x, tf.float32)).ravel() for x in (fused[name], value))
        if np.linalg.norm(other) > 1e-3:
            assert one @ other > 0.99 * np.linalg.norm(one) * np.linalg.norm(other), name


def test_attention_probabilities_are_there_where_they_are_asked_for(batch):
    model = bert_encoder(CONFIG, attention_probs=True)
    inputs = {name: batch[name] for name in INPUT_NAMES}
    with fusion.fusing():
        outputs = tf.function(lambda x: model(x, training=True))(inputs)
    np.testing.assert_allclose(tf.reduce_sum(outputs["attention_probs_1"], -1), 1, rtol=1e-5)


# Keras', of layers that it cannot quantize, and where it reads a variable.
@pytest.mark.thorough(traced=True)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_a_quantized_encoder_attends_as_without_fusing(batch):
    model = bert_encoder(CONFIG)
    model.quantize("int8")
    inputs = {name: tf.constant(batch[name]) for name in INPUT_NAMES}
    expected = tf.function(lambda x: model(x, training=False))(inputs)
    with fusion.fusing():
        found = tf.function(lambda x: model(x, training=False))(inputs)
    assert_close(found, expected, 1e-5)


def test_without_fusing_a_function_is_called_as_it_is():
    rng = np.random.default_rng(2)
    x, residual = (tf.constant(rng.normal(size=(5, 7)), tf.float32) for _ in range(2))
    gamma, beta = (tf.constant(rng.normal(size=7), tf.float32) for _ in range(2))
    found = fusion.apply(
        residual_norm, x, residual, gamma, beta, KEY, dtype="float32", epsilon=1e-12, rate=0.3
    )
    expected = layer_norm(dropout(x, 0.3, KEY) + residual, gamma, beta, 1e-12)
    np.testing.assert_array_equal(found, expected)


def test_a_loop_computes_in_float32_whatever_it_reads():
    x = tf.cast(tf.linspace(-3.0, 3.0, 101), tf.bfloat16)
    with fusion.fusing():
        found = fusion.apply(lambda y: y * 1.01 * (1 / 1.01), x, dtype="bfloat16")
    np.testing.assert_array_equal(found, x)  # in bfloat16 each product would be rounded


def test_dropout_has_the_masks_that_it_has_elsewhere():
    scores, adder = tf.zeros((2, 3, 5, 7)), tf.zeros((2, 1, 1, 7))
    found = fused_kernels.attention_weights(scores, adder, KEY, 0.4, 1.0)
    expected = dropout(tf.fill((2, 3, 5, 7), 1 / 7), 0.4, KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = fused_kernels.attention_weights(scores, adder, None, 0.4, 1.0)
    np.testing.assert_allclose(found, tf.fill((2, 3, 5, 7), 1 / 7), rtol=1e-6)


def test_cross_entropy_of_any_logits():
    logits = np.random.default_rng(1).normal(size=(2, 5, 11)) * [[[1.0]], [[1e4]]]
    labels = np.arange(10).reshape(2, 5)
    weights = np.linspace(1, 2, 10).reshape(2, 5)
    logits, labels = tf.constant(logits, tf.float32), tf.constant(labels, tf.int32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        found = fused_kernels.cross_entropy(logits, labels)
        loss = tf.reduce_sum(found * tf.constant(weights, tf.float32))
    wide = logits.numpy().astype(np.float64)
    chosen = np.eye(11)[labels.numpy()]
    normalizers = scipy.special.logsumexp(wide, axis=-1)
    np.testing.assert_allclose(found, normalizers - (wide * chosen).sum(-1), rtol=1e-6, atol=2e-6)
    expected = (scipy.special.softmax(wide, axis=-1) - chosen) * weights[..., None]
    gradient = tf.convert_to_tensor(tape.gradient(loss, logits))
    np.testing.assert_allclose(gradient, expected, atol=2e-6)
