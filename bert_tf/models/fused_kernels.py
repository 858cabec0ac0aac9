"""Loops that XLA compiles within a graph of TensorFlow's; see `fusion`.

Shapes: B batch, F from-length (queries), T to-length (keys), N heads, K classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from bert_tf.models.dropout import dropout


@functools.cache
def compiled(
    function: Callable[..., Any], dtype: str, settings: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    """Return a function as one loop, which keeps its arguments alone for its gradients.

    What is between is computed again there: that is cheaper than to write and read it.

    Args:
        function: of tensors; floating ones reach it as float32.
        dtype: of the result.
        settings: its other arguments, as pairs.
    """

    def call(*tensors: Any) -> Any:
        floats = [tf.cast(x, tf.float32) if x.dtype.is_floating else x for x in tensors]
        return tf.cast(function(*floats, **dict(settings)), dtype)

    forward = tf.function(call, jit_compile=True, autograph=False)

    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def backward(upstream: Any, *tensors: Any) -> Any:
        floats = [x for x in tensors if x.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            result = call(*tensors)
        return tape.gradient(result, floats, upstream)

    @tf.custom_gradient
    def run(*tensors: Any) -> Any:
        def gradient(upstream: Any) -> list[Any]:
            found = iter(backward(upstream, *tensors))
            return [next(found) if x.dtype.is_floating else None for x in tensors]

        return forward(*tensors), gradient

    return run


def attention_weights(scores: Any, adder: Any, key: Any, rate: float, scale: float) -> Any:
    """Return the probabilities of scores with dropout.

    Args:
        scores: float [B, N, F, T].
        adder: float32 [B, 1, 1 or F, T], without a gradient.
        key: uint32 [2], or None for no dropout.
        rate: of dropout.
        scale: what the scores are multiplied by before the adder is added.

    Returns:
        [B, N, F, T] of the scores' dtype.
    """
    # The softmax itself is a kernel of TensorFlow's, twice as fast as the loop of XLA.
    masked, dropped, gradient_of = _attention_loops(rate, scale, scores.dtype)

    @tf.custom_gradient
    def weights(scores: Any) -> Any:
        probabilities = tf.nn.softmax(masked(scores, adder))  # float32
        result = dropped(probabilities, key)
        return result, lambda upstream: gradient_of(probabilities, upstream, key)

    return weights(scores)


@functools.cache
def _attention_loops(rate: float, scale: float, dtype: tf.DType) -> tuple[Callable[..., Any], ...]:
    compiles = functools.partial(tf.function, jit_compile=True, autograph=False)

    @compiles
    def masked(scores: Any, adder: Any) -> Any:
        return tf.cast(scores, tf.float32) * scale + adder

    @compiles
    def dropped(probabilities: Any, key: Any) -> Any:
        return tf.cast(dropout(probabilities, rate, key), dtype)

    @compiles
    def gradient_of(probabilities: Any, upstream: Any, key: Any) -> Any:
        kept = dropout(tf.cast(upstream, tf.float32), rate, key)
        mean = tf.reduce_sum(kept * probabilities, axis=-1, keepdims=True)
        return tf.cast(probabilities * (kept - mean) * scale, dtype)

    return masked, dropped, gradient_of


@tf.custom_gradient
def cross_entropy(logits: Any, labels: Any) -> Any:
    """Return the cross entropy of labels, in nats.

    TensorFlow's own kernel takes an exponential at a time.

    Args:
        logits: float32 [..., K].
        labels: integer [...], from 0 to K - 1.

    Returns:
        float32 [...].
    """
    normalizers = _log_sum_exp(logits)  # [...]
    chosen = tf.gather(logits, labels, axis=-1, batch_dims=labels.shape.rank)

    def gradient(upstream: Any) -> tuple[Any, None]:
        return _cross_entropy_gradient(logits, normalizers, labels, upstream), None

    return normalizers - chosen, gradient


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _log_sum_exp(logits: Any) -> Any:
    highest = tf.reduce_max(logits, axis=-1, keepdims=True)
    sums = tf.reduce_sum(tf.exp(logits - highest), axis=-1)
    return tf.squeeze(highest, -1) + tf.math.log(sums)


@functools.partial(tf.function, jit_compile=True, autograph=False)
def _cross_entropy_gradient(logits: Any, normalizers: Any, labels: Any, upstream: Any) -> Any:
    classes = tf.range(tf.shape(logits)[-1], dtype=labels.dtype)
    chosen = tf.cast(classes == tf.expand_dims(labels, -1), tf.float32)
    probabilities = tf.exp(logits - tf.expand_dims(normalizers, -1))
    return (probabilities - chosen) * tf.expand_dims(upstream, -1)
