"""Where sentences end and how long a text is, in every script, by the properties of Unicode."""

import unicodedata

import regex

# Thai, Tibetan and Hebrew marks that end a sentence without Sentence_Terminal, and ellipses.
_ENDS = r"[\p{Sentence_Terminal}…⋯׃๚๛།-༑༔]"
# What may stand behind such a mark: quotation marks, brackets, invisible signs of direction; each
# perhaps set apart, as in French.
_CLOSERS = r"(?:\s*[\p{Quotation_Mark}\p{Pe}\p{Pf}\p{Pi}\p{Cf}])*"
_ENDING = regex.compile(rf"(?:{_ENDS}|\p{{Greek}}\s?[;\u037e]){_CLOSERS}$")
# Sentence ends of Khmer, Tibetan, Thai and Hebrew at which sentencex does not cut.
_MARKS = "[។៕׃๚๛།-༑༔]"
# A run of marks is tried once and whole: from each mark in turn, a long one would take hours.
_PASSED_OVER = regex.compile(rf"(?<!{_MARKS})({_MARKS}++{_CLOSERS})\s*(?=[\p{{L}}\p{{N}}\p{{Ps}}])")

# Letters of the scripts that set no spaces between words.
_UNSPACED = "".join(
    rf"\p{{{script}}}"
    for script in (
        *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar"),
        *("Tibetan", "Javanese", "Balinese", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet"),
    )
)
_UNSPACED_LETTER = regex.compile(rf"[\p{{L}}&&[{_UNSPACED}]]", regex.V1)
_WRAPPED = regex.compile(rf"(?<=[{_UNSPACED}])[ \t\r]*\n\s*(?=[{_UNSPACED}])")
_LONGEST_ENDING = 32
_LETTERS_PER_WORD = 3  # about two in Chinese, four in Thai

# Marks that are letters in all but name, unlike accents, which the letters of many scripts take.
_SIGN = regex.compile(r"[[\p{Mn}--[\p{Inherited}\p{Common}]]\u3099\u309a]", regex.V1)


def ends_sentence(line: str) -> bool:
    """Tell whether a line ends as a sentence does."""
    return _ENDING.search(line[-_LONGEST_ENDING:]) is not None


def has_words(line: str, number: int) -> bool:
    """Tell whether a line has so many words; in scripts without spaces, letters for so many."""
    if line.isascii() or line.count(" ") + 1 >= number:
        return line.count(" ") + 1 >= number
    return len(_UNSPACED_LETTER.findall(line)) >= number * _LETTERS_PER_WORD


def count_characters(line: str) -> int:
    """Count the characters of a line beside its spaces."""
    return len(line) - line.count(" ")


def begins_unspaced(line: str) -> bool:
    """Tell whether a line begins with a letter of a script without spaces between words."""
    return _UNSPACED_LETTER.match(line) is not None


def stripped_signs(text: str) -> list[str]:
    """Return the vowel signs and like marks that a text loses where accents are stripped."""
    return [] if text.isascii() else _SIGN.findall(unicodedata.normalize("NFD", text))


def join_wrapped(text: str) -> str:
    """Take out the line ends between letters of scripts that set no spaces between words."""
    return text if text.isascii() else _WRAPPED.sub("", text)


def cut_passed_over(sentence: str) -> list[str]:
    """Cut at the sentence ends that sentencex passes over."""
    return [sentence] if sentence.isascii() else _PASSED_OVER.sub(r"\1\n", sentence).split("\n")


def cut_long(sentence: str, max_characters: int) -> list[str]:
    """Cut a sentence that is too long, at the last space where there is one.

    Args:
        sentence: words with single spaces between them.
        max_characters: the longest that a part may be.
    """
    parts = []
    while len(sentence) > max_characters:
        end = sentence.rfind(" ", 1, max_characters + 1)
        end = max_characters if end < 0 else end
        # A mark stays with its letter.
        while end > 1 and regex.match(r"[\p{M}\p{Cf}]", sentence[end]):
            end -= 1
        parts.append(sentence[:end])
        sentence = sentence[end:].lstrip()
    return [*parts, sentence] if sentence else parts
