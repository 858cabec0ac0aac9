"""Kernels of TensorFlow's that go over a variable once, where plain operations do many times.

An update by Adam of all of BERT's weights is bound by memory: written with operations it reads and
writes tensors of their size about thirty times, as one kernel six times.
"""

import math
from typing import Any

import keras
import tensorflow as tf


def sum_of_squares(tensor: Any) -> tf.Tensor:
    """Return the sum of the squares of a float tensor, a scalar of its dtype."""
    return 2.0 * tf.nn.l2_loss(tensor)


def apply_adam(
    variable: Any,
    m: Any,
    v: Any,
    gradient: Any,
    *,
    learning_rate: Any,
    betas: tuple[float, float],
    epsilon: Any,
    corrections: tuple[Any, Any],
) -> None:
    """Update the moments of a variable, and then the variable.

    It becomes variable - learning_rate * (m / c1) / (sqrt(v / c2) + epsilon).

    Args:
        variable: Keras or TensorFlow variable; within a strategy's update, that of its device.
        m: first moment, likewise, of the same dtype.
        v: second moment, likewise.
        gradient: tensor of the same shape and dtype.
        learning_rate: scalar.
        betas: decay of the first moment and of the second.
        epsilon: scalar.
        corrections: c1 and c2, each in (0, 1].
    """
    dtype = gradient.dtype
    # The kernel takes 1 - beta in the variable's dtype, and so loses digits: 1 - 0.999 in float32
    # is off by 1.3e-5. The moments then have a factor each, which the step is freed of here.
    factor_1, factor_2 = (_lost(beta, dtype.as_numpy_dtype) for beta in betas)
    # Its own corrections would lose more: the powers of 0 mean none.
    root = tf.sqrt(tf.cast(corrections[1], dtype)) * math.sqrt(factor_2)
    tf.raw_ops.ResourceApplyAdam(
        var=_handle(variable),
        m=_handle(m),
        v=_handle(v),
        beta1_power=tf.zeros([], dtype),
        beta2_power=tf.zeros([], dtype),
        lr=tf.cast(learning_rate, dtype) * root / (tf.cast(corrections[0], dtype) * factor_1),
        beta1=tf.cast(betas[0], dtype),
        beta2=tf.cast(betas[1], dtype),
        epsilon=tf.cast(epsilon, dtype) * root,
        grad=gradient,
    )


def _lost(beta: float, dtype: Any) -> float:
    """Return 1 - beta as computed in a dtype, over what it is."""
    return float(dtype(1) - dtype(beta)) / (1.0 - beta)


def _handle(variable: Any) -> tf.Tensor:
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
