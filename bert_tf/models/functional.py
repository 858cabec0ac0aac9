"""The pure functions of the encoder: activations, normalisation, attention scores.

Shapes: B batch, F from-length (queries), T to-length (keys), N heads, H head size, D hidden size,
P positions.
"""

import math

from keras import ops

from bert_tf.models.dropout import dropout

# What the original adds to the attention scores of masked keys. It is not minus infinity: where all
# keys are masked, the scores still count.
MASKED_SCORE = -10000.0
_MASKED_STATE = -1e30  # below any hidden state

# How the states of a text's pieces become one vector, as in sentence-transformers.
POOLINGS = ("mean", "cls", "max")


def gelu_tanh(x):
    """Return the Gaussian error linear unit in its tanh form, the original's. Any float tensor."""
    return ops.gelu(x, approximate=True)


def gelu_erf(x):
    """Return the exact Gaussian error linear unit, that of transformers. Any float tensor."""
    # Not ops.gelu(approximate=False): that exports to ONNX as Erfc, which ONNX does not have.
    half = ops.cast(0.5, x.dtype)
    return half * x * (1.0 + ops.erf(x * ops.cast(math.sqrt(0.5), x.dtype)))


# config.ACTIVATIONS to functions.
ACTIVATION_FUNCTIONS = {
    "gelu_tanh": gelu_tanh,
    "gelu_erf": gelu_erf,
    "relu": ops.relu,
    "tanh": ops.tanh,
    "linear": lambda x: x,
}


def layer_norm(x, gamma, beta, epsilon):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift; all in float32.

    Args:
        x: float [..., D].
        gamma: float [D].
        beta: float [D].
        epsilon: added to the variance.

    Returns:
        float32 [..., D].

    Reference: `layer_norm` of google-research/bert `modeling.py` (epsilon 1e-12, which is 0 in
    float16: hence float32).
    """
    x = ops.cast(x, "float32")
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    scale = ops.rsqrt(variance + epsilon) * ops.cast(gamma, "float32")
    return centred * scale + ops.cast(beta, "float32")


def residual_norm(x, residual, gamma, beta, dropout_key=None, *, epsilon, rate):
    """Add a residual to x, after dropout, and normalise; arguments as of `layer_norm`, `dropout`.

    Args:
        x: float [..., D].
        residual: float [..., D].
        gamma: float [D].
        beta: float [D].
        dropout_key: uint32 [2], or None for no dropout.
        epsilon: added to the variance.
        rate: of dropout.

    Returns:
        float32 [..., D].
    """
    return layer_norm(dropout(x, rate, dropout_key) + residual, gamma, beta, epsilon)


def attention_adder(input_mask, length=None, left_to_right=False, sequence_ids=None):
    """Return what to add to attention scores: 0 where a query may see a key, else -10000.

    Args:
        input_mask: integer [B, T], 1 for tokens and 0 for padding. It hides keys only: padding
            queries still attend, as in the original.
        length: F, the number of queries; only needed for `left_to_right`.
        left_to_right: whether a query sees only keys up to its own position.
        sequence_ids: integer [B, T], where a row holds several sequences: a query sees keys of the
            same number alone. None for one sequence a row.

    Returns:
        float32 [B, 1, 1, T], or [B, 1, F, T] with `left_to_right` or `sequence_ids`.
    """
    # Not [:, None, None, :], which cannot become TFLite where the length is free.
    mask = ops.expand_dims(ops.cast(input_mask, "float32"), (1, 2))  # [B, 1, 1, T]
    if left_to_right:
        positions = ops.arange(length)
        causal = ops.expand_dims(positions, 1) >= ops.expand_dims(positions, 0)  # [F, T]
        mask = mask * ops.cast(causal, "float32")  # [B, 1, F, T]
    if sequence_ids is not None:
        same = ops.equal(ops.expand_dims(sequence_ids, 2), ops.expand_dims(sequence_ids, 1))
        mask = mask * ops.cast(ops.expand_dims(same, 1), "float32")  # [B, 1, F, T]
    return (1.0 - mask) * MASKED_SCORE


def attention_probabilities(query, key, adder):
    """Return how much each query attends to each key, in float32.

    Args:
        query: float [B, F, N, H].
        key: float [B, T, N, H].
        adder: float32 [B, 1, 1 or F, T], see `attention_adder`.

    Returns:
        float32 [B, N, F, T], summing to 1 over T.
    """
    # The original scales the scores. Scaling queries is exact for heads of 64 (by 1/8), touches
    # fewer numbers, and keeps float16 scores from overflowing.
    query = query * ops.cast(1.0 / math.sqrt(query.shape[-1]), query.dtype)
    scores = ops.einsum("BFNH,BTNH->BNFT", query, key)  # [B, N, F, T]
    return ops.softmax(ops.cast(scores, "float32") + adder)


def gather_positions(sequence, positions):
    """Pick rows of each sequence.

    Args:
        sequence: float [B, F, D].
        positions: integer [B, P], from 0 to F - 1.

    Returns:
        float [B * P, D].
    """
    batch, length, width = ops.shape(sequence)
    offsets = ops.expand_dims(ops.arange(batch, dtype="int32") * length, 1)  # [B, 1]
    flat_positions = ops.reshape(ops.cast(positions, "int32") + offsets, (-1,))  # [B * P]
    return ops.take(ops.reshape(sequence, (-1, width)), flat_positions, axis=0)  # [B * P, D]


def check_length(length, config):
    """Refuse sequences for which the model has no position embeddings.

    Args:
        length: the number of positions F, or None if it is not known yet.
        config: the model's configuration.

    Raises:
        ValueError: if F is above max_position_embeddings.
    """
    if length is not None and length > config.max_position_embeddings:
        raise ValueError(
            f"input_ids has {length} positions, but max_position_embeddings of the configuration "
            f"is {config.max_position_embeddings}"
        )


def check_ids(name, ids, size):
    """Refuse ids that a table has no rows for, where their values are known.

    They are in a call outside of a graph on TensorFlow and torch. Elsewhere nothing is checked:
    ids below 0 then count from the table's end, and what lies beyond it depends on the backend.

    Args:
        name: of the input, for the message.
        ids: integer tensor.
        size: rows of the table.

    Raises:
        ValueError: an id is below 0, or not below size.
    """
    if not hasattr(ids, "numpy") or 0 in ids.shape:
        return
    low, high = int(ops.min(ids)), int(ops.max(ids))
    if low < 0 or high >= size:
        raise ValueError(f"{name}: expected integers of 0 to {size - 1}, got {low} to {high}")


# === Vectors of texts ===


def check_pooling(pooling: str) -> None:
    """Refuse what is none of POOLINGS.

    Raises:
        ValueError: the message lists them.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")


def pool_states(states, mask, pooling):
    """Make one vector of the states of a text's pieces.

    Args:
        states: float32 [B, F, ...].
        mask: integer [B, F], 0 for padding.
        pooling: "mean" or "max" over all pieces, [CLS] and [SEP] included, as in
            sentence-transformers; "cls" is the first piece's state.

    Returns:
        float32 [B, ...]; the mean of a row without pieces is 0.
    """
    if pooling == "cls":
        return states[:, 0]
    real = ops.cast(ops.not_equal(mask, 0), "float32")
    for _ in states.shape[2:]:  # not [..., None], which TFLite has not for free sizes
        real = ops.expand_dims(real, -1)  # [B, F, 1, ...]
    if pooling == "max":
        return ops.max(states + (1.0 - real) * _MASKED_STATE, axis=1)
    return ops.sum(states * real, axis=1) / ops.maximum(ops.sum(real, axis=1), 1.0)


def unit_vectors(vectors):
    """Scale vectors, float32 [..., D], to length 1; those of length 0 stay."""
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, 1e-24))  # as PyTorch's `normalize`
