"""Weights without values, of models that are about to be filled.

A file of its own, since it takes TensorFlow, without which the other files of `weights` work.
"""

import keras
import tensorflow as tf


class Uninitialized(keras.initializers.Initializer):
    """Reserve memory and leave it as it is: it costs nothing until it is written to."""

    def __call__(self, shape, dtype=None):
        """Return a tensor of any values."""
        return tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype or "float32"), init=False)
