"""Losses as pure functions that return (sum, weight), and the same for `Model.compile`.

A step divides the sum by the weight once, so accumulation, replicas and padding stay exact.

Shape legend: B batch, P predictions, V vocabulary.
"""

import keras
from keras import ops

# Added to the sum of weights of the masked language model by the original: a batch without any
# prediction has loss 0, not 0/0.
MASKED_LM_WEIGHT_EPSILON = 1e-5


def masked_lm_loss(logits, ids, weights):
    """Sum the cross entropy of the masked positions.

    Args:
        logits: float [B, P, V] (any float type; computed in float32).
        ids: integer [B, P], the true word pieces; 0 where there is no prediction.
        weights: float [B, P], 1 for a prediction and 0 for padding.

    Returns:
        (sum, weight): float32 scalars, nats summed over predictions, and the sum of weights. The
        original's loss is sum / (weight + 1e-5).

    Reference: `get_masked_lm_output` of google-research/bert `run_pretraining.py`.
    """
    return _weighted_cross_entropy(logits, ids, weights)


def next_sentence_loss(logits, labels, weights=None):
    """Sum the cross entropy of next sentence prediction.

    Args:
        logits: float [B, 2] (any float type; computed in float32).
        labels: integer [B] or [B, 1], 0 for the actual next sentence and 1 for a random one.
        weights: float [B] or [B, 1]; None (default) means 1 for each.

    Returns:
        (sum, weight): float32 scalars, nats summed over examples, and the sum of weights. The
        original's loss is sum / weight.

    Reference: `get_next_sentence_output` of google-research/bert `run_pretraining.py`.
    """
    labels = ops.reshape(labels, (-1,))  # [B]
    if weights is None:
        weights = ops.ones_like(labels, dtype="float32")  # [B]
    return _weighted_cross_entropy(logits, labels, ops.reshape(weights, (-1,)))


def classification_loss(logits, labels, weights=None):
    """Sum the cross entropy of labels: of sequences, of tokens, of choices.

    Args:
        logits: float [..., K] (any float type; computed in float32).
        labels: integer [...].
        weights: float [...]; None (default) means 1 for each.

    Returns:
        (sum, weight): float32 scalars. The original's loss of a classifier is sum / weight.

    Reference: `create_model` of google-research/bert `run_classifier.py`.
    """
    if weights is None:
        weights = ops.ones_like(labels, dtype="float32")
    return _weighted_cross_entropy(logits, labels, weights)


def classification_accuracy(logits, labels, weights=None):
    """Count the labels that are predicted; arguments and result as of `classification_loss`."""
    if weights is None:
        weights = ops.ones_like(labels, dtype="float32")
    return _weighted_accuracy(logits, labels, weights)


def regression_loss(predictions, labels, weights=None):
    """Sum the squared errors.

    Args:
        predictions: float [B] or [B, 1].
        labels: float [B] or [B, 1].
        weights: float [B]; None (default) means 1 for each.

    Returns:
        (sum, weight): float32 scalars. The mean squared error is sum / weight.

    Reference: the paper's STS-B; the original has no regression.
    """
    labels = ops.cast(ops.reshape(labels, (-1,)), "float32")
    errors = ops.square(ops.cast(ops.reshape(predictions, (-1,)), "float32") - labels)
    if weights is None:
        weights = ops.ones_like(errors)
    weights = ops.cast(weights, "float32")
    return ops.sum(errors * weights), ops.sum(weights)


def multi_label_loss(logits, labels, weights=None):
    """Sum over examples the mean binary cross entropy of their labels.

    Args:
        logits: float [B, K].
        labels: float [B, K], 1 for the labels that hold and 0 for others.
        weights: float [B]; None (default) means 1 for each.

    Returns:
        (sum, weight): float32 scalars. sum / weight is the mean over examples and labels.
    """
    logits, labels = ops.cast(logits, "float32"), ops.cast(labels, "float32")
    losses = ops.binary_crossentropy(labels, logits, from_logits=True)  # [B, K]
    losses = ops.mean(losses, axis=-1)
    if weights is None:
        weights = ops.ones_like(losses)
    weights = ops.cast(weights, "float32")
    return ops.sum(losses * weights), ops.sum(weights)


def span_loss(start_logits, end_logits, start_positions, end_positions, weights=None, mask=None):
    """Sum the mean of the cross entropies of a span's start and end.

    Args:
        start_logits: float [B, F].
        end_logits: float [B, F].
        start_positions: integer [B]; 0 where there is no answer.
        end_positions: integer [B].
        weights: float [B]; None (default) means 1 for each.
        mask: integer [B, F], 0 for positions that cannot be chosen; None (default) for none, as in
            the original, whose probabilities are over padding too.

    Returns:
        (sum, weight): float32 scalars.

    Reference: `model_fn_builder` of google-research/bert `run_squad.py`.
    """
    total = 0.0
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        if mask is not None:
            logits = masked_logits(logits, mask)
        loss, weight = classification_loss(logits, positions, weights)
        total = total + loss / 2.0
    return total, weight


def masked_logits(logits, mask):
    """Keep positions from being chosen.

    Args:
        logits: float [B, F].
        mask: integer [B, F], 0 for positions that cannot be chosen.

    Returns:
        float32 [B, F], -1e9 where the mask is 0.
    """
    logits = ops.cast(logits, "float32")
    return ops.where(ops.cast(mask, "bool"), logits, ops.full_like(logits, -1e9))


def masked_lm_accuracy(logits, ids, weights):
    """Count the masked positions whose highest logit is the true word piece.

    Args:
        logits: float [B, P, V].
        ids: integer [B, P].
        weights: float [B, P].

    Returns:
        (sum, weight): float32 scalars, the weighted number of right predictions and the sum of
        weights. Accuracy is sum / weight. Of equal logits the first counts, as in the original.
    """
    return _weighted_accuracy(logits, ids, weights)


def next_sentence_accuracy(logits, labels, weights=None):
    """Count the examples whose next sentence label is predicted.

    Args:
        logits: float [B, 2].
        labels: integer [B] or [B, 1].
        weights: float [B] or [B, 1]; None (default) means 1 for each.

    Returns:
        (sum, weight): float32 scalars. Accuracy is sum / weight.
    """
    labels = ops.reshape(labels, (-1,))  # [B]
    if weights is None:
        weights = ops.ones_like(labels, dtype="float32")  # [B]
    return _weighted_accuracy(logits, labels, ops.reshape(weights, (-1,)))


def _weighted_cross_entropy(logits, labels, weights):
    """Sum `weights` times the cross entropy over the last axis of `logits`, in float32."""
    # The sparse form has a kernel of its own in TensorFlow: no array of one-hot labels is made.
    per_label = ops.sparse_categorical_crossentropy(
        labels, ops.cast(logits, "float32"), from_logits=True
    )
    weights = ops.cast(weights, "float32")
    return ops.sum(per_label * weights), ops.sum(weights)


def _weighted_accuracy(logits, labels, weights):
    """Sum `weights` where the highest of `logits` is the label."""
    predicted = ops.argmax(logits, axis=-1)
    right = ops.cast(ops.equal(predicted, ops.cast(labels, predicted.dtype)), "float32")
    weights = ops.cast(weights, "float32")
    return ops.sum(right * weights), ops.sum(weights)


class _SumOverWeight(keras.losses.Loss):
    """A Keras loss that divides a weighted sum by its weight itself."""

    def __init__(self, name=None, **kwargs):
        # Keras' own reductions divide by counts, or by weights without the epsilon.
        kwargs.setdefault("reduction", "sum")
        super().__init__(name=name, **kwargs)

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Return the loss of a batch, a float32 scalar."""
        y_true = ops.convert_to_tensor(y_true)
        y_pred = ops.convert_to_tensor(y_pred)
        if sample_weight is None:
            sample_weight = ops.ones_like(y_true, dtype="float32")
        return self._mean(y_true, y_pred, ops.convert_to_tensor(sample_weight))

    def _mean(self, labels, logits, weights):
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="bert_tf")
class MaskedLMLoss(_SumOverWeight):
    """Cross entropy of masked positions for `Model.compile`: sum / (weight + 1e-5).

    `y_true` integer [B, P], `y_pred` float [B, P, V], `sample_weight` float [B, P]: the masked LM
    weights, without which padding would count as predictions of the word piece 0.
    """

    def __init__(self, name="masked_lm_loss", **kwargs):
        super().__init__(name=name, **kwargs)

    def _mean(self, labels, logits, weights):
        total, weight = masked_lm_loss(logits, labels, weights)
        return total / (weight + MASKED_LM_WEIGHT_EPSILON)


@keras.saving.register_keras_serializable(package="bert_tf")
class NextSentenceLoss(_SumOverWeight):
    """Mean cross entropy of next sentence prediction for `Model.compile`.

    `y_true` integer [B] or [B, 1], `y_pred` float [B, 2], `sample_weight` float [B] or [B, 1]. A
    batch whose weights are all 0 has loss 0.
    """

    def __init__(self, name="next_sentence_loss", **kwargs):
        super().__init__(name=name, **kwargs)

    def _mean(self, labels, logits, weights):
        total, weight = next_sentence_loss(logits, labels, weights)
        return ops.divide_no_nan(total, weight)
