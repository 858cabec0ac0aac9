"""Many lines of text to ids at once, with NumPy where the text is ASCII.

In ASCII every rule of the basic tokenizer is one of single bytes, so `bytes.translate` cleans and
lower-cases a batch of lines, and words begin and end where the classes of neighbours differ. A word
of up to 16 bytes is two numbers, which are looked up in a table for all words of a batch at once:
so the processor waits for many places of memory together, where a dictionary waits for one after
another. What the table lacks is asked of the tokenizer, as is text that is not ASCII.

Shapes: N bytes of a batch, W words, M of them that are not in the table, T ids.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bert_tf.tokenization.characters import clean, is_punctuation

_NEWLINE = ord("\n")
_OTHER = 0xFF  # stands for text that the tokenizer encodes; no byte of ASCII
_SPACE, _IN_WORD, _ALONE = 0, 1, 2  # classes of bytes
_BATCH_CHARACTERS = 1 << 18  # encoded at once, so that the arrays of a batch stay in the caches
_MAX_OTHER_CHUNKS = 0.25  # of a line, encoded one by one; a line with more is encoded as a whole

_NUMBER_BYTES = 8
_KEY_BYTES = 2 * _NUMBER_BYTES
_MAX_IDS = 4  # of a word in the table; few have more
_SLOT_BITS = 19  # 17 MB, of which the system provides what is used
# Which bytes of a number belong to a word that has so many left.
_KEPT_BYTES = np.array([(1 << 8 * size) - 1 for size in range(_NUMBER_BYTES + 1)], np.uint64)
# Odd numbers whose bits have no pattern, for multiplicative hashing.
_LOW_FACTOR, _HIGH_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class LineEncoder:
    """Encodes lines as a tokenizer does, faster where there are many.

    Args:
        do_lower_case: as the tokenizer's.
        encode_text: the tokenizer's ids of a text, of which U+0020 may be cut off at both ends.
        encode_word: its ids of a word of ASCII.
        is_other: tells which lines are left to `encode_text`, though they are ASCII.
    """

    def __init__(
        self,
        do_lower_case: bool,
        encode_text: Callable[[str], Sequence[int]],
        encode_word: Callable[[str], Sequence[int]],
        is_other: Callable[[str], object] = lambda line: False,
    ):
        self._encode_text = encode_text
        self._encode_word = encode_word
        self._is_other = is_other
        self._table = _WordTable()
        self._cleaned, self._dropped, self._classes = _byte_tables(do_lower_case)

    def __call__(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode lines.

        Args:
            lines: texts of any length.

        Returns:
            ids of all lines, one line's after another's, int32 [T], and how many each line has,
            int64 [lines].
        """
        parts = [self._encode_batch(batch) for batch in _batches(lines)]
        ids = [np.zeros(0, np.int32), *(part[0] for part in parts)]
        counts = [np.zeros(0, np.int64), *(part[1] for part in parts)]
        return np.concatenate(ids), np.concatenate(counts)

    def _encode_batch(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        data, others = self._clean(lines)
        words = _find_words(data, self._classes)
        slots, is_known = self._table.find(words)
        known, missing = np.flatnonzero(is_known), np.flatnonzero(~is_known)

        found = list(self._encode_missing(data, words, missing, others))  # [M]
        sizes = np.fromiter(map(len, found), np.int64, len(found))
        counts = self._table.counts[slots].astype(np.int64)  # [W]
        counts[missing] = sizes
        ends = np.concatenate([[0], np.cumsum(counts)])
        ids = np.empty(ends[-1], np.int32)
        self._table.copy_ids(slots[known], ids, ends[known])
        # The ids of found[m] follow each other from ends[missing[m]] on.
        places = np.repeat(ends[missing] - np.cumsum(sizes) + sizes, sizes)
        places += np.arange(places.size)
        ids[places] = np.fromiter(itertools.chain.from_iterable(found), np.int32, places.size)

        new = missing[(sizes <= _MAX_IDS) & (words.low[missing] != _OTHER)]
        self._table.add(words, new[words.lengths[new] <= _KEY_BYTES], ids, ends)
        line_ends = np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)
        return ids, np.diff(ends[np.searchsorted(words.starts, line_ends)], prepend=0)

    def _clean(self, lines: Sequence[str]) -> tuple[bytes, list[str]]:
        """Return cleaned ASCII, each line ended by a newline, and the texts it has _OTHER for."""
        others: list[str] = []
        kept: list[str] = []
        for line in lines:
            if "\n" in line or self._is_other(line):
                others.append(line)
                line = chr(_OTHER)
            elif not line.isascii():
                # No rule looks across a U+0020.
                chunks = line.split(" ")
                foreign = [chunk for chunk in chunks if not chunk.isascii()]
                if len(foreign) <= len(chunks) * _MAX_OTHER_CHUNKS:
                    others += foreign
                    line = " ".join([x if x.isascii() else chr(_OTHER) for x in chunks])
                else:
                    others.append(line)
                    line = chr(_OTHER)
            kept.append(line)
        data = "\n".join([*kept, ""]).encode("latin-1")
        return data.translate(self._cleaned, self._dropped), others

    def _encode_missing(
        self, data: bytes, words: "_Words", missing: np.ndarray, others: Sequence[str]
    ) -> Iterator[Sequence[int]]:
        """Ask the tokenizer for the ids of words, in order, and of other texts where they stand."""
        following = iter(others)
        starts = words.starts[missing]
        ends = starts + words.lengths[missing]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if data[start] == _OTHER:
                yield self._encode_text(next(following))
            else:
                yield self._encode_word(data[start:end].decode("ascii"))


class _Words(NamedTuple):
    """The words of a batch: where they are, and the numbers that are the first 16 bytes of each."""

    starts: np.ndarray  # int64 [W], as the next
    lengths: np.ndarray
    low: np.ndarray  # uint64 [W], as the next
    high: np.ndarray


class _WordTable:
    """Ids of short words, in a fixed amount of memory.

    A word has its place in one of two neighbouring slots. One that finds both taken takes the
    second: what was there is asked for anew when it comes again.
    """

    def __init__(self):
        size = 1 << _SLOT_BITS
        self._low = np.zeros(size, np.uint64)  # 0 where there is no word
        self._high = np.zeros(size, np.uint64)
        self.counts = np.zeros(size, np.uint8)  # ids of each word
        self._ids = np.zeros((_MAX_IDS, size), np.int32)

    @staticmethod
    def _slots(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the first of the two slots of words: uint64 [W] to int64 [W]."""
        mixed = low * _LOW_FACTOR + high * _HIGH_FACTOR  # modulo 2**64
        return (mixed >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)

    def _holds(self, slots: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return (self._low[slots] == low) & (self._high[slots] == high)

    def find(self, words: _Words) -> tuple[np.ndarray, np.ndarray]:
        """Return a slot for each word, int64 [W], and whether that has the word, bool [W]."""
        slots = self._slots(words.low, words.high)
        is_known = self._holds(slots, words.low, words.high)
        rest = np.flatnonzero(~is_known)
        second = slots[rest] ^ 1
        is_second = self._holds(second, words.low[rest], words.high[rest])
        slots[rest[is_second]] = second[is_second]
        is_known[rest] = is_second
        return slots, is_known & (words.lengths <= _KEY_BYTES)

    def copy_ids(self, slots: np.ndarray, ids: np.ndarray, places: np.ndarray) -> None:
        """Copy the ids of slots to where they begin among the ids of a batch.

        Args:
            slots: int64 [W].
            ids: int32 [T], changed.
            places: int64 [W].
        """
        ids[places] = self._ids[0, slots]
        counts = self.counts[slots]
        for number in range(1, _MAX_IDS):
            longer = np.flatnonzero(counts > number)
            ids[places[longer] + number] = self._ids[number, slots[longer]]

    def add(self, words: _Words, new: np.ndarray, ids: np.ndarray, ends: np.ndarray) -> None:
        """Add words.

        Args:
            words: of a batch.
            new: int64, which of them to add, each with _MAX_IDS ids at most.
            ids: int32 [T], of all words of the batch.
            ends: int64 [W + 1], where among these each word's begin, and the end.
        """
        low, high = words.low[new], words.high[new]
        slots = self._slots(low, high)
        slots ^= self._low[slots] != 0
        # Of words that come to the same slot the last stays, in each of the arrays.
        self._low[slots], self._high[slots] = low, high
        self.counts[slots] = ends[new + 1] - ends[new]
        for number in range(_MAX_IDS):
            places = np.minimum(ends[new] + number, ids.size - 1)  # beyond its ids anything will do
            self._ids[number, slots] = ids[places]


def _batches(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut lines into batches of at least _BATCH_CHARACTERS, but for the last."""
    start = size = 0
    for number, line in enumerate(lines, start=1):
        size += len(line) + 1
        if size >= _BATCH_CHARACTERS:
            yield lines[start:number]
            start, size = number, 0
    if size:
        yield lines[start:]


def _byte_tables(do_lower_case: bool) -> tuple[bytes, bytes, bytes]:
    """Return what each byte becomes, the bytes that vanish before, and the class of each after."""
    cleaned = [_NEWLINE if code == _NEWLINE else clean(code) for code in range(0x80)]
    dropped = bytes(code for code, value in enumerate(cleaned) if value is None)
    table = bytes(ord(x) if isinstance(x, str) else x or 0 for x in cleaned)
    table = (table.lower() if do_lower_case else table) + bytes(range(0x80, 0x100))
    classes = bytearray(
        _ALONE if code == _OTHER or is_punctuation(chr(code)) else _IN_WORD for code in range(0x100)
    )
    classes[ord(" ")] = classes[_NEWLINE] = _SPACE
    return table, dropped, bytes(classes)


def _find_words(data: bytes, byte_classes: bytes) -> _Words:
    """Find the words of cleaned text: bytes [N]."""
    classes = np.frombuffer(data.translate(byte_classes), np.uint8)  # [N]
    in_word = classes == _IN_WORD
    are_joined = in_word[:-1] & in_word[1:]
    is_first = classes != _SPACE
    is_last = is_first.copy()
    is_first[1:] &= ~are_joined
    is_last[:-1] &= ~are_joined
    starts = np.flatnonzero(is_first)
    lengths = np.flatnonzero(is_last) + 1 - starts
    # The number that begins at each byte.
    padded = data + bytes(_KEY_BYTES)
    numbers = np.ndarray(len(data) + _NUMBER_BYTES, "<u8", padded, strides=(1,)).astype(np.uint64)
    low = numbers[starts] & _KEPT_BYTES[np.minimum(lengths, _NUMBER_BYTES)]
    rest = np.clip(lengths - _NUMBER_BYTES, 0, _NUMBER_BYTES)
    return _Words(starts, lengths, low, numbers[starts + _NUMBER_BYTES] & _KEPT_BYTES[rest])
