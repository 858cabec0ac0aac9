"""Pre-training records to tf.data, in an order that depends on the seed and the step alone.

A training stream is a function of (files, seed, batch size): epoch after epoch, each with its own
order of files and of records drawn from (seed, epoch), cut into batches without regard to where an
epoch ends. Beginning at step s gives exactly the batches that follow s steps from the beginning,
so a run can be resumed from its step number and no iterator state needs to be kept.

Shapes: B batch, L sequence length, P predictions per sequence.
"""

from __future__ import annotations

import atexit
import dataclasses
import glob
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.records.files import (
    FeatureSpec,
    RecordWriter,
    compression_of,
    decode_example,
    manifest_path,
    parse_example_fn,
    pretraining_features,
    read_records,
    scan_records,
    unmasked_pretraining_features,
)

SHUFFLE_BUFFER_RECORDS = 65_536  # about 50 MB of records of 128 tokens; the original's is 100
_READ_FILES = 8  # read in turns, record by record, so that neighbours come from several files
_CHECKED_AT_ONCE = 512  # records whose schema and ids are looked at together
_INPUTS = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
# Independent random streams of one seed.
_ORDER_STREAM, _TRAIN_MASK_STREAM, _EVAL_MASK_STREAM = 1, 2, 3


def expand_files(patterns: str | Sequence[str]) -> list[str]:
    """Files that comma-separated names and globs stand for, each glob's in sorted order.

    Args:
        patterns: "a.tfrecord,part-*.tfrecord" or a sequence of such.

    Raises:
        FileNotFoundError: a name or glob matches nothing; the message names it.
        ValueError: a file is named twice.
    """
    texts = [patterns] if isinstance(patterns, str) else list(patterns)
    files: list[str] = []
    for pattern in (p.strip() for text in texts for p in text.split(",")):
        if not pattern:
            continue
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        found = [name for name in found if os.path.isfile(name)]
        if not found:
            raise FileNotFoundError(f"{pattern}: no such record file")
        files.extend(found)
    if not files:
        raise FileNotFoundError(f"no record files named by {patterns!r}")
    if len(set(files)) < len(files):
        twice = sorted({name for name in files if files.count(name) > 1})
        raise ValueError(f"record files named twice: {', '.join(twice)}")
    return files


@dataclasses.dataclass(frozen=True)
class RecordShape:
    """What the first record of a file says about all of them.

    Attributes:
        masked: whether masks were chosen when the records were written; else they are drawn here.
        max_seq_length: L.
        max_predictions_per_seq: P, or None where records are unmasked.
    """

    masked: bool
    max_seq_length: int
    max_predictions_per_seq: int | None


def record_shape(path: str, skip_corrupt_records: bool = False) -> RecordShape:
    """Looks at the first record of a file, or its first sound one.

    Raises:
        ValueError: the file has no record, or its first is no pre-training example.
    """
    skip = _ignore if skip_corrupt_records else None
    serialized = next(read_records(path, skip), None)
    if serialized is None:
        raise ValueError(f"{path}: no records in this file")
    try:
        feature = tf.train.Example.FromString(serialized).features.feature
    except Exception as error:  # protobuf's DecodeError has no public home across its versions
        raise ValueError(f"{path}: record 0: not a tf.train.Example: {error}") from error
    need = {"input_ids", "input_mask", "segment_ids", "next_sentence_labels"}
    if not need <= set(feature):
        raise ValueError(
            f"{path}: record 0: expected the features {', '.join(sorted(need))}; "
            f"got {', '.join(sorted(feature)) or 'none'}"
        )
    masked = "masked_lm_positions" in feature
    return RecordShape(
        masked=masked,
        max_seq_length=len(feature["input_ids"].int64_list.value),
        max_predictions_per_seq=(
            len(feature["masked_lm_positions"].int64_list.value) if masked else None
        ),
    )


def _ignore(message: str) -> None:
    del message


def check_record_shape(
    files: Sequence[str],
    max_seq_length: int,
    max_predictions_per_seq: int,
    skip_corrupt_records: bool = False,
) -> RecordShape:
    """Compares the first record of every file with what was asked for.

    Raises:
        ValueError: lengths differ, or masked and unmasked files are mixed; names the file.
    """
    shapes = {path: record_shape(path, skip_corrupt_records) for path in files}
    first_path, first = next(iter(shapes.items()))
    for path, shape in shapes.items():
        if shape.max_seq_length != max_seq_length:
            raise ValueError(
                f"{path}: its records have max_seq_length {shape.max_seq_length}, "
                f"expected {max_seq_length}"
            )
        if shape.masked and shape.max_predictions_per_seq != max_predictions_per_seq:
            raise ValueError(
                f"{path}: its records have max_predictions_per_seq "
                f"{shape.max_predictions_per_seq}, expected {max_predictions_per_seq}"
            )
        if shape.masked != first.masked:
            raise ValueError(
                f"{path} and {first_path}: one has masks and the other is for dynamic masking; "
                "read one kind at a time"
            )
    return first


def manifests_of(files: Sequence[str]) -> list[dict[str, Any]]:
    """Manifests that create_pretraining_data wrote beside record files.

    Args:
        files: paths of record files.

    Returns:
        Each manifest once; empty where a file has none.

    Raises:
        ValueError: a manifest is not a JSON object; names the file.
    """
    found = _manifests_by_path(files)
    return [found[path] for path in sorted(found)]


def _manifests_by_path(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in files:
        path = manifest_path(name)
        if path in found or not os.path.exists(path):
            continue
        try:
            manifest = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not a JSON file: {error}") from error
        if not isinstance(manifest, dict):
            raise ValueError(f"{path}: expected a JSON object, got {type(manifest).__name__}")
        # A file that was put there under the same base name later is not what it describes.
        if os.path.basename(name) in manifest.get("files", ()):
            found[path] = manifest
    return found


def check_manifests(files: Sequence[str]) -> None:
    """Compares the manifests of record files with what is there, and with each other.

    Args:
        files: paths of record files; some shards of a set will do, if the others exist.

    Raises:
        FileNotFoundError: a shard that a manifest names is missing.
        ValueError: files were made with different vocabularies; or as `manifests_of`.
    """
    vocabularies: dict[str, str] = {}
    for path, manifest in sorted(_manifests_by_path(files).items()):
        for name in manifest["files"]:
            shard = os.path.join(os.path.dirname(path), name)
            if not os.path.isfile(shard):
                raise FileNotFoundError(
                    f"{shard}: missing; {path} names {len(manifest['files'])} shards, this is one"
                )
        if "vocab_sha256" in manifest:
            vocabularies.setdefault(manifest["vocab_sha256"], path)
    if len(vocabularies) > 1:
        one, other = list(vocabularies.values())[:2]
        raise ValueError(
            f"{one} and {other}: their records were made with different vocabularies "
            "(vocab_sha256); read records of one vocabulary"
        )


@dataclasses.dataclass(frozen=True)
class CheckedFile:
    """A record file whose every record was looked at.

    Attributes:
        path: where its sound records are read: the file itself, or a copy without damaged ones.
        num_records: sound records.
        damage: what was left out, a line each.
    """

    path: str
    num_records: int
    damage: tuple[str, ...]


def check_records(
    files: Sequence[str],
    *,
    vocab_size: int,
    skip_corrupt_records: bool = False,
    folder: str | None = None,
) -> list[CheckedFile]:
    """Reads all records once: checksums, and what the manifest says or else the schema and ids.

    Args:
        files: paths of record files.
        vocab_size: V of the model.
        skip_corrupt_records: leave out records that are damaged or no examples of their file's
            schema, and go on. What is read then is a copy of the others, so that the order of
            training follows from what is sound, whatever reads it.
        folder: where such copies are written, until this process ends; None for the system's
            folder of temporary files.

    Returns:
        One for each file, in order.

    Raises:
        ValueError: a record that is truncated, corrupt or of another schema, or an id outside
            the vocabulary; names file and record. A file without records, or one that is not what
            its manifest describes.
    """
    return [_check_file(path, vocab_size, skip_corrupt_records, folder) for path in files]


def damage_report(files: Sequence[CheckedFile], most_lines: int = 5) -> list[str]:
    """Says in a few lines what `check_records` left out.

    Args:
        files: what it returned.
        most_lines: damaged records to name.

    Returns:
        The lines; none where nothing is damaged.
    """
    damage = [message for file in files for message in file.damage]
    if not damage:
        return []
    lines = [f"left out: {message}" for message in damage[:most_lines]]
    if len(damage) > most_lines:
        lines.append(f"and {len(damage) - most_lines} more")
    sound = sum(file.num_records for file in files)
    return [*lines, f"{len(damage)} damaged records or stretches left out, {sound} records sound"]


def _check_file(
    path: str, vocab_size: int, skip_corrupt_records: bool, folder: str | None
) -> CheckedFile:
    manifest = next(iter(_manifests_by_path([path]).values()), {})
    highest = manifest.get("max_token_id")
    if highest is not None and highest >= vocab_size:
        raise ValueError(_id_message(path, highest, vocab_size))
    features = None
    if highest is None:
        shape = record_shape(path, skip_corrupt_records)
        features = (
            pretraining_features(shape.max_seq_length, shape.max_predictions_per_seq or 1)
            if shape.masked
            else unmasked_pretraining_features(shape.max_seq_length)
        )
    damage: list[str] = []
    report = damage.append if skip_corrupt_records else None
    count = sum(1 for _ in _sound_records(path, features, vocab_size, report))
    if not count:
        raise ValueError(f"{path}: no records in this file")
    if not damage:
        lost = _check_against_manifest(path, count, manifest, skip_corrupt_records)
        return CheckedFile(path, count, lost)
    folder = tempfile.mkdtemp(prefix="sound-records-", dir=folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = os.path.join(folder, os.path.basename(path).removesuffix(".gz"))
    with RecordWriter(copy) as writer:
        for serialized in _sound_records(path, features, vocab_size, _ignore):
            writer.write(serialized)
    return CheckedFile(copy, count, tuple(damage))


def _id_message(where: str, highest: int, vocab_size: int) -> str:
    return (
        f"{where}: holds token id {highest}, but the model's vocab_size is {vocab_size}; were the "
        "records made with another vocabulary?"
    )


def _check_against_manifest(
    path: str, count: int, manifest: Mapping[str, Any], skip_corrupt_records: bool
) -> tuple[str, ...]:
    """Refuses a file that is not the one described; returns what is lost where that may be."""
    if "file_bytes" not in manifest:
        return ()  # of an earlier version
    index = manifest["files"].index(os.path.basename(path))
    for what, found, expected in (
        ("records", count, manifest["file_instances"][index]),
        ("bytes", os.path.getsize(path), manifest["file_bytes"][index]),
    ):
        if found != expected:
            message = (
                f"{path}: has {found} {what}, but {manifest_path(path)} says {expected}: "
                "cut off after a record, or a file of another run"
            )
            if skip_corrupt_records and count < manifest["file_instances"][index]:
                return (message,)
            raise ValueError(message)
    return ()


def _sound_records(
    path: str,
    features: Sequence[FeatureSpec] | None,
    vocab_size: int,
    report: Callable[[str], None] | None,
) -> Iterator[bytes]:
    """Records of a file, of the schema where one is given; others are an error or reported."""
    damaged = 0

    def note(message: str) -> None:
        nonlocal damaged
        damaged += 1
        if report is not None:
            report(message)

    reader = read_records(path, None if report is None else note)
    if features is None:
        yield from reader
        return
    parse = parse_example_fn(features)
    number = 0
    while True:
        numbers, batch = [], []
        for serialized in itertools.islice(reader, _CHECKED_AT_ONCE):
            numbers.append(number + damaged)
            batch.append(serialized)
            number += 1
        if not batch:
            return
        try:
            parsed = parse(tf.constant(batch))
        except tf.errors.InvalidArgumentError:
            sound = []
            for place, serialized in zip(numbers, batch, strict=True):
                try:
                    decode_example(serialized, features)
                    sound.append((place, serialized))
                except ValueError as error:
                    message = f"{path}: record {place}: {error}"
                    if report is None:
                        raise ValueError(message) from error
                    report(message)
            numbers, batch = [place for place, _ in sound], [record for _, record in sound]
            if not batch:
                continue
            parsed = parse(tf.constant(batch))
        ids = [parsed[name] for name in ("input_ids", "masked_lm_ids") if name in parsed]
        highest = np.max([tf.reduce_max(x, axis=1).numpy() for x in ids], axis=0)
        if highest.max() >= vocab_size:
            place = int(np.argmax(highest >= vocab_size))
            where = f"{path}: record {numbers[place]}"
            raise ValueError(_id_message(where, int(highest[place]), vocab_size))
        yield from batch


def count_records(files: Sequence[str]) -> list[int]:
    """Number of records of each file, every record verified against its checksum.

    Raises:
        ValueError: a file is empty or a record is truncated or damaged; names file and record.
    """
    counts = []
    for path in files:
        counts.append(scan_records(path))
        if not counts[-1]:
            raise ValueError(f"{path}: no records in this file")
    return counts


def pretraining_dataset(
    files: str | Sequence[str],
    *,
    batch_size: int,
    max_seq_length: int,
    max_predictions_per_seq: int,
    is_training: bool,
    seed: int = 0,
    start_step: int = 0,
    masking: MaskingRule | NextPieceRule | None = None,
    record_counts: Sequence[int] | None = None,
    vocab_size: int | None = None,
    next_sentence: bool = True,
    shuffle_buffer_records: int = SHUFFLE_BUFFER_RECORDS,
    max_steps: int | None = None,
) -> tf.data.Dataset:
    """Batches of pre-training examples as `keras.Model.fit` and `Trainer` take them.

    Training is endless and shuffled; evaluation is one pass in order whose last batch is filled
    up with examples of weight 0, so that each example counts once and shapes are static.

    Args:
        files: record files (names, globs, comma separated), masked or unmasked.
        batch_size: B.
        max_seq_length: L; must be that of the records.
        max_predictions_per_seq: P; must be that of the records where they are masked.
        is_training: endless and shuffled, or one pass.
        seed: of the order and of dynamic masks, in [0, 2**31).
        start_step: batches to pass over; batch i is the same whatever the start.
        masking: the rule by which masks are drawn, for unmasked records: in training anew for
            every step, in evaluation the same at every evaluation; or the one by which the next
            piece is predicted, P being L - 1 then.
        record_counts: records of each file where known; else the files are scanned.
        vocab_size: where given, an id outside it stops the stream with an error.
        next_sentence: leave out labels and weights of next-sentence prediction where False.
        shuffle_buffer_records: records held in memory to draw from.
        max_steps: at most this many batches; None means no limit.

    Returns:
        (inputs, labels, sample_weights): inputs int32 input_ids, input_mask, segment_ids [B, L]
        and masked_lm_positions [B, P]; labels int32 masked_lm_logits [B, P] and
        next_sentence_logits [B]; sample_weights float32 of the labels' shapes.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an argument is out of range or records do not fit the arguments.
    """
    _check_positive(batch_size=batch_size, max_seq_length=max_seq_length)
    _check_positive(
        max_predictions_per_seq=max_predictions_per_seq,
        shuffle_buffer_records=shuffle_buffer_records,
    )
    if start_step < 0 or not 0 <= seed < 2**31:
        raise ValueError(
            f"start_step, seed: expected start_step >= 0 and 0 <= seed < 2**31, "
            f"got {start_step} and {seed}"
        )
    paths = expand_files(files)
    shape = check_record_shape(paths, max_seq_length, max_predictions_per_seq)
    if not shape.masked and masking is None:
        raise ValueError(
            f"{paths[0]}: its records are unmasked, for dynamic masking; give masking= "
            "(a MaskingRule with the vocabulary they were made with)"
        )

    if is_training:
        counts = list(record_counts) if record_counts is not None else count_records(paths)
        if len(counts) != len(paths) or min(counts) < 1:
            raise ValueError(
                f"record_counts: expected {len(paths)} counts above 0, got {counts[:10]}"
            )
        raw = _endless(
            paths,
            sum(counts),
            seed,
            start_step * batch_size,
            min(shuffle_buffer_records, sum(counts)),
        )
        raw = raw.batch(batch_size, drop_remainder=True)
    else:
        raw = _in_order(paths).skip(start_step * batch_size).batch(batch_size)
    if max_steps is not None:
        raw = raw.take(max(0, max_steps - start_step))

    features = (
        pretraining_features(max_seq_length, max_predictions_per_seq)
        if shape.masked
        else unmasked_pretraining_features(max_seq_length)
    )
    parse = parse_example_fn(features)
    stream = _TRAIN_MASK_STREAM if is_training else _EVAL_MASK_STREAM

    def to_element(step: tf.Tensor, serialized: tf.Tensor):
        batch = parse(serialized)
        if vocab_size is not None:
            batch["input_ids"] = _checked_ids(batch, vocab_size)
        if masking is not None and not shape.masked:
            batch = masking.choose(
                batch,
                max_predictions_per_seq=max_predictions_per_seq,
                seed=_mix(seed, stream, step)[:2],
            )
        return _element(batch, batch_size, next_sentence)

    dataset = raw.enumerate(start=start_step).map(
        to_element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    options = tf.data.Options()
    options.deterministic = True
    # Parallel interleave and map are chosen above; nothing may reorder behind their back.
    options.experimental_optimization.inject_prefetch = False
    return dataset.prefetch(4).with_options(options)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def _compression(path: str) -> Any:
    return "GZIP" if compression_of(path) == "gzip" else ""


def _raw_file(path: str) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(path, compression_type=_compression(path))


def _mix(seed: int, stream: int, position: tf.Tensor) -> tf.Tensor:
    """Draws int32 [3] from (seed, stream, position), the same on every machine."""
    return tf.random.stateless_uniform(
        [3],
        seed=tf.stack([tf.constant(seed * 4 + stream, tf.int64), tf.cast(position, tf.int64)]),
        minval=1,
        maxval=2**31 - 1,
        dtype=tf.int32,
        alg="philox",
    )


def _in_order(paths: Sequence[str]) -> tf.data.Dataset:
    """Records of files one after another; gzip is recognised file by file."""
    dataset = _raw_file(paths[0])
    for path in paths[1:]:
        dataset = dataset.concatenate(_raw_file(path))
    return dataset


def _endless(
    paths: Sequence[str], epoch_records: int, seed: int, start_record: int, buffer_records: int
) -> tf.data.Dataset:
    """Serialized records from `start_record` on, through epochs of `epoch_records` each."""
    start_epoch, skip_records = divmod(start_record, epoch_records)
    kinds = [_compression(path) for path in paths]

    def read(path: Any, is_gzip: Any) -> Any:
        # TFRecordDataset takes its compression as a tensor, so one stage reads both kinds.
        return tf.data.TFRecordDataset(
            path, compression_type=cast(Any, tf.where(is_gzip, "GZIP", ""))
        )

    def epoch_dataset(epoch: Any) -> Any:
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
        dataset = dataset.shuffle(
            buffer_records,
            seed=cast(Any, tf.cast(draws[2], tf.int64)),
            reshuffle_each_iteration=False,
        )
        return dataset.skip(tf.where(epoch == start_epoch, tf.constant(skip_records, tf.int64), 0))

    return tf.data.Dataset.range(start_epoch, 2**31 - 1).flat_map(epoch_dataset)


def _checked_ids(batch: Mapping[str, tf.Tensor], vocab_size: int) -> tf.Tensor:
    """input_ids, once they and the labels are known to lie within the vocabulary.

    A gather beyond the table raises on CPU only; GPU and XLA would go on with wrong values.
    """
    ids = [batch["input_ids"]] + ([batch["masked_lm_ids"]] if "masked_lm_ids" in batch else [])
    highest = tf.reduce_max([tf.reduce_max(x) for x in ids])
    check = tf.debugging.assert_less(
        highest,
        vocab_size,
        message=f"a record holds a token id outside the vocabulary of {vocab_size}",
    )
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(batch["input_ids"])


def _element(batch: Mapping[str, tf.Tensor], batch_size: int, next_sentence: bool):
    """Turns parsed features into what fit takes, filled up to `batch_size` with weight 0."""
    real = tf.shape(batch["input_ids"])[0]

    def full(tensor: tf.Tensor) -> tf.Tensor:
        padding = [[0, batch_size - real]] + [[0, 0]] * (tensor.shape.rank - 1)
        tensor = tf.pad(tensor, padding)
        return tf.ensure_shape(tensor, [batch_size, *tensor.shape[1:]])

    inputs = {name: full(batch[name]) for name in _INPUTS}
    labels = {"masked_lm_logits": full(batch["masked_lm_ids"])}
    weights = {"masked_lm_logits": full(batch["masked_lm_weights"])}
    if next_sentence:
        labels["next_sentence_logits"] = full(batch["next_sentence_labels"])[:, 0]
        is_real = tf.cast(tf.range(batch_size) < real, tf.float32)
        weights["next_sentence_logits"] = is_real
    return inputs, labels, weights


def label_counts(dataset: tf.data.Dataset, vocab_size: int, max_steps: int | None = None):
    """Counts the pieces that masked positions held.

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


def max_token_id(path: str) -> int:
    """Highest id among the tokens and masked labels of a record file; reads all of it.

    Args:
        path: record file, masked or unmasked.

    Raises:
        ValueError: the file has no records.
    """
    shape = record_shape(path)
    features = (
        pretraining_features(shape.max_seq_length, shape.max_predictions_per_seq or 1)
        if shape.masked
        else unmasked_pretraining_features(shape.max_seq_length)
    )
    parse = parse_example_fn(features)

    def highest(serialized: tf.Tensor) -> tf.Tensor:
        batch = parse(serialized)
        return tf.reduce_max(
            [tf.reduce_max(batch[k]) for k in ("input_ids", "masked_lm_ids") if k in batch]
        )

    batches = _raw_file(path).batch(1024).map(highest)
    return int(batches.reduce(tf.constant(0), tf.maximum))


def unigram_cross_entropy(training_counts: np.ndarray, held_out_counts: np.ndarray) -> float:
    """Loss of always predicting the training distribution of masked pieces, in nats per piece.

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
    total = held_out_counts.sum()
    if not total:
        raise ValueError("held_out_counts: expected at least one piece, got none")
    smoothed = training_counts + 1.0
    return float(-(held_out_counts * np.log(smoothed / smoothed.sum())).sum() / total)
