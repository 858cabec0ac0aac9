"""Training records: one schema that writes and reads them, and the TFRecord files around them.

A record is a `tf.train.Example` in a TFRecord file. Writing, checking and the small reader need
only NumPy, so that worker processes of data preparation do not pay for importing TensorFlow; only
`parse_example_fn`, for tf.data, imports it. The bytes written are deterministic: features in
order of their names, no timestamps in gzip headers.

Shapes: B records in a batch, L max_seq_length, P max_predictions_per_seq, W bytes of the widest
record.

References: protobuf's wire format (protobuf.dev/programming-guides/encoding), the messages of
tensorflow/core/example/{example,feature}.proto and the framing in
tensorflow/core/lib/io/record_writer.h.
"""

import array
import dataclasses
import functools
import gzip
import mmap
import os
import re
import struct
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Literal

import google_crc32c
import numpy as np

Compression = Literal["gzip"] | None

_FIXED_WIDTH = {"int64": np.int64, "float32": np.float32}
# Field keys of the wire format: (field number << 3) | wire type.
_LENGTH_DELIMITED_1 = 0x0A  # Example.features, Features.feature, map key, Int64List/FloatList.value
_MAP_VALUE = 0x12
_FLOAT_LIST = 0x12
_INT64_LIST = 0x1A
_CRC_MASK_DELTA = 0xA282EAD8
_HEADER_BYTES = 12  # uint64 length and its masked crc32c
_FOOTER_BYTES = 4  # masked crc32c of the data
_SEARCH_BYTES = 1 << 16  # looked through at once for the record after a damaged one


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """One fixed-length feature of a record.

    Attributes:
      name: key in the `tf.train.Example`.
      dtype: type stored in the record, "int64" or "float32".
      length: number of values in each record, at least 1.

    Raises:
      ValueError: a dtype or length that records cannot hold.
    """

    name: str
    dtype: Literal["int64", "float32"]
    length: int

    def __post_init__(self):
        if self.dtype not in _FIXED_WIDTH:
            raise ValueError(
                f"feature {self.name!r}: dtype must be 'int64' or 'float32', got {self.dtype!r}"
            )
        if self.length < 1:
            raise ValueError(f"feature {self.name!r}: length must be at least 1, got {self.length}")


def pretraining_features(
    max_seq_length: int, max_predictions_per_seq: int
) -> tuple[FeatureSpec, ...]:
    """Schema of masked pre-training records, with the names google-research/bert gave them.

    Args:
      max_seq_length: L, tokens in a padded sequence.
      max_predictions_per_seq: P, padded number of masked tokens.

    Returns:
      input_ids, input_mask, segment_ids int64 [L]; masked_lm_positions, masked_lm_ids int64 [P];
      masked_lm_weights float32 [P] (1 for a prediction, 0 for padding); next_sentence_labels
      int64 [1] (0 the actual next text, 1 a random one).
    """
    return (
        FeatureSpec("input_ids", "int64", max_seq_length),
        FeatureSpec("input_mask", "int64", max_seq_length),
        FeatureSpec("segment_ids", "int64", max_seq_length),
        FeatureSpec("masked_lm_positions", "int64", max_predictions_per_seq),
        FeatureSpec("masked_lm_ids", "int64", max_predictions_per_seq),
        FeatureSpec("masked_lm_weights", "float32", max_predictions_per_seq),
        FeatureSpec("next_sentence_labels", "int64", 1),
    )


def unmasked_pretraining_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Schema of sentence pairs whose masks are drawn while training (dynamic masking).

    Args:
      max_seq_length: L, tokens in a padded sequence.

    Returns:
      input_ids, input_mask, segment_ids int64 [L]; next_sentence_labels int64 [1].
    """
    return (
        FeatureSpec("input_ids", "int64", max_seq_length),
        FeatureSpec("input_mask", "int64", max_seq_length),
        FeatureSpec("segment_ids", "int64", max_seq_length),
        FeatureSpec("next_sentence_labels", "int64", 1),
    )


def _input_features(length: int) -> tuple[FeatureSpec, ...]:
    """The model's three inputs."""
    return tuple(
        FeatureSpec(name, "int64", length) for name in ("input_ids", "input_mask", "segment_ids")
    )


def _labelled_features(
    length: int, dtype: Literal["int64", "float32"], num_labels: int
) -> tuple[FeatureSpec, ...]:
    return (
        *_input_features(length),
        FeatureSpec("label_ids", dtype, num_labels),
        FeatureSpec("is_real_example", "int64", 1),
    )


def classification_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Schema of records of texts, or pairs, with one label each.

    Args:
      max_seq_length: L, tokens in a padded sequence.

    Returns:
      input_ids, input_mask, segment_ids int64 [L]; label_ids int64 [1]; is_real_example int64 [1]
      (0 on what only fills up a batch).

    Reference: google-research/bert run_classifier.py, file_based_convert_examples_to_features.
    """
    return _labelled_features(max_seq_length, "int64", 1)


def regression_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Schema of records of texts, or pairs, with a number each.

    Args:
      max_seq_length: L, tokens in a padded sequence.

    Returns:
      As `classification_features`, but label_ids float32 [1].
    """
    return _labelled_features(max_seq_length, "float32", 1)


def multi_label_features(max_seq_length: int, num_labels: int) -> tuple[FeatureSpec, ...]:
    """Schema of records of texts, or pairs, of which any number of labels may hold.

    Args:
      max_seq_length: L, tokens in a padded sequence.
      num_labels: K, labels there are.

    Returns:
      As `classification_features`, but label_ids float32 [K], 1 for each label that holds, else 0.
    """
    return _labelled_features(max_seq_length, "float32", num_labels)


def multiple_choice_features(max_seq_length: int, num_choices: int) -> tuple[FeatureSpec, ...]:
    """Schema of records of one context with several continuations.

    Args:
      max_seq_length: L, tokens in a padded sequence.
      num_choices: C, sequences of an example, one after another.

    Returns:
      input_ids, input_mask, segment_ids int64 [C * L]; label_ids int64 [1], the right choice;
      is_real_example int64 [1].
    """
    return _labelled_features(num_choices * max_seq_length, "int64", 1)


def token_classification_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Schema of records with a label for each word.

    Args:
      max_seq_length: L, tokens in a padded sequence.

    Returns:
      input_ids, input_mask, segment_ids int64 [L]; label_ids int64 [L]; label_mask int64 [L] (1
      where a label counts: on the first piece of a word of this window; label_ids is 0 elsewhere).
    """
    return (
        *_input_features(max_seq_length),
        FeatureSpec("label_ids", "int64", max_seq_length),
        FeatureSpec("label_mask", "int64", max_seq_length),
    )


def span_features(max_seq_length: int) -> tuple[FeatureSpec, ...]:
    """Schema of records of a question with a window of the text that may answer it.

    Args:
      max_seq_length: L, tokens in a padded sequence.

    Returns:
      unique_ids int64 [1]; input_ids, input_mask, segment_ids int64 [L]; start_positions,
      end_positions, is_impossible int64 [1].

    Reference: google-research/bert run_squad.py, FeatureWriter.
    """
    return (
        FeatureSpec("unique_ids", "int64", 1),
        *_input_features(max_seq_length),
        FeatureSpec("start_positions", "int64", 1),
        FeatureSpec("end_positions", "int64", 1),
        FeatureSpec("is_impossible", "int64", 1),
    )


# --------------------------------------------------------------------------------------------------
# Encoding


def _varint(value: int) -> bytes:
    """Bytes of one non-negative integer as a varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_sizes(values: np.ndarray) -> np.ndarray:
    """Number of varint bytes of each value.

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
    """Varints side by side, each padded to the width of the longest.

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
    """Checks a feature's values [B, length] and gives them a type ready for encoding."""
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


def _encode(
    features: Sequence[FeatureSpec], arrays: dict[str, np.ndarray], framed: bool
) -> tuple[bytes, np.ndarray]:
    """Encodes a batch into one byte string.

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
        if feature.dtype == "float32":
            payload = np.ascontiguousarray(values).view(np.uint8).reshape(rows, -1)
            used, size = None, np.full(rows, payload.shape[1], np.int64)
            kind = _FLOAT_LIST
        else:
            payload, used = _varint_bytes(values)  # [B, length, k]
            kind = _INT64_LIST
            if payload.shape[2] == 1:
                payload, used = payload[:, :, 0], None
                size = np.full(rows, payload.shape[1], np.int64)
            else:
                size = used.reshape(rows, -1).sum(axis=1, dtype=np.int64)
        key = feature.name.encode("utf-8")
        head = bytes([_LENGTH_DELIMITED_1]) + _varint(len(key)) + key + bytes([_MAP_VALUE])
        list_size = 1 + _varint_sizes(size) + size
        feature_size = 1 + _varint_sizes(list_size) + list_size
        entry_size = len(head) + _varint_sizes(feature_size) + feature_size
        entries.append((kind, head, payload, used, size, list_size, feature_size, entry_size))
    if not rows:
        return b"", np.zeros(0, np.int64)

    features_size = np.zeros(rows, np.int64)
    for *_, entry_size in entries:
        features_size += 1 + _varint_sizes(entry_size) + entry_size
    record_size = 1 + _varint_sizes(features_size) + features_size

    row = _RowBuilder(rows)
    if framed:
        row.constant(bytes(_HEADER_BYTES))
    row.constant(bytes([_LENGTH_DELIMITED_1]))
    row.varint(features_size)
    for kind, head, payload, used, size, list_size, feature_size, entry_size in entries:
        row.constant(bytes([_LENGTH_DELIMITED_1]))
        row.varint(entry_size)
        row.constant(head)
        row.varint(feature_size)
        row.constant(bytes([kind]))
        row.varint(list_size)
        row.constant(bytes([_LENGTH_DELIMITED_1]))
        row.varint(size)
        if used is None:
            row.fixed(payload)
        else:
            row.varying(payload, used)
    if framed:
        row.constant(bytes(_FOOTER_BYTES))
    return row.compress(), record_size


def encode_examples(features: Sequence[FeatureSpec], arrays: dict[str, np.ndarray]) -> list[bytes]:
    """Serialises a batch of records as `tf.train.Example` messages, without TensorFlow.

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
    """As `encode_examples`, and frames the records: the result can be appended to a TFRecord file.

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
    starts = np.cumsum(sizes + (_HEADER_BYTES + _FOOTER_BYTES)) - sizes - _FOOTER_BYTES
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
        b"".join([_frame_header(size) for size in sizes.tolist()]), np.uint8
    ).reshape(-1, _HEADER_BYTES)
    _put(out, starts - _HEADER_BYTES, headers)
    return out.tobytes()


def _put(out: np.ndarray, offsets: np.ndarray, values: np.ndarray) -> None:
    """Writes row i of values, as bytes, at offset i of a byte array."""
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)
    out[offsets[:, None] + np.arange(raw.shape[1])] = raw


def _mask_crcs(crcs: np.ndarray) -> np.ndarray:
    """TFRecord's masking of crc32c values; uint64 in and out, below 2**32."""
    rotated = (crcs >> np.uint64(15)) | (crcs << np.uint64(17))
    return (rotated + np.uint64(_CRC_MASK_DELTA)) & np.uint64(0xFFFFFFFF)


def _mask_crc(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def _masked_crc(data: bytes) -> int:
    return _mask_crc(google_crc32c.value(data))


@functools.lru_cache(maxsize=1 << 16)
def _frame_header(size: int) -> bytes:
    length = struct.pack("<Q", size)
    return length + struct.pack("<I", _masked_crc(length))


def frame_record(record: bytes) -> bytes:
    """One record with TFRecord's header and footer around it.

    Args:
      record: serialized example.

    Returns:
      length, masked crc32c of the length, record, masked crc32c of the record.
    """
    return _frame_header(len(record)) + record + struct.pack("<I", _masked_crc(record))


# --------------------------------------------------------------------------------------------------
# Files


def gzip_stream(raw: BinaryIO) -> gzip.GzipFile:
    """Opens a gzip stream whose bytes depend on what is written only (no name, no time).

    Streams may be appended to each other as files: gzip readers, and TensorFlow's, see one.

    Args:
      raw: binary file to write to; it stays open when the stream is closed.

    Returns:
      The stream, a context manager.
    """
    return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0)


def manifest_path(record_file: str | os.PathLike) -> str:
    """Where the manifest of a record file lies: its shard set's base name and `.manifest.json`.

    Args:
      record_file: path of a TFRecord file, such as `out/wiki-00003-of-00016.tfrecord.gz`.

    Returns:
      The manifest's path, such as `out/wiki.manifest.json`.
    """
    return output_base(record_file) + ".manifest.json"


def output_base(record_file: str | os.PathLike) -> str:
    """A record file's path without shard number and extensions.

    Args:
      record_file: path of a TFRecord file.

    Returns:
      The path up to the first of `-NNNNN-of-NNNNN`, `.tfrecord(s)`, `.gz` at its end.
    """
    folder, name = os.path.split(os.fspath(record_file))
    name = name.removesuffix(".gz")
    stem = re.sub(r"\.(tfrecords?|tfr|records?)$", "", name)
    stem = re.sub(r"-\d{5,}-of-\d{5,}$", "", stem)
    return os.path.join(folder, stem or name)


class RecordWriter:
    """Writes a TFRecord file that appears under its name only once it is whole.

    Use as a context manager: the temporary file (`<path>.tmp-<pid>`) is renamed on a clean exit
    and removed when an exception leaves the block.
    """

    def __init__(self, path: str | os.PathLike, compression: Compression = None):
        """Opens the temporary file.

        Args:
          path: the finished file's path; an existing file is replaced on `close`.
          compression: None or "gzip" (tf.data's `compression_type="GZIP"`).

        Raises:
          ValueError: another compression.
          OSError: the folder does not exist or cannot be written to.
        """
        if compression not in (None, "gzip"):
            raise ValueError(f"compression must be None or 'gzip', got {compression!r}")
        self.path = os.fspath(path)
        self._temporary = f"{self.path}.tmp-{os.getpid()}"
        self._file: BinaryIO | None = open(self._temporary, "wb")
        self._stream: Any = self._file
        if compression == "gzip":
            self._stream = gzip_stream(self._file)

    def write(self, record: bytes) -> None:
        """Appends one record.

        Args:
          record: serialized example.
        """
        self._stream.write(frame_record(record))

    def write_framed(self, framed: bytes) -> None:
        """Appends records that are already framed.

        Args:
          framed: result of `encode_framed_examples`.
        """
        self._stream.write(framed)

    def close(self) -> None:
        """Completes the file and gives it its name."""
        if self._file is None:
            return
        if self._stream is not self._file:
            self._stream.close()
        self._file.close()
        self._file = None
        os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Gives up: removes the temporary file."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        os.unlink(self._temporary)

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback):
        if exception_type is None:
            self.close()
        else:
            self.discard()


def _open_records(path: str) -> BinaryIO:
    """Opens a TFRecord file for reading, gzip recognised by its content."""
    with open(path, "rb") as raw:
        head = raw.read(_HEADER_BYTES)
    framed = len(head) == _HEADER_BYTES and head == _frame_header(struct.unpack("<Q", head[:8])[0])
    if not framed and head[:3] == b"\x1f\x8b\x08":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return open(path, "rb")


def compression_of(path: str | os.PathLike) -> Compression:
    """Whether a TFRecord file is compressed, told by its content.

    Args:
      path: an existing TFRecord file.

    Returns:
      "gzip" or None.

    Raises:
      OSError: the file cannot be read.
    """
    with _open_records(os.fspath(path)) as stream:
        return "gzip" if isinstance(stream, gzip.GzipFile) else None


def read_records(
    path: str | os.PathLike, on_damage: Callable[[str], None] | None = None
) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, checking both checksums of each.

    Args:
      path: file, plain or gzip (recognised by content).
      on_damage: where given, damage is no error: this is called with what would be its message, and
        reading goes on with the next whole record. After a corrupt length that is searched for;
        nothing can be read behind damage of compressed data.

    Yields:
      Serialized examples.

    Raises:
      ValueError: a truncated or corrupt file, naming file and record number (counted from 0).
      OSError: the file cannot be read.
    """
    path = os.fspath(path)
    number = 0

    def damaged(what: str) -> None:
        message = f"{path}: record {number}: {what}"
        if on_damage is None:
            raise ValueError(message)
        on_damage(message)

    with _open_records(path) as stream:
        while True:
            try:
                header = stream.read(_HEADER_BYTES)
                if not header:
                    return
                size = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER_BYTES else -1
                if size >= 0 and header != _frame_header(size):
                    damaged("corrupt length (checksum differs)")
                    number += 1
                    if not _find_header(stream, header):
                        return
                    continue
                body = stream.read(size + _FOOTER_BYTES) if size >= 0 else b""
            except EOFError as error:
                return damaged(f"file is truncated: {error}")
            except (gzip.BadGzipFile, zlib.error) as error:
                return damaged(f"corrupt gzip data: {error}")
            if size < 0 or len(body) != size + _FOOTER_BYTES:
                return damaged("file is truncated")
            record = body[:size]
            if struct.unpack("<I", body[size:])[0] != _masked_crc(record):
                damaged("corrupt data (checksum differs)")
            else:
                yield record
            number += 1


def _find_header(stream: BinaryIO, read: bytes) -> bool:
    """Goes to the next header of a record after `read`, of which the first byte is not one's."""
    begin = stream.tell() - len(read) + 1
    stream.seek(begin)
    kept = b""
    while block := stream.read(_SEARCH_BYTES):
        kept += block
        for place in range(len(kept) - _HEADER_BYTES + 1):
            crc = google_crc32c.value(kept[place : place + 8])
            if _mask_crc(crc) == int.from_bytes(kept[place + 8 : place + 12], "little"):
                stream.seek(begin + place)
                return True
        begin += len(kept) - _HEADER_BYTES + 1
        kept = kept[-_HEADER_BYTES + 1 :]
    return False


def scan_records(path: str | os.PathLike) -> int:
    """Checks a TFRecord file's framing from end to end.

    Args:
      path: file, plain or gzip (recognised by content).

    Returns:
      Number of records.

    Raises:
      ValueError: a truncated or corrupt file, naming file and record number (counted from 0).
      OSError: the file cannot be read.
    """
    return sum(1 for _ in read_records(path))


class RecordFile:
    """The records of a plain TFRecord file by number, in any order; safe to read from threads."""

    def __init__(self, path: str | os.PathLike):
        """Finds where each record lies; their data are read later.

        Args:
          path: an uncompressed TFRecord file.

        Raises:
          ValueError: a compressed file, or a corrupt length; names file and record.
          OSError: the file cannot be read.
        """
        self.path = os.fspath(path)
        if compression_of(self.path) is not None:
            raise ValueError(
                f"{self.path}: is compressed; records are read in any order, unpack it"
            )
        offsets = array.array("q", [0])
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    position = 0
                    while position < size:
                        header = data[position : position + _HEADER_BYTES]
                        length = int.from_bytes(header[:8], "little")
                        position += _HEADER_BYTES + length + _FOOTER_BYTES
                        number = len(offsets) - 1
                        is_whole = len(header) == _HEADER_BYTES
                        # Before the size: a corrupt length reaches beyond the end of most files.
                        if is_whole and header != _frame_header(length):
                            raise ValueError(
                                f"{self.path}: record {number}: corrupt length (checksum differs)"
                            )
                        if position > size or not is_whole:
                            raise ValueError(f"{self.path}: record {number}: file is truncated")
                        offsets.append(position)
            self._descriptor = os.dup(file.fileno())
        self._offsets = np.frombuffer(offsets, np.int64)
        # Not at exit, when threads of tf.data may still read.
        weakref.finalize(self, os.close, self._descriptor).atexit = False

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, number: int) -> bytes:
        """Reads one record.

        Args:
          number: from 0 to len(self) - 1.

        Raises:
          ValueError: the record is corrupt; names file and record.
          IndexError: there is no such record.
        """
        if number < 0:
            raise IndexError(f"{self.path}: no record {number}")
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        data = os.pread(self._descriptor, end - begin, begin)
        record = data[_HEADER_BYTES : end - begin - _FOOTER_BYTES]
        if len(data) != end - begin or data[-_FOOTER_BYTES:] != struct.pack(
            "<I", _masked_crc(record)
        ):
            raise ValueError(f"{self.path}: record {number}: corrupt data (checksum differs)")
        return record


# --------------------------------------------------------------------------------------------------
# Reading


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Fields of one message: number, wire type, bytes or unsigned integer."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire = key >> 3, key & 7
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
    """Varints packed one after another, as int64 [n]."""
    raw = np.frombuffer(data, np.uint8)
    last = np.flatnonzero(raw < 0x80)
    if not raw.size:
        return np.zeros(0, np.int64)
    if not last.size or last[-1] != raw.size - 1:
        raise IndexError
    start = np.concatenate([[0], last[:-1] + 1])
    size = last - start + 1
    values = np.zeros(last.size, np.uint64)
    for k in range(int(size.max())):
        has = size > k
        values[has] |= (raw[start[has] + k].astype(np.uint64) & np.uint64(0x7F)) << np.uint64(7 * k)
    return values.view(np.int64)


def decode_example(record: bytes, features: Sequence[FeatureSpec]) -> dict[str, np.ndarray]:
    """Parses one serialized `tf.train.Example`, without TensorFlow.

    Args:
      record: serialized example, from any writer (packed or unpacked lists).
      features: the schema; features of the record that it does not name are left out.

    Returns:
      For each feature int64 or float32 [length].

    Raises:
      ValueError: not an example, or one that does not match the schema.
    """
    found: dict[str, tuple[str, list]] = {}
    try:
        for number, _, container in _fields(record):
            if number != 1:
                continue
            for _, _, entry in _fields(container):
                name, feature = "", b""
                for entry_number, _, value in _fields(entry):
                    if entry_number == 1:
                        name = value.decode("utf-8")
                    elif entry_number == 2:
                        feature = value
                for kind, _, values in _fields(feature):
                    if kind == 3:
                        parts = [
                            _packed_varints(v)
                            if wire == 2
                            else np.array([v], np.uint64).view("<i8")
                            for _, wire, v in _fields(values)
                        ]
                        found[name] = ("int64", parts)
                    elif kind == 2:
                        parts = [np.frombuffer(v, "<f4") for _, _, v in _fields(values)]
                        found[name] = ("float32", parts)
                    else:
                        found[name] = ("bytes", [])
    except (IndexError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise ValueError("not a serialized tf.train.Example") from error
    result = {}
    for spec in features:
        if spec.name not in found:
            raise ValueError(f"no feature {spec.name!r}; the record has {sorted(found)}")
        dtype, parts = found[spec.name]
        if dtype != spec.dtype:
            raise ValueError(f"feature {spec.name!r}: expected {spec.dtype}, got {dtype}")
        values = np.concatenate(parts) if parts else np.zeros(0, _FIXED_WIDTH[spec.dtype])
        if values.size != spec.length:
            raise ValueError(
                f"feature {spec.name!r}: expected {spec.length} values, got {values.size}"
            )
        result[spec.name] = values.astype(_FIXED_WIDTH[spec.dtype], copy=False)
    return result


def read_examples(
    path: str | os.PathLike, features: Sequence[FeatureSpec]
) -> Iterator[dict[str, np.ndarray]]:
    """Reads records one by one, without TensorFlow; for validation and tests, not for training.

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


def parse_example_fn(features: Sequence[FeatureSpec]) -> Callable[[Any], dict[str, Any]]:
    """Makes the function that parses a batch of serialized records inside tf.data.

    Args:
      features: the schema.

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
        return {
            name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value
            for name, value in parsed.items()
        }

    return parse
