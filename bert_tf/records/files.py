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
import contextlib
import gzip
import mmap
import os
import re
import struct
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

import google_crc32c
import numpy as np

from bert_tf.files import beside, check_declared, local_copy, open_file, replacing, size_of
from bert_tf.records.encoding import (
    FOOTER_BYTES,
    HEADER_BYTES,
    frame_header,
    frame_record,
    mask_crc,
    masked_crc,
)

Compression = Literal["gzip"] | None
_SEARCH_BYTES = 1 << 16  # looked through at once for the record after a damaged one
_BLOCK_BYTES = 1 << 20


# === Files ===


def gzip_stream(raw: BinaryIO) -> gzip.GzipFile:
    """Open a gzip stream whose bytes depend on what is written only (no name, no time).

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
    """Return a record file's path without shard number and extensions.

    Args:
        record_file: path of a TFRecord file.

    Returns:
        The path up to the first of `-NNNNN-of-NNNNN`, `.tfrecord(s)`, `.gz` at its end.
    """
    name = os.path.basename(record_file).removesuffix(".gz")
    stem = re.sub(r"\.(tfrecords?|tfr|records?)$", "", name)
    stem = re.sub(r"-\d{5,}-of-\d{5,}$", "", stem)
    return beside(record_file, stem or name)


class RecordWriter:
    """Writes a TFRecord file, here or remote, that appears under its name only once it is whole.

    Use as a context manager: what is written so far has another name (see `files.replacing`), and
    is removed when an exception leaves the block.
    """

    def __init__(self, path: str | os.PathLike, compression: Compression = None):
        """Open the temporary file.

        Args:
            path: the finished file's path; an existing file is replaced on `close`.
            compression: None or "gzip" (tf.data's `compression_type="GZIP"`).

        Raises:
            ValueError: another compression, or a path that `files.replacing` refuses.
            OSError: the folder cannot be made or written to.
        """
        if compression not in (None, "gzip"):
            raise ValueError(f"compression must be None or 'gzip', got {compression!r}")
        self.path = os.fspath(path)
        self._open = contextlib.ExitStack()
        temporary = self._open.enter_context(replacing(path))
        self._stream: Any = self._open.enter_context(open(temporary, "wb"))
        if compression == "gzip":
            self._stream = self._open.enter_context(gzip_stream(self._stream))

    def write(self, record: bytes) -> None:
        """Append one record.

        Args:
            record: serialized example.
        """
        self._stream.write(frame_record(record))

    def write_framed(self, framed: bytes) -> None:
        """Append records that are already framed.

        Args:
            framed: result of `encode_framed_examples`.
        """
        self._stream.write(framed)

    def close(self) -> None:
        """Complete the file and give it its name."""
        self._open.close()

    def discard(self) -> None:
        """Give up: remove the temporary file."""
        with contextlib.suppress(_Discarded), self._open:
            raise _Discarded

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback):
        if exception_type is None:
            self.close()
        else:
            self.discard()


class _Discarded(Exception):
    """Tells what is open for writing that it shall not get its name."""


@contextlib.contextmanager
def _open_records(path: str) -> Iterator[BinaryIO]:
    """Open a TFRecord file for reading, gzip recognised by its content."""
    with open_file(path) as raw:
        head = raw.read(HEADER_BYTES)
        raw.seek(0)
        length = struct.unpack("<Q", head[:8])[0] if len(head) == HEADER_BYTES else None
        if (length is None or head != frame_header(length)) and head[:3] == b"\x1f\x8b\x08":
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream  # type: ignore[misc]
        else:
            yield raw  # type: ignore[misc]


def compression_of(path: str | os.PathLike) -> Compression:
    """Tell by its content whether a TFRecord file is compressed.

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
    """Yield the records of a TFRecord file, checking both checksums of each.

    Args:
        path: file, plain or gzip (recognised by content).
        on_damage: where given, damage is no error: this is called with what would be its message,
            and reading goes on with the next whole record. After a corrupt length that is searched
            for; nothing can be read behind damage of compressed data.

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

    file_bytes = size_of(path)
    with _open_records(path) as stream:
        while True:
            try:
                header = stream.read(HEADER_BYTES)
                if not header:
                    return
                size = struct.unpack("<Q", header[:8])[0] if len(header) == HEADER_BYTES else -1
                if size >= 0 and header != frame_header(size):
                    damaged("corrupt length (checksum differs)")
                    number += 1
                    if not _find_header(stream, header):
                        return
                    continue
                if problem := _excess(size, file_bytes):
                    return damaged(problem)
                body = _read_bytes(stream, size + FOOTER_BYTES) if size >= 0 else b""
            except EOFError as error:
                return damaged(f"file is truncated: {error}")
            except (gzip.BadGzipFile, zlib.error) as error:
                return damaged(f"corrupt gzip data: {error}")
            if size < 0 or len(body) != size + FOOTER_BYTES:
                return damaged("file is truncated")
            record = body[:size]
            if struct.unpack("<I", body[size:])[0] != masked_crc(record):
                damaged("corrupt data (checksum differs)")
            else:
                yield record
            number += 1


def _excess(size: int, file_bytes: int) -> str | None:
    """Say what is wrong with the length of a record that no file of this size can hold."""
    try:
        check_declared(size, file_bytes, "its length")
    except ValueError as error:
        return str(error)
    return None


def _read_bytes(stream: BinaryIO, size: int) -> bytes:
    """Read so many bytes, or what there is; memory is taken for no more than that."""
    first = stream.read(min(size, _BLOCK_BYTES))
    if len(first) == size or len(first) < _BLOCK_BYTES:
        return first
    data = bytearray(first)
    while block := stream.read(min(size - len(data), _BLOCK_BYTES)):
        data += block
    return bytes(data)


def _find_header(stream: BinaryIO, read: bytes) -> bool:
    """Go to the next header of a record after `read`, of which the first byte is not one's."""
    begin = stream.tell() - len(read) + 1
    stream.seek(begin)
    kept = b""
    while block := stream.read(_SEARCH_BYTES):
        kept += block
        for place in range(len(kept) - HEADER_BYTES + 1):
            crc = google_crc32c.value(kept[place : place + 8])
            if mask_crc(crc) == int.from_bytes(kept[place + 8 : place + 12], "little"):
                stream.seek(begin + place)
                return True
        begin += len(kept) - HEADER_BYTES + 1
        kept = kept[-HEADER_BYTES + 1 :]
    return False


def scan_records(path: str | os.PathLike) -> int:
    """Check a TFRecord file's framing from end to end.

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
        """Find where each record lies; their data are read later.

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
        with open(local_copy(self.path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    position = 0
                    while position < size:
                        header = data[position : position + HEADER_BYTES]
                        length = int.from_bytes(header[:8], "little")
                        position += HEADER_BYTES + length + FOOTER_BYTES
                        number = len(offsets) - 1
                        is_whole = len(header) == HEADER_BYTES
                        # Before the size: a corrupt length reaches beyond the end of most files.
                        if is_whole and header != frame_header(length):
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
        """Read one record.

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
        record = data[HEADER_BYTES : end - begin - FOOTER_BYTES]
        if len(data) != end - begin or data[-FOOTER_BYTES:] != struct.pack(
            "<I", masked_crc(record)
        ):
            raise ValueError(f"{self.path}: record {number}: corrupt data (checksum differs)")
        return record
