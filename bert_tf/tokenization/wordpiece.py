"""Text to WordPiece ids, exactly as google-research/bert's tokenization.py, with a fast path.

Text is cleaned, CJK ideographs are set apart, then it is split at white space; in uncased mode each
word is lower-cased and loses its accents (NFD, then category Mn is dropped); words are split at
punctuation, and each is cut into the longest vocabulary pieces from the left. What is a letter, a
mark or punctuation is asked of the running Python's `unicodedata`, as the original does.

Speed comes from two facts. No rule looks across a U+0020, so the text between two spaces can be
looked up whole in a memo. And every rule on single characters is a table for `str.translate`.
Of many lines at once the ASCII ones are encoded with NumPy (`line_encoder.py`).

Neither TensorFlow nor Keras is imported here: data preparation workers need only this module.
"""

import itertools
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeVar

from bert_tf.tokenization import vocabulary
from bert_tf.tokenization.characters import CLEAN, CLEAN_AND_SPLIT, STRIP_AND_SPLIT, is_punctuation

if TYPE_CHECKING:
    import numpy as np

    from bert_tf.tokenization.line_encoder import LineEncoder

MAX_CHARS_PER_WORD = 200  # a longer word becomes [UNK] (the original's limit)

DEFAULT_MAX_MEMO_BYTES = 256 * 2**20  # holds about a million distinct chunks of English
_MAX_MEMO_KEY_CHARS = 64  # longer chunks hardly ever come again
_MEMO_ENTRY_BYTES = 96  # a slot of a dict that has just grown, and the tuple's hidden header

_T = TypeVar("_T")


class BasicTokenizer:
    """Text to words: cleaning, casing, accents and punctuation, before any vocabulary.

    Args:
        do_lower_case: lower-case the words, as uncased models need.
        strip_accents: decompose the words and drop their marks (of category Mn: accents, and vowel
            signs of Indic scripts); None as the original does, where they are lower-cased.

    Reference: google-research/bert tokenization.py, BasicTokenizer.
    """

    def __init__(self, do_lower_case: bool = True, strip_accents: bool | None = None):
        self.do_lower_case = do_lower_case
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents

    def tokenize(self, text: str | bytes) -> list[str]:
        """Return the words of a text, each without white space, punctuation one by one."""
        text = vocabulary.convert_to_unicode(text)
        if not self.do_lower_case and not self.strip_accents:
            return text.translate(CLEAN_AND_SPLIT).split()
        if text.isascii():
            text = text.lower() if self.do_lower_case else text
            return [text] if text.isalnum() else text.translate(CLEAN_AND_SPLIT).split()
        # Cleaning comes first: a character that vanishes is no context for a final sigma. Neither
        # lower() nor NFD looks across the spaces, so the words need not be parted before them.
        text = text.translate(CLEAN)
        text = text.lower() if self.do_lower_case else text
        if not self.strip_accents:
            return text.translate(CLEAN_AND_SPLIT).split()
        return unicodedata.normalize("NFD", text).translate(STRIP_AND_SPLIT).split()

    def tokenize_with_offsets(self, text: str | bytes) -> list[tuple[str, list[tuple[int, int]]]]:
        """Return each word with the raw characters that each of its characters came from.

        Returns:
            Pairs (word, spans); spans[i] = (start, end) belongs to word[i] and counts characters of
            the raw text (of the decoded text, for bytes). Accents that were stripped belong to the
            character before them.
        """
        words = []
        token: list[tuple[str, int, int]] = []
        for index, char in enumerate(vocabulary.convert_to_unicode(text)):
            cleaned = CLEAN[ord(char)]
            if cleaned is None:
                continue
            if char.isspace() or isinstance(cleaned, str):
                words.extend(self._split_token(token))
                token = []
                if not char.isspace():  # an ideograph stands alone
                    words.extend(self._split_token([(char, index, index + 1)]))
            else:
                token.append((char, index, index + 1))
        words.extend(self._split_token(token))
        return words

    def _split_token(
        self, token: list[tuple[str, int, int]]
    ) -> list[tuple[str, list[tuple[int, int]]]]:
        """Casing, accents and punctuation of one token of (character, start, end)."""
        token = _lower(token) if self.do_lower_case else token
        token = _strip_accents(token) if self.strip_accents else token
        words: list[tuple[str, list[tuple[int, int]]]] = []
        in_word = False
        for char, start, end in token:
            if is_punctuation(char):
                words.append((char, [(start, end)]))
                in_word = False
            elif in_word:
                word, spans = words[-1]
                spans.append((start, end))
                words[-1] = (word + char, spans)
            else:
                words.append((char, [(start, end)]))
                in_word = True
        return words


def _lower(token: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Lower-case a token of (character, start, end) as str.lower() does the whole."""
    # A sigma's form depends on its neighbours, the number of characters does not.
    lowered = iter("".join(char for char, _, _ in token).lower())
    return [
        (next(lowered), start, end) for char, start, end in token for _ in range(len(char.lower()))
    ]


def _strip_accents(token: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """NFD without marks of category Mn, for a token of (character, start, end)."""
    decomposed = []
    starters = 0  # marks are ordered by class, stably, between two characters of class 0
    for char, start, end in token:
        for part in unicodedata.normalize("NFD", char):
            combining = unicodedata.combining(part)
            starters += combining == 0
            decomposed.append((starters, combining, part, start, end))
    decomposed.sort(key=lambda item: item[:2])
    kept: list[tuple[str, int, int]] = []
    for _, _, char, start, end in decomposed:
        if unicodedata.category(char) != "Mn":
            kept.append((char, start, end))
        elif kept:
            kept[-1] = (kept[-1][0], kept[-1][1], max(kept[-1][2], end))
    return kept


class WordpieceTokenizer:
    """Words to pieces: the longest piece of the vocabulary from the left, again and again.

    Args:
        vocab: piece to id; pieces that continue a word begin with ##.
        unk_token: piece for a word that cannot be cut, or is too long.
        max_chars_per_word: characters beyond which a word becomes `unk_token`.

    Reference: google-research/bert tokenization.py, WordpieceTokenizer.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        unk_token: str = vocabulary.UNK_TOKEN,
        max_chars_per_word: int = MAX_CHARS_PER_WORD,
    ):
        self.vocab = vocab
        self.unk_token = unk_token
        self.max_chars_per_word = max_chars_per_word
        self._first = dict(vocab)
        self._next = {token[2:]: i for token, i in vocab.items() if token.startswith("##")}
        self._max_first_chars = max(map(len, self._first), default=0)
        self._max_next_chars = max(map(len, self._next), default=0)
        self._inverse = {i: token for token, i in vocab.items()}
        # Where the vocabulary lacks [UNK], a number that no line of a vocabulary has stands for it.
        self.unk_id = vocab.get(unk_token, -1)
        self._inverse.setdefault(self.unk_id, unk_token)

    def encode_word(self, word: str) -> tuple[int, ...]:
        """Return the ids of one word without white space; -1 where [UNK] is itself unknown."""
        if word in self._first and len(word) <= self.max_chars_per_word:
            return (self._first[word],)
        length = len(word)
        if length > self.max_chars_per_word:
            return (self.unk_id,)
        ids = []
        pieces, max_chars = self._first, self._max_first_chars
        start = 0
        while start < length:
            for end in range(min(length, start + max_chars), start, -1):
                piece = pieces.get(word[start:end])
                if piece is not None:
                    break
            else:
                return (self.unk_id,)
            ids.append(piece)
            start = end
            pieces, max_chars = self._next, self._max_next_chars
        return tuple(ids)

    def tokenize(self, text: str | bytes) -> list[str]:
        """Return the pieces of words separated by white space."""
        return [
            self._inverse[i]
            for word in vocabulary.convert_to_unicode(text).split()
            for i in self.encode_word(word)
        ]


class _Memo(dict[str, tuple]):
    """Remembers a function of short strings in bounded memory; the long unused are forgotten.

    There are two generations, of half the bytes each. What is asked for again moves from the older
    to the younger, and the older is dropped whenever the younger is full. What the values refer to
    is taken to exist anyway: the vocabulary's ids and pieces, and numbers below 257.
    """

    def __init__(self, function: Callable[[str], tuple], max_bytes: int):
        super().__init__()
        self._function = function
        self._max_bytes = max_bytes // 2
        self._bytes = 0
        self._older: dict[str, tuple] = {}

    def __missing__(self, key: str) -> tuple:
        value = self._older.get(key)
        if value is None:
            value = self._function(key)
            if len(key) > _MAX_MEMO_KEY_CHARS:
                return value
        size = sys.getsizeof(key) + sys.getsizeof(value) + _MEMO_ENTRY_BYTES
        if self._bytes + size > self._max_bytes:
            self._older = {}
            self._older = dict(self)
            self.clear()
            self._bytes = 0
        if size <= self._max_bytes:
            self[key] = value
            self._bytes += size
        return value


class FullTokenizer:
    """Text to the pieces and ids of a BERT vocabulary.

    Args:
        vocab_file: path of a vocabulary, one piece a line; a line's number from 0 is its id.
        do_lower_case: True for uncased models, False for cased and Chinese ones.
        strip_accents: as for `BasicTokenizer`.
        parse_special_tokens: where text contains literally `[MASK]` or another of SPECIAL_TOKENS
            that the vocabulary has, make it that one piece. Off, no text can produce one of them.
        max_memo_bytes: bound on the memory of the memo of `encode`, per tokenizer; 0 for none.

    Raises:
        FileNotFoundError, ValueError: see `load_vocab`.

    Reference: google-research/bert tokenization.py, FullTokenizer.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        do_lower_case: bool = True,
        *,
        strip_accents: bool | None = None,
        parse_special_tokens: bool = False,
        max_memo_bytes: int = DEFAULT_MAX_MEMO_BYTES,
    ):
        _check_memo(max_memo_bytes)
        self._set_up(
            {
                "vocab_file": os.fspath(vocab_file),
                "vocab": vocabulary.load_vocab(vocab_file),
                "do_lower_case": do_lower_case,
                "strip_accents": strip_accents,
                "parse_special_tokens": parse_special_tokens,
                "max_memo_bytes": max_memo_bytes,
            }
        )

    @classmethod
    def from_vocab(
        cls,
        vocab: Mapping[str, int],
        do_lower_case: bool = True,
        *,
        strip_accents: bool | None = None,
        parse_special_tokens: bool = False,
        max_memo_bytes: int = DEFAULT_MAX_MEMO_BYTES,
    ) -> "FullTokenizer":
        """Make a tokenizer of pieces and their ids, without a file (`vocab_file` is then "").

        Args:
            vocab: piece -> id.
            do_lower_case: as for the class.
            strip_accents: as for the class.
            parse_special_tokens: as for the class.
            max_memo_bytes: as for the class.

        Raises:
            ValueError: see `check_vocab`; or max_memo_bytes is negative.
        """
        vocabulary.check_vocab(vocab, "vocab")
        _check_memo(max_memo_bytes)
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(
            {
                "vocab_file": "",
                "vocab": dict(vocab),
                "do_lower_case": do_lower_case,
                "strip_accents": strip_accents,
                "parse_special_tokens": parse_special_tokens,
                "max_memo_bytes": max_memo_bytes,
            }
        )
        return tokenizer

    def with_strip_accents(self, strip_accents: bool | None) -> "FullTokenizer":
        """Return a tokenizer that does or does not strip accents; this one where None is given."""
        if strip_accents is None:
            return self
        tokenizer = type(self).__new__(type(self))
        tokenizer._set_up({**self._state, "strip_accents": strip_accents})
        return tokenizer

    def _set_up(self, state: dict) -> None:
        """Make the tables; all that a copy in another process needs is in `state`."""
        self._state = state
        self.vocab_file: str = state["vocab_file"]
        self.vocab: dict[str, int] = state["vocab"]
        self.inv_vocab = {i: token for token, i in self.vocab.items()}
        self.do_lower_case: bool = state["do_lower_case"]
        self.parse_special_tokens: bool = state["parse_special_tokens"]
        self.basic_tokenizer = BasicTokenizer(self.do_lower_case, state["strip_accents"])
        self.strip_accents: bool = self.basic_tokenizer.strip_accents
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocab)
        # Words differ less than the chunks between spaces, which carry punctuation.
        eighth = state["max_memo_bytes"] // 8
        self._words = _Memo(self.wordpiece_tokenizer.encode_word, eighth)
        self._chunks = _Memo(self._encode_chunk, 6 * eighth)
        self._offset_chunks = _Memo(self._encode_chunk_with_offsets, eighth)
        self._line_encoder: LineEncoder | None = None  # made when it is first asked for
        specials = [token for token in vocabulary.SPECIAL_TOKENS if token in self.vocab]
        self._special_pattern = (
            re.compile("(" + "|".join(map(re.escape, specials)) + ")")
            if self.parse_special_tokens and specials
            else None
        )

    def __getstate__(self) -> dict:
        return self._state  # the memos are left behind

    def __setstate__(self, state: dict) -> None:
        self._set_up(state)

    def encode(self, text: str | bytes) -> list[int]:
        """Return the ids of a text; the fast path.

        Args:
            text: str, or bytes of UTF-8 (invalid bytes are dropped). No length limit.

        Raises:
            ValueError: text is of another type, or a word is unknown and the vocabulary has no
                [UNK].
        """
        ids = self._encode(text)
        if self.wordpiece_tokenizer.unk_id < 0 and -1 in ids:
            self._raise_without_unknown(text)
        return ids

    def encode_lines(self, lines: Sequence[str | bytes]) -> tuple["np.ndarray", "np.ndarray"]:
        """Return the ids of many texts: those of `encode`, in half its time where they are ASCII.

        Args:
            lines: texts, each as for `encode`.

        Returns:
            ids of all texts, one text's after another's, int32 [ids]; and how many ids each text
            has, int64 [texts].

        Raises:
            ValueError: as `encode`.
        """
        if self._line_encoder is None:
            from bert_tf.tokenization.line_encoder import LineEncoder  # NumPy takes 0.1 s to load

            pattern = self._special_pattern
            self._line_encoder = LineEncoder(
                self.do_lower_case,
                self._encode,
                self._words.__getitem__,
                *([] if pattern is None else [pattern.search]),
            )
        texts = list(map(vocabulary.convert_to_unicode, lines))
        ids, counts = self._line_encoder(texts)
        if self.wordpiece_tokenizer.unk_id < 0 and (ids < 0).any():
            number = int(counts.cumsum().searchsorted((ids < 0).argmax(), side="right"))
            self._raise_without_unknown(texts[number])
        return ids, counts

    def _raise_without_unknown(self, text: str | bytes) -> NoReturn:
        raise ValueError(
            f"vocabulary {self.vocab_file} has no {vocabulary.UNK_TOKEN}, which the text "
            f"needs: {text[:80]!r}"
        )

    def tokenize(self, text: str | bytes) -> list[str]:
        """Return the pieces of a text; see `encode` for the arguments."""
        inverse = self.wordpiece_tokenizer._inverse
        return [inverse[i] for i in self._encode(text)]

    def tokenize_with_offsets(self, text: str | bytes) -> tuple[list[str], list[tuple[int, int]]]:
        """Return the pieces of a text, and where in the raw text each came from.

        Returns:
            (pieces, offsets), of one length. offsets[i] = (start, end): the piece stands for
            text[start:end], in characters of the raw text (for bytes, of the decoded text). Spans
            cover stripped accents and vanished characters inside a piece, not the ones around it;
            [UNK] covers its word. Pieces cut from the decomposition of one character (a Hangul
            syllable) share its span.

        Raises:
            ValueError: text is neither str nor bytes.
        """
        pieces: list[str] = []
        offsets: list[tuple[int, int]] = []
        base = 0
        for is_special, part in self._parts(vocabulary.convert_to_unicode(text)):
            if is_special:
                pieces.append(part)
                offsets.append((base, base + len(part)))
                base += len(part)
                continue
            for chunk in _as_spaces(part).split(" "):
                spans = self._offset_chunks[chunk]  # piece, start, end, piece, start, end, ...
                pieces.extend(spans[::3])
                offsets.extend(
                    [
                        (base + start, base + end)
                        for start, end in zip(spans[1::3], spans[2::3], strict=True)
                    ]
                )
                base += len(chunk) + 1
            base -= 1  # no space follows the last chunk
        return pieces, offsets

    def count_unknown(self, text: str | bytes) -> tuple[int, int]:
        """Count the characters of a text that [UNK] stands for.

        Returns:
            All of them, and those in words of more than `MAX_CHARS_PER_WORD`, which are unknown to
            any vocabulary; in characters of the raw text.
        """
        unknown, count, too_long = (self.wordpiece_tokenizer.unk_id,), 0, 0
        for chunk in _as_spaces(vocabulary.convert_to_unicode(text)).split(" "):
            if unknown[0] not in self._chunks[chunk]:
                continue
            for word, spans in self.basic_tokenizer.tokenize_with_offsets(chunk):
                if self._words[word] == unknown:
                    size = max(end for _, end in spans) - min(spans)[0]
                    count += size
                    too_long += size * (len(word) > MAX_CHARS_PER_WORD)
        return count, too_long

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each piece.

        Raises:
            KeyError: the vocabulary lacks a piece.
        """
        return _look_up(self.vocab, tokens, f"vocabulary {self.vocab_file} has no piece")

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the piece of each id.

        Raises:
            KeyError: the vocabulary lacks an id.
        """
        return _look_up(self.inv_vocab, ids, f"vocabulary {self.vocab_file} has no id")

    def _encode(self, text: str | bytes) -> list[int]:
        text = vocabulary.convert_to_unicode(text)
        if self._special_pattern is None:
            return self._encode_plain(text)
        ids = []
        for is_special, part in self._parts(text):
            ids.extend([self.vocab[part]] if is_special else self._encode_plain(part))
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        return list(
            itertools.chain.from_iterable(
                map(self._chunks.__getitem__, _as_spaces(text).split(" "))
            )
        )

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        words = self.basic_tokenizer.tokenize(chunk)
        if len(words) == 1:
            return self._words[words[0]]
        return tuple(itertools.chain.from_iterable(map(self._words.__getitem__, words)))

    def _encode_chunk_with_offsets(self, chunk: str) -> tuple[str | int, ...]:
        """Cut a chunk into pieces: piece, start, end of the first, then of the second, ..."""
        inverse = self.wordpiece_tokenizer._inverse
        pieces: list[str | int] = []
        for word, spans in self.basic_tokenizer.tokenize_with_offsets(chunk):
            ids = self._words[word]
            first = 0
            for number, i in enumerate(ids):
                piece = inverse[i]
                length = len(piece) - 2 if number else len(piece)
                covered = spans if len(ids) == 1 else spans[first : first + length]
                first += length
                # Reordered marks can be out of order, so the ends are not simply the last one's.
                pieces += piece, min(covered)[0], max(end for _, end in covered)
        return tuple(pieces)

    def _parts(self, text: str) -> list[tuple[bool, str]]:
        """Cut a text at the special tokens to parse: (is special, text) in order."""
        if self._special_pattern is None:
            return [(False, text)]
        return [(i % 2 == 1, part) for i, part in enumerate(self._special_pattern.split(text))]


def _as_spaces(text: str) -> str:
    """Make U+0020 of what is a space at once; chunks between U+0020 can then be taken one by one.

    str.split() would not do: it also cuts where characters must vanish and join their neighbours,
    such as U+0085 and U+001F.
    """
    return text.replace("\n", " ").replace("\t", " ").replace("\r", " ")


def _check_memo(max_memo_bytes: int) -> None:
    if max_memo_bytes < 0:
        raise ValueError(f"max_memo_bytes must be at least 0, got {max_memo_bytes}")


def _look_up(table: Mapping, keys: Iterable, message: str) -> list:
    """Look keys up one by one, naming the one that is missing."""
    keys = list(keys)
    try:
        return [table[key] for key in keys]
    except KeyError as error:
        raise KeyError(f"{message} {error.args[0]!r}") from None
