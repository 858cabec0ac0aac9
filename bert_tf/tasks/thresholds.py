"""From which probability on a label holds, of tasks with several labels an example.

Shape legend: N examples, K labels.
"""

import numpy as np
from numpy.typing import ArrayLike

HALF = 0.5
_LEAST = 1e-6  # that logits of float32 tell from 0 and 1


def best_thresholds(
    probabilities: ArrayLike, labels: ArrayLike, *, each: bool
) -> tuple[float, ...]:
    """Choose thresholds by the F1 on examples that the model was not trained on.

    A threshold lies halfway between two probabilities that occur. A label that is true of no
    example keeps one half.

    Args:
        probabilities: float [N, K].
        labels: 0 or 1 [N, K].
        each: whether each label gets its own, by its own F1; else one is for all, by the F1 of all
            decisions together.

    Returns:
        K numbers between 0 and 1.

    Raises:
        ValueError: shapes that do not fit.
    """
    scores, true = np.asarray(probabilities, np.float64), np.asarray(labels).astype(np.int64)
    if scores.ndim != 2 or scores.shape != true.shape or not scores.size:
        raise ValueError(
            "probabilities and labels: expected one shape [N, K], not empty; got "
            f"{list(scores.shape)} and {list(true.shape)}"
        )
    if each:
        return tuple(_best(scores[:, k], true[:, k]) for k in range(scores.shape[1]))
    return (_best(scores.ravel(), true.ravel()),) * scores.shape[1]


def _best(scores: np.ndarray, true: np.ndarray) -> float:
    """Return the threshold with the best F1 of scores [N]; of equals that nearest to one half."""
    from sklearn import metrics

    if not true.any():
        return HALF
    precision, recall, lowest = metrics.precision_recall_curve(true, scores)
    sums = precision + recall
    f1 = (2 * precision * recall / np.where(sums > 0, sums, 1))[:-1]  # of "at least lowest"
    below = np.concatenate([[0.0], lowest[:-1]])  # the next score that is not taken
    # Between the two every threshold decides alike.
    middle = np.where((below < HALF) & (HALF < lowest), HALF, (below + lowest) / 2)
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    chosen = middle[best[np.argmin(np.abs(middle[best] - HALF))]]
    return float(np.clip(chosen, _LEAST, 1 - _LEAST))
