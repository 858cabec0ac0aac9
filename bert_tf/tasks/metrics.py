"""Figures of merit of fine-tuned models, from predictions and labels in memory.

The figures of GLUE are computed by scikit-learn and SciPy, which are imported on first use; this
module only says what comes out where a figure is not defined, and that without warnings. Named
entities are counted as the evaluation script of the CoNLL-2003 shared task counts them.

Every figure takes what was predicted and the true labels: classes are integers [N], scores numbers
[N], decisions of a multi-label task 0 or 1 [N, K]. All raise ValueError where there are no
examples, shapes differ, or a value cannot be.

Shape legend: N examples, K labels of a multi-label task.
"""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the fraction of examples whose class is right.

    Returns:
        0 to 1.
    """
    predicted, true = _classes(predictions, labels)
    return float(np.mean(predicted == true))


def f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the F1 of class 1 in a task of two classes, as GLUE has it for MRPC and QQP.

    Returns:
        0 to 1; 0 where class 1 is neither in the labels nor predicted.
    """
    from sklearn import metrics

    predicted, true = _classes(predictions, labels)
    for name, values in (("predictions", predicted), ("labels", true)):
        _check_zero_or_one(name, values)
    return float(metrics.f1_score(true, predicted, zero_division=0.0))


def macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of the classes' F1, over the classes that are in the labels or predicted.

    Returns:
        0 to 1.
    """
    from sklearn import metrics

    predicted, true = _classes(predictions, labels)
    return float(metrics.f1_score(true, predicted, average="macro", zero_division=0.0))


def matthews_correlation(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the Matthews correlation coefficient, GLUE's figure for CoLA.

    Returns:
        -1 to 1; 0 where the labels or the predictions are all of one class, which is what guessing
        gives.
    """
    from sklearn import metrics

    predicted, true = _classes(predictions, labels)
    if _is_constant(predicted) or _is_constant(true):
        return 0.0
    return float(metrics.matthews_corrcoef(true, predicted))


def pearson_correlation(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return Pearson's correlation of scores, GLUE's first figure for STS-B.

    Returns:
        -1 to 1; 0, not NaN, where predictions or labels are all equal: they say nothing of each
        other, and a NaN could not be compared with the figures of other models.

    Raises:
        ValueError: there is one example alone, of which SciPy gives none either.
    """
    from scipy import stats

    return _correlation(stats.pearsonr, predictions, labels)


def spearman_correlation(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return Spearman's correlation of ranks, GLUE's second figure for STS-B.

    Returns:
        -1 to 1; 0, not NaN, where predictions or labels are all equal (see `pearson_correlation`).

    Raises:
        ValueError: there is one example alone.
    """
    from scipy import stats

    return _correlation(stats.spearmanr, predictions, labels)


def multi_label_micro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the F1 of all decisions of a multi-label task taken together.

    Returns:
        0 to 1; 0 where nothing is 1.
    """
    return _multi_label_f1(predictions, labels, "micro")


def multi_label_macro_f1(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of the K labels' F1.

    Returns:
        0 to 1; a label that is neither true nor predicted anywhere counts as 0.
    """
    return _multi_label_f1(predictions, labels, "macro")


def multi_label_subset_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the fraction of examples all of whose K labels are right.

    Returns:
        0 to 1.
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
    """Return arrays of one and the right shape, "[N]" or "[N, K]", that are not empty."""
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
    """Return classes [N] of predictions and labels."""
    predicted, true = _same_shape(predictions, labels, "[N]")
    for name, values in (("predictions", predicted), ("labels", true)):
        # Scores or probabilities in the place of classes would compare as all different.
        if values.dtype.kind == "f":
            raise ValueError(f"{name}: expected classes, that is integers, got {values.dtype}")
    return predicted, true


def _label_sets(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return decisions [N, K] as integers; in records labels may be floats."""
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
    if len(true) < 2:
        raise ValueError("predictions: a correlation needs at least two examples, got one")
    if _is_constant(predicted) or _is_constant(true):
        return 0.0
    with warnings.catch_warnings():
        # Of scores that hardly differ: what is left of their digits still gives a figure.
        warnings.simplefilter("ignore")
        value = float(function(predicted, true)[0])
    return value if np.isfinite(value) else 0.0


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())
