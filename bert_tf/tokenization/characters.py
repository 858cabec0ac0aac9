"""The original's rules on single characters, each as a table for `str.translate`.

What is a letter, a mark or punctuation is asked of the running Python's `unicodedata`, as the
original does. Neither TensorFlow nor Keras is imported here.
"""

import unicodedata
from collections.abc import Callable

_MAX_TABLE_CHARS = 2**16  # characters a table remembers; rarer ones are asked anew


def is_cjk(codepoint: int) -> bool:
    """Tell whether a code point is a Han ideograph; kana and Hangul, spaced in text, are not."""
    return (
        0x4E00 <= codepoint <= 0x9FFF
        or 0x3400 <= codepoint <= 0x4DBF
        or 0x20000 <= codepoint <= 0x2A6DF
        or 0x2A700 <= codepoint <= 0x2B73F
        or 0x2B740 <= codepoint <= 0x2B81F
        or 0x2B820 <= codepoint <= 0x2CEAF
        or 0xF900 <= codepoint <= 0xFAFF
        or 0x2F800 <= codepoint <= 0x2FA1F
    )


def is_punctuation(char: str) -> bool:
    """Tell whether a character is punctuation: category P*, or any ASCII sign such as $ + ^ `."""
    if char < "\x7f":
        return char > " " and not char.isalnum()
    return unicodedata.category(char)[0] == "P"


def clean(codepoint: int) -> int | str | None:
    """First step: what vanishes (None), what is a space, what stands alone, what stays."""
    char = chr(codepoint)
    if char in " \t\n\r":
        return " "
    category = unicodedata.category(char)
    if codepoint in (0, 0xFFFD) or category in ("Cc", "Cf"):
        return None
    if category == "Zs":
        return " "
    if is_cjk(codepoint):
        return f" {char} "
    return codepoint


def _strip_and_split(codepoint: int) -> int | str | None:
    """Last step when uncased, after NFD: marks vanish, punctuation stands alone."""
    char = chr(codepoint)
    if unicodedata.category(char) == "Mn":
        return None
    return f" {char} " if is_punctuation(char) else codepoint


def _clean_and_split(codepoint: int) -> int | str | None:
    """Both steps in one, for text in which lower-casing and NFD do nothing between them."""
    cleaned = clean(codepoint)
    if cleaned == codepoint and is_punctuation(chr(codepoint)):
        return f" {chr(codepoint)} "
    return cleaned


class _CharTable(dict[int, int | str | None]):
    """Table for str.translate that asks its rule on first use, since few characters ever come."""

    def __init__(self, rule: Callable[[int], int | str | None]):
        super().__init__()
        self._rule = rule

    def __missing__(self, codepoint: int) -> int | str | None:
        value = self._rule(codepoint)
        if len(self) < _MAX_TABLE_CHARS:
            self[codepoint] = value
        return value


# The first step; the last one when uncased; both in one.
CLEAN = _CharTable(clean)
STRIP_AND_SPLIT = _CharTable(_strip_and_split)
CLEAN_AND_SPLIT = _CharTable(_clean_and_split)
