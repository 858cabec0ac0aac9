"""Attention rollout: how much of each input position reaches each output position.

Shapes: B batch, L layers, N heads, F sequence length.

Reference: Abnar and Zuidema, Quantifying Attention Flow in Transformers, arXiv 2005.00928.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from bert_tf.models import fusion
from bert_tf.models.functional import attention_adder
from bert_tf.models.variables import bert_layer


def attention_probabilities_of(model: keras.Model, inputs: Mapping[str, Any]) -> list[Any]:
    """Return the attention probabilities of all layers of any model of this package.

    Args:
        model: of `models`; in inference.
        inputs: integer [B, F]: input_ids, input_mask and segment_ids.

    Returns:
        L float32 [B, N, F, F].
    """
    bert = bert_layer(model)
    embedded = bert.embeddings(inputs["input_ids"], inputs["segment_ids"])
    length = ops.shape(inputs["input_ids"])[1]
    adder = attention_adder(inputs["input_mask"], length, bert.config.left_to_right)
    with fusion.fusing(False):
        return bert.encoder(embedded, adder, training=False)[1]


def attention_rollout(probabilities: Sequence[Any]) -> Any:
    """Multiply the attention of the layers, each half its heads' mean and half the residual.

    Args:
        probabilities: of each layer from the first, float [B, N, F, F]; rows sum to 1.

    Returns:
        float [B, F, F]: of each output position, what share each input position has; rows sum to
        1.

    Raises:
        ValueError: there is no layer.
    """
    if not probabilities:
        raise ValueError("probabilities: expected those of at least one layer, got none")
    rollout = None
    for layer in probabilities:
        mean = ops.mean(layer, axis=1)  # [B, F, F]
        mixed = 0.5 * mean + 0.5 * ops.eye(ops.shape(mean)[-1], dtype=mean.dtype)
        rollout = mixed if rollout is None else ops.matmul(mixed, rollout)
    return rollout
