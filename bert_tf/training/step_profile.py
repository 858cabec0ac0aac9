"""A profile of some steps of training, which TensorBoard shows."""

import pathlib
import sys
from collections.abc import Sequence

import tensorflow as tf


class StepProfile:
    """Writes what the steps from a first to a last one do, and how long it takes.

    Attributes:
        last: the last of these steps; 0 for no profile.
    """

    def __init__(self, folder: pathlib.Path, steps: Sequence[int]):
        """Write nothing yet.

        Args:
            folder: where TensorBoard looks; gets `plugins/profile/<time>/*.xplane.pb`.
            steps: first and last step, counted from 1; empty for no profile.
        """
        self._folder = folder
        self.first, self.last = steps or (1, 0)
        self._is_on = False

    def steps_left(self, step: int) -> int:
        """Return the most steps of one call of the graph after `step` others."""
        return next((end - step for end in (self.first - 1, self.last) if step < end), sys.maxsize)

    def begin_batch(self, step: int) -> None:
        """Begin, if what follows on `step` steps is part of the profile."""
        if not self._is_on and self.first - 1 <= step < self.last:
            tf.profiler.experimental.start(str(self._folder))
            self._is_on = True

    def end_batch(self, step: int) -> None:
        """Write the profile, if it ends with this step."""
        if step >= self.last:
            self.close()

    def close(self) -> None:
        """Write what there is of a profile that is going on."""
        if self._is_on:
            self._is_on = False
            tf.profiler.experimental.stop()
