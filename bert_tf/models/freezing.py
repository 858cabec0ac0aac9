"""Freezing: which weights do not train."""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras


def freeze(model: keras.Model, patterns: Sequence[str]) -> list[str]:
    """Keep weights from learning. Call it before the optimizer is made.

    Args:
        model: any model.
        patterns: regular expressions, searched for in `variable.path`.

    Returns:
        The paths of the weights that are frozen now and were not before.

    Raises:
        ValueError: a pattern is no regular expression or finds no weight, or none is left to learn.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {pattern!r}: {error}") from error
        if not any(re.search(pattern, weight.path) for weight in model.weights):
            raise ValueError(f"no weight of the model matches {pattern!r}; nothing was frozen")
    frozen = [
        weight
        for weight in model.trainable_weights
        if any(re.search(pattern, weight.path) for pattern in patterns)
    ]
    if len(frozen) == len(model.trainable_weights):
        raise ValueError(f"patterns: no weight is left to learn after {', '.join(patterns)}")
    for weight in frozen:
        weight.trainable = False
    return [weight.path for weight in frozen]


def frozen_layers(num_frozen: int, num_layers: int) -> tuple[str, ...]:
    """Return the patterns that freeze the embeddings and the lowest layers of the encoder.

    Args:
        num_frozen: how many layers; 0 for the embeddings alone.
        num_layers: how many there are.

    Raises:
        ValueError: num_frozen is out of range.
    """
    if not 0 <= num_frozen <= num_layers:
        raise ValueError(f"num_frozen must be from 0 to {num_layers}, got {num_frozen}")
    layers = tuple(f"^bert/encoder/layer_{i}/" for i in range(num_frozen))
    return ("^bert/embeddings/", *layers)
