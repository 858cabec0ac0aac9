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

import tensorflow as tf

from bert_tf.input_pipeline.record_checks import as_written
from bert_tf.input_pipeline.record_order import pool_of
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
        Dataset of string [B]. It holds up to three copies of a pool; where it begins within one,
        it reads all of that first.
    """
    begin, _ = pool_of(start_step, num_records, batch_size, most_batches)

    def bounds(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return pool_in_graph(step, num_records, batch_size, most_batches)

    @as_written
    def shuffled(steps: tf.Tensor, records: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        # Of equal lengths the shuffled order remains.
        places = tf.argsort(tf.reshape(lengths, [-1]), stable=True)
        draw = tf.random.stateless_uniform(
            tf.shape(steps), tf.stack([seed, steps[0]]), 0, 2**31 - 1, tf.int32, alg="philox"
        )
        batches = tf.gather(tf.reshape(places, [-1, batch_size]), tf.argsort(draw, stable=True))
        return tf.gather(tf.reshape(records, [-1]), batches)

    pools = (
        make_stream(begin)
        .enumerate(start=begin)
        .map(
            as_written(lambda step, records: (step, records, lengths_of(records))),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .group_by_window(
            cast(Any, as_written(lambda step, records, lengths: bounds(step)[0])),
            as_written(lambda start, window: window.batch(most_batches)),
            window_size_func=as_written(lambda start: bounds(start)[1] - start),
        )
        .map(shuffled)
    )
    # The next pool is read while the batches of one are taken.
    return pools.prefetch(1).unbatch().skip(start_step - begin)


def pool_in_graph(
    step: tf.Tensor, num_records: int, batch_size: int, most_batches: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return what `pool_of` does, of a step in the graph, int64.

    Python in an endless stream could keep a process from ending: the thread that runs it waits for
    the interpreter, and this for the thread.
    """
    epoch = step * batch_size // num_records
    first = -(-epoch * num_records // batch_size)
    count = tf.maximum((epoch + 1) * num_records // batch_size - first, 1)
    per_pool = -(-count // -(-count // most_batches))
    start = step - tf.math.floormod(step - first, per_pool)
    end = tf.math.floormod(step * batch_size, num_records) + batch_size
    is_of_two_epochs = end > num_records
    return (
        tf.where(is_of_two_epochs, step, start),
        tf.where(is_of_two_epochs, step + 1, tf.minimum(start + per_pool, first + count)),
    )


def last_places(used: tf.Tensor) -> tf.Tensor:
    """Return for each row of bool [B, n] the place of the last that is True, from 1: int64 [B]."""
    places = tf.range(1, tf.shape(used, tf.int64)[1] + 1)
    return tf.reduce_max(tf.where(used, places, 0), axis=1)


def used_lengths(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Return how much of each row its tokens and predictions take, at least 1: int64 [B].

    Args:
        batch: input_mask [B, L], and where there are predictions their positions and weights.
    """
    lengths = tf.maximum(last_places(batch["input_mask"] != 0), 1)
    if "masked_lm_weights" not in batch:
        return lengths
    counts = batch["masked_lm_weights"] != 0
    positions = tf.where(counts, tf.cast(batch["masked_lm_positions"], tf.int64), 0)
    return tf.maximum(lengths, 1 + tf.reduce_max(positions, axis=1))


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
    longest = tf.reduce_max(used_lengths(batch))
    most = tf.reduce_max(last_places(counts))
    bins = -(-longest // length_bins)
    # The least number of bins whose share of P, rounded up, is enough.
    bins_of_most = (most - 1) * length // (predictions * length_bins) + 1
    share = -(-predictions * length_bins * tf.maximum(bins, bins_of_most) // length)
    ends = dict.fromkeys(INPUT_NAMES, tf.minimum(bins * length_bins, length))
    ends |= dict.fromkeys(_PREDICTIONS, tf.minimum(share, predictions))
    batch = {**batch, "masked_lm_positions": positions}
    return {name: x[:, : ends[name]] if name in ends else x for name, x in batch.items()}
