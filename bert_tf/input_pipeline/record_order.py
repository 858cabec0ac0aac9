"""Which records of a file are in which batch: a function of lengths, seed, batch size and step."""

from __future__ import annotations

import functools
import threading

import numpy as np

POOL_BATCHES = 64  # batches, at most, whose records are sorted by length together
FILLER = -1  # in place of a record's number: a row of weight 0


def pool_of(step: int, num_records: int, batch_size: int, most_batches: int) -> tuple[int, int]:
    """Tell which training batches are sorted by length together.

    Batches of one epoch alone: were others with them, a batch could hold a record of few in it
    twice, since its length stays the same. So a batch of two epochs is a pool of its own.

    Args:
        step: number of a batch, from 0.
        num_records: N, records of an epoch.
        batch_size: B.
        most_batches: of a pool.

    Returns:
        The numbers of the first batch of its pool and of the one after the last.
    """
    epoch, offset = divmod(step * batch_size, num_records)
    if offset + batch_size > num_records:
        return step, step + 1
    first = -(-epoch * num_records // batch_size)
    count = (epoch + 1) * num_records // batch_size - first
    per_pool = -(-count // -(-count // most_batches))  # as even as can be
    start = step - (step - first) % per_pool
    return start, min(start + per_pool, first + count)


def draw_batches(lengths: np.ndarray, batch_size: int, seed: int, start: int) -> np.ndarray:
    """Sort the records of a pool into batches of like length, which come in any order.

    Args:
        lengths: int [n * B], of the records as they were shuffled.
        batch_size: B.
        seed: of the order.
        start: number of the first batch of the pool.

    Returns:
        int64 [n, B], places within `lengths`.
    """
    # Of equal lengths the shuffled order remains.
    batches = np.argsort(lengths, kind="stable").reshape(-1, batch_size)
    return np.random.default_rng([seed, 1, start]).permutation(batches)


class RecordOrder:
    """The order of the records of one file, in training and in evaluation.

    Args:
        lengths: int [N], tokens of each record that are not padding.
    """

    def __init__(self, lengths: np.ndarray):
        self._lengths = lengths
        # Two: a batch may hold the end of one epoch and the beginning of the next.
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)
        self._pool = functools.lru_cache(maxsize=4)(self._draw_pool)
        self._evaluation = functools.lru_cache(maxsize=2)(self._evaluation_batches)
        self._drawing = threading.RLock()  # lest several threads draw the same at once

    def training_batch(
        self, step: int, *, batch_size: int, seed: int, group_by_length: bool = True
    ) -> np.ndarray:
        """Draw the numbers of the records of a training batch.

        Args:
            step: number of the batch, from 0.
            batch_size: B.
            seed: of the order.
            group_by_length: whether records of like length come together.

        Returns:
            int64 [B].
        """
        begin, end = step * batch_size, (step + 1) * batch_size
        if not group_by_length or begin % len(self._lengths) + batch_size > len(self._lengths):
            return self._stream(seed, begin, end)
        start, stop = pool_of(step, len(self._lengths), batch_size, POOL_BATCHES)
        with self._drawing:
            return self._pool(start, stop, batch_size, seed)[step - start]

    def _stream(self, seed: int, begin: int, end: int) -> np.ndarray:
        """Return the records begin to end of the endless sequence of shuffled epochs."""
        parts = []
        while begin < end:
            epoch, offset = divmod(begin, len(self._lengths))
            with self._drawing:
                order = self._order(seed, epoch)
            parts.append(order[offset : offset + end - begin])
            begin += len(parts[-1])
        return np.concatenate(parts).astype(np.int64)

    def _draw_order(self, seed: int, epoch: int) -> np.ndarray:
        # In 32 bits, as millions of records are many bytes.
        numbers = np.arange(
            len(self._lengths), dtype=np.int32 if len(self._lengths) < 2**31 else np.int64
        )
        return np.random.default_rng([seed, 0, epoch]).permutation(numbers)

    def _draw_pool(self, start: int, stop: int, batch_size: int, seed: int) -> np.ndarray:
        """Draw batches start to stop, which are all of one epoch."""
        drawn = self._stream(seed, start * batch_size, stop * batch_size)
        return drawn[draw_batches(self._lengths[drawn], batch_size, seed, start)]

    def evaluation_order(self, batch_size: int, *, group_by_length: bool = True) -> np.ndarray:
        """Tell the numbers of the records of each batch of one pass; -1 where a row fills the last.

        Args:
            batch_size: B.
            group_by_length: whether to sort by length; else they come as in the file.

        Returns:
            int64 [batches, B], not to be written to.
        """
        return self._evaluation(batch_size, group_by_length)

    def _evaluation_batches(self, batch_size: int, group_by_length: bool) -> np.ndarray:
        order = np.arange(len(self._lengths))
        if group_by_length:
            order = np.argsort(self._lengths, kind="stable")
        num_batches = -(-len(order) // batch_size)
        filled = np.full(num_batches * batch_size, FILLER, np.int64)
        filled[: len(order)] = order
        filled.flags.writeable = False
        return filled.reshape(num_batches, batch_size)
