"""Pre-training records to tf.data, in an order that depends on the seed and the step alone.

A training stream is a function of (files, seed, batch size): epoch after epoch, each with its own
order of files and of records drawn from (seed, epoch), cut into batches without regard to where an
epoch ends, and then perhaps sorted by length within pools of batches. Batches of so many tokens
each are those of one epoch, whose number follows from the lengths of its records. Beginning at step
s gives exactly the batches that follow s steps from the beginning, so a run can be resumed from its
step number and no iterator state needs to be kept. Where rows hold several sequences, it is these
rows that are shuffled and counted.

Shapes: B batch, L sequence length, P predictions per sequence, K sequences per row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import tensorflow as tf

from bert_tf.input_pipeline.length_bins import cut_padding, group_by_length, last_places
from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.input_pipeline.record_checks import (
    ModelLimits,
    as_written,
    check_positive,
    check_record_shape,
    compression_type,
    count_records,
    expand_files,
    raw_file,
)
from bert_tf.input_pipeline.record_order import POOL_BATCHES
from bert_tf.input_pipeline.row_packing import PACKED_NAMES, RowPacking, make_packing
from bert_tf.input_pipeline.token_batches import (
    LengthCounts,
    Measure,
    TokenBatches,
    count_lengths,
    measure_fn,
)
from bert_tf.records.decoding import integers_as_int32, parse_example_fn
from bert_tf.records.schema import INPUT_NAMES, FeatureSpec

SHUFFLE_BUFFER_RECORDS = 65_536  # about 50 MB of records of 128 tokens; the original's is 100
_READ_FILES = 8  # read in turns, record by record, so that neighbours come from several files
# Independent random streams of one seed.
_LAST_BATCHES_STREAM, _ORDER_STREAM, _TRAIN_MASK_STREAM, _EVAL_MASK_STREAM = 0, 1, 2, 3


def pretraining_dataset(
    files: str | Sequence[str],
    *,
    batch_size: int | None = None,
    max_seq_length: int,
    max_predictions_per_seq: int,
    is_training: bool,
    seed: int = 0,
    start_step: int = 0,
    masking: MaskingRule | NextPieceRule | None = None,
    record_counts: Sequence[int] | None = None,
    vocab_size: int | None = None,
    next_sentence: bool = True,
    mask_id: int | None = None,
    shuffle_buffer_records: int = SHUFFLE_BUFFER_RECORDS,
    max_steps: int | None = None,
    fill_last_batch: bool = False,
    length_bins: int = 0,
    pad_to_max: bool = False,
    sequences_per_row: int | None = None,
    row_counts: Sequence[int] | None = None,
    batch_tokens: int | None = None,
    batch_multiple: int = 1,
    length_counts: LengthCounts | None = None,
) -> tf.data.Dataset:
    """Make batches of pre-training examples as `keras.Model.fit` and `Trainer` take them.

    Training is endless and shuffled; evaluation is one pass in order whose last batch may be
    short. Users call this by keywords, so its many parameters are not a dataclass.

    Args:
        files: record files (names, globs, comma separated), masked or unmasked.
        batch_size: B: records, or rows of `sequences_per_row`; None with `batch_tokens`.
        max_seq_length: L; must be that of the records.
        max_predictions_per_seq: P; must be that of the records where they are masked.
        is_training: endless and shuffled, or one pass.
        seed: of the order and of dynamic masks, in [0, 2**31).
        start_step: batches to pass over; batch i is the same whatever the start.
        masking: the rule by which masks are drawn, for unmasked records: in training anew for
            every step, in evaluation the same at every evaluation; or the one by which the next
            piece is predicted, P being L - 1 then.
        record_counts: records of each file where known; else the files are scanned.
        vocab_size: where given, an id outside it stops the stream with an error, as does a position
            outside the sequence or another label than 0 and 1.
        next_sentence: leave out labels and weights of next-sentence prediction where False.
        mask_id: id of [MASK]; where given, there are weights "masked_lm_at_mask" too.
        shuffle_buffer_records: records held in memory to draw from, or rows of `sequences_per_row`;
            with `length_bins` up to three times as many.
        max_steps: at most this many batches; None means no limit.
        fill_last_batch: in evaluation, whether examples of weight 0 fill the last batch up, so that
            all have one shape, as a `Trainer` on several devices wants it. Keras takes such
            examples into its means, and predicts them.
        length_bins: in training, tokens: sequences of like length come together, and a batch is cut
            to its longest, rounded up to a multiple of so many; its predictions likewise. 0 for
            batches as they come, all of L and P.
        pad_to_max: whether batches of `length_bins`, too, are of L and P, for compilers of one
            shape: the same batches otherwise.
        sequences_per_row: K: a row holds up to so many sequences, if they fit into its L tokens and
            P predictions, for a model made with `packed=True`; in evaluation 1. None for one record
            a row, as it is.
        row_counts: rows of each file, of `count_rows`, where known; else the files are read.
        batch_tokens: in training with `length_bins`, in place of `batch_size`: each batch holds as
            many sequences as fit into so many tokens, padding included, at its width. All have one
            shape for each width; those at the end of an epoch may have rows of weight 0.
        batch_multiple: of which B is a multiple then: replicas times accumulation steps.
        length_counts: of `count_lengths`, for `batch_tokens`, where known; else the files are read.

    Returns:
        (inputs, labels, sample_weights): inputs int32 input_ids, input_mask, segment_ids [B, L]
        and masked_lm_positions [B, P]; labels int32 masked_lm_logits [B, P] and
        next_sentence_logits [B]; sample_weights float32 of the labels' shapes, and
        masked_lm_at_mask [B, P], which leave out predictions that do not show [MASK]. With
        `sequences_per_row` also inputs sequence_ids and position_ids [B, L] and pooled_positions
        [B, K], and next_sentence_logits are [B, K], of weight 0 where there is no sequence.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an argument is out of range or records do not fit the arguments.
    """
    check_positive(max_seq_length=max_seq_length, max_predictions_per_seq=max_predictions_per_seq)
    check_positive(shuffle_buffer_records=shuffle_buffer_records)
    _check_start(start_step, seed)
    _check_batches(batch_size, batch_tokens, length_bins, is_training)
    _check_padding(length_bins, sequences_per_row, max_seq_length, is_training)
    paths = expand_files(files)
    shape = check_record_shape(paths, max_seq_length, max_predictions_per_seq)
    _check_masked(paths, shape.masked or masking is not None)
    masking = None if shape.masked else masking
    packing = make_packing(shape.features, max_predictions_per_seq, sequences_per_row, masking)
    size = batch_size or 0  # not asked for with batch_tokens
    counted = (length_counts, length_bins, batch_tokens, batch_multiple)
    batches = _token_batches(paths, max_seq_length, max_predictions_per_seq, masking, *counted)
    if batches is not None:
        measure = measure_fn(shape.features, max_predictions_per_seq, masking)
        raw = _of_tokens(paths, batches, measure, seed, start_step, shuffle_buffer_records)
    elif is_training:
        rows = sum(_counts(paths, record_counts, row_counts, packing))
        grouped_by = shape.features if length_bins else None
        raw = _shuffled(
            paths, rows, size, seed, start_step, shuffle_buffer_records, grouped_by, packing
        )
    else:
        raw = _in_order(paths).skip(start_step * size).batch(size)
    raw = raw if max_steps is None else raw.take(max(0, max_steps - start_step))
    parse = _parser(shape.features, vocab_size, next_sentence)
    stream = _TRAIN_MASK_STREAM if is_training else _EVAL_MASK_STREAM
    read = _reader(parse, masking, max_predictions_per_seq, (seed, stream), packing)
    full_size = batch_size if is_training or fill_last_batch else None  # of every batch
    cuts = length_bins and not pad_to_max
    cut_of_bins = functools.partial(cut_padding, length_bins=length_bins)

    @as_written
    def to_element(step: tf.Tensor, serialized: Any):
        fill, cut = functools.partial(_filled_up, full_size), cut_of_bins
        if batches is not None:
            slots, number = serialized
            serialized, fill = batches.split(slots, number)
            cut = functools.partial(batches.cut, number=number)
        batch = read(step, serialized)
        return _element(cut(batch) if cuts else batch, fill, next_sentence, mask_id)

    dataset = raw.enumerate(start=start_step).map(
        to_element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    if not is_training and not fill_last_batch:
        records = sum(_counts(paths, record_counts))
        dataset = _of_known_length(dataset, -(-records // size), start_step, max_steps)
    return _in_this_order(dataset.prefetch(4))


def _token_batches(
    paths: Sequence[str],
    max_seq_length: int,
    max_predictions_per_seq: int,
    masking: MaskingRule | NextPieceRule | None,
    length_counts: LengthCounts | None,
    length_bins: int,
    batch_tokens: int | None,
    batch_multiple: int,
) -> TokenBatches | None:
    """Return the batches of an epoch where they are of so many tokens; reads what is not known."""
    if batch_tokens is None:
        return None
    if length_counts is None:
        length_counts = count_lengths(
            paths,
            max_seq_length=max_seq_length,
            max_predictions_per_seq=max_predictions_per_seq,
            masking=masking,
        )
    if len(length_counts.records) != max_seq_length + 1 or not sum(length_counts.records):
        raise ValueError(
            f"length_counts: expected records of lengths 0 to {max_seq_length}, got "
            f"{sum(length_counts.records)} of 0 to {len(length_counts.records) - 1}"
        )
    return TokenBatches(length_counts, length_bins, batch_tokens, batch_multiple)


def _parser(
    features: Sequence[FeatureSpec], vocab_size: int | None, next_sentence: bool
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return what reads serialized records, string [B], and refuses ids beyond the vocabulary."""
    parse = parse_example_fn(features, as_stored=True)
    limits = None if vocab_size is None else ModelLimits(vocab_size, next_sentence=next_sentence)
    ends = {} if limits is None else limits.ends(features)

    def parsed(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = parse(serialized)
        return integers_as_int32({**batch, "input_ids": _checked_ids(batch, ends)})

    return parsed


def _reader(
    parse: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    masking: MaskingRule | NextPieceRule | None,
    max_predictions_per_seq: int,
    seed_and_stream: tuple[int, int],
    packing: RowPacking | None,
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """Return what reads the records of a step, in rows where there is a packing, and masks them."""

    def read(step: tf.Tensor, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = parse(serialized)
        if masking is None:
            return batch
        draw = _mix(*seed_and_stream, step)[:2]
        return masking.choose(batch, max_predictions_per_seq=max_predictions_per_seq, seed=draw)

    if packing is None:
        return read
    return lambda step, rows: packing.batch(rows, functools.partial(read, step))


def _of_known_length(
    dataset: tf.data.Dataset, batches: int, start_step: int, max_steps: int | None
) -> tf.data.Dataset:
    """Tell a dataset how many batches it has: Keras warns of an end that it did not expect."""
    end = batches if max_steps is None else min(batches, max_steps)
    return dataset.apply(tf.data.experimental.assert_cardinality(max(0, end - start_step)))


def _in_this_order(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Let nothing reorder: parallel interleave and map are chosen where a dataset is made."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def _check_start(start_step: int, seed: int) -> None:
    if start_step < 0 or not 0 <= seed < 2**31:
        raise ValueError(
            f"start_step, seed: expected start_step >= 0 and 0 <= seed < 2**31, "
            f"got {start_step} and {seed}"
        )


def _check_batches(
    batch_size: int | None, batch_tokens: int | None, length_bins: int, is_training: bool
) -> None:
    if (batch_size is None) == (batch_tokens is None):
        raise ValueError(
            "batch_size, batch_tokens: expected one of them, got "
            f"{'neither' if batch_size is None else f'{batch_size} and {batch_tokens}'}"
        )
    if batch_size is not None:
        check_positive(batch_size=batch_size)
        return
    if not is_training:
        raise ValueError(
            "batch_tokens: expected batch_size in evaluation, which is in the order of the "
            f"records, got {batch_tokens}"
        )
    if not length_bins:
        raise ValueError(
            f"batch_tokens: {batch_tokens} needs length_bins above 0, since padded batches hold "
            "equally many sequences; got length_bins 0"
        )


def _check_padding(
    length_bins: int, sequences_per_row: int | None, max_seq_length: int, is_training: bool
) -> None:
    if not 0 <= length_bins <= max_seq_length:
        raise ValueError(
            f"length_bins: expected 0 to max_seq_length, {max_seq_length}, got {length_bins}"
        )
    if length_bins and not is_training:
        raise ValueError(
            "length_bins: expected 0 in evaluation, which is in the order of the records, got "
            f"{length_bins}"
        )
    if sequences_per_row is None:
        return
    if sequences_per_row > 1 and not is_training:
        raise ValueError(
            "sequences_per_row: expected 1 in evaluation, which is in the order of the records, "
            f"got {sequences_per_row}"
        )
    if length_bins:
        raise ValueError(
            "length_bins, sequences_per_row: expected one of them, since packed rows have one "
            f"length; got {length_bins} and {sequences_per_row}"
        )


def _check_masked(paths: Sequence[str], is_masked: bool) -> None:
    if not is_masked:
        raise ValueError(
            f"{paths[0]}: its records are unmasked, for dynamic masking; give masking= "
            "(a MaskingRule with the vocabulary they were made with)"
        )


def _counts(
    paths: Sequence[str],
    record_counts: Sequence[int] | None,
    row_counts: Sequence[int] | None = None,
    packing: RowPacking | None = None,
) -> list[int]:
    """Return the records of each file, or its rows: those that are given, or by a scan."""
    name, counts = "record_counts", record_counts
    if packing is not None:
        name, counts = "row_counts", row_counts
    if counts is None:
        # Damaged records are an error with a name before they are one without.
        counts = count_records(paths) if record_counts is None else record_counts
        counts = counts if packing is None else [packing.count(path) for path in paths]
    if len(counts) != len(paths) or min(counts) < 1:
        raise ValueError(f"{name}: expected {len(paths)} counts above 0, got {counts[:10]}")
    return list(counts)


def _mix(seed: int, stream: int, position: tf.Tensor) -> tf.Tensor:
    """Draw int32 [3] from (seed, stream, position), the same on every machine."""
    return tf.random.stateless_uniform(
        [3],
        seed=tf.stack([tf.constant(seed * 4 + stream, tf.int64), tf.cast(position, tf.int64)]),
        minval=1,
        maxval=2**31 - 1,
        dtype=tf.int32,
        alg="philox",
    )


def _in_order(paths: Sequence[str]) -> tf.data.Dataset:
    """Return the records of files one after another; gzip is recognised file by file."""
    dataset = raw_file(paths[0])
    for path in paths[1:]:
        dataset = dataset.concatenate(raw_file(path))
    return dataset


def _shuffled(
    paths: Sequence[str],
    epoch_records: int,
    batch_size: int,
    seed: int,
    start_step: int,
    buffer_records: int,
    grouped_by: Sequence[FeatureSpec] | None,
    packing: RowPacking | None,
) -> tf.data.Dataset:
    """Return batches of records, string [B], grouped by length where their schema is given.

    Where there is a packing, epochs and buffer are of rows, and batches string [B, K].
    """

    def stream(step: int) -> tf.data.Dataset:
        first = step * batch_size
        records = _endless(paths, epoch_records, seed, first, buffer_records, packing)
        return records.batch(batch_size, drop_remainder=True)

    if grouped_by is None:
        return stream(start_step)
    parse = parse_example_fn([feature for feature in grouped_by if feature.name == "input_mask"])
    return group_by_length(
        stream,
        lambda records: last_places(parse(records)["input_mask"] != 0),
        num_records=epoch_records,
        batch_size=batch_size,
        start_step=start_step,
        seed=seed,
        most_batches=max(1, min(POOL_BATCHES, buffer_records // batch_size)),
    )


def _of_tokens(
    paths: Sequence[str],
    batches: TokenBatches,
    measure: Measure,
    seed: int,
    start_step: int,
    buffer_records: int,
) -> tf.data.Dataset:
    """Return batches of records, `TokenBatches.batches`, from a step on."""
    start_epoch, skip_batches = divmod(start_step, batches.num_batches)
    records_of = _epoch_reader(paths, seed, batches.num_records, buffer_records, None)

    @as_written
    def of_epoch(epoch: Any) -> Any:
        draw = _mix(seed, _LAST_BATCHES_STREAM, epoch)[:2]
        dataset = batches.batches(records_of(epoch), measure, draw)
        return dataset.skip(tf.where(epoch == start_epoch, tf.constant(skip_batches, tf.int64), 0))

    return _epochs_from(start_epoch).flat_map(of_epoch)


def _endless(
    paths: Sequence[str],
    epoch_records: int,
    seed: int,
    start_record: int,
    buffer_records: int,
    packing: RowPacking | None,
) -> tf.data.Dataset:
    """Return serialized records from `start_record` on, through epochs of `epoch_records` each.

    Where there is a packing it is rows of records that are counted, shuffled and returned.
    """
    start_epoch, skip_records = divmod(start_record, epoch_records)
    records_of = _epoch_reader(paths, seed, epoch_records, buffer_records, packing)

    @as_written
    def of_epoch(epoch: Any) -> Any:
        dataset = records_of(epoch)
        return dataset.skip(tf.where(epoch == start_epoch, tf.constant(skip_records, tf.int64), 0))

    return _epochs_from(start_epoch).flat_map(of_epoch)


def _epochs_from(start_epoch: int) -> tf.data.Dataset:
    """Return the numbers of epochs, without an end."""
    return tf.data.Dataset.range(start_epoch, 2**31 - 1)


def _epoch_reader(
    paths: Sequence[str],
    seed: int,
    epoch_records: int,
    buffer_records: int,
    packing: RowPacking | None,
) -> Callable[[Any], tf.data.Dataset]:
    """Return a function from an epoch, in a graph, to its records or rows in their order."""
    kinds = [compression_type(path) for path in paths]

    @as_written
    def read(path: Any, is_gzip: Any) -> Any:
        # TFRecordDataset takes its compression as a tensor, so one stage reads both kinds.
        records = tf.data.TFRecordDataset(
            path, compression_type=cast(Any, tf.where(is_gzip, "GZIP", ""))
        )
        return records if packing is None else packing.rows(records)

    def records_of(epoch: Any) -> tf.data.Dataset:
        # Inside this function the graph's seed, not the process', is what shuffle combines with its
        # own: fixing it keeps the order independent of any tf.random.set_seed of the user.
        tf.random.set_seed(1)
        draws = _mix(seed, _ORDER_STREAM, epoch)
        order = tf.argsort(
            tf.random.stateless_uniform(
                [len(paths)], draws[:2], 0, 2**31 - 1, dtype=tf.int32, alg="philox"
            ),
            stable=True,
        )
        dataset = tf.data.Dataset.from_tensor_slices(
            (
                tf.gather(tf.constant(list(paths)), order),
                tf.gather(tf.constant([kind == "GZIP" for kind in kinds]), order),
            )
        )
        dataset = dataset.interleave(
            cast(Any, read),
            cycle_length=min(_READ_FILES, len(paths)),
            block_length=1,
            num_parallel_calls=min(2, len(paths)),
            deterministic=True,
        )
        return dataset.shuffle(
            min(buffer_records, epoch_records),
            seed=cast(Any, tf.cast(draws[2], tf.int64)),
            reshuffle_each_iteration=False,
        )

    return records_of


def _checked_ids(batch: Mapping[str, tf.Tensor], ends: Mapping[str, int]) -> tf.Tensor:
    """Return input_ids, once all values are known to lie within [0, end) of their features.

    A gather beyond the table raises on CPU only, and a negative one nowhere; GPU and XLA would go
    on with wrong values.
    """
    checks = []
    for name, end in ends.items():
        message = f"{name}: a record holds a value outside of 0 to {end - 1}"
        if name in ("input_ids", "masked_lm_ids"):
            message = f"{name}: a record holds a token id outside the vocabulary of {end}"
        within = tf.reduce_all((batch[name] >= 0) & (batch[name] < end))
        checks.append(tf.debugging.Assert(within, [message]))
    with tf.control_dependencies(checks):
        return tf.identity(batch["input_ids"])


def _filled_up(batch_size: int | None, tensor: tf.Tensor) -> tf.Tensor:
    """Return a tensor [M, ...] with rows of 0 up to a batch's size, where that is given."""
    if batch_size is None:
        return tensor
    padding = [[0, batch_size - tf.shape(tensor)[0]]] + [[0, 0]] * (tensor.shape.rank - 1)
    return tf.ensure_shape(tf.pad(tensor, padding), [batch_size, *tensor.shape[1:]])


def _element(
    batch: Mapping[str, tf.Tensor],
    full: Callable[[tf.Tensor], tf.Tensor],
    next_sentence: bool,
    mask_id: int | None,
):
    """Turn parsed features into what fit takes, filled up with rows of weight 0 by `full`."""
    inputs = {name: full(batch[name]) for name in (*INPUT_NAMES, "masked_lm_positions")}
    labels = {"masked_lm_logits": full(batch["masked_lm_ids"])}
    weights = {"masked_lm_logits": full(batch["masked_lm_weights"])}
    is_packed = "sequence_ids" in batch
    if is_packed:
        inputs |= {name: full(batch[name]) for name in PACKED_NAMES}
    if next_sentence and is_packed:
        labels["next_sentence_logits"] = full(batch["next_sentence_labels"])
        weights["next_sentence_logits"] = full(batch["next_sentence_weights"])
    elif next_sentence:
        labels["next_sentence_logits"] = full(batch["next_sentence_labels"])[:, 0]
        weights["next_sentence_logits"] = full(tf.ones_like(batch["input_ids"][:, 0], tf.float32))
    if mask_id is not None:
        shown = tf.gather(inputs["input_ids"], inputs["masked_lm_positions"], batch_dims=1)
        at_mask = tf.cast(shown == mask_id, tf.float32)
        weights["masked_lm_at_mask"] = weights["masked_lm_logits"] * at_mask
    return inputs, labels, weights
