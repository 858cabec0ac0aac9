"""Scores of tagged entities, as conlleval and seqeval count them."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Sequence

# === Named entities ===

_TAG = re.compile(r"O|[BIES]-\S+")


@dataclasses.dataclass(frozen=True)
class ChunkScores:
    """Counts of chunks, and their figures in percent as conlleval prints them: 0 to 100.

    Attributes:
        num_true: chunks in the true tags.
        num_predicted: chunks in the predicted tags.
        num_correct: predicted chunks whose first word, last word and type are true.
    """

    num_true: int
    num_predicted: int
    num_correct: int

    @property
    def precision(self) -> float:
        """Percentage of predicted chunks that are correct; 0 where none was predicted."""
        return 100 * self.num_correct / self.num_predicted if self.num_predicted else 0.0

    @property
    def recall(self) -> float:
        """Percentage of true chunks that were found; 0 where there are none."""
        return 100 * self.num_correct / self.num_true if self.num_true else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are."""
        precision, recall = self.precision, self.recall
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclasses.dataclass(frozen=True)
class EntityScores(ChunkScores):
    """What conlleval says of predicted tags.

    Attributes:
        num_true: chunks in the true tags, of all types; num_predicted, num_correct likewise.
        num_tokens: words.
        num_correct_tokens: words whose whole tag is true.
        by_type: type -> its scores, in order of the types.
    """

    num_tokens: int
    num_correct_tokens: int
    by_type: dict[str, ChunkScores]

    @property
    def accuracy(self) -> float:
        """Percentage of words whose tag is true."""
        return 100 * self.num_correct_tokens / self.num_tokens

    def report(self) -> str:
        """Return the text that conlleval prints, with its last line break."""
        lines = [
            f"processed {self.num_tokens} tokens with {self.num_true} phrases; "
            f"found: {self.num_predicted} phrases; correct: {self.num_correct}.",
            f"accuracy: {self.accuracy:6.2f}%; {_figures(self)}",
        ]
        for name, scores in self.by_type.items():
            lines.append(f"{name:>17}: {_figures(scores)}  {scores.num_predicted}")
        return "\n".join(lines) + "\n"


def _figures(scores: ChunkScores) -> str:
    return (
        f"precision: {scores.precision:6.2f}%; recall: {scores.recall:6.2f}%; FB1: {scores.f1:6.2f}"
    )


def entity_scores(
    true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> EntityScores:
    """Count chunks as conlleval does: precision, recall and F1 of named entities.

    Tags are O, or a form and a type: B-PER, I-PER, and also E-PER and S-PER. Any sequence of them
    has chunks (see `chunks`), so IOB1, IOB2 and IOBES need not be told apart, and predictions need
    not be well-formed. No chunk reaches over the end of a sentence.

    Args:
        true: tags of each sentence's words.
        predicted: as many sentences with as many tags each.

    Returns:
        The scores.

    Raises:
        ValueError: no words at all, lengths that differ, or a tag of another form.

    Reference: conlleval of the CoNLL-2000 and CoNLL-2003 shared tasks, version 2004-01-26; for E-
    and S-, whose chunks that version does not always part, conlleval.py of Sampo Pyysalo.
    """
    if len(true) != len(predicted):
        raise ValueError(
            f"predicted: expected the tags of {len(true)} sentences, got {len(predicted)}"
        )
    actual: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    num_tokens = num_correct_tokens = 0
    for index, (true_tags, predicted_tags) in enumerate(zip(true, predicted, strict=True)):
        if len(true_tags) != len(predicted_tags):
            raise ValueError(
                f"predicted: expected {len(true_tags)} tags of sentence {index}, "
                f"got {len(predicted_tags)}"
            )
        try:
            true_chunks, predicted_chunks = chunks(true_tags), chunks(predicted_tags)
        except ValueError as error:
            raise ValueError(f"sentence {index}, {error}") from None
        actual.update(name for name, _, _ in true_chunks)
        guessed.update(name for name, _, _ in predicted_chunks)
        correct.update(name for name, _, _ in set(true_chunks).intersection(predicted_chunks))
        num_tokens += len(true_tags)
        num_correct_tokens += sum(map(str.__eq__, true_tags, predicted_tags))
    if not num_tokens:
        raise ValueError("true: expected at least one word, got none")
    return EntityScores(
        num_true=actual.total(),
        num_predicted=guessed.total(),
        num_correct=correct.total(),
        num_tokens=num_tokens,
        num_correct_tokens=num_correct_tokens,
        by_type={
            name: ChunkScores(actual[name], guessed[name], correct[name])
            for name in sorted(actual.keys() | guessed.keys())
        },
    )


def chunks(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the chunks of one sentence's tags, by the rule of conlleval.

    A chunk begins with a tag other than O that is B- or S-, or follows O, E-, S- or another type,
    or begins the sentence. It ends where the next begins, or before O.

    Args:
        tags: O, B-, I-, E- or S- and a type, in any order.

    Returns:
        (type, first word, word after the last) in order.

    Raises:
        ValueError: a tag of another form, with its place.
    """
    spans = []
    first = -1  # of the open chunk, -1 for none
    form, name = "O", ""
    for index, tag in enumerate(tags):
        last_form, last_name = form, name
        form, name = form_and_type(tag)
        if not form:
            raise ValueError(
                f"word {index}: expected the tag O, or B-, I-, E- or S- and a type, got {tag!r}"
            )
        begins = form in "BS" or last_form in "OES" or name != last_name
        if first >= 0 and (form == "O" or begins):
            spans.append((last_name, first, index))
            first = -1
        if form != "O" and begins:
            first = index
    if first >= 0:
        spans.append((name, first, len(tags)))
    return spans


@functools.lru_cache(maxsize=1 << 12)
def form_and_type(tag: str) -> tuple[str, str]:
    """Form and type of a tag; ("", "") if it is none. Types may contain hyphens."""
    if not _TAG.fullmatch(tag):
        return "", ""
    form, _, name = tag.partition("-")
    return form, name
