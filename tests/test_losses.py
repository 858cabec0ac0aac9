import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf import losses

BATCH, PREDICTIONS, VOCAB = 5, 3, 11


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    return {
        "logits": rng.normal(0, 3, (BATCH, PREDICTIONS, VOCAB)).astype(np.float32),
        "ids": rng.integers(0, VOCAB, (BATCH, PREDICTIONS)).astype(np.int32),
        "weights": (rng.random((BATCH, PREDICTIONS)) < 0.6).astype(np.float32),
        "pair_logits": rng.normal(0, 2, (BATCH, 2)).astype(np.float32),
        "labels": rng.integers(0, 2, (BATCH, 1)).astype(np.int32),
    }


def cross_entropy(logits, labels):
    """By the definition, in float64 NumPy."""
    logits = logits.astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probabilities, labels[..., None], -1)[..., 0]


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function, tf.function(jit_compile=True)])
def test_masked_lm_loss_is_weighted_sum(arrays, wrap):
    total, weight = wrap(losses.masked_lm_loss)(arrays["logits"], arrays["ids"], arrays["weights"])
    expected = (cross_entropy(arrays["logits"], arrays["ids"]) * arrays["weights"]).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert float(weight) == arrays["weights"].sum()
    assert total.dtype == weight.dtype == tf.float32


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, 1)])
def test_next_sentence_loss_takes_both_shapes_of_labels(arrays, shape):
    labels = arrays["labels"].reshape(shape)
    total, weight = losses.next_sentence_loss(arrays["pair_logits"], labels)
    expected = cross_entropy(arrays["pair_logits"], arrays["labels"][:, 0])
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-6)
    assert float(weight) == BATCH
    weights = np.array([1, 0, 2, 0, 1], np.float32)
    total, weight = losses.next_sentence_loss(arrays["pair_logits"], labels, weights)
    np.testing.assert_allclose(total, (expected * weights).sum(), rtol=1e-6)
    assert float(weight) == 4


def test_low_precision_logits_are_summed_in_float32(arrays):
    logits = tf.cast(arrays["logits"], tf.bfloat16)
    total, _ = losses.masked_lm_loss(logits, arrays["ids"], arrays["weights"])
    expected, _ = losses.masked_lm_loss(
        tf.cast(logits, tf.float32), arrays["ids"], arrays["weights"]
    )
    assert total.dtype == tf.float32
    assert float(total) == float(expected)


def test_accuracies(arrays):
    ids = arrays["logits"].argmax(-1).astype(np.int32)
    ids[1, 2] = (ids[1, 2] + 1) % VOCAB
    weights = np.ones_like(arrays["weights"])
    weights[3, 0] = 0
    right, weight = losses.masked_lm_accuracy(arrays["logits"], ids, weights)
    assert (float(right), float(weight)) == (13, 14)
    labels = arrays["pair_logits"].argmax(-1)[:, None]
    assert [float(x) for x in losses.next_sentence_accuracy(arrays["pair_logits"], labels)] == [
        5,
        5,
    ]
    right, _ = losses.next_sentence_accuracy(arrays["pair_logits"], 1 - labels)
    assert float(right) == 0


def test_of_equal_logits_the_first_counts():
    right, _ = losses.masked_lm_accuracy(
        np.zeros((1, 2, VOCAB), np.float32), np.array([[0, 1]]), np.ones((1, 2))
    )
    assert float(right) == 1


def test_masked_lm_loss_class_divides_by_weight_and_epsilon(arrays):
    loss = losses.MaskedLMLoss()(arrays["ids"], arrays["logits"], arrays["weights"])
    per_label = cross_entropy(arrays["logits"], arrays["ids"])
    weights = arrays["weights"]
    np.testing.assert_allclose(loss, (per_label * weights).sum() / (weights.sum() + 1e-5), 1e-6)
    # A batch without predictions.
    assert float(losses.MaskedLMLoss()(arrays["ids"], arrays["logits"], 0 * weights)) == 0
    unweighted = losses.MaskedLMLoss()(arrays["ids"], arrays["logits"])
    np.testing.assert_allclose(unweighted, per_label.sum() / (15 + 1e-5), 1e-6)


def test_next_sentence_loss_class_is_the_mean(arrays):
    loss = losses.NextSentenceLoss()
    per_label = cross_entropy(arrays["pair_logits"], arrays["labels"][:, 0])
    np.testing.assert_allclose(
        loss(arrays["labels"], arrays["pair_logits"]), per_label.mean(), 1e-6
    )
    weights = np.zeros((BATCH, 1), np.float32)
    assert float(loss(arrays["labels"], arrays["pair_logits"], weights)) == 0
    weights[2] = 1
    np.testing.assert_allclose(
        loss(arrays["labels"], arrays["pair_logits"], weights), per_label[2], 1e-6
    )


@pytest.mark.parametrize("loss_class", [losses.MaskedLMLoss, losses.NextSentenceLoss])
def test_loss_classes_are_serialisable(loss_class):
    loss = keras.losses.deserialize(keras.losses.serialize(loss_class(name="renamed")))
    assert isinstance(loss, loss_class)
    assert loss.name == "renamed"
