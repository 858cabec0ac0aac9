"""How far a classifier's probabilities can be trusted, and the temperature that makes them right.

A model that is 90% sure should be right nine times of ten. Fine-tuned models are mostly surer than
that: dividing their logits by one number, the temperature, mends most of it and changes no answer.

Reference: Guo et al., "On Calibration of Modern Neural Networks", 2017 (arXiv 1706.04599).

Shape legend: N examples, K labels, M bins.
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bert_tf.tasks.kinds import get_kind

NUM_BINS = 15  # as in the paper, section 5
CALIBRATED_KINDS = ("classification", "multi_label")
# Beyond these a temperature says that the examples do not tell: all answers right, or none.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How often answers were right, by how sure the model was.

    Attributes:
        count: int64 [M], answers in each of M bins of equal width; bin m is ((m-1)/M, m/M].
        confidence: float64 [M], mean probability of a bin's answers; 0 where there are none.
        accuracy: float64 [M], part of them that is right; likewise.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1: the mean distance of the two, over answers."""
        distance = np.abs(self.confidence - self.accuracy)
        return float(np.sum(self.count * distance) / max(1, self.count.sum()))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {key: value.tolist() for key, value in vars(self).items()}


def reliability(
    confidences: ArrayLike, outcomes: ArrayLike, num_bins: int = NUM_BINS
) -> Reliability:
    """Compare probabilities with what happened.

    Args:
        confidences: probabilities that answers are right, of any shape, 0 to 1.
        outcomes: whether they were, 0 or 1, of the same shape.
        num_bins: M.

    Raises:
        ValueError: shapes differ, nothing to compare, or a number that is no probability.
    """
    sure, right = np.ravel(confidences).astype(np.float64), np.ravel(outcomes).astype(np.float64)
    if sure.shape != right.shape or not sure.size:
        raise ValueError(
            f"confidences and outcomes: expected as many, at least one, got {sure.size} and "
            f"{right.size}"
        )
    if not ((sure >= 0) & (sure <= 1)).all():  # which NaN is not
        raise ValueError("confidences: expected probabilities, of 0 to 1")
    if num_bins < 1:
        raise ValueError(f"num_bins: expected at least 1, got {num_bins}")
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.searchsorted(edges[1:-1], sure)
    count = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=x, minlength=num_bins) for x in (sure, right)]
    return Reliability(count, *(total / np.maximum(count, 1) for total in sums))


def reliability_of(kind: str, logits: ArrayLike, labels: ArrayLike) -> Reliability:
    """Compare a classifier's probabilities with the labels.

    Args:
        kind: "classification", where the answer is the likeliest label; or "multi_label", where
            each label's probability is compared with how often it holds.
        logits: float [N, K].
        labels: integer [N]; of multi_label 0 or 1 [N, K].

    Raises:
        ValueError: another kind; or as for `reliability`.
    """
    logits, labels = _checked(kind, logits, labels)
    probabilities = get_kind(kind).probabilities(logits)  # [N, K]
    if kind == "multi_label":
        return reliability(probabilities, labels)
    return reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def mean_loss(kind: str, logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of labels, in nats, at a temperature.

    Of multi_label over all labels of all examples; arguments as of `reliability_of`.
    """
    from scipy import special

    logits, labels = _checked(kind, logits, labels)
    logits = logits / temperature
    if kind == "multi_label":
        return float(np.mean(-special.log_expit(np.where(labels > 0, logits, -logits))))
    likelihood = special.log_softmax(logits, axis=1)
    return float(-np.mean(likelihood[np.arange(len(labels)), labels]))


def fit_temperature(kind: str, logits: ArrayLike, labels: ArrayLike) -> float | None:
    """Find the temperature with the least negative log-likelihood of labels.

    Args:
        kind: as for `reliability_of`.
        logits: float [N, K] of examples that the model was not trained on.
        labels: theirs.

    Returns:
        None where the examples do not tell: as where all answers are right, so that the best
        temperature would be 0.

    Raises:
        ValueError: as for `reliability_of`.

    Reference: arXiv 1706.04599, section 4.2.
    """
    from scipy import optimize

    logits, labels = _checked(kind, logits, labels)
    low, high = np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE)
    # The loss has one minimum: it is convex in 1 / temperature.
    best = optimize.minimize_scalar(
        lambda x: mean_loss(kind, logits, labels, float(np.exp(x))),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    if not low + 1e-3 < best.x < high - 1e-3:
        return None
    return float(np.exp(best.x))


def _checked(kind: str, logits: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return logits as float64 and labels as integers, of shapes that fit."""
    if kind not in CALIBRATED_KINDS:
        raise ValueError(f"kind: expected {' or '.join(CALIBRATED_KINDS)}, got {kind!r}")
    scores, true = np.asarray(logits, np.float64), np.asarray(labels).astype(np.int64)
    expected = scores.shape if kind == "multi_label" else scores.shape[:1]
    if scores.ndim != 2 or true.shape != expected or not scores.size:
        raise ValueError(
            f"logits and labels: expected [N, K] and {'[N, K]' if len(expected) > 1 else '[N]'}, "
            f"not empty; got {list(scores.shape)} and {list(true.shape)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("logits: expected finite numbers")
    return scores, true
