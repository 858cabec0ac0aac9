import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from bert_tf.training import losses

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
    packed = (arrays["pair_logits"][None], labels.reshape(1, BATCH), weights[None])  # in one row
    assert losses.next_sentence_loss(*packed) == (total, weight)


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


# === Fine-tuning, against other systems' formulas ===

CLASSES = 7


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def both(result):
    assert all(x.dtype == tf.float32 and x.shape == [] for x in result)
    return [float(x) for x in result]


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, PREDICTIONS)])
def test_classification_loss_is_that_of_torch_and_of_scipy(rng, shape):
    torch = pytest.importorskip("torch")
    logits = rng.normal(0, 3, (*shape, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, shape)
    per_label = -np.take_along_axis(
        scipy.special.log_softmax(logits.astype(np.float64), -1), labels[..., None], -1
    )[..., 0]
    assert both(losses.classification_loss(logits, labels)) == pytest.approx(
        [per_label.sum(), per_label.size], rel=1e-6
    )
    weights = (rng.random(shape) < 0.6).astype(np.float32)
    weights.flat[:2] = 0, 1
    total, weight = both(losses.classification_loss(logits, labels, weights))
    assert [total, weight] == pytest.approx([per_label[weights == 1].sum(), weights.sum()])
    # As transformers leaves labels out.
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, CLASSES),
        torch.tensor(np.where(weights == 1, labels, -100)).reshape(-1),
    )
    assert total / weight == pytest.approx(float(theirs), rel=1e-6)


def test_regression_loss_is_that_of_torch(rng):
    torch = pytest.importorskip("torch")
    predictions = rng.normal(size=(BATCH, 1)).astype(np.float32)
    labels = rng.normal(size=BATCH).astype(np.float32)
    theirs = torch.nn.functional.mse_loss(torch.tensor(predictions[:, 0]), torch.tensor(labels))
    for shape in ((BATCH,), (BATCH, 1)):
        for other in ((BATCH,), (BATCH, 1)):
            total, weight = both(
                losses.regression_loss(predictions.reshape(shape), labels.reshape(other))
            )
            assert weight == BATCH
            assert total / weight == pytest.approx(float(theirs), rel=1e-6)
    weights = np.array([1, 0, 1, 0, 0], np.float32)
    total, weight = both(losses.regression_loss(predictions, labels, weights))
    squares = (predictions[:, 0] - labels) ** 2
    assert [total, weight] == pytest.approx([squares[0] + squares[2], 2], rel=1e-6)
    whole = both(losses.regression_loss(predictions, np.arange(BATCH)))
    assert whole[0] == pytest.approx(((predictions[:, 0] - np.arange(BATCH)) ** 2).sum(), rel=1e-6)


def test_multi_label_loss_is_that_of_torch(rng):
    torch = pytest.importorskip("torch")
    logits = rng.normal(0, 30, (BATCH, CLASSES)).astype(np.float32)  # the largest overflow exp
    labels = rng.integers(0, 2, (BATCH, CLASSES)).astype(np.float32)
    theirs = torch.nn.BCEWithLogitsLoss()(torch.tensor(logits), torch.tensor(labels))
    total, weight = both(losses.multi_label_loss(logits, labels))
    assert weight == BATCH
    assert total / weight == pytest.approx(float(theirs), rel=1e-6)
    wide = logits.astype(np.float64)
    per_label = np.logaddexp(0, wide) - labels * wide
    weights = np.array([0, 1, 1, 0, 1], np.float32)
    total, weight = both(losses.multi_label_loss(logits, labels.astype(np.int32), weights))
    assert [total, weight] == pytest.approx([per_label.mean(1)[[1, 2, 4]].sum(), 3], rel=1e-6)


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, PREDICTIONS)])
def test_smoothed_labels_give_the_loss_of_keras(rng, shape):
    logits = rng.normal(0, 3, (*shape, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, shape)
    weights = (rng.random(shape) < 0.6).astype(np.float32)
    weights.flat[:2] = 0, 1
    theirs = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.3, reduction="none"
    )(np.eye(CLASSES, dtype=np.float32)[labels], logits)
    total, weight = both(losses.classification_loss(logits, labels, weights, 0.3))
    assert [total, weight] == pytest.approx([np.sum(theirs * weights), weights.sum()], rel=1e-5)


def test_smoothed_labels_give_the_loss_of_torch(rng):
    torch = pytest.importorskip("torch")
    logits = rng.normal(0, 3, (BATCH, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), label_smoothing=0.3
    )
    total, weight = both(losses.classification_loss(logits, labels, None, 0.3))
    assert total / weight == pytest.approx(float(theirs), rel=1e-5)


def test_several_smoothed_labels_give_the_loss_of_keras(rng):
    logits = rng.normal(0, 3, (BATCH, CLASSES)).astype(np.float32)
    labels = rng.integers(0, 2, (BATCH, CLASSES)).astype(np.float32)
    weights = np.array([0, 1, 1, 0, 1], np.float32)
    theirs = keras.losses.BinaryCrossentropy(
        from_logits=True, label_smoothing=0.3, reduction="none"
    )(labels, logits)
    total, weight = both(losses.multi_label_loss(logits, labels, weights, 0.3))
    assert [total, weight] == pytest.approx([np.sum(theirs * weights), 3], rel=1e-5)


def test_span_loss_is_that_of_torch(rng):
    torch = pytest.importorskip("torch")
    start, end = rng.normal(0, 3, (2, BATCH, VOCAB)).astype(np.float32)
    first, last = rng.integers(0, VOCAB - 4, (2, BATCH))
    entropy = torch.nn.functional.cross_entropy
    # As transformers and run_squad.py have it, the halves added.
    theirs = (
        entropy(torch.tensor(start), torch.tensor(first))
        + entropy(torch.tensor(end), torch.tensor(last))
    ) / 2
    total, weight = both(losses.span_loss(start, end, first, last))
    assert weight == BATCH
    assert total / weight == pytest.approx(float(theirs), rel=1e-6)
    # With a mask as if the rest were not there.
    mask = np.ones((BATCH, VOCAB), np.int32)
    mask[:, VOCAB - 4 :] = 0
    cut = both(losses.span_loss(start[:, :-4], end[:, :-4], first, last))
    assert both(losses.span_loss(start, end, first, last, mask=mask)) == pytest.approx(cut)
    assert cut[0] < total - 0.1
    weights = np.array([1, 0, 0, 1, 0], np.float32)
    kept = weights == 1
    expected = both(losses.span_loss(start[kept], end[kept], first[kept], last[kept]))
    found = both(losses.span_loss(start, end, first, last, weights))
    assert found == pytest.approx(expected) and found[1] == 2


def test_masked_logits_cannot_be_chosen(rng):
    logits = tf.cast(rng.normal(size=(BATCH, VOCAB)), tf.bfloat16)
    mask = rng.integers(0, 2, (BATCH, VOCAB))
    found = losses.masked_logits(logits, mask)
    assert found.dtype == tf.float32
    expected = np.where(mask, tf.cast(logits, tf.float32), np.float32(-1e9))
    np.testing.assert_array_equal(found, expected)


def test_classification_accuracy_is_that_of_sklearn(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    logits = rng.normal(size=(101, CLASSES)).astype(np.float32)
    labels = np.where(rng.random(101) < 0.6, logits.argmax(-1), 0)
    weights = rng.integers(0, 2, 101).astype(np.float32)
    right, weight = both(losses.classification_accuracy(logits, labels, weights))
    expected = metrics.accuracy_score(labels, logits.argmax(-1), sample_weight=weights)
    assert 0 < expected < 1 and right / weight == pytest.approx(expected)
    right, weight = both(losses.classification_accuracy(logits, labels))
    assert (right, weight) == ((logits.argmax(-1) == labels).sum(), 101)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.classification_loss(x, np.arange(BATCH)),
        lambda x: losses.regression_loss(x[:, :1], np.linspace(0, 1, BATCH, dtype=np.float32)),
        lambda x: losses.multi_label_loss(x, np.eye(BATCH, CLASSES, dtype=np.float32)),
        lambda x: losses.span_loss(x, x[:, ::-1], np.arange(BATCH), np.arange(BATCH)),
    ],
)
def test_fine_tuning_losses_of_low_precision_are_computed_in_float32(rng, loss):
    logits = tf.cast(rng.normal(0, 3, (BATCH, CLASSES)), tf.bfloat16)
    assert both(loss(logits)) == both(loss(tf.cast(logits, tf.float32)))
