"""Words of held-out sentences that are hidden by a rule, and what models say in their place."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from bert_tf.tokenization.vocabulary import MASK_TOKEN
from bert_tf.tokenization.wordpiece import FullTokenizer

_NUM_WORDS = range(8, 21)  # of a sentence: enough context for its middle
_SHOWN_WORDS = 5  # on each side of the hidden one


@dataclasses.dataclass(frozen=True)
class HiddenWord:
    """A sentence one of whose words is hidden.

    Attributes:
        words: of the sentence.
        place: index of the hidden one.
    """

    words: tuple[str, ...]
    place: int

    @property
    def word(self) -> str:
        """The hidden word in lower case."""
        return self.words[self.place].lower()

    @property
    def text(self) -> str:
        """The sentence with [MASK] in place of the word."""
        return " ".join((*self.words[: self.place], MASK_TOKEN, *self.words[self.place + 1 :]))

    @property
    def excerpt(self) -> str:
        """The hidden word's neighbourhood, for a table."""
        before, after = self.words[: self.place], self.words[self.place + 1 :]
        dots = "..." if len(before) > _SHOWN_WORDS else ""
        more = "..." if len(after) > _SHOWN_WORDS else ""
        near = (*before[-_SHOWN_WORDS:], "____", *after[:_SHOWN_WORDS])
        return f"{dots}{' '.join(near)}{more}"


def hide_words(
    lines: Iterable[str], tokenizer: FullTokenizer, count: int, max_seq_length: int
) -> list[HiddenWord]:
    """Hide the middle words of sentences that stand at equal distances in a text.

    The middle word is the one nearest to the middle that has letters only and is a word piece.

    Args:
        lines: sentences of 8 to 20 words count, others are passed over.
        tokenizer: of an uncased model.
        count: sentences to take.
        max_seq_length: of the model, which is to see a sentence whole.

    Returns:
        At most `count` sentences, in the order of the text.
    """
    hidden, vocab = [], tokenizer.vocab
    for line in lines:
        words = tuple(line.split())
        if len(words) not in _NUM_WORDS:
            continue
        from_middle = sorted(range(len(words)), key=lambda i: abs(i - len(words) // 2))
        fit = (i for i in from_middle if words[i].isalpha() and words[i].lower() in vocab)
        place = next(fit, None)
        # [CLS] and [SEP] stand around it; a [MASK] that is cut off gets no answer.
        if place is not None and len(tokenizer.encode(line)) <= max_seq_length - 2:
            hidden.append(HiddenWord(words, place))
    distance = max(1, len(hidden) // count)
    return hidden[::distance][:count]


def most_frequent_word(lines: Iterable[str], vocab: Collection[str]) -> tuple[str, float]:
    """Return the most frequent word of a text that is a word piece, and its share of those."""
    counts = collections.Counter(
        word for line in lines for word in line.lower().split() if word in vocab
    )
    word, count = counts.most_common(1)[0]
    return word, count / counts.total()


def rows_of_answers(
    hidden: Sequence[HiddenWord], answers: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """Return a table's rows: the sentence, the word, and a model's first three answers.

    Args:
        hidden: the sentences.
        answers: of `fill_mask.py --output_file`, of each sentence.

    Returns:
        The head and a row for each sentence; the right answer stands in brackets.
    """
    rows = [("held-out sentence", "hidden", "the model's answers")]
    for sentence, answer in zip(hidden, answers, strict=True):
        best = zip(answer["tokens"][0][:3], answer["scores"][0][:3], strict=True)
        shown = (
            f"[{token}] {score:.0%}" if token == sentence.word else f"{token} {score:.0%}"
            for token, score in best
        )
        rows.append((sentence.excerpt, sentence.word, "  ".join(shown)))
    return rows
