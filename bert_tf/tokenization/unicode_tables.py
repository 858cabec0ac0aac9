"""What the rules of `tokenization` make of each character, as arrays that a graph can look up.

The tables are made by asking those very rules, so that a graph which uses them follows the version
of Unicode of the Python that made it, in everything: also where the running system's ICU is newer.

A table over all code points has two levels, since most pages of 256 are alike: the value of code
point c is `pages[pages_of[c >> 8] << 8 | c & 255]`.

TensorFlow is not imported here.
"""

import dataclasses
import functools
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np

from bert_tf.tokenization.characters import clean, is_cjk, is_punctuation

# Bits of a character's value; above them stands the difference of what it becomes to what it is.
ALONE = 1 << 0  # punctuation or an ideograph: a word by itself
KEPT = 1 << 1  # stays, as exactly one character unless GENERAL is set
SPACE = 1 << 2  # white space for the tokenizer
DOCUMENT_SPACE = 1 << 3  # white space between the words of a document of SQuAD
IDEOGRAPH = 1 << 4
MARK = 1 << 5  # has a stripped mark to which nothing of its own that is kept comes before
GENERAL = 1 << 6  # takes more than the difference: `CharacterTables.parts` tell what it becomes
CASED = 1 << 7  # final sigma: a letter with case
PASSED = 1 << 8  # final sigma: looked past, since it vanishes or is ignored for case
DIFFERENCE_SHIFT = 9

# Bits of a part; above them stands its code point.
PART_MARK = 1 << 0  # is stripped
PART_CLASS_SHIFT = 1  # 8 bits: canonical combining class
PART_ALONE_SHIFT = 9  # 1 bit
PART_SHIFT = 10

CAPITAL_SIGMA, FINAL_SIGMA = 0x3A3, 0x3C2
DOCUMENT_SPACE_CHARACTERS = " \t\r\n\u202f"  # as span_decoding.split_words cuts
_PAGE_SIZE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class PagedTable:
    """A number for each code point.

    Attributes:
        pages_of: int32 [4352], index of the page of each 256 code points.
        pages: int32 [number of distinct pages * 256].
    """

    pages_of: np.ndarray
    pages: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "PagedTable":
        """Make the table of the values of all code points, integers [0x110000]."""
        numbers: dict[bytes, int] = {}
        pages_of = [
            numbers.setdefault(page.tobytes(), len(numbers))
            for page in values.astype(np.int32).reshape(-1, _PAGE_SIZE)
        ]
        return cls(np.array(pages_of, np.int32), np.frombuffer(b"".join(numbers), np.int32))


@dataclasses.dataclass(frozen=True, eq=False)
class CharacterTables:
    """What the basic tokenizer makes of each character of a text.

    Attributes:
        values: bits and difference of each code point, as named above.
        part_starts: for each code point the index in `parts` of what it becomes after lower-casing
            and NFD, if these are done, before marks are stripped; 0 if `values` says all of it.
        parts: int32: there, their number, and then the parts.
    """

    values: PagedTable
    part_starts: PagedTable
    parts: np.ndarray


def _part(char: str, is_decomposed: bool) -> int:
    """Pack one character of the text, in which marks are ordered and stripped if decomposed."""
    part = ord(char) << PART_SHIFT
    part |= (is_punctuation(char) or is_cjk(ord(char))) << PART_ALONE_SHIFT
    if is_decomposed:
        part |= unicodedata.combining(char) << PART_CLASS_SHIFT
        part |= (unicodedata.category(char) == "Mn") * PART_MARK
    return part


def _changed_value(char: str, parts: Sequence[int]) -> int:
    """Make bits and difference of a character that lower-casing or NFD makes into these parts."""
    kept = [part for part in parts if not part & PART_MARK]
    value = (bool(parts) and bool(parts[0] & PART_MARK)) * MARK
    if kept:
        value |= KEPT | ((kept[0] >> PART_SHIFT) - ord(char)) * (1 << DIFFERENCE_SHIFT)
        value |= (kept[0] >> PART_ALONE_SHIFT & 1) * ALONE
    is_reordered = any(part >> PART_CLASS_SHIFT & 255 for part in kept)
    if len(kept) > 1 or is_reordered:
        value |= GENERAL
    # Whether it has case and whether it is ignored is no more asked of a character than this.
    if f"{char}\u03a3".lower().endswith("\u03c2"):
        value |= CASED
    elif f"A{char}\u03a3".lower().endswith("\u03c2"):
        value |= PASSED
    return value


@functools.cache
def character_tables(do_lower_case: bool, strip_accents: bool) -> CharacterTables:
    """Make the tables of all of Unicode, which takes a second; once for each way.

    Args:
        do_lower_case: whether words are lower-cased.
        strip_accents: whether they are decomposed and lose their accents.
    """
    # What no rule knows stays as it is: unassigned, of private use, surrogates.
    values = np.full(sys.maxunicode + 1, KEPT, np.int32)
    part_starts = np.zeros(sys.maxunicode + 1, np.int32)
    all_parts = [0]
    categories = map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))
    for codepoint, category in enumerate(categories):
        if category in ("Cn", "Co", "Cs"):
            if codepoint < 0x30000 and is_cjk(codepoint):
                values[codepoint] |= IDEOGRAPH | ALONE
            continue
        char = chr(codepoint)
        cleaned = clean(codepoint)
        if cleaned is None:
            value = PASSED
        elif cleaned == " " or char.isspace():
            value = SPACE
        elif do_lower_case or strip_accents:
            text = char.lower() if do_lower_case else char
            text = unicodedata.normalize("NFD", text) if strip_accents else text
            parts = [_part(part, strip_accents) for part in text]
            value = _changed_value(char, parts)
            # A single part without a class is what the value says. Every mark is listed.
            if len(parts) > 1 or parts[0] & PART_MARK or value & GENERAL:
                part_starts[codepoint] = len(all_parts)
                all_parts += [len(parts), *parts]
        else:
            value = KEPT | is_punctuation(char) * ALONE
        values[codepoint] = value | is_cjk(codepoint) * (IDEOGRAPH | ALONE)
    for char in DOCUMENT_SPACE_CHARACTERS:
        values[ord(char)] |= DOCUMENT_SPACE
    return CharacterTables(
        PagedTable.of(values), PagedTable.of(part_starts), np.array(all_parts, np.int32)
    )
