"""Text files, local and remote, in pieces that workers read."""

import contextlib
import dataclasses
import gzip
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

from bert_tf import files
from bert_tf.files import is_remote

PIECE_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16  # of a file that is looked at before any work


# === Input files, on this machine or wherever fsspec or Apache Beam can read ===


def _beam(path: str) -> Any:
    """Return Apache Beam's file systems where they alone know a path's; else None."""
    if not is_remote(path):
        return None
    try:
        files.file_system(path)
    except ValueError:
        with contextlib.suppress(ImportError, ValueError):
            from apache_beam.io.filesystems import FileSystems

            FileSystems.get_filesystem(path)
            return FileSystems
        raise
    return None


def open_input(path: str) -> IO[bytes]:
    """Open a file for reading; a compressed one is not decompressed.

    Args:
        path: on this machine, or of a file system that fsspec or Beam knows.

    Returns:
        A stream that can seek.

    Raises:
        OSError: it cannot be read.
        ValueError: its file system is not known, or needs a package that is not installed.
    """
    if beam := _beam(path):
        return beam.open(path, compression_type="uncompressed")  # else the name would decide
    return files.open_file(path)


def input_bytes(path: str) -> int:
    """Return the bytes of a file that `open_input` opens."""
    if beam := _beam(path):
        return beam.match([path])[0].metadata_list[0].size_in_bytes
    return files.size_of(path)


def input_stamp(path: str) -> list[str | int | float]:
    """Return what changes when a file does: its path, size and time."""
    if beam := _beam(path):
        metadata = beam.match([path])[0].metadata_list[0]
        return [path, metadata.size_in_bytes, metadata.last_updated_in_seconds]
    return [*files.stamp_of(path)]


def check_name(path: str, head: bytes, known: Sequence[str]) -> None:
    """Refuse a file whose name does not say how its content is compressed.

    Args:
        path: the file.
        head: its first bytes.
        known: ends of the names of those that can be read.

    Raises:
        ValueError: it does not, or such files are not read.
    """
    for suffix, is_so in {
        ".gz": head.startswith(b"\x1f\x8b"),
        ".bz2": head.startswith(b"BZh") and head[4:10] == b"1AY&SY",
    }.items():
        if is_so and suffix not in known:
            raise ValueError(f"{path}: holds {suffix[1:]} data, which is not read here: unpack it")
        if is_so and not path.endswith(suffix):
            raise ValueError(
                f"{path}: holds {suffix[1:]} data: unpack it, or give it a name in {suffix}"
            )


# === Text ===


@dataclasses.dataclass(frozen=True)
class TextPiece:
    """A run of whole lines of one input file.

    Attributes:
        path: the file.
        start: nominal offset of the piece in the file; 0 where `data` holds the text.
        size: nominal bytes; the piece has the lines that begin within them.
        data: the text itself, for a compressed file, which cannot be read from the middle.
        first_line: number of the first line of `data`, from 1.
        file_bytes: bytes of the file that the piece accounts for, for progress.
    """

    path: str
    start: int
    size: int
    data: bytes | None = None
    first_line: int = 1
    file_bytes: int = 0


def expand_patterns(patterns: str) -> list[str]:
    """Find the input files.

    Args:
        patterns: comma-separated paths or globs.

    Returns:
        The files, those of one glob sorted by name.

    Raises:
        FileNotFoundError: a pattern that matches no file.
    """
    paths: list[str] = []
    for pattern in patterns.split(","):
        matches: list[str] = []
        if beam := _beam(pattern):
            (match,) = beam.match([pattern])
            matches = sorted(metadata.path for metadata in match.metadata_list)
        else:
            with contextlib.suppress(FileNotFoundError):
                matches = files.expand(pattern, "input_file")
        if not matches:
            raise FileNotFoundError(f"input_file: no file matches {pattern!r}")
        paths += matches
    return paths


@contextlib.contextmanager
def _open_text(path: str):
    """Open a text file as (stream of its text's bytes, raw file), through gzip if named .gz."""
    with open_input(path) as raw:
        if not path.endswith(".gz"):
            yield raw, raw
            return
        try:
            with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                yield stream, raw
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{path}: broken gzip file: {error}") from error


def check_text(path: str) -> None:
    """Refuse a file, before any work, that cannot be text in lines.

    Raises:
        OSError: it cannot be read.
        ValueError: it is compressed in another way than its name says, or has no line ends but the
            carriage returns of old Macs, which the original drops, so that words would be glued.
    """
    with open_input(path) as raw:
        check_name(path, raw.read(_HEAD_BYTES), (".gz",))
    with _open_text(path) as (stream, _):
        head = stream.read(_HEAD_BYTES)
    if b"\r" in head.rstrip(b"\r") and b"\n" not in head:
        raise ValueError(
            f"{path}: its lines end in carriage returns alone; convert them: "
            r"tr '\r' '\n' < FILE > CONVERTED"
        )


def text_pieces(paths: Sequence[str], piece_bytes: int = PIECE_BYTES) -> Iterator[TextPiece]:
    """Cut the input into pieces.

    Args:
        paths: input files in order; those named .gz are decompressed here, one after another.
        piece_bytes: nominal size of a piece of uncompressed text.

    Yields:
        The pieces in order; every line of every file is in exactly one.

    Raises:
        ValueError: a broken gzip file.
    """
    for path in paths:
        if path.endswith(".gz"):
            line, before = 1, 0
            with _open_text(path) as (stream, raw):
                while data := stream.read(piece_bytes):
                    data += stream.readline()
                    yield TextPiece(path, 0, 0, data, line, raw.tell() - before)
                    line, before = line + data.count(b"\n"), raw.tell()
        else:
            size = input_bytes(path)
            for start in range(0, size, piece_bytes):
                nominal = min(size - start, piece_bytes)
                yield TextPiece(path, start, piece_bytes, file_bytes=nominal)


def _read_piece(piece: TextPiece) -> tuple[bytes, int]:
    """Return the piece's text and its offset in the file (0 for compressed files)."""
    if piece.data is not None:
        return piece.data, 0
    with open_input(piece.path) as stream:
        if piece.start:
            stream.seek(piece.start - 1)
            stream.readline()  # belongs to the piece before, unless it is but a line end
        begin = stream.tell()
        size = piece.start + piece.size - begin
        if size <= 0:
            return b"", begin
        data = stream.read(size)
        if not data.endswith(b"\n"):
            data += stream.readline()
        return data, begin


def location_of(piece: TextPiece, begin: int, newlines: int) -> str:
    """Name file and line, after so many line ends of the piece's text, for a message."""
    line = piece.first_line + newlines
    if piece.data is None:
        with open_input(piece.path) as stream:
            while begin > 0 and (before := stream.read(min(begin, PIECE_BYTES))):
                begin -= len(before)
                line += before.count(b"\n")
    return f"{piece.path}, line {line}"


def piece_lines(piece: TextPiece) -> tuple[list[str], int]:
    """Read a piece as lines.

    Args:
        piece: which.

    Returns:
        The lines without their ends (carriage returns are gone, wherever they stood), and the
        offset of the first in the file.

    Raises:
        ValueError: bytes that are not UTF-8, naming file and line.
    """
    data, begin = _read_piece(piece)
    try:
        lines = data.decode("utf-8").replace("\r", "").split("\n")
    except UnicodeDecodeError as error:
        where = location_of(piece, begin, data.count(b"\n", 0, error.start))
        raise ValueError(
            f"{where}: not UTF-8: {error.reason} (byte 0x{data[error.start]:02x}); convert the "
            "file, for example with iconv"
        ) from None
    if not lines[-1]:
        lines.pop()  # nothing follows the last line end
    return lines, begin
