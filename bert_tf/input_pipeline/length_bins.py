"""Pre-training batches of like length: a stream sorted pool by pool, and padding cut off.

A batch is cut to its longest sequence, rounded up to a multiple of a few tokens, since XLA compiles
each shape but once. What is cut off is padding alone, so losses and gradients are those of the
whole rows.

Shapes: B batch, L max_seq_length, F length of a batch, P max_predictions_per_seq, Q predictions of
a batch, n batches of a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import tensorflow as tf

from bert_tf.input_pipeline.record_order import draw_batches, pool_of
from bert_tf.records.schema import INPUT_NAMES

_PREDICTIONS = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")


def group_by_length(
    make_stream: Callable[[int], tf.data.Dataset],
    lengths_of: Callable[[tf.Tensor], tf.Tensor],
    *,
    num_records: int,
    batch_size: int,
    start_step: int,
    seed: int,
    most_batches: int,
) -> tf.data.Dataset:
    """Exchange records among the batches of a pool, so that those of like length come together.

    Args:
        make_stream: step -> endless batches of records, string [B], from that step on.
        lengths_of: records [B] -> their lengths, integer [B].
        num_records: of an epoch.
        batch_size: B.
        start_step: number of the first batch; batch i is the same whatever the start.
        seed: of the order of a pool's batches.
        most_batches: of a pool.

    Returns:
        Dataset of string [B].
    """
    begin, _ = pool_of(start_step, num_records, batch_size, most_batches)

    def bounds(step: Any) -> np.ndarray:
        return np.array(pool_of(int(step), num_records, batch_size, most_batches), np.int64)

    def bound_of(step: tf.Tensor, which: int) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(bounds, [step], tf.int64, False), [2])[which]

    def drawn(start: Any, lengths: Any) -> np.ndarray:
        return draw_batches(lengths.reshape(-1), batch_size, seed, int(start))

    def shuffled(steps: tf.Tensor, records: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        places = tf.numpy_function(drawn, [steps[0], lengths], tf.int64, False)  # [n, B]
        return tf.gather(tf.reshape(records, [-1]), tf.ensure_shape(places, [None, batch_size]))

    pools = (
        make_stream(begin)
        .enumerate(start=begin)
        .map(
            lambda step, records: (step, records, lengths_of(records)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .group_by_window(
            cast(Any, lambda step, records, lengths: bound_of(step, 0)),
            lambda start, window: window.batch(most_batches),
            window_size_func=lambda start: bound_of(start, 1) - start,
        )
        .map(shuffled)
    )
    # The next pool is read while the batches of one are taken.
    return pools.prefetch(1).unbatch().skip(start_step - begin)


def last_places(used: tf.Tensor) -> tf.Tensor:
    """Return for each row of bool [B, n] the place of the last that is True, from 1: int64 [B]."""
    places = tf.range(1, tf.shape(used, tf.int64)[1] + 1)
    return tf.reduce_max(tf.where(used, places, 0), axis=1)


def cut_padding(batch: Mapping[str, tf.Tensor], length_bins: int) -> dict[str, tf.Tensor]:
    """Cut off the padding that all rows of a batch have.

    Args:
        batch: inputs [B, L] and predictions [B, P], with what else should pass through.
        length_bins: tokens; F is the least multiple of it that is enough, L at most. Q is the same
            share of P, rounded up, or more where a row has more predictions.

    Returns:
        The batch with inputs [B, F] and predictions [B, Q].
    """
    length: Any = batch["input_ids"].shape[1]
    predictions: Any = batch["masked_lm_weights"].shape[1]
    counts = batch["masked_lm_weights"] != 0
    # What counts for nothing may be looked up anywhere, but within the batch.
    positions = tf.where(counts, batch["masked_lm_positions"], 0)
    longest = tf.reduce_max(last_places(batch["input_mask"] != 0))
    longest = tf.maximum(longest, 1 + tf.cast(tf.reduce_max(positions), tf.int64))
    most = tf.reduce_max(last_places(counts))
    bins = -(-longest // length_bins)
    # The least number of bins whose share of P, rounded up, is enough.
    bins_of_most = (most - 1) * length // (predictions * length_bins) + 1
    share = -(-predictions * length_bins * tf.maximum(bins, bins_of_most) // length)
    ends = dict.fromkeys(INPUT_NAMES, tf.minimum(bins * length_bins, length))
    ends |= dict.fromkeys(_PREDICTIONS, tf.minimum(share, predictions))
    batch = {**batch, "masked_lm_positions": positions}
    return {name: x[:, : ends[name]] if name in ends else x for name, x in batch.items()}
