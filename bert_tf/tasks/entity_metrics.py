"""Scores of tagged entities, as conlleval and seqeval count them."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from bert_tf.tasks.tag_schemes import TagScheme, check_tags, tag_scheme


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
    true: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    labels: Iterable[str] = (),
) -> EntityScores:
    """Count chunks as conlleval does: precision, recall and F1 of named entities.

    What tags mean follows from all of them and the labels together (see `tag_schemes`). Any
    sequence of tags has chunks (see `chunks`), so IOB1, IOB2, IOBES, BILOU and BMES need not be
    told apart, and predictions need not be well-formed. No chunk reaches over the end of a
    sentence. Where each word is a chunk, as of parts of speech, all figures are the accuracy.

    Args:
        true: tags of each sentence's words.
        predicted: as many sentences with as many tags each.
        labels: of the model that predicted, also those that no word has here.

    Returns:
        The scores.

    Raises:
        ValueError: no words at all, lengths that differ, or tags that do not go together.

    Reference: conlleval of the CoNLL-2000 and CoNLL-2003 shared tasks, version 2004-01-26; for E-
    and S-, whose chunks that version does not always part, conlleval.py of Sampo Pyysalo.
    """
    if len(true) != len(predicted):
        raise ValueError(
            f"predicted: expected the tags of {len(true)} sentences, got {len(predicted)}"
        )
    tags = itertools.chain(labels, *true, *predicted)
    scheme = check_tags(tags, "tags")
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
        true_chunks, predicted_chunks = chunks(true_tags, scheme), chunks(predicted_tags, scheme)
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


def chunks(tags: Sequence[str], scheme: TagScheme | None = None) -> list[tuple[str, int, int]]:
    """Return the chunks of one sentence's tags, by the rule of conlleval.

    A chunk begins with a form other than O that is B or S, or follows O, E, S or another type, or
    begins the sentence. It ends where the next begins, or before O.

    Args:
        tags: in any order.
        scheme: of all tags that there are; None (default) where these show it.

    Returns:
        (type, first word, word after the last) in order.

    Raises:
        ValueError: a tag of another form, with its place.
    """
    scheme = scheme or tag_scheme(tags)
    spans = []
    first = -1  # of the open chunk, -1 for none
    form, name = "O", ""
    for index, tag in enumerate(tags):
        last_form, last_name = form, name
        try:
            form, name = scheme.read(tag)
        except ValueError as error:
            raise ValueError(f"word {index}: {error}") from None
        begins = form in "BS" or last_form in "OES" or name != last_name
        if first >= 0 and (form == "O" or begins):
            spans.append((last_name, first, index))
            first = -1
        if form != "O" and begins:
            first = index
    if first >= 0:
        spans.append((name, first, len(tags)))
    return spans
