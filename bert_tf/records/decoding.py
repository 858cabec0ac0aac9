"""tf.train.Example decoded: without TensorFlow, and as an operation for tf.data."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_tf.records.files import read_records
from bert_tf.records.schema import FIXED_WIDTH, FeatureSpec

_MOST_VARINT_BYTES = 10  # of 64 bits; what is beyond these is cut off, as protobuf does
_MOST_UINT64 = (1 << 64) - 1
_MOST_FIELDS = (1 << 29) - 1  # the highest number of one

# === Reading ===


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for k in range(_MOST_VARINT_BYTES):
        byte = data[position + k]
        value |= (byte & 0x7F) << 7 * k
        if byte < 0x80:
            return value & _MOST_UINT64, position + k + 1
    raise IndexError


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield the fields of one message: number, wire type, bytes or unsigned integer."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire = key >> 3, key & 7
        if not 0 < number <= _MOST_FIELDS:
            raise IndexError
        if wire == 0:
            value, position = _read_varint(data, position)
        elif wire in (1, 2, 5):
            if wire == 2:
                size, position = _read_varint(data, position)
            else:
                size = 8 if wire == 1 else 4
            value = data[position : position + size]
            if len(value) != size:
                raise IndexError
            position += size
        else:
            raise IndexError
        yield number, wire, value


def _packed_varints(data: bytes) -> np.ndarray:
    """Read varints packed one after another, as int64 [n]."""
    raw = np.frombuffer(data, np.uint8)
    last = np.flatnonzero(raw < 0x80)
    if not raw.size:
        return np.zeros(0, np.int64)
    if not last.size or last[-1] != raw.size - 1:
        raise IndexError
    start = np.concatenate([[0], last[:-1] + 1])
    size = last - start + 1
    if size.max() > _MOST_VARINT_BYTES:
        raise IndexError
    values = np.zeros(last.size, np.uint64)
    for k in range(int(size.max())):
        has = size > k
        values[has] |= (raw[start[has] + k].astype(np.uint64) & np.uint64(0x7F)) << np.uint64(7 * k)
    return values.view(np.int64)


def _parts(
    data: bytes, numbers: tuple[int, ...], once: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Yield those fields of one message that hold messages or text: number, bytes.

    Of what may be there `once`, protobuf puts several together and TensorFlow refuses them.
    """
    seen = set()
    for number, wire, value in _fields(data):
        if number in numbers:
            if wire != 2 or (once and number in seen):
                raise IndexError
            seen.add(number)
            yield number, value


def _list(feature: Mapping[int, bytes]) -> tuple[str, list[np.ndarray]]:
    """Read the list of a feature: the type of its values, and these in parts."""
    if len(feature) > 1:
        raise IndexError  # a list has one type
    kind, data = next(iter(feature.items()), (1, b""))
    if kind == 1:
        return "bytes", []
    dtype, unpacked = ("float32", 5) if kind == 2 else ("int64", 0)
    parts, is_packed = [], False
    for number, wire, value in _fields(data):
        # What follows packed values TensorFlow leaves unread, where protobuf reads on.
        if is_packed and number != 1:
            continue
        if is_packed or number != 1 or wire not in ((unpacked,) if parts else (2, unpacked)):
            raise IndexError
        is_packed = wire == 2
        if kind == 2 and len(value) % 4:
            raise IndexError
        if kind == 2:
            parts.append(np.frombuffer(value, "<f4"))
        elif is_packed:
            parts.append(_packed_varints(value))
        else:
            parts.append(np.array([value], np.uint64).view("<i8"))
    return dtype, parts


def decode_example(record: bytes, features: Sequence[FeatureSpec]) -> dict[str, np.ndarray]:
    """Parse one serialized `tf.train.Example`, without TensorFlow.

    Args:
        record: serialized example, from any writer (packed or unpacked lists).
        features: the schema; features of the record that it does not name are left out.

    Returns:
        For each feature int64 or float32 [length].

    Raises:
        ValueError: not an example, or one that does not match the schema.
    """
    lists: dict[str, tuple[str, list]] = {}
    try:
        for _, container in _parts(record, (1,)):
            for _, entry in _parts(container, (1,)):
                fields = dict(_parts(entry, (1, 2), once=True))
                feature = dict(_parts(fields.get(2, b""), (1, 2, 3), once=True))
                lists[fields.get(1, b"").decode("utf-8")] = _list(feature)
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("not a serialized tf.train.Example") from error
    result = {}
    for spec in features:
        if spec.name not in lists:
            raise ValueError(f"no feature {spec.name!r}; the record has {sorted(lists)}")
        dtype, parts = lists[spec.name]
        if dtype != spec.dtype:
            raise ValueError(f"feature {spec.name!r}: expected {spec.dtype}, got {dtype}")
        values = np.concatenate(parts) if parts else np.zeros(0, FIXED_WIDTH[spec.dtype])
        if values.size != spec.length:
            raise ValueError(
                f"feature {spec.name!r}: expected {spec.length} values, got {values.size}"
            )
        result[spec.name] = values.astype(FIXED_WIDTH[spec.dtype], copy=False)
    return result


def read_examples(
    path: str | os.PathLike, features: Sequence[FeatureSpec]
) -> Iterator[dict[str, np.ndarray]]:
    """Read records one by one, without TensorFlow; for validation and tests, not for training.

    Args:
        path: TFRecord file, plain or gzip (recognised by content).
        features: the schema.

    Yields:
        For each record a dict from feature name to int64 or float32 [length].

    Raises:
        ValueError: a corrupt file or a record that does not match, naming file and record number
            (counted from 0).
        OSError: the file cannot be read.
    """
    for number, record in enumerate(read_records(path)):
        try:
            example = decode_example(record, features)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: record {number}: {error}") from error
        yield example


def parse_example_fn(
    features: Sequence[FeatureSpec], as_stored: bool = False
) -> Callable[[Any], dict[str, Any]]:
    """Make the function that parses a batch of serialized records inside tf.data.

    Args:
        features: the schema.
        as_stored: leave integers int64, to check them: a cast of what does not fit goes unnoticed.

    Returns:
        A function from a string tensor [B] to a dict of tensors [B, length]: int32 for "int64"
        features (ids and positions fit, and it is what embedding look-ups want), float32 for
        "float32" features.
    """
    import tensorflow as tf

    description = {
        feature.name: tf.io.FixedLenFeature([feature.length], getattr(tf, feature.dtype))
        for feature in features
    }

    def parse(serialized):
        parsed = tf.io.parse_example(serialized, description)
        return parsed if as_stored else integers_as_int32(parsed)

    return parse


def integers_as_int32(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Cast the integers of parsed records, which fit, to what embedding look-ups want."""
    import tensorflow as tf

    return {
        name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value
        for name, value in parsed.items()
    }
