"""How tags of words name chunks: with a form, as B-PER, or by themselves, as PER or NOUN.

What a tag means follows from the whole set that it is of, all labels of a model or all tags of a
file. In this order:

1. If a tag begins with B or I and "-" or "_" (B-PER, B_PER), tags are a form and a type: B begins a
   chunk, I and M go on, E and L end it, S, U and W are a chunk by themselves, O is outside: IOB1,
   IOB2, IOBES, BILOU, BMES and BMEWO. [CLS], [SEP], [PAD], <pad>, PAD and X, which taggers have for
   what is no word, are outside, too.
2. If there are no other tags than forms, B or I among them, they are forms without a type.
3. If O is a tag, every other one is a type, and neighbours of one type are one chunk.
4. Else every word is a chunk by itself, whose type is its tag, as parts of speech are.

Chunks of the first two kinds are those of conlleval, so that tags need not be well-formed.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import Literal

OUTSIDE = "O"

# Letter of a form -> the form that it means.
_FORMS = {**{form: form for form in "BIES"}, "M": "I", "L": "E", "U": "S", "W": "S"}
_FORM_AND_TYPE = re.compile(rf"([{''.join(_FORMS)}])[-_](\S+)")
_BEGINS_OR_GOES_ON = re.compile(r"[BI][-_]\S+")
_NO_WORD = re.compile(r"\[\S+\]|<\S+>|PAD|X")
_UNTYPED = "_"  # as seqeval names the type where there is none
# B and I elsewhere than in front, or in small letters: base of the tag -> the forms it has.
_OTHER_FORMS = (re.compile(r"([bi])[-_](?P<base>\S+)"), re.compile(r"(?P<base>\S+)[-_]([BIbi])"))

EXPECTED = "O, or a form and a type such as B-PER (forms are B I M E L S U W)"


@dataclasses.dataclass(frozen=True)
class TagScheme:
    """What each of a set of tags means.

    Attributes:
        kind: "forms" with a type, "untyped" forms, "types", or "words" each by itself.
    """

    kind: Literal["forms", "untyped", "types", "words"]

    @functools.lru_cache(maxsize=1 << 12)  # noqa: B019  of a few values of this class
    def read(self, tag: str) -> tuple[str, str]:
        """Return what a tag means.

        Returns:
            Its form, of O B I E S, and its type; ("O", "") for what is outside.

        Raises:
            ValueError: it is none of the scheme.
        """
        if not tag or tag.split() != [tag]:
            raise ValueError(f"expected a tag, which is one word, got {tag!r}")
        if self.kind == "words":
            return "S", tag
        if tag == OUTSIDE:
            return OUTSIDE, ""
        if self.kind == "types":
            return "I", tag
        if self.kind == "untyped" and tag in _FORMS:
            return _FORMS[tag], _UNTYPED
        if match := _FORM_AND_TYPE.fullmatch(tag):
            return _FORMS[match[1]], match[2]
        if _NO_WORD.fullmatch(tag):
            return OUTSIDE, ""
        raise ValueError(f"expected a tag, {EXPECTED}, got {tag!r}")

    def reads(self, tags: Iterable[str]) -> bool:
        """Tell whether all of some tags are of the scheme."""
        try:
            return all(map(self.read, tags))
        except ValueError:
            return False


def tag_scheme(tags: Iterable[str]) -> TagScheme:
    """Tell the scheme of a set of tags, by the rule above; see `check_tags` for doubtful ones."""
    tags = set(tags)
    if any(_BEGINS_OR_GOES_ON.fullmatch(tag) for tag in tags):
        return TagScheme("forms")
    if tags & {"B", "I"} and tags <= {OUTSIDE, *_FORMS}:
        return TagScheme("untyped")
    formed = all(_FORM_AND_TYPE.fullmatch(tag) or tag == OUTSIDE for tag in tags)
    if formed:  # no tags but O, or such as S-PER alone
        return TagScheme("forms")
    return TagScheme("types" if OUTSIDE in tags else "words")


def check_tags(tags: Iterable[str], source: str) -> TagScheme:
    """Return the scheme of a set of tags, all of which it has.

    Args:
        tags: all of a file or a model.
        source: what they are of, for the message.

    Raises:
        ValueError: some have forms and others not; or B and I stand at the end, or in small
            letters, so that they would be taken for parts of the types.
    """
    tags = sorted(set(tags))
    scheme = tag_scheme(tags)
    for tag in tags:
        try:
            scheme.read(tag)
        except ValueError as error:
            raise ValueError(f"{source}: {error}, among {_shown(tags)}") from None
    if scheme.kind in ("types", "words"):
        for pattern in _OTHER_FORMS:
            bases: dict[str, list[str]] = {}
            for tag in tags:
                if match := pattern.fullmatch(tag):
                    bases.setdefault(match["base"], []).append(tag)
            if doubtful := next((pair for pair in bases.values() if len(pair) > 1), None):
                raise ValueError(
                    f"{source}: expected forms in front and as capital letters, such as B-PER, got "
                    f"{' and '.join(doubtful)}"
                )
    return scheme


def _shown(tags: list[str], most: int = 12) -> str:
    more = f" and {len(tags) - most} more" if len(tags) > most else ""
    return " ".join(tags[:most]) + more
