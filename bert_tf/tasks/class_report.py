"""Precision, recall and F1 of each label, and which labels are taken for which.

Counted by scikit-learn, which is imported on first use.

Shape legend: N examples, K labels.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_WIDEST = 30  # labels whose confusion matrix is shown as text


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """What `class_report` returns.

    Attributes:
        names: of the labels, K.
        precision: float64 [K], 0 where a label is never predicted.
        recall: float64 [K], 0 where a label is never true.
        f1: float64 [K], their harmonic mean.
        support: int64 [K], examples of which the label is true.
        confusion: int64 [K, K], true label by predicted label; of several labels an example
            [K, 2, 2], of each label whether it is true by whether it is predicted.
    """

    names: tuple[str, ...]
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    confusion: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it: a row for each label, and the confusion matrix."""
        columns = ("precision", "recall", "f1", "support")
        rows = [
            {"label": name, **{key: getattr(self, key)[k].item() for key in columns}}
            for k, name in enumerate(self.names)
        ]
        return {"labels": rows, "confusion_matrix": self.confusion.tolist()}

    def text(self) -> str:
        """Return it as a table, with the confusion matrix below where it is not too wide."""
        width = max(len("label"), *(len(_shown(name)) for name in self.names))
        lines = [f"{'label':<{width}}  precision  recall      f1  support"]
        for k, name in enumerate(self.names):
            lines.append(
                f"{_shown(name):<{width}}  {self.precision[k]:9.4f}  {self.recall[k]:6.4f}  "
                f"{self.f1[k]:6.4f}  {self.support[k]:7,}"
            )
        if self.confusion.ndim == 2 and len(self.names) <= _WIDEST:
            cells = [[f"{count:,}" for count in row] for row in self.confusion.tolist()]
            heads = [_shown(name) for name in self.names]
            widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
            lines += ["", "true label (row) by predicted label (column):"]
            for name, row in (("", heads), *zip(heads, cells, strict=True)):
                padded = (cell.rjust(size) for cell, size in zip(row, widths, strict=True))
                lines.append(f"{name:<{width}}  {'  '.join(padded)}")
        return "\n".join(lines) + "\n"


def class_report(predictions: ArrayLike, labels: ArrayLike, names: Sequence[str]) -> ClassReport:
    """Count what a classifier gets right and wrong, label by label.

    Args:
        predictions: labels' numbers, integer [N]; of several labels an example 0 or 1, [N, K].
        labels: the true ones, likewise.
        names: of the K labels.

    Raises:
        ValueError: no examples, shapes that differ, or labels that have no name.
    """
    from sklearn import metrics

    predicted, true = np.asarray(predictions), np.asarray(labels)
    if predicted.shape != true.shape or not predicted.size or predicted.ndim not in (1, 2):
        raise ValueError(
            "predictions and labels: expected one shape, [N] or [N, K], that is not empty; got "
            f"{list(predicted.shape)} and {list(true.shape)}"
        )
    several, count = predicted.ndim == 2, len(names)
    if several and predicted.shape[1] != count:
        raise ValueError(f"names: expected {predicted.shape[1]}, got {count}")
    top = 1 if several else count - 1
    for name, values in (("predictions", predicted), ("labels", true)):
        if values.min() < 0 or values.max() > top:
            raise ValueError(f"{name}: expected 0 to {top}, got {values.min()} to {values.max()}")
    predicted, true = predicted.astype(np.int64), true.astype(np.int64)
    if several:
        confusion = metrics.multilabel_confusion_matrix(true, predicted) if count > 1 else None
        if confusion is None:  # scikit-learn takes one column for classes
            confusion = metrics.confusion_matrix(true[:, 0], predicted[:, 0], labels=[0, 1])[None]
        right, support = confusion[:, 1, 1], confusion[:, 1].sum(axis=-1)
        taken = confusion[:, :, 1].sum(axis=-1)
    else:
        confusion = metrics.confusion_matrix(true, predicted, labels=range(count))
        right, support = confusion.diagonal(), confusion.sum(axis=1)
        taken = confusion.sum(axis=0)
    return ClassReport(
        names=tuple(names),
        precision=right / np.maximum(taken, 1),
        recall=right / np.maximum(support, 1),
        f1=2 * right / np.maximum(taken + support, 1),
        support=support,
        confusion=confusion,
    )


def _shown(name: str) -> str:
    """Return a name in one line: what cannot be seen is escaped."""
    return name if name.isprintable() else json.dumps(name)
