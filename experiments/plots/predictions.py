"""Draws what a model predicts against what is right, to PNG."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bert_tf.tasks.calibration import Reliability
from experiments.plots.figures import save_figure, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_confusion(
    labels: np.ndarray, predictions: np.ndarray, names: Sequence[str], png: pathlib.Path
) -> None:
    """Draw a confusion matrix: counts, coloured by the share of the true label's row.

    Args:
        labels: true label ids [N].
        predictions: predicted label ids [N].
        names: of the labels, in the order of their ids.
        png: the picture to write.
    """
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predictions, labels=range(len(names)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.6 * len(names)
    figure, axis = subplots(figsize=(size + 1, size))
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true label")
    ticks = range(len(names))
    axis.set_xticks(ticks, names, rotation=45, ha="right")
    axis.set_yticks(ticks, names)
    if len(names) <= 30:
        for row, column in np.ndindex(counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{counts[row, column]:,}"
            axis.text(column, row, text, ha="center", va="center", color=colour)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axis.set_title(f"{counts.sum():,} examples, accuracy {accuracy:.1%}")
    save_figure(figure, png)


def plot_reliability(curves: Mapping[str, Reliability], png: pathlib.Path) -> None:
    """Draw how often answers were right over how sure the model was; see `reliability_figure`.

    Args:
        curves: name -> what was found.
        png: the picture to write.
    """
    save_figure(reliability_figure(curves), png)


def reliability_figure(curves: Mapping[str, Reliability]) -> Figure:
    """Draw how often answers were right over how sure the model was.

    Args:
        curves: name -> what was found; one picture beside another.
    """
    figure, axes = subplots(1, len(curves), figsize=(4.5 * len(curves), 4.5), squeeze=False)
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        edges = np.linspace(0, 1, len(curve.count) + 1)
        shares = curve.count / max(1, curve.count.sum())
        width = edges[1]
        axis.bar(edges[:-1], curve.accuracy, width, align="edge", edgecolor="white", label="right")
        axis.step(edges, [*shares, shares[-1]], where="post", color="grey", label="part of answers")
        axis.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
        axis.set_xlabel("probability")
        axis.set_ylabel("part that is right")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        axis.legend(loc="upper left")
        axis.set_title(f"{name}\nexpected calibration error {curve.error:.4f}")
    return figure


def plot_regression(labels: np.ndarray, predictions: np.ndarray, png: pathlib.Path) -> None:
    """Draw predicted numbers [N] over true ones [N]."""
    save_figure(regression_figure(labels, predictions), png)


def regression_figure(labels: np.ndarray, predictions: np.ndarray) -> Figure:
    """Draw predicted numbers [N] over true ones [N]."""
    figure, axis = subplots(figsize=(6, 5))
    axis.plot(labels, predictions, ".", markersize=3, alpha=0.5)
    ends = [min(labels.min(), predictions.min()), max(labels.max(), predictions.max())]
    axis.plot(ends, ends, color="grey", linewidth=1)
    axis.set_xlabel("true")
    axis.set_ylabel("predicted")
    axis.set_title(f"{len(labels):,} examples")
    return figure


def plot_types(scores: dict[str, tuple[float, float, float]], png: pathlib.Path) -> None:
    """Draw precision, recall and F1 of each type of entity.

    Args:
        scores: type -> (precision, recall, F1), in percent.
        png: the picture to write.
    """
    figure, axis = subplots(figsize=(4 + 0.9 * len(scores), 4.5))
    places = np.arange(len(scores))
    for number, name in enumerate(("precision", "recall", "F1")):
        heights = [row[number] for row in scores.values()]
        axis.bar(places + 0.27 * (number - 1), heights, 0.25, label=name)
    axis.set_xticks(places, list(scores), rotation=30, ha="right")
    axis.set_ylim(0, 100)
    axis.set_ylabel("percent")
    axis.legend()
    save_figure(figure, png)
