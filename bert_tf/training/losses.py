"""Losses and accuracies as pure functions, and the losses of pre-training for `Model.compile`.

Each function returns (sum, weight), two float32 scalars: a sum over what is predicted, each thing
times its weight, and the sum of the weights. A step divides the one by the other once, so
accumulation, replicas and padding stay exact. Logits may have any float type and are computed in
float32; labels are integers where nothing else is said; weights are floats of the labels' shape,
None meaning 1 for each.

Shapes: B batch, F sequence length, P predictions, V vocabulary, K labels.
"""

import keras
from keras import ops

from bert_tf.models import fusion
from bert_tf.models.functional import unit_vectors

# Added to the sum of weights of the masked language model by the original: a batch without any
# prediction has loss 0, not 0/0.
MASKED_LM_WEIGHT_EPSILON = 1e-5


def masked_lm_loss(logits, ids, weights):
    """Sum the cross entropy of the masked positions, in nats.

    Logits are [B, P, V]; ids [B, P] are the true word pieces; weights [B, P] are 1 for a
    prediction and 0 for padding. The original's loss is sum / (weight + 1e-5).

    Reference: `get_masked_lm_output` of google-research/bert `run_pretraining.py`.
    """
    return _weighted_cross_entropy(logits, ids, weights)


def next_sentence_loss(logits, labels, weights=None):
    """Sum the cross entropy of next sentence prediction, in nats.

    Logits are [B, 2]; labels [B] or [B, 1] are 0 for the actual next sentence and 1 for a random
    one. Of packed rows they are [B, K, 2] and [B, K]. The original's loss is sum / weight.

    Reference: `get_next_sentence_output` of google-research/bert `run_pretraining.py`.
    """
    return _weighted_cross_entropy(*_flat(logits, labels, weights))


def classification_loss(logits, labels, weights=None, label_smoothing=0.0):
    """Sum the cross entropy of labels: of sequences, of tokens, of choices.

    Logits are [..., K], labels [...]. The original's loss of a classifier is sum / weight. With
    label smoothing s the true label has the probability 1 - s + s/K to learn, and every other s/K.

    Reference: `create_model` of google-research/bert `run_classifier.py`; smoothing is of
    arXiv 1512.00567, section 7.
    """
    total, weight = _weighted_cross_entropy(logits, labels, weights)
    if not label_smoothing:
        return total, weight
    logits = ops.cast(logits, "float32")
    uniform = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)  # [...]
    uniform, _ = _weighted_sum(uniform, weights)
    return (1.0 - label_smoothing) * total + label_smoothing * uniform, weight


def classification_accuracy(logits, labels, weights=None):
    """Count the labels that are predicted; arguments as of `classification_loss`."""
    return _weighted_accuracy(logits, labels, weights)


def regression_loss(predictions, labels, weights=None):
    """Sum the squared errors of predictions, float [B] or [B, 1], against labels likewise.

    Reference: the paper's STS-B; the original has no regression.
    """
    labels = ops.cast(ops.reshape(labels, (-1,)), "float32")  # [B]
    errors = ops.square(ops.cast(ops.reshape(predictions, (-1,)), "float32") - labels)  # [B]
    return _weighted_sum(errors, weights)


def multi_label_loss(logits, labels, weights=None, label_smoothing=0.0):
    """Sum over examples the mean binary cross entropy of their labels.

    Logits are [B, K], labels float [B, K], 1 for those that hold and 0 for others, and weights [B].
    With label smoothing s they are learnt as 1 - s/2 and s/2.
    """
    logits, labels = ops.cast(logits, "float32"), ops.cast(labels, "float32")
    labels = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
    losses = ops.binary_crossentropy(labels, logits, from_logits=True)  # [B, K]
    return _weighted_sum(ops.mean(losses, axis=-1), weights)


def span_loss(start_logits, end_logits, start_positions, end_positions, weights=None, mask=None):
    """Sum the mean of the cross entropies of a span's start and end.

    Logits are [B, F]; positions [B] are 0 where there is no answer. A mask, integer [B, F], is 0
    for positions that cannot be chosen; None means none, as in the original, whose probabilities
    are over padding too.

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
    """Return logits [B, F] as float32, with -1e9 where a mask, integer [B, F], is 0."""
    logits = ops.cast(logits, "float32")
    return ops.where(ops.cast(mask, "bool"), logits, ops.full_like(logits, -1e9))


# The inverse of the temperature by which cosines are divided: that of SimCSE, 0.05, and the default
# of sentence-transformers.
COSINE_SCALE = 20.0


def multiple_negatives_loss(vectors, text_ids=None, weights=None, scale=COSINE_SCALE):
    """Sum the cross entropy of finding each text's own partner among those of the whole batch.

    The second texts of all examples, and the further ones, which are hard negatives, are what each
    first text chooses from, by softmax over its cosines times `scale`. SimCSE's loss is that of the
    same text twice, of which dropout makes two vectors.

    Args:
        vectors: float [B, C, D], C texts an example: a text, its partner, any hard negatives.
        text_ids: integer [B, C], equal for equal texts and 0 for a text that is not there. What
            equals a text or its partner is no negative of it, nor is the partner of an equal text.
            None: all others are negatives.
        weights: float [B]; a row of weight 0 is no example and no negative. None: 1 for each.
        scale: times the cosines; the inverse of the temperature.

    Returns:
        (sum, weight), two float32 scalars.

    Reference: Henderson et al. (arXiv 1705.00652), section 4.4; SimCSE (arXiv 2104.08821), eq. 1
    and 5.
    """
    scores, rows = _partner_scores(vectors, text_ids, weights, scale)
    losses = ops.sparse_categorical_crossentropy(rows, scores, from_logits=True)
    return _weighted_sum(losses, weights)


def multiple_negatives_accuracy(vectors, text_ids=None, weights=None):
    """Count the texts whose partner is the nearest; arguments as of `multiple_negatives_loss`."""
    scores, rows = _partner_scores(vectors, text_ids, weights, 1.0)
    return _weighted_accuracy(scores, rows, weights)


def _partner_scores(vectors, text_ids, weights, scale):
    """Return scores float32 [B, (C - 1) * B], and for each row which of them is its partner's."""
    vectors = unit_vectors(ops.cast(vectors, "float32"))
    count = ops.shape(vectors)[0]
    scores = scale * ops.matmul(vectors[:, 0], ops.transpose(_by_place(vectors[:, 1:])))
    rows = ops.arange(count)
    is_own = rows[:, None] == ops.arange(ops.shape(scores)[1])[None]  # partners come first
    is_left_out = ops.zeros_like(is_own)
    if text_ids is not None:
        first, others = text_ids[:, 0], _by_place(text_ids[:, 1:])  # [B], [(C - 1) * B]
        is_partner = ops.arange(ops.shape(scores)[1]) < count
        of_equal = ops.tile(first, ops.shape(text_ids)[1] - 1)[None] == first[:, None]
        is_left_out = (
            (others[None] == first[:, None])
            | (others[None] == text_ids[:, 1][:, None])
            | (others[None] == 0)
            | (of_equal & is_partner[None])
        )
    if weights is not None:
        is_there = ops.tile(ops.not_equal(weights, 0), ops.shape(vectors)[1] - 1)
        is_left_out = is_left_out | ~is_there[None]
    lowest = ops.full_like(scores, -1e9)
    return ops.where(is_left_out & ~is_own, lowest, scores), rows


def _by_place(values):
    """Map [B, C, ...] to [C * B, ...]: the first of all rows, then the second, and so on."""
    order = (1, 0, *range(2, len(values.shape)))
    return ops.reshape(ops.transpose(values, order), (-1, *values.shape[2:]))


def cosine_similarity_loss(vectors, scores, weights=None):
    """Sum the squared errors of the cosines of two texts against scores.

    Vectors are float [B, 2, D]; scores float [B], -1 to 1, as of STS-B a fifth of its numbers.

    Reference: Reimers and Gurevych, Sentence-BERT (arXiv 1908.10084), section 3.
    """
    vectors = unit_vectors(ops.cast(vectors, "float32"))
    return regression_loss(ops.sum(vectors[:, 0] * vectors[:, 1], axis=-1), scores, weights)


def soft_label_loss(logits, teacher_logits, weights=None, temperature=1.0):
    """Sum T^2 KL(teacher || student), T the temperature that divides both logits, in nats.

    Logits are [..., K], weights [...]. T^2 keeps the gradients' size whatever T is.

    Reference: Hinton et al. (arXiv 1503.02531), section 2.
    """
    ours = ops.log_softmax(ops.cast(logits, "float32") / temperature, axis=-1)
    theirs = ops.log_softmax(ops.cast(teacher_logits, "float32") / temperature, axis=-1)
    divergence = ops.sum(ops.exp(theirs) * (theirs - ours), axis=-1)  # [...]
    return _weighted_sum(temperature**2 * divergence, weights)


def soft_multi_label_loss(logits, teacher_logits, weights=None, temperature=1.0):
    """Sum over examples the mean over labels of T^2 KL(teacher || student), as `soft_label_loss`.

    Each label holds or does not, by itself: logits are [B, K], weights [B].
    """
    ours = ops.cast(logits, "float32") / temperature
    theirs = ops.cast(teacher_logits, "float32") / temperature
    divergence = 0.0
    for sign in (1.0, -1.0):  # that it holds, and that it does not
        log_probability = ops.log_sigmoid(sign * theirs)  # [B, K]
        difference = log_probability - ops.log_sigmoid(sign * ours)
        divergence = divergence + ops.exp(log_probability) * difference
    return _weighted_sum(temperature**2 * ops.mean(divergence, axis=-1), weights)


def masked_lm_accuracy(logits, ids, weights):
    """Count the masked positions whose highest logit is the true word piece.

    Arguments as of `masked_lm_loss`. Of equal logits the first counts, as in the original.
    """
    return _weighted_accuracy(logits, ids, weights)


def next_sentence_accuracy(logits, labels, weights=None):
    """Count the examples whose label is predicted; arguments as of `next_sentence_loss`."""
    return _weighted_accuracy(*_flat(logits, labels, weights))


def _flat(logits, labels, weights):
    """Return logits, labels and weights of sequences as [B, 2], [B] and [B]."""
    if len(logits.shape) > 2:
        logits = ops.reshape(logits, (-1, logits.shape[-1]))
    labels = ops.reshape(labels, (-1,))
    return logits, labels, None if weights is None else ops.reshape(weights, (-1,))


def _weighted_cross_entropy(logits, labels, weights):
    """Sum `weights` times the cross entropy over the last axis of `logits`, in float32."""
    logits = ops.cast(logits, "float32")
    if fusion.is_fusing() and fusion.fused_kernels is not None:
        per_label = fusion.fused_kernels.cross_entropy(logits, labels)
    else:
        # The sparse form has a kernel of its own in TensorFlow: no one-hot labels are made.
        per_label = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return _weighted_sum(per_label, weights)


def _weighted_accuracy(logits, labels, weights):
    """Sum `weights` where the highest of `logits` is the label."""
    predicted = ops.argmax(logits, axis=-1)
    right = ops.cast(ops.equal(predicted, ops.cast(labels, predicted.dtype)), "float32")
    return _weighted_sum(right, weights)


def _weighted_sum(values, weights):
    weights = ops.ones_like(values) if weights is None else ops.cast(weights, "float32")
    return ops.sum(values * weights), ops.sum(weights)


class _SumOverWeight(keras.losses.Loss):
    """A Keras loss that divides a weighted sum by its weight itself."""

    is_mean_cross_entropy = True  # for `models.reported_loss`

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

    `y_true` integer [B] or [B, 1], `y_pred` float [B, 2], `sample_weight` float [B] or [B, 1]; of
    packed rows [B, K], [B, K, 2] and [B, K]. A batch whose weights are all 0 has loss 0.
    """

    def __init__(self, name="next_sentence_loss", **kwargs):
        super().__init__(name=name, **kwargs)

    def _mean(self, labels, logits, weights):
        total, weight = next_sentence_loss(logits, labels, weights)
        return ops.divide_no_nan(total, weight)


class _LossOfTexts(keras.losses.Loss):
    """A Keras loss over groups of texts: the mean over the examples of a batch, by their weights.

    The examples of a batch are compared with each other, so a batch is no sum of its rows.
    """

    def __init__(self, name=None, **kwargs):
        kwargs.setdefault("reduction", "sum")
        super().__init__(name=name, **kwargs)

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Return the loss of a batch, a float32 scalar; 0 where all weights are 0."""
        if sample_weight is not None:
            sample_weight = ops.reshape(ops.convert_to_tensor(sample_weight), (-1,))
        total, weight = self._sums(
            ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred), sample_weight
        )
        return ops.divide_no_nan(total, weight)

    def _sums(self, labels, vectors, weights):
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="bert_tf")
class MultipleNegativesLoss(_LossOfTexts):
    """Mean of `multiple_negatives_loss` for `Model.compile`.

    `y_true` integer [B, C], equal for equal texts; `y_pred` float [B, C, D]; `sample_weight` [B].

    Args:
        scale: times the cosines; the inverse of the temperature.
        name: of the loss.
        **kwargs: of `keras.losses.Loss`.

    Raises:
        ValueError: the scale is not above 0.
    """

    def __init__(self, scale=COSINE_SCALE, name="multiple_negatives_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        if not scale > 0:
            raise ValueError(f"scale: expected a number above 0, got {scale}")
        self.scale = scale

    def _sums(self, labels, vectors, weights):
        return multiple_negatives_loss(vectors, labels, weights, self.scale)

    def get_config(self):
        """Return the arguments."""
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="bert_tf")
class CosineSimilarityLoss(_LossOfTexts):
    """Mean of `cosine_similarity_loss` for `Model.compile`.

    `y_true` float [B] or [B, 1], `y_pred` float [B, 2, D], `sample_weight` [B].
    """

    def __init__(self, name="cosine_similarity_loss", **kwargs):
        super().__init__(name=name, **kwargs)

    def _sums(self, labels, vectors, weights):
        return cosine_similarity_loss(vectors, labels, weights)
