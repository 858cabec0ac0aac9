"""Weights that a SavedModel holds in half precision, and that compute in float32."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

HALF_PRECISION = ("float16", "bfloat16")


class _AtLoading(tf.saved_model.experimental.TrackableResource):
    """What whatever loads a SavedModel does once it has the variables: a lookup table's way.

    Args:
        action: it.
    """

    def __init__(self, action: Callable[[], None]):
        super().__init__()
        self._action = action

    def _create_resource(self):
        # There has to be one; nothing is ever put into it.
        return tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=[], shared_name="at_loading")

    def _initialize(self):
        self._action()


@dataclasses.dataclass(frozen=True, eq=False)
class _Weight:
    """A weight: the Keras variable, in half precision, and rounded to that, in float32."""

    variable: keras.Variable
    half: tf.Variable
    rounded: tf.Variable


class StoredWeights(tf.Module):
    """A model's weights in half precision, and what it computes with instead of its own.

    To cast them in each call would take longer than the model does with a short text. So they are
    cast once, when a SavedModel is loaded: it holds float32 variables without a row, and a function
    that fills them and lets go of the halves.

    Args:
        variables: the model's.
        dtype: one of HALF_PRECISION.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, variables: Sequence[keras.Variable], dtype: str):
        super().__init__(name="stored_weights")
        if dtype not in HALF_PRECISION:
            raise ValueError(f"dtype: expected one of {', '.join(HALF_PRECISION)}, got {dtype!r}")
        self._weights = tuple(
            self._weight(v, dtype) for v in variables if v.dtype == "float32" and v.shape
        )
        # What a SavedModel keeps track of.
        self.halves = [weight.half for weight in self._weights]
        self.rounded = [weight.rounded for weight in self._weights]
        self.others = [v.value for v in variables if v.dtype != "float32" or not v.shape]
        self._at_loading = _AtLoading(self._fill)

    @staticmethod
    def _weight(variable: keras.Variable, dtype: str) -> _Weight:
        half = tf.cast(variable.value, dtype)
        rows_free = tf.TensorShape([None, *variable.shape[1:]])
        return _Weight(
            variable,
            tf.Variable(half, trainable=False, shape=rows_free),
            tf.Variable(tf.cast(half, tf.float32), trainable=False, shape=rows_free),
        )

    def _fill(self) -> None:
        for half, rounded in zip(self.halves, self.rounded, strict=True):
            rounded.assign(tf.cast(half, tf.float32))
            half.assign(half[:0])

    @contextlib.contextmanager
    def for_saving(self) -> Iterator[None]:
        """Within it the variables are as a SavedModel holds them."""
        for rounded in self.rounded:
            rounded.assign(rounded[:0])
        try:
            yield
        finally:
            for half, rounded in zip(self.halves, self.rounded, strict=True):
                rounded.assign(tf.cast(half, tf.float32))

    def scope(self) -> keras.StatelessScope:
        """Return a scope in which the model computes with the rounded weights."""
        return keras.StatelessScope(
            [
                (weight.variable, tf.ensure_shape(weight.rounded, weight.variable.shape))
                for weight in self._weights
            ]
        )
