"""Several pre-training sequences in one row, for compilers of one shape.

The records of a file are put into rows window by window, longest first, each into the first row of
its window that has room. So which records share a row follows from the file alone, and a stream of
rows can be shuffled, and begun anywhere, as one of records. Sequences of a row do not see each
other: losses and gradients are those of each in a row of its own.

Shapes: R rows, K sequences_per_row, L max_seq_length, P predictions of a row, M sequences of a
batch, w records of a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.input_pipeline.length_bins import used_lengths
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

_WINDOW_RECORDS = 512  # more would save little: see experiments/LOG.md
_WINDOWS_AT_ONCE = 8
_MEASURED = ("input_mask", "masked_lm_positions", "masked_lm_weights")
PACKED_NAMES = ("sequence_ids", "position_ids", "pooled_positions")  # inputs beside the others
_PREDICTIONS = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")


@dataclasses.dataclass(frozen=True)
class RowPacking:
    """How records share rows.

    Attributes:
        features: schema of the records.
        max_predictions_per_seq: P, of a row as of a record; L - 1 where the next piece is
            predicted.
        sequences_per_row: K, the most of a row.
        masking: the rule that predictions are chosen by; None where the records hold them.
    """

    features: Sequence[FeatureSpec]
    max_predictions_per_seq: int
    sequences_per_row: int
    masking: MaskingRule | NextPieceRule | None

    def __post_init__(self):
        check_positive(sequences_per_row=self.sequences_per_row)

    def rows(self, records: tf.data.Dataset) -> tf.data.Dataset:
        """Put records into rows.

        Args:
            records: serialized records of a file, string [].

        Returns:
            Dataset of string [K], with "" in place of records that are not there.
        """
        windows = records.batch(_WINDOWS_AT_ONCE * _WINDOW_RECORDS)
        return windows.map(self._rows_of, num_parallel_calls=2, deterministic=True).unbatch()

    def count(self, path: str) -> int:
        """Return how many rows the records of a file take.

        Raises:
            ValueError: a record is of another schema.
        """
        try:
            one_more = as_written(lambda count, _: count + 1)
            return int(self.rows(raw_file(path)).reduce(np.int64(0), one_more))
        except PARSE_ERRORS as error:
            reason = getattr(error, "message", "one is no tf.train.Example")
            raise ValueError(f"{path}: records do not fit: {reason}") from error

    @as_written
    def _rows_of(self, records: tf.Tensor) -> tf.Tensor:
        """Return the rows of some windows, string [R, K]."""
        parse = parse_example_fn([f for f in self.features if f.name in _MEASURED], as_stored=True)
        batch = parse(records)
        mask = batch["input_mask"]
        length, predictions = mask.shape[1], self.max_predictions_per_seq
        if self.masking is None:
            counts = tf.math.count_nonzero(batch["masked_lm_weights"], axis=1)
        else:
            counts = self.masking.most_predictions(mask, predictions)
        if isinstance(self.masking, NextPieceRule):
            predictions = length - 1
        demands = [used_lengths(batch), tf.cast(counts, tf.int64), tf.ones_like(mask[:, 0])]
        room = [length, predictions, self.sequences_per_row]
        rows = first_fit(tf.stack(demands, axis=1), room, _WINDOW_RECORDS)
        rows = tf.unique(rows).idx  # [M], without gaps
        order = tf.argsort(rows, stable=True)  # of equal rows that of the file remains
        rows = tf.gather(rows, order)
        columns = tf.range(tf.shape(rows)[0]) - tf.searchsorted(rows, rows)
        # In an order of chance, always the same: else rows of many sequences would come first.
        draw = tf.random.stateless_uniform([rows[-1] + 1], (0, 0), alg="philox")
        rows = tf.gather(tf.argsort(draw, stable=True), rows)
        return tf.scatter_nd(
            tf.stack([rows, columns], axis=1),
            tf.gather(records, order),
            tf.stack([tf.shape(draw)[0], self.sequences_per_row]),
        )

    def batch(
        self, rows: tf.Tensor, read: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]
    ) -> dict[str, tf.Tensor]:
        """Read rows and join what they hold.

        Args:
            rows: of `rows`, string [R, K], or records alone in their rows, string [R].
            read: records, string [M] -> their features and predictions, [M, ...].

        Returns:
            input_ids, input_mask, segment_ids, sequence_ids and position_ids [R, L] (see
            `models.encoder.packed_inputs`); masked_lm_positions, _ids and _weights [R, P];
            pooled_positions, next_sentence_labels and next_sentence_weights [R, K], of which the
            last are 0 for sequences that are not there.
        """
        rows = tf.reshape(rows, [-1, self.sequences_per_row])
        places = tf.where(rows != "")  # [M, 2]: row and column
        batch = read(tf.gather_nd(rows, places))
        mask, numbers = batch["input_mask"], tf.cast(places[:, 1], tf.int32)
        tokens = tf.sequence_mask(used_lengths(batch), mask.shape[1], tf.int32)  # [M, L]
        starts = _starts(tokens, places, tf.shape(rows))  # [M]
        pooled = starts
        if isinstance(self.masking, NextPieceRule):  # a left-to-right model pools the last
            pooled = starts + tf.maximum(tf.reduce_sum(mask, axis=1) - 1, 0)
        of_tokens = {
            **{name: batch[name] for name in INPUT_NAMES},
            "sequence_ids": tokens * (numbers[:, None] + 1),
            "position_ids": tokens * tf.range(mask.shape[1]),
        }
        counts = tf.cast(batch["masked_lm_weights"] != 0, tf.int32)  # [M, P]
        of_predictions = {name: batch[name] for name in _PREDICTIONS}
        of_predictions["masked_lm_positions"] += starts[:, None]
        of_sequences = {
            "pooled_positions": pooled,
            "next_sentence_labels": batch["next_sentence_labels"][:, 0],
            "next_sentence_weights": tf.ones_like(starts, tf.float32),
        }
        return {
            **_in_rows(of_tokens, tokens, places, tf.shape(rows)),
            **_in_rows(of_predictions, counts, places, tf.shape(rows)),
            **{
                name: tf.ensure_shape(
                    tf.scatter_nd(places, values, tf.shape(rows, tf.int64)), rows.shape
                )
                for name, values in of_sequences.items()
            },
        }


def make_packing(
    features: Sequence[FeatureSpec],
    max_predictions_per_seq: int,
    sequences_per_row: int | None,
    masking: MaskingRule | NextPieceRule | None,
) -> RowPacking | None:
    """Return a `RowPacking`, or None where each record has a row of its own."""
    if sequences_per_row is None:
        return None
    return RowPacking(features, max_predictions_per_seq, sequences_per_row, masking)


def count_rows(
    files: str | Sequence[str],
    *,
    max_seq_length: int,
    max_predictions_per_seq: int,
    sequences_per_row: int,
    masking: MaskingRule | NextPieceRule | None = None,
) -> list[int]:
    """Count the rows that records take, reading all of them; arguments of `pretraining_dataset`.

    Returns:
        The rows of each file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: records do not fit the arguments.
        tensorflow.errors.DataLossError: a file is damaged.
    """
    paths = expand_files(files)
    shape = check_record_shape(paths, max_seq_length, max_predictions_per_seq)
    masking = None if shape.masked else masking
    packing = RowPacking(shape.features, max_predictions_per_seq, sequences_per_row, masking)
    return [packing.count(path) for path in paths]


def first_fit(demands: tf.Tensor, room: Sequence[int], window: int) -> tf.Tensor:
    """Put things into rows, the largest first, each into the first row that has room for it.

    Args:
        demands: int64 [M, n], what each thing takes, none of it more than a row has; by the first
            they are sorted.
        room: n numbers, what a row has.
        window: w, of how many things one after another rows are made. All windows are filled at the
            same time, in w steps.

    Returns:
        int64 [M], the number of each one's row; those of a window come after those before it.
    """
    count: Any = tf.shape(demands)[0]
    windows = -(-count // window)  # W
    demands = tf.pad(demands, [[0, windows * window - count], [0, 0]])  # what takes nothing
    demands = tf.reshape(demands, [windows, window, len(room)])
    order = tf.argsort(demands[:, :, 0], direction="DESCENDING", stable=True)  # [W, w]
    steps = tf.transpose(tf.gather(demands, order, batch_dims=1), [1, 0, 2])  # [w, W, n]
    numbers = tf.range(windows, dtype=tf.int64)

    def place(step: tf.Tensor, free: tf.Tensor, rows: tf.TensorArray) -> tuple[Any, ...]:
        fits = tf.reduce_all(free >= steps[step][:, None], axis=2)  # [W, w]
        chosen = tf.argmax(tf.cast(fits, tf.int8), axis=1)  # [W], the first
        free = tf.tensor_scatter_nd_sub(free, tf.stack([numbers, chosen], 1), steps[step])
        return step + 1, free, rows.write(step, numbers * window + chosen)

    free = tf.tile(tf.constant([[room]], tf.int64), [windows, window, 1])
    rows = tf.TensorArray(tf.int64, size=window)
    _, _, rows = tf.while_loop(lambda step, *_: step < window, place, (0, free, rows))
    by_size = tf.transpose(rows.stack())  # [W, w]
    return tf.reshape(tf.gather(by_size, tf.argsort(order), batch_dims=1), [-1])[:count]


def _starts(used: tf.Tensor, places: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Return where in its row each of M sequences begins: int32 [M].

    Args:
        used: int32 [M, n], 1 for what a sequence puts into its row.
        places: int64 [M, 2], its row and its number in that.
        shape: R and K.
    """
    sizes = tf.scatter_nd(places, tf.reduce_sum(used, axis=1), tf.cast(shape, tf.int64))  # [R, K]
    return tf.gather_nd(tf.cumsum(sizes, axis=1, exclusive=True), places)


def _in_rows(
    batch: Mapping[str, tf.Tensor], used: tf.Tensor, places: tf.Tensor, shape: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Put what is used of tensors [M, n] one after another into rows [R, n]; see `_starts`."""
    width = used.shape[1]
    columns = _starts(used, places, shape)[:, None] + tf.cumsum(used, axis=1, exclusive=True)
    kept = tf.where(used)  # [T, 2]
    rows = tf.gather(places[:, 0], kept[:, 0])
    targets = tf.stack([rows, tf.cast(tf.gather_nd(columns, kept), tf.int64)], axis=1)
    found = {
        name: tf.scatter_nd(
            targets, tf.gather_nd(values, kept), [tf.cast(shape[0], tf.int64), width]
        )
        for name, values in batch.items()
    }
    return {name: tf.ensure_shape(values, [None, width]) for name, values in found.items()}
