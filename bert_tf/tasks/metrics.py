"""Figures of merit of fine-tuned models, from predictions and labels in memory.

The figures of GLUE are computed by scikit-learn and SciPy, which are imported on first use; this
module only says what comes out where a figure is not defined, and that without warnings. Named
entities are counted as the evaluation script of the CoNLL-2003 shared task counts them.

Shape legend: N examples, K labels of a multi-label task.
"""

import dataclasses
import functools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the fraction of examples whose class is right.

    Args:
      predictions: integers [N], the predicted classes.
      labels: integers [N], the true ones.

    Returns:
      0 to 1.

    Raises:
      ValueError: no examples, or shapes that differ.
    """
    predicted, true = _classes(predictions, labels)
    return float(np.mean(predicted == true))


def f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the F1 of class 1 in a task of two classes, as GLUE has it for MRPC and QQP.

    Args:
      predictions: [N], each 0 or 1.
      labels: [N], each 0 or 1.

    Returns:
      0 to 1; 0 where class 1 is neither in the labels nor predicted.

    Raises:
      ValueError: no examples, shapes that differ, or another class.
    """
    from sklearn import metrics

    predicted, true = _classes(predictions, labels)
    for name, values in (("predictions", predicted), ("labels", true)):
        _check_zero_or_one(name, values)
    return float(metrics.f1_score(true, predicted, zero_division=0.0))


def macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of the classes' F1, over the classes that are in the labels or predicted.

    Args:
      predictions: integers [N], the predicted classes.
      labels: integers [N], the true ones.

    Returns:
      0 to 1.

    Raises:
      ValueError: no examples, or shapes that differ.
    """
    from sklearn import metrics

    predicted, true = _classes(predictions, labels)
    return float(metrics.f1_score(true, predicted, average="macro", zero_division=0.0))


def matthews_correlation(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the Matthews correlation coefficient, GLUE's figure for CoLA.

    Args:
      predictions: integers [N], the predicted classes, two or more.
      labels: integers [N], the true ones.

    Returns:
      -1 to 1; 0 where the labels or the predictions are all of one class, which is what guessing
      gives.

    Raises:
      ValueError: no examples, or shapes that differ.
    """
    from sklearn import metrics

    predicted, true = _classes(predictions, labels)
    if _is_constant(predicted) or _is_constant(true):
        return 0.0
    return float(metrics.matthews_corrcoef(true, predicted))


def pearson_correlation(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return Pearson's correlation of scores, GLUE's first figure for STS-B.

    Args:
      predictions: numbers [N].
      labels: numbers [N].

    Returns:
      -1 to 1; 0, not NaN, where predictions or labels are all equal: they say nothing of each
      other, and a NaN could not be compared with the figures of other models.

    Raises:
      ValueError: no examples, shapes that differ, or a score that is not finite.
    """
    from scipy import stats

    return _correlation(stats.pearsonr, predictions, labels)


def spearman_correlation(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return Spearman's correlation of ranks, GLUE's second figure for STS-B.

    Args:
      predictions: numbers [N].
      labels: numbers [N].

    Returns:
      -1 to 1; 0, not NaN, where predictions or labels are all equal (see `pearson_correlation`).

    Raises:
      ValueError: no examples, shapes that differ, or a score that is not finite.
    """
    from scipy import stats

    return _correlation(stats.spearmanr, predictions, labels)


def multi_label_micro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the F1 of all decisions of a multi-label task taken together.

    Args:
      predictions: [N, K], each 0 or 1.
      labels: [N, K], each 0 or 1.

    Returns:
      0 to 1; 0 where nothing is 1.

    Raises:
      ValueError: no examples, shapes that differ, or another value.
    """
    return _multi_label_f1(predictions, labels, "micro")


def multi_label_macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of the K labels' F1.

    Args:
      predictions: [N, K], each 0 or 1.
      labels: [N, K], each 0 or 1.

    Returns:
      0 to 1; a label that is neither true nor predicted anywhere counts as 0.

    Raises:
      ValueError: no examples, shapes that differ, or another value.
    """
    return _multi_label_f1(predictions, labels, "macro")


def multi_label_subset_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the fraction of examples all of whose K labels are right.

    Args:
      predictions: [N, K], each 0 or 1.
      labels: [N, K], each 0 or 1.

    Returns:
      0 to 1.

    Raises:
      ValueError: no examples, shapes that differ, or another value.
    """
    predicted, true = _label_sets(predictions, labels)
    return float(np.mean((predicted == true).all(axis=1)))


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson_correlation": pearson_correlation,
    "spearman_correlation": spearman_correlation,
    "multi_label_micro_f1": multi_label_micro_f1,
    "multi_label_macro_f1": multi_label_macro_f1,
    "multi_label_subset_accuracy": multi_label_subset_accuracy,
}


def _same_shape(
    predictions: ArrayLike, labels: ArrayLike, shape: str
) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of one and the right shape, "[N]" or "[N, K]", that are not empty."""
    predicted, true = np.asarray(predictions), np.asarray(labels)
    for name, values in (("predictions", predicted), ("labels", true)):
        if values.ndim != shape.count(",") + 1:
            raise ValueError(f"{name}: expected shape {shape}, got {list(values.shape)}")
        if values.dtype.kind not in "biuf" and values.size:
            raise ValueError(f"{name}: expected numbers, got {values.dtype}")
    if predicted.shape != true.shape:
        raise ValueError(
            "predictions and labels: expected one shape, "
            f"got {list(predicted.shape)} and {list(true.shape)}"
        )
    if not predicted.size:
        raise ValueError(f"predictions: expected at least one example, got {list(predicted.shape)}")
    return predicted, true


def _classes(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Classes [N] of predictions and labels."""
    predicted, true = _same_shape(predictions, labels, "[N]")
    for name, values in (("predictions", predicted), ("labels", true)):
        # Scores or probabilities in the place of classes would compare as all different.
        if values.dtype.kind == "f":
            raise ValueError(f"{name}: expected classes, that is integers, got {values.dtype}")
    return predicted, true


def _label_sets(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Decisions [N, K] of predictions and labels as integers (labels may be floats in records)."""
    predicted, true = _same_shape(predictions, labels, "[N, K]")
    for name, values in (("predictions", predicted), ("labels", true)):
        _check_zero_or_one(name, values)
    return predicted.astype(np.int64), true.astype(np.int64)


def _check_zero_or_one(name: str, values: np.ndarray) -> None:
    wrong = values[(values != 0) & (values != 1)]
    if wrong.size:
        raise ValueError(f"{name}: expected 0 or 1 each, got {wrong.flat[0]}")


def _multi_label_f1(predictions: ArrayLike, labels: ArrayLike, average: str) -> float:
    predicted, true = _label_sets(predictions, labels)
    if predicted.shape[1] == 1:  # scikit-learn takes one column for classes, and averages over both
        return f1(predicted[:, 0], true[:, 0])
    from sklearn import metrics

    return float(metrics.f1_score(true, predicted, average=average, zero_division=0.0))


def _correlation(
    function: Callable[[np.ndarray, np.ndarray], tuple[float, float]],
    predictions: ArrayLike,
    labels: ArrayLike,
) -> float:
    """Correlation by a function of SciPy; 0 where it is not defined."""
    predicted, true = (
        values.astype(np.float64) for values in _same_shape(predictions, labels, "[N]")
    )
    for name, values in (("predictions", predicted), ("labels", true)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise ValueError(
                f"{name}: expected finite scores, got {values[wrong[0]]} at row {wrong[0]}"
            )
    if _is_constant(predicted) or _is_constant(true):
        return 0.0
    with warnings.catch_warnings():
        # Of scores that hardly differ: what is left of their digits still gives a figure.
        warnings.simplefilter("ignore")
        value = float(function(predicted, true)[0])
    return value if np.isfinite(value) else 0.0


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


# --------------------------------------------------------------------------------------------------
# Named entities

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
    found: Counter[str] = Counter()
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
        found.update(name for name, _, _ in true_chunks)
        guessed.update(name for name, _, _ in predicted_chunks)
        correct.update(name for name, _, _ in set(true_chunks).intersection(predicted_chunks))
        num_tokens += len(true_tags)
        num_correct_tokens += sum(map(str.__eq__, true_tags, predicted_tags))
    if not num_tokens:
        raise ValueError("true: expected at least one word, got none")
    return EntityScores(
        num_true=found.total(),
        num_predicted=guessed.total(),
        num_correct=correct.total(),
        num_tokens=num_tokens,
        num_correct_tokens=num_correct_tokens,
        by_type={
            name: ChunkScores(found[name], guessed[name], correct[name])
            for name in sorted(found.keys() | guessed.keys())
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
    found = []
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
            found.append((last_name, first, index))
            first = -1
        if form != "O" and begins:
            first = index
    if first >= 0:
        found.append((name, first, len(tags)))
    return found


@functools.lru_cache(maxsize=1 << 12)
def form_and_type(tag: str) -> tuple[str, str]:
    """Form and type of a tag; ("", "") if it is none. Types may contain hyphens."""
    if not _TAG.fullmatch(tag):
        return "", ""
    form, _, name = tag.partition("-")
    return form, name
