"""The index of a TensorFlow checkpoint, checked before TensorFlow reads it.

An index that is damaged in spite of right checksums makes TensorFlow end the whole process.

The index is a table: blocks of keys and values, a last block that lists the others, and a footer of
48 bytes with that one's place. Values are protocol buffers.

References: doc/table_format.md of LevelDB, and tensorflow/core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

import math
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c
from tensorflow.core.framework.types_pb2 import DataType
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from bert_tf.files import check_declared
from bert_tf.weights.tensor_files import TABLE_MAGIC

_FOOTER_BYTES, _HANDLES_BYTES, _TRAILER_BYTES = 48, 40, 5
_MOST_DIMENSIONS = 254  # of TensorFlow's shapes
_FIRST_REFERENCE_TYPE = 100
_CRC_DELTA = 0xA282EAD8
_PART = b"\x00"  # keys of parts begin so
_ALL = -1  # the length of a part that has all of a dimension


def check_index(path: str | os.PathLike) -> None:
    """Raise ValueError, with the reason, unless an index is one that TensorFlow can be given."""
    table = pathlib.Path(path).read_bytes()
    entries = _entries(table)
    key, value = next(entries, (None, b""))
    if key != b"":
        raise ValueError("its index has no header")
    header = _message(BundleHeaderProto, value)
    expected: dict[bytes, set[Any]] = {}  # key of a part -> what the variable says of it
    parts, total = [], 0
    for key, value in entries:
        try:
            entry = _message(BundleEntryProto, value)
            _check_entry(entry, header.num_shards)
        except ValueError as error:
            raise ValueError(f"its index is damaged at {key[:60]!r}: {error}") from error
        for extents in map(_extents, entry.slices):
            part_key, shape = _part_key(key, extents), _shape_of_part(_shape(entry), extents)
            total += len(part_key)  # each with the whole name
            check_declared(total, len(table), "its index")
            expected.setdefault(part_key, set()).add((entry.dtype, shape))
        if key.startswith(_PART):
            parts.append((key, (entry.dtype, _shape(entry))))
    for key, found in parts:
        if expected.get(key, {found}) != {found}:
            raise ValueError(
                f"its index is damaged at {key[:60]!r}: a part of another type or shape than its "
                "variable says"
            )


def _message(kind: Any, value: bytes) -> Any:
    try:
        return kind.FromString(value)
    except Exception as error:  # protobuf's DecodeError has no public home across its versions
        raise ValueError(f"no {kind.__name__}: {error}") from error


def _check_entry(entry: Any, num_shards: int) -> None:
    """Raise ValueError unless a BundleEntryProto describes a tensor."""
    shape = _shape(entry)
    if (
        entry.shape.unknown_rank
        or len(shape) > _MOST_DIMENSIONS
        or min(shape, default=0) < 0
        or math.prod(max(size, 1) for size in shape) >= 1 << 63
    ):
        raise ValueError(f"no tensor has shape {list(shape[:12])}")
    if entry.dtype not in DataType.values() or not 0 < entry.dtype < _FIRST_REFERENCE_TYPE:
        raise ValueError(f"no tensor has type {entry.dtype}")
    if not 0 <= entry.shard_id < num_shards or entry.offset < 0 or entry.size < 0:
        raise ValueError(
            f"{entry.size} bytes at {entry.offset} of file {entry.shard_id} of {num_shards}"
        )
    # Of a variable in parts the shape is that of all, and each part has an entry of its own.
    parts = [_extents(part) for part in entry.slices]
    whole = all(
        len(part) == len(shape)
        and all(
            0 <= a and (_ALL if a == 0 else 0) <= n <= size - a
            for (a, n), size in zip(part, shape, strict=True)
        )
        for part in parts
    )
    if not whole or len(set(parts)) < len(parts):
        raise ValueError(f"its parts are none of shape {list(shape[:12])}")


# === Variables in parts ===


def _shape(entry: Any) -> tuple[int, ...]:
    return tuple(dimension.size for dimension in entry.shape.dim)


def _extents(part: Any) -> tuple[tuple[int, int], ...]:
    """Return where a TensorSliceProto begins and its length, _ALL for all, in each dimension."""
    return tuple((e.start, e.length if e.HasField("length") else _ALL) for e in part.extent)


def _shape_of_part(shape: tuple[int, ...], extents: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    return tuple(
        size if length == _ALL else length for size, (_, length) in zip(shape, extents, strict=True)
    )


def _part_key(name: bytes, extents: tuple[tuple[int, int], ...]) -> bytes:
    """Return the key of a part of a variable.

    References: EncodeTensorNameSlice in tensorflow/core/util/saved_tensor_slice_util.cc, and
    ordered_code.cc.
    """
    # Keys of any bytes, in the order of what they stand for: hence the escapes, and lengths first.
    escaped = b"\xff\x00".join(x.replace(b"\x00", b"\x00\xff") for x in name.split(b"\xff"))
    rank = len(extents).to_bytes(1, "big")  # below 255
    numbers = (_ordered(number) for pair in extents for number in pair)
    return b"".join([_PART, escaped, b"\x00\x01", b"\x01" + rank if extents else b"\x00", *numbers])


def _ordered(number: int) -> bytes:
    """Encode a number from _ALL on: as many leading ones as bytes, then its bits."""
    if number == _ALL:
        return b"\x7f"
    size = number.bit_length() // 7 + 1
    ones = (1 << size) - 1 << 7 * size  # of the 8 * size bits the first
    return (number | ones).to_bytes(size, "big")


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, in the order of the file."""
    if len(table) < _FOOTER_BYTES or not table.endswith(TABLE_MAGIC):
        raise ValueError("its index is not whole: it has no footer")
    footer, position, handles = table[-_FOOTER_BYTES:][:_HANDLES_BYTES], 0, []
    for _ in range(4):
        number, position = _varint(footer, position)
        handles.append(number)
    end = total = 0
    for _, handle in _block(table, *handles[2:]):
        place, position = _varint(handle, 0)
        size, _ = _varint(handle, position)
        if place < end:
            raise ValueError("blocks of its index overlap")
        end = place + size
        for key, value in _block(table, place, size):
            total += len(key)  # that may have most of it from the key before
            check_declared(total, len(table), "its index")
            yield key, value


def _block(table: bytes, place: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block."""
    end = place + size
    trailer = table[end : end + _TRAILER_BYTES]
    if end + _TRAILER_BYTES > len(table) - _FOOTER_BYTES or size < 8:
        raise ValueError("a block of its index is cut off")
    crc = google_crc32c.value(table[place : end + 1])
    if ((crc >> 15 | crc << 17) + _CRC_DELTA) & 0xFFFFFFFF != struct.unpack("<I", trailer[1:])[0]:
        raise ValueError("a checksum of its index differs")
    if trailer[0]:
        raise ValueError("its index is compressed, which no version of TensorFlow writes")
    content = table[place:end]
    # The block ends in the places of entries with a whole key, and their number.
    num_whole = struct.unpack("<I", content[-4:])[0]
    limit, position, key, whole = size - 4 - 4 * num_whole, 0, b"", {0}
    if num_whole < 1 or limit < 0:
        raise ValueError("a block of its index is damaged")
    while position < limit:
        begin = position
        shared, position = _varint(content, position)
        own, position = _varint(content, position)
        length, position = _varint(content, position)
        if shared > len(key) or position + own + length > limit:
            raise ValueError("an entry of its index reaches beyond its block")
        if not shared:
            whole.add(begin)
        key = key[:shared] + content[position : position + own]
        position += own + length
        yield key, content[position - length : position]
    if not whole.issuperset(struct.unpack(f"<{num_whole}I", content[limit:-4])):
        raise ValueError("a block of its index is damaged")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Read a number of 64 bits, seven to a byte; return it and the place behind it."""
    value = 0
    for k, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * k
        if byte < 0x80:
            return value, position + k + 1
    raise ValueError("a number of its index does not end")
