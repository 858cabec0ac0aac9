"""Where TensorFlow makes the variables that an optimizer adds in the first step of `fit`."""

import contextlib
from typing import Any

import tensorflow as tf


def outside_of_functions(like: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context whose variables are made at once, also where a function is being traced.

    A `tf.function` that makes variables is traced a second time, with an operation around each of
    them that asks whether it has its value: longer than many steps of a small model.

    Args:
        like: a variable of Keras; those made are of its class.

    Returns:
        The context. Where a strategy is in charge it changes nothing: the strategy makes them.
    """
    if tf.executing_eagerly() or tf.distribute.has_strategy():
        return contextlib.nullcontext()
    return _outside(type(like.value))


@contextlib.contextmanager
def _outside(variable_class: type[tf.Variable]):
    def make(next_creator, **arguments):
        # The next one is of the function that is traced, which would put them off.
        return variable_class(**arguments)

    with tf.init_scope(), tf.variable_creator_scope(make):
        yield
