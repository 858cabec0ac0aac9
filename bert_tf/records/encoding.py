"""tf.train.Example and TFRecord frames, encoded in batches with NumPy alone."""

import functools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from bert_tf.records.schema import FeatureSpec

# Field keys of the wire format: (field number << 3) | wire type.
_LENGTH_DELIMITED_1 = 0x0A  # Example.features, Features.feature, map key, Int64List/FloatList.value
_MAP_VALUE = 0x12
_FLOAT_LIST = 0x12
_INT64_LIST = 0x1A
_CRC_MASK_DELTA = 0xA282EAD8
HEADER_BYTES = 12  # uint64 length and its masked crc32c
FOOTER_BYTES = 4  # masked crc32c of the data


# === Encoding ===


def _varint(value: int) -> bytes:
    """Encode one non-negative integer as a varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_sizes(values: np.ndarray) -> np.ndarray:
    """Return the number of varint bytes of each value.

    Args:
        values: uint64 or non-negative int64, any shape.

    Returns:
        int64 of the same shape, 1 to 10.
    """
    sizes = np.ones(values.shape, np.int64)
    largest = int(values.max(initial=0))
    bound = 0x80
    while bound <= largest:
        sizes += values >= values.dtype.type(bound)
        bound <<= 7
    return sizes


def _varint_bytes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode varints side by side, each padded to the width of the longest.

    Args:
        values: uint64 or non-negative integers [B, n].

    Returns:
        bytes uint8 [B, n, k] and which of them belong to the varints, bool [B, n, k].
    """
    largest = int(values.max(initial=0))
    width = 1
    while largest >> (7 * width):
        width += 1
    out = np.empty((*values.shape, width), np.uint8)
    used = np.empty((*values.shape, width), np.bool_)
    rest = values
    used[..., 0] = True
    for k in range(width):
        more = rest >= 0x80
        low = rest.astype(np.uint8)
        np.bitwise_and(low, 0x7F, out=low)
        if k + 1 < width:
            used[..., k + 1] = more
            low |= more.view(np.uint8) << np.uint8(7)
            rest = rest >> rest.dtype.type(7)
        out[..., k] = low
    return out, used


def _checked(feature: FeatureSpec, array: Any, rows: int | None) -> np.ndarray:
    """Check a feature's values [B, length] and give them a type ready for encoding."""
    values = np.asarray(array)
    if values.ndim != 2 or values.shape[1] != feature.length:
        raise ValueError(
            f"feature {feature.name!r}: expected shape [B, {feature.length}], "
            f"got {list(values.shape)}"
        )
    if rows is not None and values.shape[0] != rows:
        raise ValueError(
            f"feature {feature.name!r}: expected {rows} rows as in the first feature, "
            f"got {values.shape[0]}"
        )
    if feature.dtype == "float32":
        if values.dtype.kind not in "fiub":
            raise ValueError(f"feature {feature.name!r}: expected numbers, got {values.dtype}")
        return values.astype("<f4", copy=False)
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    if values.dtype.kind == "u":
        return values
    if values.dtype.kind != "i":
        raise ValueError(f"feature {feature.name!r}: expected integers, got {values.dtype}")
    if values.size and values.min() < 0:
        return values.astype(np.int64).view(
            np.uint64
        )  # ten-byte two's complement, as protobuf has it
    # Unsigned and no wider than needed: the byte arithmetic of varints is bound by memory traffic.
    return values.astype(np.dtype(f"u{values.dtype.itemsize}"), copy=False)


class _RowBuilder:
    """Gathers pieces of B byte strings of unequal length, column block after column block."""

    def __init__(self, rows: int):
        self.rows = rows
        self.blocks: list[tuple[np.ndarray, np.ndarray | None]] = []

    def constant(self, data: bytes) -> None:
        self.blocks.append((np.frombuffer(data, np.uint8)[None, :], None))

    def fixed(self, data: np.ndarray) -> None:
        self.blocks.append((data, None))

    def varying(self, data: np.ndarray, used: np.ndarray) -> None:
        self.blocks.append((data.reshape(self.rows, -1), used.reshape(self.rows, -1)))

    def varint(self, values: np.ndarray) -> None:
        self.varying(*_varint_bytes(values[:, None]))

    def compress(self) -> bytes:
        width = sum(block.shape[1] for block, _ in self.blocks)
        data = np.empty((self.rows, width), np.uint8)  # [B, W]
        used = np.ones((self.rows, width), np.bool_)  # [B, W]
        column = 0
        for block, block_used in self.blocks:
            end = column + block.shape[1]
            data[:, column:end] = block
            if block_used is not None:
                used[:, column:end] = block_used
            column = end
        return data[used].tobytes()


class _EncodedFeature(NamedTuple):
    """A feature of B records: the bytes of its values, and the size of each message around them."""

    kind: int  # tag of the list
    head: bytes
    payload: np.ndarray  # uint8 [B, bytes], or [B, length, bytes] of which `used` count
    used: np.ndarray | None
    size: np.ndarray  # int64 [B], as all that follow
    list_size: np.ndarray
    feature_size: np.ndarray
    entry_size: np.ndarray


def _encode_feature(feature: FeatureSpec, values: np.ndarray) -> _EncodedFeature:
    """Encode the values [B, length] of a feature."""
    rows = values.shape[0]
    if feature.dtype == "float32":
        kind, used = _FLOAT_LIST, None
        payload = np.ascontiguousarray(values).view(np.uint8).reshape(rows, -1)
    else:
        kind = _INT64_LIST
        payload, used = _varint_bytes(values)  # [B, length, k]
        if payload.shape[2] == 1:
            payload, used = payload[:, :, 0], None
    if used is None:
        size = np.full(rows, payload.shape[1], np.int64)
    else:
        size = used.reshape(rows, -1).sum(axis=1, dtype=np.int64)
    key = feature.name.encode("utf-8")
    head = bytes([_LENGTH_DELIMITED_1]) + _varint(len(key)) + key + bytes([_MAP_VALUE])
    list_size = 1 + _varint_sizes(size) + size
    feature_size = 1 + _varint_sizes(list_size) + list_size
    entry_size = len(head) + _varint_sizes(feature_size) + feature_size
    return _EncodedFeature(kind, head, payload, used, size, list_size, feature_size, entry_size)


def _encode(
    features: Sequence[FeatureSpec], arrays: dict[str, np.ndarray], framed: bool
) -> tuple[bytes, np.ndarray]:
    """Encode a batch into one byte string.

    Args:
        features: the schema.
        arrays: for each feature its values [B, length].
        framed: whether to leave room for a TFRecord header and footer around each record.

    Returns:
        The bytes of all records, and int64 [B] sizes of the records (without frames).
    """
    names = [feature.name for feature in features]
    if len(set(names)) != len(names):
        raise ValueError(f"feature names must be distinct, got {names}")
    if set(names) != set(arrays):
        missing, unknown = sorted(set(names) - set(arrays)), sorted(set(arrays) - set(names))
        raise ValueError(f"arrays must match the schema: missing {missing}, not in it {unknown}")
    if not features:
        raise ValueError("a record needs at least one feature")
    rows = None
    entries = []
    for feature in sorted(features, key=lambda f: f.name):
        values = _checked(feature, arrays[feature.name], rows)
        rows = values.shape[0]
        entries.append(_encode_feature(feature, values))
    if not rows:
        return b"", np.zeros(0, np.int64)

    features_size = np.zeros(rows, np.int64)
    for entry in entries:
        features_size += 1 + _varint_sizes(entry.entry_size) + entry.entry_size
    record_size = 1 + _varint_sizes(features_size) + features_size

    row = _RowBuilder(rows)
    if framed:
        row.constant(bytes(HEADER_BYTES))
    row.constant(bytes([_LENGTH_DELIMITED_1]))
    row.varint(features_size)
    for entry in entries:
        row.constant(bytes([_LENGTH_DELIMITED_1]))
        row.varint(entry.entry_size)
        row.constant(entry.head)
        row.varint(entry.feature_size)
        row.constant(bytes([entry.kind]))
        row.varint(entry.list_size)
        row.constant(bytes([_LENGTH_DELIMITED_1]))
        row.varint(entry.size)
        if entry.used is None:
            row.fixed(entry.payload)
        else:
            row.varying(entry.payload, entry.used)
    if framed:
        row.constant(bytes(FOOTER_BYTES))
    return row.compress(), record_size


def encode_examples(features: Sequence[FeatureSpec], arrays: dict[str, np.ndarray]) -> list[bytes]:
    """Serialise a batch of records as `tf.train.Example` messages, without TensorFlow.

    Args:
        features: the schema.
        arrays: exactly the schema's features, each [B, length]; integers or booleans for "int64"
            (negative values included), numbers for "float32".

    Returns:
        B byte strings, features in order of their names.

    Raises:
        ValueError: arrays that do not match the schema.
    """
    data, sizes = _encode(features, arrays, framed=False)
    ends = np.cumsum(sizes).tolist()
    starts = [0, *ends[:-1]]
    return [data[start:end] for start, end in zip(starts, ends, strict=False)]


def encode_framed_examples(features: Sequence[FeatureSpec], arrays: dict[str, np.ndarray]) -> bytes:
    """Encode as `encode_examples` and frame the records, to be appended to a TFRecord file.

    Args:
        features: the schema.
        arrays: as for `encode_examples`.

    Returns:
        The bytes of B framed records, uncompressed.

    Raises:
        ValueError: arrays that do not match the schema.
    """
    data, sizes = _encode(features, arrays, framed=True)
    if not sizes.size:
        return b""
    starts = np.cumsum(sizes + (HEADER_BYTES + FOOTER_BYTES)) - sizes - FOOTER_BYTES
    ends = starts + sizes
    crc = google_crc32c.value
    footers = np.fromiter(
        (crc(data[start:end]) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)),
        np.uint64,
        count=sizes.size,
    )
    out = np.frombuffer(data, np.uint8).copy()
    _put(out, ends, _mask_crcs(footers).astype("<u4"))
    headers = np.frombuffer(
        b"".join([frame_header(size) for size in sizes.tolist()]), np.uint8
    ).reshape(-1, HEADER_BYTES)
    _put(out, starts - HEADER_BYTES, headers)
    return out.tobytes()


def _put(out: np.ndarray, offsets: np.ndarray, values: np.ndarray) -> None:
    """Write row i of values, as bytes, at offset i of a byte array."""
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    out[offsets[:, None] + np.arange(raw.shape[1])] = raw


def _mask_crcs(crcs: np.ndarray) -> np.ndarray:
    """Mask crc32c values as TFRecord does; uint64 in and out, below 2**32."""
    rotated = (crcs >> np.uint64(15)) | (crcs << np.uint64(17))
    return (rotated + np.uint64(_CRC_MASK_DELTA)) & np.uint64(0xFFFFFFFF)


def mask_crc(crc: int) -> int:
    """Return a CRC32C as TFRecord files store it."""
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """Return the masked CRC32C of bytes."""
    return mask_crc(google_crc32c.value(data))


@functools.lru_cache(maxsize=1 << 16)
def frame_header(size: int) -> bytes:
    """Return what precedes a record: its length and the checksum of that."""
    length = struct.pack("<Q", size)
    return length + struct.pack("<I", masked_crc(length))


def frame_record(record: bytes) -> bytes:
    """Put a record between TFRecord's header and footer around it.

    Args:
        record: serialized example.

    Returns:
        length, masked crc32c of the length, record, masked crc32c of the record.
    """
    return frame_header(len(record)) + record + struct.pack("<I", masked_crc(record))
