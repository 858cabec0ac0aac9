"""Whether what lies between the matrix products is compiled, in a graph that is not compiled whole.

On CPUs TensorFlow's matrix products are faster than XLA's, above all in bfloat16, but each of its
operations between them is a pass over memory: half of a training step in bfloat16. While fusing,
activations, dropout, LayerNorm, softmax and cross entropy are loops that XLA makes, which compute
in float32 whatever they read and write; results differ in the last digits, as between any two ways
to compile. Only graphs of TensorFlow for CPUs may be traced so.
"""

import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

if keras.backend.backend() == "tensorflow":
    from bert_tf.models import fused_kernels
else:
    fused_kernels = None

_fusing = contextvars.ContextVar("fusing", default=False)


@contextlib.contextmanager
def fusing(enabled: bool = True):
    """Within it graphs are traced with compiled loops, or without them again."""
    token = _fusing.set(enabled)
    try:
        yield
    finally:
        _fusing.reset(token)


def is_fusing() -> bool:
    """Return whether the graph that is traced has compiled loops."""
    return _fusing.get()


def apply(function: Callable[..., Any], *tensors: Any, dtype: str, **settings: Any) -> Any:
    """Compute a pure function; while fusing, as one loop forward and one for the gradients.

    Args:
        function: of tensors, made of `keras.ops` only.
        *tensors: its arguments, variables included, since gradients are of these alone.
        dtype: of the result.
        **settings: its other arguments: hashable, the same for each call of a graph.
    """
    if is_fusing() and fused_kernels is not None:
        return fused_kernels.compiled(function, dtype, tuple(settings.items()))(*tensors)
    return ops.cast(function(*tensors, **settings), dtype)
