r"""A corpus as memory-mapped token ids: reading text, tokenizing it piece by piece, and the files.

Text is read in pieces of a fixed size, cut at line ends, so that what is written does not depend
on the number of worker processes. The rules of google-research/bert hold: lines end at \n,
carriage returns vanish, a line without text ends a document, a line without tokens is nothing, and
a new file continues the document of the file before it.
"""

import dataclasses
import itertools
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np

from bert_tf.files import read_json, write_text, write_whole
from bert_tf.tokenization.vocabulary import UNK_TOKEN
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.corpus.text_files import TextPiece, location_of, piece_lines
from data_prep.pretraining.listed_words import WordMarker

# What may stay mapped of one file. Of a larger one each look-up can bring in 2 MiB (the largest
# folio of Linux's page cache), so a process's resident set is kept small by other means.
MAX_RESIDENT_BYTES = 1 << 27


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
        characters: of the text, white space left out; None, as the next two, where an earlier
            version wrote the piece, which did not count them.
        unknown_characters: those that [UNK] stands for.
        long_word_characters: those of them in words that are too long for any vocabulary.
    """

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_starts: np.ndarray
    unknown_tokens: int
    characters: int | None = None
    unknown_characters: int | None = None
    long_word_characters: int | None = None

    @classmethod
    def joined(cls, pieces: Sequence["TokenizedPiece"]) -> "TokenizedPiece":
        """Return the piece of some that follow each other, at least one."""
        ends = np.cumsum([piece.sentence_lengths.size for piece in pieces])
        starts = [
            piece.document_starts + np.uint32(end - piece.sentence_lengths.size)
            for piece, end in zip(pieces, ends, strict=True)
        ]
        return cls(
            np.concatenate([piece.tokens for piece in pieces]),
            np.concatenate([piece.sentence_lengths for piece in pieces]),
            np.unique(np.concatenate(starts)),
            *(
                sum(getattr(piece, name) for piece in pieces)
                for name in ("unknown_tokens", *CHARACTER_COUNTS)
            ),
        )

    def write(self, stream: IO[bytes]) -> None:
        """Write the piece to a stream."""
        np.savez(stream, **dataclasses.asdict(self))

    def save(self, path: str) -> None:
        """Write the piece; the file appears under its name once it is whole."""
        with write_whole(path) as stream:
            self.write(stream)

    @classmethod
    def load(cls, source: str | IO[bytes]) -> "TokenizedPiece":
        """Read what `write` or `save` wrote, from a path or a stream that can seek."""
        with np.load(source) as loaded:
            fields = {name: loaded[name] for name in loaded.files}
        return cls(**{name: x if x.ndim else x.item() for name, x in fields.items()})


def tokenize_piece(
    piece: TextPiece,
    tokenizer: FullTokenizer,
    refuse_upper_case: bool,
    marker: WordMarker | None = None,
) -> TokenizedPiece:
    """Tokenize the lines of a piece.

    Args:
        piece: which.
        tokenizer: tokenizer whose vocabulary has [UNK].
        refuse_upper_case: whether a capital letter is an error.
        marker: marks listed words; of the same tokenizer.

    Returns:
        The tokens, with marks where there is a marker.

    Raises:
        ValueError: bytes that are not UTF-8, or a refused capital letter, naming file and line.
    """
    raw_lines, begin = piece_lines(piece)
    lines: list[str] = []  # with text
    document_starts: list[int] = []  # lines with text before each blank line
    for number, line in enumerate(raw_lines):
        line = line.strip()
        if not line:
            document_starts.append(len(lines))
            continue
        if refuse_upper_case and line != line.lower():
            raise ValueError(
                f"{location_of(piece, begin, number)}: cased text ({line[:40]!r}...), but the "
                f"vocabulary {tokenizer.vocab_file} has no upper-case letters; pass "
                "--do_lower_case=True, or a cased vocabulary"
            )
        lines.append(line)
    if marker is None:
        ids, lengths = tokenizer.encode_lines(lines)
        tokens = ids.astype(token_dtype(tokenizer.vocab))
    else:
        marked = list(map(marker.encode, lines))
        lengths = np.array(list(map(len, marked)), np.int64)
        tokens = np.fromiter(itertools.chain.from_iterable(marked), marker.dtype)
    # A line without tokens is no sentence.
    sentences_before = np.concatenate([[0], np.cumsum(lengths > 0)])
    is_unknown = tokens == tokenizer.vocab[UNK_TOKEN]
    line_of_unknown = np.searchsorted(np.cumsum(lengths), np.flatnonzero(is_unknown), side="right")
    unknown = [tokenizer.count_unknown(lines[i]) for i in np.unique(line_of_unknown).tolist()]
    return TokenizedPiece(
        tokens,
        lengths[lengths > 0].astype(np.uint32),
        np.unique(sentences_before[document_starts]).astype(np.uint32),
        int(np.count_nonzero(is_unknown)),
        sum(map(len, lines)) - sum(line.count(" ") for line in lines),
        sum(count for count, _ in unknown),
        sum(in_long_words for _, in_long_words in unknown),
    )


# === Files ===

_TOKENS, _SENTENCES, _DOCUMENTS, _COUNTS = "tokens", "sentences", "documents", "counts.json"
CHARACTER_COUNTS = ("characters", "unknown_characters", "long_word_characters")
OFFSET_FILES = (_SENTENCES, _DOCUMENTS, _COUNTS)  # what a store without tokens consists of


class StoreWriter:
    """Puts tokenized pieces together into the files of a store.

    Use as a context manager; the store is complete once its counts are written, at the end.
    """

    def __init__(self, folder: str):
        """Open the files, replacing any incomplete ones.

        Args:
            folder: existing folder of the store.
        """
        self._folder = folder
        self._files = {
            name: open(os.path.join(folder, name), "wb")
            for name in (_TOKENS, _SENTENCES, _DOCUMENTS)
        }
        self._counts = {"tokens": 0, "sentences": 0, "documents": 0, "unknown_tokens": 0}
        self._counts |= dict.fromkeys(CHARACTER_COUNTS, 0)
        self._dtype = np.dtype(np.uint16)
        self._last_document = -1

    def append(self, piece: TokenizedPiece) -> None:
        """Add the next piece of the corpus.

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
        for name in CHARACTER_COUNTS:
            count = getattr(piece, name)
            if count is None:
                counts.pop(name, None)
            elif name in counts:
                counts[name] += count

    def _add_documents(self, starts: np.ndarray) -> None:
        starts = starts[starts > self._last_document]  # documents without sentences are none
        if starts.size:
            starts.tofile(self._files[_DOCUMENTS])
            self._last_document = int(starts[-1])
            self._counts["documents"] += starts.size

    def _end_offsets(self) -> None:
        counts = self._counts
        np.array([counts["tokens"]], np.int64).tofile(self._files[_SENTENCES])
        if self._last_document == counts["sentences"]:  # blank lines at the end of the corpus
            counts["documents"] -= 1
        else:
            np.array([counts["sentences"]], np.int64).tofile(self._files[_DOCUMENTS])

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, traceback):
        if exception_type is None:
            self._end_offsets()
        for stream in self._files.values():
            stream.close()
        if exception_type is None:
            described = {**self._counts, "token_dtype": self._dtype.name}
            write_text(os.path.join(self._folder, _COUNTS), json.dumps(described))


def is_complete(folder: str) -> bool:
    """Whether a folder holds a complete store."""
    return os.path.exists(os.path.join(folder, _COUNTS))


class TokenStore:
    """A complete store, memory-mapped.

    Attributes:
        tokens: uint16 or uint32 [tokens].
        sentence_offsets: int64 [sentences + 1], tokens before each sentence.
        document_offsets: int64 [documents + 1], sentences before each document.
        counts: see `StoreWriter.close`.
    """

    def __init__(self, folder: str, offsets_only: bool = False):
        """Map the files.

        Args:
            folder: folder of a complete store.
            offsets_only: leave the tokens alone; `tokens` is empty.

        Raises:
            OSError: there is none.
        """
        self.counts = read_json(os.path.join(folder, _COUNTS))
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
        """Make ranges of tokens available in memory.

        Args:
            starts: int64 [N], first token of each range.
            lengths: integers [N], tokens in each range.

        Returns:
            tokens, and int64 [N] where in them each range begins: all tokens with `starts` itself,
            or if those are too many to be mapped a copy of the ranges.
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
        """Drop large mappings from this process's resident set (they stay in the page cache)."""
        for mapping in self._maps:
            if len(mapping) > MAX_RESIDENT_BYTES and hasattr(mapping, "madvise"):
                mapping.madvise(mmap.MADV_DONTNEED)
