"""tf.train.Example and TFRecord frames, encoded in batches with NumPy alone."""

import functools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from bert_tf.records.schema import FeatureSpec

# Field keys of the wire format: (field number << 3) | wire type.
_LENGTH_DELIMITED_1 = 0x0A  # Example.features, Features.feature, map key, Int64List/FloatList.value
_MAP_VALUE = 0x12
_FLOAT_LIST = 0x12
_INT64_LIST = 0x1A
_CRC_MASK_DELTA = 0xA282EAD8
HEADER_BYTES = 12  # uint64 length and its masked crc32c
FOOTER_BYTES = 4  # masked crc32c of the data
_CACHED_VALUES = 1 << 15  # varints written at once: their arrays stay in the caches
_MOST_BEHIND = 7  # bytes that writing varints may touch behind their end


# === Encoding ===


def _varint(value: int) -> bytes:
    """Encode one non-negative integer as a varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_sizes(values: np.ndarray, dtype: npt.DTypeLike = np.int64) -> np.ndarray:
    """Return the number of varint bytes of each value.

    Args:
        values: unsigned integers or non-negative int64, any shape.
        dtype: of the result.

    Returns:
        Of the same shape, 1 to 10.
    """
    sizes = np.ones(values.shape, dtype)
    largest = int(values.max(initial=0))
    bound = 0x80
    while bound <= largest:
        sizes += values >= values.dtype.type(bound)
        bound <<= 7
    return sizes


def _varint_numbers(values: np.ndarray) -> np.ndarray:
    """Encode varints of at most four bytes as numbers, the first byte lowest.

    Args:
        values: non-negative integers below 2**28, any shape.

    Returns:
        uint32 of the same shape.
    """
    largest = int(values.max(initial=0))
    values = values.astype(np.uint32)
    numbers = values & np.uint32(0x7F)
    for k in range(1, 4):
        if not largest >> (7 * k):
            break
        # The high bit of a byte says that another follows.
        numbers |= (values << np.uint32(k)) & np.uint32(0x7F << 8 * k)
        numbers |= (values >= np.uint32(1 << 7 * k)).astype(np.uint32) << np.uint32(8 * k - 1)
    return numbers.astype("<u4", copy=False)


def _varint_columns(values: np.ndarray) -> np.ndarray:
    """Encode varints of one size: non-negative int64 [B], at least 1, to uint8 [B, bytes]."""
    width = len(_varint(int(values[0])))
    shifts = np.arange(0, 7 * width, 7)
    columns = (values[:, None] >> shifts).astype(np.uint8) | np.uint8(0x80)
    columns[:, -1] &= 0x7F
    return columns


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


class _Varints(NamedTuple):
    """Varints of records, as many in each but of different sizes together."""

    values: np.ndarray  # unsigned integers [B, n]
    sizes: np.ndarray  # uint8 [B, n], bytes of each

    @property
    def rows_sizes(self) -> np.ndarray:
        """Bytes of each record's: int64 [B]."""
        return self.sizes.sum(axis=1, dtype=np.int64)


# What a record is put together of: bytes that are the same in all; sizes, int64 [B], to be written
# as varints; bytes of each, uint8 [B, bytes]; varints.
_Item = bytes | np.ndarray | _Varints


def _delimited(size: int | np.ndarray) -> int | np.ndarray:
    """Return the bytes of a tag, a size and what has that size."""
    if isinstance(size, int):
        return 1 + len(_varint(size)) + size
    return 1 + _varint_sizes(size) + size


def _size_item(size: int | np.ndarray) -> _Item:
    return _varint(size) if isinstance(size, int) else size


def _entry_items(feature: FeatureSpec, values: np.ndarray) -> tuple[list[_Item], int | np.ndarray]:
    """Encode a feature's values [B, length] as an entry of the map of features.

    Returns:
        The entry without its tag and size; and its size, int64 [B] where not all are the same.
    """
    kind, payload = _INT64_LIST, values
    if feature.dtype == "float32":
        kind = _FLOAT_LIST
        payload = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    elif int(values.max(initial=0)) < 0x80:
        payload = values.astype(np.uint8, copy=False)
    else:
        payload = _Varints(values, _varint_sizes(values, np.uint8))
    size = payload.rows_sizes if isinstance(payload, _Varints) else payload.shape[1]
    list_size = _delimited(size)
    feature_size = _delimited(list_size)
    key = feature.name.encode("utf-8")
    tag = bytes([_LENGTH_DELIMITED_1])
    head = tag + _varint(len(key)) + key + bytes([_MAP_VALUE])
    items: list[_Item] = [head, _size_item(feature_size), bytes([kind]), _size_item(list_size)]
    entry_size = len(head) + _delimited(feature_size) - 1
    return [*items, tag, _size_item(size), payload], entry_size


def _put_varints(out: np.ndarray, starts: np.ndarray, varints: _Varints) -> None:
    """Write the varints of each row one after another, and up to 7 bytes of anything behind them.

    Args:
        out: uint8 [bytes].
        starts: int64 [B], where in `out` each row's begin.
        varints: to write.
    """
    values, sizes = varints
    # Five bytes or more are rare.
    if int(values.max(initial=0)) >> 28 or not _assigns_in_order():
        places = starts[:, None] + np.cumsum(sizes, axis=1, dtype=np.int64) - sizes
        for k in range(int(sizes.max())):
            row, column = np.nonzero(sizes > k)
            byte = (values[row, column] >> values.dtype.type(7 * k)).astype(np.uint8) & 0x7F
            byte |= (sizes[row, column] > k + 1).astype(np.uint8) << 7
            out[places[row, column] + k] = byte
        return
    if values.shape[1] % 2:  # a last one again, which is overwritten
        values, sizes = (np.append(x, x[:, -1:], axis=1) for x in (values, sizes))
    step = max(1, _CACHED_VALUES // values.shape[1])
    for first in range(0, len(values), step):
        rows = slice(first, first + step)
        _put_pairs(out, starts[rows], _varint_numbers(values[rows]), sizes[rows])


@functools.cache
def _assigns_in_order() -> bool:
    """Return whether NumPy assigns to windows that overlap in the order of their indices.

    It says so of repeated indices only, and what is written must not hang on that.
    """
    count = 4096
    places = np.arange(count)
    expected = (places * 37 % 251).astype(np.uint8)
    out = np.zeros(count + _MOST_BEHIND, np.uint8)
    windows = expected.astype("<u8") | np.uint64(0xFFFFFFFFFFFFFF00)  # a byte, and others behind
    np.ndarray(count, "<u8", out, strides=(1,))[places] = windows
    return bool((out[:count] == expected).all())


def _put_pairs(out: np.ndarray, starts: np.ndarray, numbers: np.ndarray, sizes: np.ndarray) -> None:
    """Write varints of up to four bytes, two at a time: uint32 and uint8 [B, even number]."""
    numbers = numbers.view("<u8")  # the first of two is the lower half
    of_first, of_second = sizes[:, ::2], sizes[:, 1::2]
    pairs = numbers & np.uint64(0xFFFFFFFF)
    pairs |= numbers >> np.uint64(32) << (of_first * np.uint8(8)).astype(np.uint64)
    of_both = of_first + of_second
    places = np.cumsum(of_both, axis=1, dtype=np.int64)
    places += starts[:, None]
    places -= of_both
    # In this order, see `_assigns_in_order`, what is written behind one pair is overwritten by the
    # next.
    np.ndarray(out.size - _MOST_BEHIND, "<u8", out, strides=(1,))[places] = pairs


def _put_block(out: np.ndarray, starts: np.ndarray, columns: Sequence[np.ndarray]) -> None:
    """Write bytes of each row, uint8 [B or 1, bytes] side by side, at starts [B] of `out`."""
    width = sum(part.shape[1] for part in columns)
    block = np.empty((len(starts), width), np.uint8)
    column = 0
    for part in columns:
        block[:, column : column + part.shape[1]] = part
        column += part.shape[1]
    windows = np.ndarray((out.size - width + 1, width), np.uint8, out, strides=(1, 1))
    windows[starts] = block


def _assemble(out: np.ndarray, starts: np.ndarray, items: Sequence[_Item]) -> None:
    """Write the items of each record one after another, at starts [B] of `out`, uint8 [bytes]."""
    # In records whose sizes take equally many bytes, items between varints are blocks of one width.
    sizes = [x for x in items if isinstance(x, np.ndarray) and x.ndim == 1]
    widths = np.array([_varint_sizes(size) for size in sizes])  # [sizes, B]
    groups: list[Any] = [slice(None)]
    if sizes and (widths != widths[:, :1]).any():
        _, group = np.unique(widths, axis=1, return_inverse=True)
        group = group.ravel()  # of another shape in some versions of NumPy
        groups = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    blocks = []
    for chosen in groups:
        place, columns = starts[chosen], []
        for item in items:
            if isinstance(item, _Varints):
                blocks.append((place, columns))
                part = _Varints(item.values[chosen], item.sizes[chosen])
                place = place + sum(part.shape[1] for part in columns)
                _put_varints(out, place, part)
                place, columns = place + part.rows_sizes, []
            elif isinstance(item, bytes):
                columns.append(np.frombuffer(item, np.uint8)[None])
            elif item.ndim == 2:
                columns.append(item[chosen])
            else:
                columns.append(_varint_columns(item[chosen]))
        blocks.append((place, columns))
    for place, columns in blocks:  # last, since varints write beyond their ends
        _put_block(out, place, columns)


def _encode(
    features: Sequence[FeatureSpec], arrays: dict[str, np.ndarray], framed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode a batch side by side.

    Args:
        features: the schema.
        arrays: for each feature its values [B, length].
        framed: whether to leave room for a TFRecord header and footer around each record.

    Returns:
        The bytes of all records, uint8; where each begins, and its size: int64 [B], without frame.
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
    items: list[_Item] = []
    features_size: int | np.ndarray = 0
    tag = bytes([_LENGTH_DELIMITED_1])
    for feature in sorted(features, key=lambda f: f.name):
        values = _checked(feature, arrays[feature.name], rows)
        rows = values.shape[0]
        entry, entry_size = _entry_items(feature, values)
        items += [tag, _size_item(entry_size), *entry]
        features_size = features_size + _delimited(entry_size)
    if not rows:
        return np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64)

    record_size = np.broadcast_to(_delimited(features_size), rows)
    header, footer = (HEADER_BYTES, FOOTER_BYTES) if framed else (0, 0)
    ends = np.cumsum(record_size + (header + footer))
    starts = ends - footer - record_size
    out = np.empty(int(ends[-1]) + _MOST_BEHIND, np.uint8)
    _assemble(out, starts, [tag, _size_item(features_size), *items])
    return out[: ends[-1]], starts, record_size


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
    out, starts, sizes = _encode(features, arrays, framed=False)
    data = out.tobytes()
    ends = (starts + sizes).tolist()
    return [data[start:end] for start, end in zip(starts.tolist(), ends, strict=True)]


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
    out, starts, sizes = _encode(features, arrays, framed=True)
    if not sizes.size:
        return b""
    ends = starts + sizes
    crc, view = google_crc32c.value, out.data
    footers = np.fromiter(
        (
            crc(view[start:end].tobytes())
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ),
        np.uint64,
        count=sizes.size,
    )
    distinct, which = np.unique(sizes, return_inverse=True)
    headers = b"".join([frame_header(size) for size in distinct.tolist()])
    _put_block(out, ends, [_mask_crcs(footers).astype("<u4").view(np.uint8).reshape(-1, 4)])
    _put_block(
        out,
        starts - HEADER_BYTES,
        [np.frombuffer(headers, np.uint8).reshape(-1, HEADER_BYTES)[which]],
    )
    return out.tobytes()


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
