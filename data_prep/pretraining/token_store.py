r"""A corpus as memory-mapped token ids: reading text, tokenizing it piece by piece, and the files.

Text is read in pieces of a fixed size, cut at line ends, so that what is written does not depend
on the number of worker processes. The rules of google-research/bert hold: lines end at \n,
carriage returns vanish, a line without text ends a document, a line without tokens is nothing, and
a new file continues the document of the file before it.
"""

import array
import contextlib
import dataclasses
import glob
import gzip
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from bert_tf.tokenization.wordpiece import UNK_TOKEN, FullTokenizer

PIECE_BYTES = 1 << 20
# What may stay mapped of one file. Of a larger one each look-up can bring in 2 MiB (the largest
# folio of Linux's page cache), so a process's resident set is kept small by other means.
MAX_RESIDENT_BYTES = 1 << 27


# --------------------------------------------------------------------------------------------------
# Input files, on this machine or wherever Apache Beam can read


def is_remote(path: str) -> bool:
    """Whether a path names a file system by a scheme, such as gs:// or hdfs://."""
    return "://" in path


def _file_systems(path: str) -> Any:
    try:
        from apache_beam.io.filesystems import FileSystems
    except ImportError as error:
        raise ValueError(
            f"{path}: only Apache Beam reads this file system; install the extra 'beam'"
        ) from error
    return FileSystems


def open_input(path: str) -> BinaryIO:
    """Opens a file for reading; a compressed one is not decompressed.

    Args:
      path: on this machine, or with the scheme of a file system that Beam knows.

    Returns:
      A stream that can seek.

    Raises:
      OSError: it cannot be read.
      ValueError: it is remote, and Beam is not installed.
    """
    if not is_remote(path):
        return open(path, "rb")
    # Beam would decompress by the name.
    return _file_systems(path).open(path, compression_type="uncompressed")


def input_bytes(path: str) -> int:
    """Size of a file in bytes, of those that `open_input` opens."""
    if not is_remote(path):
        return os.path.getsize(path)
    return _file_systems(path).match([path])[0].metadata_list[0].size_in_bytes


def input_stamp(path: str) -> list[Any]:
    """What changes when a file does: its path, size and time."""
    if not is_remote(path):
        stat = os.stat(path)
        return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
    found = _file_systems(path).match([path])[0].metadata_list[0]
    return [path, found.size_in_bytes, found.last_updated_in_seconds]


# --------------------------------------------------------------------------------------------------
# Text


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
    """Finds the input files.

    Args:
      patterns: comma-separated paths or globs.

    Returns:
      The files, those of one glob sorted by name.

    Raises:
      FileNotFoundError: a pattern that matches no file.
    """
    files = []
    for pattern in patterns.split(","):
        if is_remote(pattern):
            (match,) = _file_systems(pattern).match([pattern])
            found = sorted(metadata.path for metadata in match.metadata_list)
        else:
            found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
            found = [path for path in found if os.path.isfile(path)]
        if not found:
            raise FileNotFoundError(f"input_file: no file matches {pattern!r}")
        files.extend(found)
    return files


@contextlib.contextmanager
def _open_text(path: str):
    """Opens a text file as (stream of its text's bytes, raw file), through gzip if named .gz."""
    with open_input(path) as raw:
        if not path.endswith(".gz"):
            yield raw, raw
            return
        try:
            with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                yield stream, raw
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{path}: broken gzip file: {error}") from error


def text_pieces(files: Sequence[str], piece_bytes: int = PIECE_BYTES) -> Iterator[TextPiece]:
    """Cuts the input into pieces.

    Args:
      files: input files in order; those named .gz are decompressed here, one after another.
      piece_bytes: nominal size of a piece of uncompressed text.

    Yields:
      The pieces in order; every line of every file is in exactly one.

    Raises:
      ValueError: a broken gzip file.
    """
    for path in files:
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
    """The piece's text and its offset in the file (0 for compressed files)."""
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


def _location(piece: TextPiece, begin: int, newlines: int) -> str:
    """File and line for a message: the line after so many line ends of the piece's text."""
    line = piece.first_line + newlines
    if piece.data is None:
        with open_input(piece.path) as stream:
            while begin > 0 and (before := stream.read(min(begin, PIECE_BYTES))):
                begin -= len(before)
                line += before.count(b"\n")
    return f"{piece.path}, line {line}"


def piece_lines(piece: TextPiece) -> tuple[list[str], int]:
    """Reads a piece as lines.

    Args:
      piece: which.

    Returns:
      The lines without their ends (carriage returns are gone, wherever they stood), and the offset
      of the first in the file.

    Raises:
      ValueError: bytes that are not UTF-8, naming file and line.
    """
    data, begin = _read_piece(piece)
    try:
        lines = data.decode("utf-8").replace("\r", "").split("\n")
    except UnicodeDecodeError as error:
        where = _location(piece, begin, data.count(b"\n", 0, error.start))
        raise ValueError(
            f"{where}: not UTF-8: {error.reason} (byte 0x{data[error.start]:02x}); convert the "
            "file, for example with iconv"
        ) from None
    if not lines[-1]:
        lines.pop()  # nothing follows the last line end
    return lines, begin


# --------------------------------------------------------------------------------------------------
# Tokens


def is_uncased_vocabulary(vocab: Mapping[str, int]) -> bool:
    """Whether a vocabulary is that of an uncased model of a language with cases.

    Args:
      vocab: piece to id.

    Returns:
      True if no ordinary piece has an upper-case letter though most have lower-case ones.
    """
    pieces = [p for p in vocab if not (len(p) > 2 and p[0] + p[-1] in ("[]", "<>"))]
    if any(piece != piece.lower() for piece in pieces):
        return False
    return sum(piece != piece.upper() for piece in pieces) * 2 >= len(pieces)


def token_dtype(vocab: Mapping[str, int]) -> np.dtype:
    """Smallest type that holds a vocabulary's ids: uint16 or uint32."""
    return np.dtype(np.uint16 if max(vocab.values()) < 1 << 16 else np.uint32)


@dataclasses.dataclass(eq=False)
class TokenizedPiece:
    """Tokens of a piece.

    Attributes:
      tokens: uint16 or uint32 [tokens], all sentences one after another.
      sentence_lengths: uint32 [sentences], each at least 1.
      document_starts: uint32 [breaks], sentences of the piece before each blank line, increasing.
      unknown_tokens: how many tokens are [UNK].
    """

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_starts: np.ndarray
    unknown_tokens: int

    def write(self, stream: BinaryIO) -> None:
        """Writes the piece to a stream."""
        np.savez(stream, **dataclasses.asdict(self))

    def save(self, path: str) -> None:
        """Writes the piece; the file appears under its name once it is whole."""
        temporary = f"{path}.tmp-{os.getpid()}"
        with open(temporary, "wb") as stream:
            self.write(stream)
        os.replace(temporary, path)

    @classmethod
    def load(cls, source: str | BinaryIO) -> "TokenizedPiece":
        """Reads what `write` or `save` wrote, from a path or a stream that can seek."""
        with np.load(source) as loaded:
            fields = {name: loaded[name] for name in loaded.files}
        return cls(**{**fields, "unknown_tokens": int(fields["unknown_tokens"])})


def tokenize_piece(
    piece: TextPiece, tokenizer: FullTokenizer, refuse_upper_case: bool
) -> TokenizedPiece:
    """Tokenizes the lines of a piece.

    Args:
      piece: which.
      tokenizer: tokenizer whose vocabulary has [UNK].
      refuse_upper_case: whether a capital letter is an error.

    Returns:
      The tokens.

    Raises:
      ValueError: bytes that are not UTF-8, or a refused capital letter, naming file and line.
    """
    lines, begin = piece_lines(piece)
    tokens = array.array("H" if token_dtype(tokenizer.vocab).itemsize == 2 else "I")
    sentence_lengths = []
    document_starts = []
    encode = tokenizer.encode
    for number, line in enumerate(lines):
        line = line.strip()
        if not line:
            document_starts.append(len(sentence_lengths))
            continue
        if refuse_upper_case and line != line.lower():
            raise ValueError(
                f"{_location(piece, begin, number)}: cased text ({line[:40]!r}...), but the "
                f"vocabulary {tokenizer.vocab_file} has no upper-case letters; pass "
                "--do_lower_case=True, or a cased vocabulary"
            )
        ids = encode(line)
        if ids:
            tokens.extend(ids)
            sentence_lengths.append(len(ids))
    ids = np.array(tokens, token_dtype(tokenizer.vocab))
    unknown = tokenizer.vocab[UNK_TOKEN]
    return TokenizedPiece(
        ids,
        np.array(sentence_lengths, np.uint32),
        np.unique(np.array(document_starts, np.uint32)),
        int(np.count_nonzero(ids == unknown)),
    )


# --------------------------------------------------------------------------------------------------
# Files

_TOKENS, _SENTENCES, _DOCUMENTS, _COUNTS = "tokens", "sentences", "documents", "counts.json"
OFFSET_FILES = (_SENTENCES, _DOCUMENTS, _COUNTS)  # what a store without tokens consists of


class StoreWriter:
    """Puts tokenized pieces together into the files of a store.

    Use as a context manager; the store is complete once `close` has written its counts.
    """

    def __init__(self, folder: str):
        """Opens the files, replacing any incomplete ones.

        Args:
          folder: existing folder of the store.
        """
        self._folder = folder
        self._files = {
            name: open(os.path.join(folder, name), "wb")
            for name in (_TOKENS, _SENTENCES, _DOCUMENTS)
        }
        self._counts = {"tokens": 0, "sentences": 0, "documents": 0, "unknown_tokens": 0}
        self._dtype = np.dtype(np.uint16)
        self._last_document = -1

    def append(self, piece: TokenizedPiece) -> None:
        """Adds the next piece of the corpus.

        Args:
          piece: with its tokens, or all pieces without theirs: then the store holds offsets only.
        """
        counts = self._counts
        self._dtype = piece.tokens.dtype
        piece.tokens.tofile(self._files[_TOKENS])
        ends = np.cumsum(piece.sentence_lengths, dtype=np.int64)
        (counts["tokens"] + ends - piece.sentence_lengths).tofile(self._files[_SENTENCES])
        # A document begins at each sentence that follows a blank line, and at the first of all.
        starts = counts["sentences"] + piece.document_starts.astype(np.int64)
        if not counts["sentences"] and ends.size:
            starts = np.unique(np.concatenate([[0], starts]))
        self._add_documents(starts)
        counts["tokens"] += int(ends[-1]) if ends.size else 0
        counts["sentences"] += ends.size
        counts["unknown_tokens"] += piece.unknown_tokens

    def _add_documents(self, starts: np.ndarray) -> None:
        starts = starts[starts > self._last_document]  # documents without sentences are none
        if starts.size:
            starts.tofile(self._files[_DOCUMENTS])
            self._last_document = int(starts[-1])
            self._counts["documents"] += starts.size

    def close(self) -> dict[str, int]:
        """Completes the store.

        Returns:
          Numbers of tokens, sentences, documents and unknown_tokens.
        """
        counts = self._counts
        np.array([counts["tokens"]], np.int64).tofile(self._files[_SENTENCES])
        if self._last_document == counts["sentences"]:  # blank lines at the end of the corpus
            counts["documents"] -= 1
        else:
            np.array([counts["sentences"]], np.int64).tofile(self._files[_DOCUMENTS])
        self._close_files()
        path = os.path.join(self._folder, _COUNTS)
        with open(path + ".tmp", "w", encoding="utf-8") as stream:
            json.dump({**counts, "token_dtype": self._dtype.name}, stream)
        os.replace(path + ".tmp", path)
        return counts

    def _close_files(self) -> None:
        for stream in self._files.values():
            stream.close()

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback):
        if exception_type is None:
            self.close()
        else:
            self._close_files()


def is_complete(folder: str) -> bool:
    """Whether a folder holds a complete store."""
    return os.path.exists(os.path.join(folder, _COUNTS))


class TokenStore:
    """A complete store, memory-mapped.

    Attributes:
      tokens: uint16 or uint32 [tokens].
      sentence_offsets: int64 [sentences + 1], tokens before each sentence.
      document_offsets: int64 [documents + 1], sentences before each document.
      counts: numbers of tokens, sentences, documents and unknown_tokens.
    """

    def __init__(self, folder: str, offsets_only: bool = False):
        """Maps the files.

        Args:
          folder: folder of a complete store.
          offsets_only: leave the tokens alone; `tokens` is empty.

        Raises:
          OSError: there is none.
        """
        with open(os.path.join(folder, _COUNTS), encoding="utf-8") as stream:
            self.counts = json.load(stream)
        self._maps: list[mmap.mmap] = []
        dtype = np.dtype(self.counts.pop("token_dtype"))
        self._tokens_path = os.path.join(folder, _TOKENS)
        count = 0 if offsets_only else self.counts["tokens"]
        self.tokens = self._map(self._tokens_path, dtype, count)
        self.sentence_offsets = self._map(
            os.path.join(folder, _SENTENCES), np.dtype("<i8"), self.counts["sentences"] + 1
        )
        self.document_offsets = self._map(
            os.path.join(folder, _DOCUMENTS), np.dtype("<i8"), self.counts["documents"] + 1
        )

    def _map(self, path: str, dtype: np.dtype, count: int) -> np.ndarray:
        if not count:
            return np.zeros(0, dtype)
        with open(path, "rb") as stream:
            mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapping)
        return np.frombuffer(mapping, dtype, count)

    @property
    def has_large_offsets(self) -> bool:
        """Whether only few offsets should be looked up between two calls of `release`."""
        return max(self.sentence_offsets.nbytes, self.document_offsets.nbytes) > MAX_RESIDENT_BYTES

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Makes ranges of tokens available in memory.

        Args:
          starts: int64 [N], first token of each range.
          lengths: integers [N], tokens in each range.

        Returns:
          tokens, and int64 [N] where in them each range begins: all tokens with `starts` itself, or
          if those are too many to be mapped a copy of the ranges.
        """
        if self.tokens.nbytes <= MAX_RESIDENT_BYTES:
            return self.tokens, starts
        ends = np.cumsum(lengths, dtype=np.int64)
        out = np.empty(int(ends[-1]) if ends.size else 0, self.tokens.dtype)
        size = out.itemsize
        target = out.view(np.uint8).data
        with open(self._tokens_path, "rb", buffering=0) as stream:
            begin = 0
            for start, end in zip((starts * size).tolist(), (ends * size).tolist(), strict=True):
                stream.seek(start)
                stream.readinto(target[begin:end])
                begin = end
        return out, ends - lengths

    def release(self) -> None:
        """Drops large mappings from this process's resident set (they stay in the page cache)."""
        for mapping in self._maps:
            if len(mapping) > MAX_RESIDENT_BYTES and hasattr(mapping, "madvise"):
                mapping.madvise(mmap.MADV_DONTNEED)
