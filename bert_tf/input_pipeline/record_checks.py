"""What is checked about records before training: shapes, ids, manifests, damage."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import glob
import itertools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.files import expand, is_file, is_remote, local_copy, original_names, parse_json
from bert_tf.records.decoding import decode_example, parse_example_fn
from bert_tf.records.files import (
    RecordWriter,
    compression_of,
    manifest_path,
    read_records,
    scan_records,
)
from bert_tf.records.schema import (
    INPUT_NAMES,
    FeatureSpec,
    pretraining_features,
    unmasked_pretraining_features,
)

# What TensorFlow raises on a record of another schema: the latter where its message quotes the
# record, which is no text.
PARSE_ERRORS = (tf.errors.InvalidArgumentError, UnicodeDecodeError)
# For what data sets map: there is nothing for AutoGraph to convert, and looking takes seconds.
as_written = tf.autograph.experimental.do_not_convert
_CHECKED_AT_ONCE = 512  # records whose schema and ids are looked at together
# Files beside records that are none: manifests, and what has not got its name yet.
_NO_RECORDS = re.compile(r"\.manifest\.json$|\.tmp-\d+$")


def expand_files(patterns: str | Sequence[str]) -> list[str]:
    """Return files that comma-separated names and globs stand for, each glob's in sorted order.

    Globs pass over manifests, which lie beside records, and what a killed process left unfinished.
    Of remote files these are copies on this machine.

    Args:
        patterns: "a.tfrecord,part-*.tfrecord" or a sequence of such; `**` crosses folders.

    Raises:
        FileNotFoundError: a name or glob matches nothing; the message names it.
        ValueError: a file is named twice, be it by another path.
    """
    texts = [patterns] if isinstance(patterns, str) else list(patterns)
    files: list[str] = []
    for pattern in (p.strip() for text in texts for p in text.split(",")):
        if not pattern:
            continue
        names = [pattern]
        if is_remote(pattern):
            found = expand(pattern, "record files")
            names = [_local_records(name) for name in found if not _NO_RECORDS.search(name)]
        # A file whose own name holds brackets is that file.
        elif glob.has_magic(pattern) and not os.path.exists(pattern):
            names = [
                name
                for name in sorted(glob.glob(pattern, recursive=True))
                if not _NO_RECORDS.search(name)
            ]
        names = [name for name in names if os.path.isfile(name)]
        if not names:
            raise FileNotFoundError(f"{pattern}: no such record file")
        files.extend(names)
    if not files:
        raise FileNotFoundError(f"no record files named by {patterns!r}")
    names_by_file: dict[str, list[str]] = {}
    for name in files:
        names_by_file.setdefault(os.path.realpath(name), []).append(name)
    twice = {name for names in names_by_file.values() if len(names) > 1 for name in names}
    if twice:
        raise ValueError(f"record files named twice: {', '.join(sorted(twice))}")
    return files


def _local_records(path: str) -> str:
    """Copy a remote record file here, as training reads it over and over, and its manifest."""
    if is_file(manifest_path(path)):
        local_copy(manifest_path(path))
    return local_copy(path)


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

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """The schema of the records."""
        if self.masked:
            return pretraining_features(self.max_seq_length, self.max_predictions_per_seq or 1)
        return unmasked_pretraining_features(self.max_seq_length)


def record_shape(path: str, skip_corrupt_records: bool = False) -> RecordShape:
    """Look at the first record of a file, or its first sound one.

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
    need = {*INPUT_NAMES, "next_sentence_labels"}
    if not need <= set(feature):
        raise ValueError(
            f"{path}: record 0: expected the features {', '.join(sorted(need))}; "
            f"got {', '.join(sorted(feature)) or 'none'}"
        )
    masked = "masked_lm_positions" in feature
    max_seq_length = len(feature["input_ids"].int64_list.value)
    if not max_seq_length:
        raise ValueError(f"{path}: record 0: input_ids: expected integers, got none")
    return RecordShape(
        masked=masked,
        max_seq_length=max_seq_length,
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
    """Compare the first record of every file with what was asked for.

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
    """Read the manifests that create_pretraining_data wrote beside record files.

    Args:
        files: paths of record files.

    Returns:
        Each manifest once; empty where a file has none.

    Raises:
        ValueError: a manifest is not a JSON object; names the file.
    """
    manifests = _manifests_by_path(files)
    return [manifests[path] for path in sorted(manifests)]


def _manifests_by_path(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    manifests: dict[str, dict[str, Any]] = {}
    for name in files:
        path = manifest_path(name)
        if path in manifests or not os.path.exists(path):
            continue
        manifest = _read_manifest(path)
        # A file that was put there under the same base name later is not what it describes.
        if os.path.basename(name) in manifest.get("files", ()):
            manifests[path] = manifest
    return manifests


def _read_manifest(path: str) -> dict[str, Any]:
    try:
        manifest = parse_json(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(manifest).__name__}")
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: str, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest whose entries are not what create_pretraining_data.py writes."""
    files = manifest.get("files", [])
    for name, kind in (("files", str), ("file_instances", int), ("file_bytes", int)):
        values = manifest.get(name, files if kind is str else [0] * len(files))
        if not isinstance(values, list) or [type(value) for value in values] != [kind] * len(files):
            raise ValueError(
                f"{path}: {name}: expected a list of {kind.__name__}, one for each of its files, "
                f"got {str(values)[:80]}"
            )
    for name, kind in (("max_token_id", int), ("vocab_sha256", str)):
        if name in manifest and type(manifest[name]) is not kind:
            raise ValueError(f"{path}: {name}: expected {kind.__name__}, got {manifest[name]!r}")
    if "file_bytes" in manifest and "file_instances" not in manifest:
        raise ValueError(f"{path}: file_instances: expected with file_bytes, found none")


def without_empty_shards(files: Sequence[str]) -> list[str]:
    """Leave out files that are empty as their manifest says: there were more shards than records.

    Where all are empty they stay, for the error that says so.
    """
    manifests = _manifests_by_path(files)
    kept = []
    for path in files:
        manifest = manifests.get(manifest_path(path), {})
        name = os.path.basename(path)
        if name in manifest.get("files", ()) and "file_instances" in manifest:
            if not manifest["file_instances"][manifest["files"].index(name)]:
                continue
        kept.append(path)
    return kept or list(files)


def _check_named(files: Sequence[str]) -> None:
    """Refuse record files that an earlier run left beside those of the manifest's run."""
    manifests: dict[str, dict[str, Any]] = {}
    stale: dict[str, list[str]] = {}
    for name in files:
        path = manifest_path(name)
        if path not in manifests:
            manifests[path] = _read_manifest(path) if os.path.exists(path) else {}
        named = manifests[path].get("files")
        if named is not None and os.path.basename(name) not in named:
            stale.setdefault(path, []).append(name)
    for path, names in stale.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ValueError(
            f"{shown}: lying beside {path}, which does not name them: left by an earlier run, "
            "maybe with another vocabulary; remove them, or move your own records to another folder"
        )


def check_manifests(files: Sequence[str]) -> None:
    """Compare the manifests of record files with what is there, and with each other.

    Args:
        files: paths of record files; some shards of a set will do, if the others exist.

    Raises:
        FileNotFoundError: a shard that a manifest names is missing.
        ValueError: a file lies beside a manifest that does not name it; files were made with
            different vocabularies; or as `manifests_of`.
    """
    _check_named(files)
    vocabularies: dict[str, str] = {}
    for path, manifest in sorted(_manifests_by_path(files).items()):
        for name in manifest["files"]:
            shard = os.path.join(os.path.dirname(path), name)
            if not is_file(original_names(shard)):
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


@dataclasses.dataclass(frozen=True)
class ModelLimits:
    """What a model has room for; values of records must lie within it.

    Attributes:
        vocab_size: V.
        type_vocab_size: segments; None not to check them.
        next_sentence: whether the labels of next-sentence prediction are used.
    """

    vocab_size: int
    type_vocab_size: int | None = None
    next_sentence: bool = True

    def ends(self, features: Sequence[FeatureSpec]) -> dict[str, int]:
        """Return for each integer feature where its values end; they begin with 0."""
        length = next(feature.length for feature in features if feature.name == "input_ids")
        ends = {
            "input_ids": self.vocab_size,
            "masked_lm_ids": self.vocab_size,
            "masked_lm_positions": length,
            "input_mask": 2,
            "segment_ids": self.type_vocab_size,
            "next_sentence_labels": 2 if self.next_sentence else None,
        }
        names = {feature.name for feature in features}
        return {name: end for name, end in ends.items() if end is not None and name in names}


def check_records(
    files: Sequence[str],
    *,
    vocab_size: int,
    type_vocab_size: int | None = None,
    next_sentence: bool = True,
    skip_corrupt_records: bool = False,
    folder: str | None = None,
) -> list[CheckedFile]:
    """Read all records once: checksums, and what the manifest says or else schema and values.

    Args:
        files: paths of record files.
        vocab_size: V of the model.
        type_vocab_size: segments of the model; None not to check them.
        next_sentence: whether the labels of next-sentence prediction are used.
        skip_corrupt_records: leave out records that are damaged or no examples of their file's
            schema, and go on. What is read then is a copy of the others, so that the order of
            training follows from what is sound, whatever reads it.
        folder: where such copies are written, until this process ends; None for the system's
            folder of temporary files.

    Returns:
        One for each file, in order.

    Raises:
        ValueError: a record that is truncated, corrupt or of another schema, or an id, position,
            segment or label that the model cannot have; names file and record. A file without
            records, or one that is not what its manifest describes.
    """
    limits = ModelLimits(vocab_size, type_vocab_size, next_sentence)
    return [_check_file(path, limits, skip_corrupt_records, folder) for path in files]


def damage_report(files: Sequence[CheckedFile], most_lines: int = 5) -> list[str]:
    """Say in a few lines what `check_records` left out.

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
    path: str, limits: ModelLimits, skip_corrupt_records: bool, folder: str | None
) -> CheckedFile:
    manifest = next(iter(_manifests_by_path([path]).values()), {})
    highest = manifest.get("max_token_id")
    if highest is not None and highest >= limits.vocab_size:
        raise ValueError(_id_message(path, highest, limits.vocab_size))
    features = None
    if highest is None:
        shape = record_shape(path, skip_corrupt_records)
        features = shape.features
    damage: list[str] = []
    report = damage.append if skip_corrupt_records else None
    count = sum(1 for _ in _sound_records(path, features, limits, report))
    if not count:
        raise ValueError(f"{path}: no records in this file")
    if not damage:
        lost = _check_against_manifest(path, count, manifest, skip_corrupt_records)
        return CheckedFile(path, count, lost)
    folder = tempfile.mkdtemp(prefix="sound-records-", dir=folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = os.path.join(folder, os.path.basename(path).removesuffix(".gz"))
    with RecordWriter(copy) as writer:
        for serialized in _sound_records(path, features, limits, _ignore):
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
    """Refuse a file that is not the one described; return what is lost where that may be."""
    if "file_bytes" not in manifest:
        return ()  # of an earlier version
    index = manifest["files"].index(os.path.basename(path))
    for what, actual, expected in (
        ("records", count, manifest["file_instances"][index]),
        ("bytes", os.path.getsize(path), manifest["file_bytes"][index]),
    ):
        if actual != expected:
            message = (
                f"{path}: has {actual} {what}, but {manifest_path(path)} says {expected}: "
                "cut off after a record, or a file of another run"
            )
            if skip_corrupt_records and count < manifest["file_instances"][index]:
                return (message,)
            raise ValueError(message)
    return ()


def _sound_records(
    path: str,
    features: Sequence[FeatureSpec] | None,
    limits: ModelLimits,
    report: Callable[[str], None] | None,
) -> Iterator[bytes]:
    """Yield a file's records, of the schema where one is given; others are an error or reported."""
    damaged = 0

    def note(report: Callable[[str], None], message: str) -> None:
        nonlocal damaged
        damaged += 1
        report(message)

    reader = read_records(path, None if report is None else functools.partial(note, report))
    if features is None:
        yield from reader
        return
    parse = parse_example_fn(features, as_stored=True)
    ends = limits.ends(features)
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
        except PARSE_ERRORS:
            sound = []
            for place, serialized in zip(numbers, batch, strict=True):
                problem = _problem(serialized, features, parse)
                if problem is None:
                    sound.append((place, serialized))
                    continue
                message = f"{path}: record {place}: {problem}"
                if report is None:
                    raise ValueError(message) from None
                report(message)
            numbers, batch = [place for place, _ in sound], [record for _, record in sound]
            if not batch:
                continue
            parsed = parse(tf.constant(batch))
        _check_values(path, numbers, {name: parsed[name].numpy() for name in parsed}, ends)
        yield from batch


def _problem(
    serialized: bytes, features: Sequence[FeatureSpec], parse: Callable[[Any], Any]
) -> str | None:
    """Say why TensorFlow cannot parse a record, which decides; None where it can."""
    try:
        parse(tf.constant([serialized]))
        return None
    except PARSE_ERRORS:
        pass
    try:
        decode_example(serialized, features)
    except ValueError as error:
        return str(error)
    return "not a serialized tf.train.Example"


def _check_values(
    path: str, numbers: Sequence[int], arrays: Mapping[str, np.ndarray], ends: Mapping[str, int]
) -> None:
    """Refuse values outside of [0, end), and weights that are no weights; name the first record."""
    outside = {name: (arrays[name] < 0) | (arrays[name] >= end) for name, end in ends.items()}
    if "masked_lm_weights" in arrays:
        weights = arrays["masked_lm_weights"]
        outside["masked_lm_weights"] = ~(np.isfinite(weights) & (weights >= 0))
    rows = {name: int(bad.any(axis=1).argmax()) for name, bad in outside.items() if bad.any()}
    if not rows:
        return
    name = min(rows, key=lambda name: rows[name])
    row = rows[name]
    value = arrays[name][row][outside[name][row]][0]
    where = f"{path}: record {numbers[row]}"
    if name in ("input_ids", "masked_lm_ids"):
        ids = [arrays[n][row][outside[n][row]] for n in ("input_ids", "masked_lm_ids") if n in ends]
        raise ValueError(_id_message(where, int(np.concatenate(ids).max()), ends[name]))
    expected = f"0 to {ends[name] - 1}" if name in ends else "numbers from 0"
    raise ValueError(f"{where}: {name}: expected {expected}, got {value}")


def count_records(files: Sequence[str]) -> list[int]:
    """Return the number of records of each file, every record verified against its checksum.

    Raises:
        ValueError: a file is empty or a record is truncated or damaged; names file and record.
    """
    counts = []
    for path in files:
        counts.append(scan_records(path))
        if not counts[-1]:
            raise ValueError(f"{path}: no records in this file")
    return counts


def check_positive(**values: int) -> None:
    """Refuse values below 1, by their names."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def compression_type(path: str) -> Any:
    """Return the compression of a TFRecord file as tf.data names it."""
    return "GZIP" if compression_of(path) == "gzip" else ""


def raw_file(path: str) -> tf.data.Dataset:
    """Return the serialized records of a file."""
    path = local_copy(path)
    return tf.data.TFRecordDataset(path, compression_type=compression_type(path))
