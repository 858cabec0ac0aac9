"""Words of scripts that set no spaces between them, found by a list, for masks of whole words.

The tokenizer makes a piece of each ideograph, so that no piece tells where a word of several begins
and ends. A list does: between white space and listed words already found, the longest word of the
list that begins at a piece is a word (forward maximum matching). Pieces after the first of such
a word are stored with a mark, which is an id beyond the vocabulary; records hold the ids without.

Reference: google-research/bert, issue 780; arXiv 1906.08101, section 2.2.
"""

import os
from collections.abc import Iterable

import numpy as np

from bert_tf.files import open_file
from bert_tf.tokenization.characters import CLEAN
from bert_tf.tokenization.wordpiece import FullTokenizer


def read_word_list(path: str | os.PathLike[str]) -> list[str]:
    """Read a list of words, one a line; what follows white space, as jieba's counts, is left out.

    Raises:
        ValueError: a line is not UTF-8; the message names it.
        OSError: there is no such file.
    """
    words = []
    with open_file(path) as reader:
        for number, line in enumerate(reader, start=1):
            try:
                parts = line.decode("utf-8").removeprefix("\ufeff").split(maxsplit=1)
            except UnicodeDecodeError as error:
                raise ValueError(f"word_list {path}, line {number}: not UTF-8: {error}") from None
            words += parts[:1]
    return words


def mark_offset(ids: Iterable[int]) -> int:
    """Return what a mark adds to an id: one more than the highest of a vocabulary's ids."""
    return max(ids) + 1


class WordMarker:
    """A tokenizer that marks the pieces after the first of each listed word.

    Attributes:
        num_words: words of the list that are several pieces, which can be found.
        num_unknown: words of which a part is [UNK]; they cannot.
    """

    def __init__(self, tokenizer: FullTokenizer, words: Iterable[str]):
        """Cut the words into pieces.

        Args:
            tokenizer: of the model.
            words: the list.
        """
        self._encode = tokenizer.encode
        self.offset = mark_offset(tokenizer.vocab.values())
        self._continues = {i for piece, i in tokenizer.vocab.items() if piece.startswith("##")}
        # Ids as characters: strings are compact, and their slices fast to look up.
        self._words: set[str] = set()
        self._longest: dict[str, int] = {}  # by the first piece
        self.num_unknown = 0
        for word in words:
            ids = tokenizer.encode(word)
            if tokenizer.wordpiece_tokenizer.unk_id in ids:
                self.num_unknown += 1
            elif len(ids) > 1:
                text = "".join(map(chr, ids))
                self._words.add(text)
                self._longest[text[0]] = max(len(text), self._longest.get(text[0], 0))
        self.num_words = len(self._words)

    @property
    def dtype(self) -> np.dtype:
        """Smallest type that holds ids with marks: uint16 or uint32."""
        return np.dtype(np.uint16 if 2 * self.offset <= 1 << 16 else np.uint32)

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids that the tokenizer gives, with marks added to some.

        Args:
            text: as for the tokenizer.
        """
        text = text.decode("utf-8", "ignore") if isinstance(text, bytes) else text
        marked: list[int] = []
        for run in text.translate(_RUNS).split(" "):
            marked += self._mark(self._encode(run))
        return marked

    def _mark(self, ids: list[int]) -> list[int]:
        text = "".join(map(chr, ids))
        start = 0
        while start < len(text):
            longest = min(self._longest.get(text[start], 0), len(text) - start)
            end = start + 1
            for size in range(longest, 1, -1):
                # A word of letters ends where no piece continues it.
                if text[start : start + size] in self._words and (
                    start + size == len(ids) or ids[start + size] not in self._continues
                ):
                    end = start + size
                    break
            for place in range(start + 1, end):
                ids[place] += self.offset
            start = end
        return ids


class _Runs(dict[int, int | str | None]):
    """Table for str.translate: white space becomes " ", and what the tokenizer drops vanishes."""

    def __missing__(self, codepoint: int) -> int | str | None:
        cleaned = CLEAN[codepoint]
        value = None if cleaned is None else " " if cleaned == " " else codepoint
        self[codepoint] = value
        return value


_RUNS = _Runs()
