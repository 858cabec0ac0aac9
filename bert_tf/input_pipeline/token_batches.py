"""Pre-training batches of like length that hold about as many tokens each, so more short sequences.

The records of an epoch, in their shuffled order, are sorted into bins by length; a batch comes when
its bin is full. How many records an epoch has of each length is counted beforehand, and so the
number of its batches is known: of the epochs before a step nothing is read, of its own the records
that come before. What the bins hold at the end of an epoch becomes its last batches.

Shapes: L max_seq_length, P predictions per sequence, W widths, M records, R rows of the largest
batch, n batches.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.input_pipeline.length_bins import last_places, used_lengths
from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.input_pipeline.record_checks import (
    PARSE_ERRORS,
    as_written,
    check_positive,
    check_record_shape,
    expand_files,
    raw_file,
)
from bert_tf.records.decoding import parse_example_fn
from bert_tf.records.schema import INPUT_NAMES, FeatureSpec

_AT_ONCE = 512  # records that are measured and sorted into bins together
_MEASURED = ("input_mask", "masked_lm_positions", "masked_lm_weights")
_PREDICTIONS = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
# Serialized records, string [M] -> their lengths and how many places their predictions take.
Measure = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class LengthCounts:
    """How many records an epoch has of each length.

    Attributes:
        records: for each length 0..L the records of it.
        predictions: for each length the most predictions of a record of it.
        max_predictions_per_seq: P.
    """

    records: tuple[int, ...]
    predictions: tuple[int, ...]
    max_predictions_per_seq: int


@dataclasses.dataclass(frozen=True)
class TokenBatches:
    """The batches of an epoch: their shapes, how many there are, and which records they hold.

    Attributes:
        lengths: what an epoch holds.
        length_bins: tokens; widths are its multiples, and L.
        batch_tokens: the most tokens of a batch, padding included.
        multiple: of which the rows of each batch are one: of replicas times accumulation steps.

    Raises:
        ValueError: a number is out of range, or the widest rows have no room.
    """

    lengths: LengthCounts
    length_bins: int
    batch_tokens: int
    multiple: int = 1

    def __post_init__(self):
        check_positive(length_bins=self.length_bins, batch_multiple=self.multiple)
        least = self.max_seq_length * self.multiple
        if self.batch_tokens < least:
            times = f" x batch_multiple {self.multiple}" if self.multiple > 1 else ""
            raise ValueError(
                f"batch_tokens: expected at least {least}, max_seq_length "
                f"{self.max_seq_length}{times}, got {self.batch_tokens}"
            )

    @property
    def max_seq_length(self) -> int:
        """L."""
        return len(self.lengths.records) - 1

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """Tokens of a row: W numbers, ascending."""
        length, step = self.max_seq_length, self.length_bins
        return (*range(step, length, step), length)

    @functools.cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of a batch of each width."""
        rows = (self.batch_tokens // width for width in self.widths)
        return tuple(count // self.multiple * self.multiple for count in rows)

    @functools.cached_property
    def predictions(self) -> tuple[int, ...]:
        """Predictions of a row of each width: its share of P, or what its records need."""
        limit = self.lengths.max_predictions_per_seq
        shares = [-(-limit * width // self.max_seq_length) for width in self.widths]
        needed = itertools.accumulate(map(max, self._by_width(self.lengths.predictions)), max)
        return tuple(min(max(pair), limit) for pair in zip(shares, needed, strict=True))

    @functools.cached_property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return sum(self.batches_of_width)

    @functools.cached_property
    def batches_of_width(self) -> tuple[int, ...]:
        """Batches of an epoch of each width; those above 0 are the shapes that a run meets."""
        last = [number for number, _, _ in self._last]
        return tuple(full + last.count(number) for number, full in enumerate(self._full))

    @property
    def num_records(self) -> int:
        """Records of an epoch."""
        return sum(self.lengths.records)

    @property
    def num_shapes(self) -> int:
        """Shapes of batches, each of which XLA compiles once."""
        return sum(count > 0 for count in self.batches_of_width)

    def _by_width(self, values: Sequence[int]) -> list[Sequence[int]]:
        """Cut values of lengths 0..L into those of each width; a record of none is as of one."""
        ends = [width + 1 for width in self.widths]
        return [values[i:j] for i, j in zip([0, *ends], ends, strict=False)]

    @functools.cached_property
    def _records(self) -> tuple[int, ...]:
        """Records of an epoch in each bin."""
        return tuple(map(sum, self._by_width(self.lengths.records)))

    @functools.cached_property
    def _held(self) -> tuple[int, ...]:
        """For each bin the full batches that wait for the end of the epoch.

        It is one, of the widest bin that fills one, so that the last batches are never of a few
        records.
        """
        filled = [i for i in range(len(self.rows)) if self._records[i] >= self.rows[i]]
        return tuple(int(i == filled[-1]) if filled else 0 for i in range(len(self.rows)))

    @functools.cached_property
    def _full(self) -> tuple[int, ...]:
        """Batches of each width that come when they are full."""
        return tuple(
            max(count // rows - held, 0)
            for count, rows, held in zip(self._records, self.rows, self._held, strict=True)
        )

    @functools.cached_property
    def _last(self) -> list[tuple[int, int, int]]:
        """The last batches of an epoch: number of the width, and places in what is left.

        What is left is sorted by bins, and cut from the longest on; a batch is padded to the
        width of its longest. Only the last two may not be full: they share their records evenly.
        """
        left = [
            number
            for number, (count, rows, full) in enumerate(
                zip(self._records, self.rows, self._full, strict=True)
            )
            for _ in range(count - rows * full)
        ]
        batches, end = [], len(left)
        while end:
            number = left[end - 1]
            size = min(self.rows[number], end)
            if size < end < 2 * size:
                size = -(-end // 2)
            batches.append((number, end - size, end))
            end -= size
        return batches

    # === In the graph ===

    def batches(self, records: tf.data.Dataset, measure: Measure, seed: Any) -> tf.data.Dataset:
        """Put the records of an epoch into batches.

        Args:
            records: all of the epoch, serialized, string [], in any order.
            measure: of `measure_fn`.
            seed: int32 [2], of the order of the last batches.

        Returns:
            Dataset of (string [R], int32 []): records, with "" where there is none, and the number
            of the batch's width, whose `rows` are the first of these.
        """

        @as_written
        def numbered(chunk: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            lengths, _ = measure(chunk)
            return chunk, tf.cast((lengths - 1) // self.length_bins, tf.int32)

        @as_written
        def sort(state: Any, chunk: Any) -> Any:
            waiting, seen = state[:2], state[2]
            chunk_records, numbers = (
                tf.concat(pair, axis=0) for pair in zip(waiting, chunk, strict=True)
            )
            seen += tf.shape(chunk[0], tf.int64)[0]
            places, widths, left = self._full_batches(numbers)
            kept = tf.gather(numbers, left)
            last, of_last = tf.cond(
                seen >= self.num_records,
                lambda: self._last_batches(left, kept, tf.shape(numbers)[0], seed),
                lambda: (places[:0], widths[:0]),
            )
            slots = tf.concat([chunk_records, [""]], axis=0)
            batches = tf.gather(slots, tf.concat([places, last], axis=0))
            new_state = tf.gather(chunk_records, left), kept, seen
            return new_state, (batches, tf.concat([widths, of_last], axis=0))

        none = tf.zeros([0], tf.string), tf.zeros([0], tf.int32), tf.constant(0, tf.int64)
        # What waits is copied with each chunk, so larger batches come of larger ones.
        chunks = records.batch(max(_AT_ONCE, sum(self.rows) // 8))
        chunks = chunks.map(numbered, num_parallel_calls=2, deterministic=True)
        return chunks.scan(none, sort).unbatch()

    def _full_batches(self, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return the batches that records fill, in the order in which they become full.

        Args:
            numbers: int32 [M], the bins of records as they came.

        Returns:
            Places of records, int32 [n, R], M where there is none; the numbers of the batches'
            widths, int32 [n]; and the places of records that are left, int32, ascending.
        """
        total: Any = tf.shape(numbers)[0]
        counts = tf.math.bincount(numbers, minlength=len(self.rows), maxlength=len(self.rows))
        full = tf.maximum(counts // self.rows - self._held, 0)  # [W]
        order = tf.argsort(numbers, stable=True)
        bins = tf.gather(numbers, order)
        starts, first = tf.cumsum(counts, exclusive=True), tf.cumsum(full, exclusive=True)
        ranks = tf.range(total) - tf.gather(starts, bins)
        rows = tf.gather(self.rows, bins)
        is_full = ranks // rows < tf.gather(full, bins)
        batch = tf.gather(first, bins) + ranks // rows
        shape = tf.stack([tf.reduce_sum(full), max(self.rows)])
        places = tf.tensor_scatter_nd_update(
            tf.fill(shape, total),
            tf.stack([batch, ranks % rows], axis=1)[is_full],
            order[is_full],
        )
        widths = tf.repeat(tf.range(len(self.rows)), full)
        # A batch comes with the record that fills it, or those that wait behind it.
        before = tf.range(tf.size(widths)) - tf.gather(first, widths) + 1
        fills = (before + tf.gather(self._held, widths)) * tf.gather(self.rows, widths) - 1
        by_time = tf.argsort(tf.gather(order, tf.gather(starts, widths) + fills))
        left = tf.sort(order[~is_full])
        return tf.gather(places, by_time), tf.gather(widths, by_time), left

    def _last_batches(
        self, left: tf.Tensor, kept: tf.Tensor, none: tf.Tensor, seed: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the last batches of an epoch, of which any may come first; see `_full_batches`.

        Args:
            left: places of the records that are left.
            kept: their bins.
            none: a place where there is no record.
            seed: of the order.
        """
        size = self._last[0][2]
        layout = np.full([len(self._last), max(self.rows)], size, np.int32)
        for row, (number, begin, end) in zip(layout, self._last, strict=True):
            # Evenly over the rows, so that each replica has its part of the records.
            places = np.arange(end - begin) * self.rows[number] // (end - begin)
            row[places] = np.arange(begin, end)
        is_as_counted = tf.debugging.Assert(
            tf.equal(tf.size(left), size),
            ["length_counts: the records are not those that were counted"],
        )
        with tf.control_dependencies([is_as_counted]):
            slots = tf.concat([tf.gather(left, tf.argsort(kept, stable=True)), [none]], axis=0)
        draw = tf.random.stateless_uniform([len(layout)], seed, alg="philox")
        order = tf.argsort(draw, stable=True)
        numbers = tf.constant([number for number, _, _ in self._last], tf.int32)
        return tf.gather(slots, tf.gather(layout, order)), tf.gather(numbers, order)

    def split(self, slots: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        """Take the records of a batch from its rows.

        Args:
            slots: string [R], of `batches`.
            number: int32 [], of its width.

        Returns:
            The records, string [M], and a function that puts tensors of theirs, [M, ...], into the
            batch's rows; where there is no record, these are 0.
        """
        rows = tf.gather(self.rows, number)
        places = tf.where(slots[:rows] != "")  # [M, 1]

        def fill(tensor: tf.Tensor) -> tf.Tensor:
            shape = tf.concat([[rows], tf.shape(tensor)[1:]], axis=0)
            filled = tf.scatter_nd(places, tensor, tf.cast(shape, tf.int64))
            return tf.ensure_shape(filled, [None, *tensor.shape[1:]])

        return tf.gather_nd(slots, places), fill

    def cut(self, batch: Mapping[str, tf.Tensor], number: tf.Tensor) -> dict[str, tf.Tensor]:
        """Cut a batch, inputs [M, L] and predictions [M, P], to a width and its predictions."""
        width, most = tf.gather(self.widths, number), tf.gather(self.predictions, number)
        counts = batch["masked_lm_weights"] != 0
        fits = tf.reduce_all(used_lengths(batch) <= tf.cast(width, tf.int64))
        fits &= tf.reduce_all(last_places(counts) <= tf.cast(most, tf.int64))
        reason = "length_counts: a record has more tokens or predictions than were counted"
        with tf.control_dependencies([tf.debugging.Assert(fits, [reason])]):
            # What counts for nothing may be looked up anywhere, but within the batch.
            positions = tf.where(counts, batch["masked_lm_positions"], 0)
        ends = {**dict.fromkeys(INPUT_NAMES, width), **dict.fromkeys(_PREDICTIONS, most)}
        batch = {**batch, "masked_lm_positions": positions}
        return {name: x[:, : ends[name]] if name in ends else x for name, x in batch.items()}

    def batches_of_each_shape(self, whole: Any) -> Iterator[Any]:
        """Cut a batch of `pretraining_dataset` down to each of the shapes, to measure their memory.

        Args:
            whole: (inputs, labels, weights) of as many rows as the largest batch, of L and P.
        """
        inputs, labels, weights = whole
        for number, (width, rows, most) in enumerate(
            zip(self.widths, self.rows, self.predictions, strict=True)
        ):
            if not self.batches_of_width[number]:
                continue
            positions = tf.minimum(inputs["masked_lm_positions"], width - 1)[:rows, :most]
            of_tokens = {name: inputs[name][:rows, :width] for name in INPUT_NAMES}
            yield (
                {**of_tokens, "masked_lm_positions": positions},
                {name: _first(x, rows, most) for name, x in labels.items()},
                {name: _first(x, rows, most) for name, x in weights.items()},
            )


def _first(tensor: tf.Tensor, rows: int, predictions: int) -> tf.Tensor:
    """Return the first rows of labels or weights, [B, P] or [B]."""
    return tensor[:rows] if tensor.shape.rank == 1 else tensor[:rows, :predictions]


def measure_fn(
    features: Sequence[FeatureSpec],
    max_predictions_per_seq: int,
    masking: MaskingRule | NextPieceRule | None,
) -> Measure:
    """Return what tells the lengths of records, and how many places their predictions take.

    Args:
        features: schema of the records.
        max_predictions_per_seq: P.
        masking: the rule that predictions are chosen by; None where the records hold them.
    """
    parse = parse_example_fn([f for f in features if f.name in _MEASURED], as_stored=True)

    def measure(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = parse(serialized)
        mask = batch["input_mask"]
        lengths = tf.minimum(used_lengths(batch), mask.shape[1])
        if masking is None:
            return lengths, last_places(batch["masked_lm_weights"] != 0)
        return lengths, tf.cast(masking.most_predictions(mask, max_predictions_per_seq), tf.int64)

    return measure


def count_lengths(
    files: str | Sequence[str],
    *,
    max_seq_length: int,
    max_predictions_per_seq: int,
    masking: MaskingRule | NextPieceRule | None = None,
) -> LengthCounts:
    """Count the records of each length, reading all of them; arguments of `pretraining_dataset`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: records do not fit the arguments.
        tensorflow.errors.DataLossError: a file is damaged.
    """
    paths = expand_files(files)
    shape = check_record_shape(paths, max_seq_length, max_predictions_per_seq)
    masking = None if shape.masked else masking
    measure = measure_fn(shape.features, max_predictions_per_seq, masking)

    @as_written
    def add(state: Any, chunk: tf.Tensor) -> Any:
        lengths, predictions = measure(chunk)
        ones = tf.ones_like(lengths)
        return (
            tf.tensor_scatter_nd_add(state[0], lengths[:, None], ones),
            tf.tensor_scatter_nd_max(state[1], lengths[:, None], predictions),
        )

    state: Any = (np.zeros(max_seq_length + 1, np.int64),) * 2
    for path in paths:
        try:
            state = raw_file(path).batch(_AT_ONCE).reduce(state, add)
        except PARSE_ERRORS as error:
            reason = getattr(error, "message", "one is no tf.train.Example")
            raise ValueError(f"{path}: records do not fit: {reason}") from error
    limit = max_predictions_per_seq
    if isinstance(masking, NextPieceRule):
        limit = max_seq_length - 1
    records, predictions = (tuple(map(int, counts.numpy())) for counts in state)
    return LengthCounts(records, predictions, limit)
