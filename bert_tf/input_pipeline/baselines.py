"""What a model that looks at no context reaches: the figures to beat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf


def label_counts(dataset: tf.data.Dataset, vocab_size: int, max_steps: int | None = None):
    """Count the pieces that masked positions held.

    Args:
        dataset: of `pretraining_dataset`.
        vocab_size: V.
        max_steps: look at this many batches at most.

    Returns:
        int64 [V].

    Raises:
        ValueError: a label lies outside the vocabulary.
    """
    counts = np.zeros(vocab_size, np.int64)
    for _, labels, weights in _limited(dataset, max_steps):
        ids = labels["masked_lm_logits"][weights["masked_lm_logits"] > 0]
        if ids.size and ids.max() >= vocab_size:
            raise ValueError(
                f"a record holds token id {ids.max()}; expected ids below vocab_size {vocab_size}"
            )
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def _limited(dataset: tf.data.Dataset, max_steps: int | None) -> Iterator[Any]:
    return (dataset if max_steps is None else dataset.take(max_steps)).as_numpy_iterator()


def unigram_cross_entropy(training_counts: np.ndarray, held_out_counts: np.ndarray) -> float:
    """Compute the loss of always predicting the training distribution of pieces, in nats a piece.

    One is added to every count, so that a held-out piece never seen in training costs a finite
    amount.

    Args:
        training_counts: int [V].
        held_out_counts: int [V].

    Returns:
        Cross entropy on the held-out pieces.

    Raises:
        ValueError: there are no held-out pieces.
    """
    total = _total(held_out_counts)
    smoothed = training_counts + 1.0
    return float(-(held_out_counts * np.log(smoothed / smoothed.sum())).sum() / total)


def unigram_accuracy(training_counts: np.ndarray, held_out_counts: np.ndarray) -> float:
    """Compute the share of held-out pieces that are training's most frequent one.

    Arguments and errors are those of `unigram_cross_entropy`.
    """
    return float(held_out_counts[training_counts.argmax()] / _total(held_out_counts))


def _total(held_out_counts: np.ndarray) -> int:
    total = held_out_counts.sum()
    if not total:
        raise ValueError("held_out_counts: expected at least one piece, got none")
    return total
