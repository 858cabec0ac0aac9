"""Word embeddings that are given, in place of those of the ids: what gradients of words are of."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_given = contextvars.ContextVar("word_vectors", default=None)


@contextlib.contextmanager
def replacing_word_vectors(vectors: Any) -> Iterator[None]:
    """Within it a model takes these for the word embeddings of its input.

    Args:
        vectors: float32 [B, F, D], for a call with ids [B, F]; positions, segments and the mask
            are still those of the call.
    """
    token = _given.set(vectors)
    try:
        yield
    finally:
        _given.reset(token)


def given_word_vectors() -> Any:
    """Return what stands in for word embeddings, or None."""
    return _given.get()
