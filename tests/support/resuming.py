"""Whether an input pipeline goes on from any of its states as if it had never been stopped."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def check_resuming(make_dataset: Callable[[int], tf.data.Dataset], steps: int) -> None:
    """Save a pipeline's state at every step, restore each, and compare all that follows.

    The state is the number of the step, from which the pipeline is made anew: there is no other,
    and tf.data refuses to save an iterator that shuffles.

    Args:
        make_dataset: step -> the batches from it on.
        steps: how many batches to compare in all.

    Raises:
        AssertionError: what follows is not the same to the bit; names the step.
    """
    whole = list(make_dataset(0).take(steps).as_numpy_iterator())
    assert any(not _is_same(whole[0], batch) for batch in whole[1:]), "all batches are alike"
    for step in range(steps + 1):
        tf.random.set_seed(step)  # the user's seeds have no say
        found = list(make_dataset(step).take(steps - step).as_numpy_iterator())
        assert_same(found, whole[step:], f"from step {step}")


def assert_same(found: Sequence[Any], expected: Sequence[Any], what: str) -> None:
    """Compare batches of nested arrays, types and all.

    Raises:
        AssertionError: they are not the same to the bit.
    """
    assert len(found) == len(expected), f"{what}: {len(found)} batches, not {len(expected)}"
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert _is_same(one, other), f"{what}: batch {number} of what follows differs"


def _is_same(first: Any, second: Any) -> bool:
    tf.nest.assert_same_structure(first, second)
    return all(
        one.dtype == other.dtype and np.array_equal(one, other)
        for one, other in zip(tf.nest.flatten(first), tf.nest.flatten(second), strict=True)
    )
