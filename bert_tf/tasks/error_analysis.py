"""Where a model goes wrong: on short or long texts, and on which examples the most.

Shape legend: N examples.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from bert_tf.tasks.kinds import get_kind

NUM_BINS = 5
# Kinds whose examples have one answer each, which logits tell by themselves.
JUDGED_KINDS = ("classification", "multi_label", "multiple_choice", "regression", "similarity")


@dataclasses.dataclass(frozen=True)
class LengthBin:
    """The examples of like length.

    Attributes:
        shortest: the least length among them.
        longest: the greatest.
        count: how many there are.
        mean: of what was measured of each.
        standard_error: of the mean: it is within twice this of the true one, mostly; NaN where
            there is one example.
    """

    shortest: int
    longest: int
    count: int
    mean: float
    standard_error: float


def by_length(lengths: ArrayLike, values: ArrayLike, num_bins: int = NUM_BINS) -> list[LengthBin]:
    """Average what was measured of examples over those of like length.

    The bins have as many examples each as lengths allow: those of one length share a bin.

    Args:
        lengths: integer [N], as of pieces or words.
        values: float [N], as 1 where the answer is right and 0 where it is not.
        num_bins: bins at most.

    Returns:
        The bins that are not empty, short ones first.

    Raises:
        ValueError: no examples, shapes that differ, or no bins.
    """
    sizes, measured = np.asarray(lengths), np.asarray(values, np.float64)
    if sizes.ndim != 1 or sizes.shape != measured.shape or not sizes.size:
        raise ValueError(
            "lengths and values: expected one shape, [N], that is not empty; got "
            f"{list(sizes.shape)} and {list(measured.shape)}"
        )
    if num_bins < 1:
        raise ValueError(f"num_bins: expected at least 1, got {num_bins}")
    # The place of a length among all: of those that are equal, the middle one's.
    ordered = np.sort(sizes)
    first, last = (np.searchsorted(ordered, sizes, side=side) for side in ("left", "right"))
    places = (first + last) / 2 / len(sizes)  # above 0, below 1
    numbers = np.floor(places * num_bins).astype(np.int64)
    bins = []
    for number in np.unique(numbers):
        chosen = numbers == number
        of_bin, count = measured[chosen], int(chosen.sum())
        error = of_bin.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
        shortest, longest = int(sizes[chosen].min()), int(sizes[chosen].max())
        bins.append(LengthBin(shortest, longest, count, float(of_bin.mean()), float(error)))
    return bins


def losses_of(kind: str, probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Return how wrong a model is of each example, float64 [N].

    Args:
        kind: one of JUDGED_KINDS.
        probabilities: what `TrainedTask.probabilities` gives of the logits.
        labels: the true ones.

    Returns:
        The negative log-likelihood of the true label, in nats, or of all labels of multi_label
        together; of numbers the distance from the true one. Infinite where it is no number.

    Raises:
        ValueError: another kind, or shapes that do not go together.
    """
    if kind not in JUDGED_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(JUDGED_KINDS)}, got {kind!r}")
    shown, true = np.asarray(probabilities, np.float64), np.asarray(labels)
    if len(shown) != len(true) or (kind == "multi_label" and shown.shape != true.shape):
        raise ValueError(
            f"probabilities and labels: expected as many, got {list(shown.shape)} and "
            f"{list(true.shape)}"
        )
    tiny = np.finfo(np.float64).tiny
    if kind == "multi_label":
        likelihoods = np.where(true > 0, shown, 1 - shown)
        losses = -np.log(np.maximum(likelihoods, tiny)).sum(axis=1)
    elif get_kind(kind).loss == "classification":
        likelihoods = shown[np.arange(len(true)), true.astype(np.int64)]
        losses = -np.log(np.maximum(likelihoods, tiny))
    else:
        losses = np.abs(shown.reshape(len(true), -1)[:, 0] - true)
    return np.where(np.isnan(losses), np.inf, losses)


def worst(losses: ArrayLike, is_wrong: ArrayLike, count: int) -> np.ndarray:
    """Return the numbers of the examples that a model gets wrong the most.

    Args:
        losses: float [N].
        is_wrong: Boolean [N]; the others are left out.
        count: how many at most.

    Returns:
        int64, the worst first; of equal ones that which comes first.
    """
    amounts, wrong = np.asarray(losses, np.float64), np.flatnonzero(is_wrong)
    return wrong[np.argsort(-amounts[wrong], kind="stable")][:count]
