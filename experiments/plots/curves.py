"""Learning curves drawn from metrics.jsonl."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bert_tf.training.log import METRICS_NAME, read_metrics
from experiments.plots.figures import save_figure, subplots
from experiments.plots.options import CurvesOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What log lines hold beside losses and scores.
_NOT_SCORES = {
    "kind",
    "step",
    "learning_rate",
    "loss_scale",
    "sequences_per_second",
    "tokens_per_second",
    "time_seconds",
}


Line = dict[str, Any]


def run(options: CurvesOptions) -> None:
    """Draw the curves of one run.

    Raises:
        ValueError, OSError: there is no log to draw, or it is damaged.
    """
    folder = pathlib.Path(options.output_dir)
    print(plot_curves(folder / METRICS_NAME, options.png or folder / "curves.png"))


def plot_curves(metrics_file: str | os.PathLike, png: str | os.PathLike) -> pathlib.Path:
    """Draw losses with their baselines, accuracies, learning rate and throughput.

    Args:
        metrics_file: metrics.jsonl of a run.
        png: the picture to write.

    Returns:
        The path of the picture.

    Raises:
        FileNotFoundError: there is no metrics file.
        ValueError: the file has no training line, or a line is damaged.
    """
    train: list[Line] = read_metrics(metrics_file)
    evaluations: list[Line] = read_metrics(metrics_file, "eval")
    if not train:
        raise ValueError(f"{metrics_file}: no training line to draw")
    figure, axes = subplots(2, 2, figsize=(12, 8))
    names = sorted({name.removeprefix("eval_") for row in train + evaluations for name in row})
    losses = [name for name in names if name.endswith("_loss")] or ["loss"]
    scores = [name for name in names if "loss" not in name and name not in _NOT_SCORES]
    _draw(axes[0, 0], losses, train, evaluations)
    _draw_baselines(axes[0, 0], read_metrics(metrics_file, "baseline")[-1:])
    in_percent = any(row.get(f"eval_{name}", 0) > 1.1 for row in evaluations for name in scores)
    if in_percent:  # as of entities and answers, while the running ones are fractions
        train = [{k: 100 * v if k in scores else v for k, v in row.items()} for row in train]
        axes[0, 1].set_ylabel("percent")
    _draw(axes[0, 1], scores, train, evaluations)
    axes[0, 1].set_ylim(0, 100 if in_percent else 1)
    _draw(axes[1, 0], ["learning_rate"], train, evaluations)
    _draw(axes[1, 1], ["tokens_per_second"], train, evaluations)
    axes[1, 1].set_ylim(bottom=0)
    titles = ("Loss", "Scores", "Learning rate", "Tokens per second")
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_title(title)
        if axis.lines:
            axis.legend()
    save_figure(figure, png)
    return pathlib.Path(png)


def _draw(axis: Axes, names: Sequence[str], train: list[Line], evaluations: list[Line]) -> None:
    """Draw figures over the steps, of training and held-out records."""
    for name in names:
        for rows, prefix, style in ((train, "", "-"), (evaluations, "eval_", "o--")):
            points = [(row["step"], row[prefix + name]) for row in rows if prefix + name in row]
            if points:
                label = f"{name} (held out)" if prefix else name
                axis.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)


def _draw_baselines(axis: Axes, baselines: list[Line]) -> None:
    axis.set_ylabel("nats")
    for row in baselines:
        for name, style in (("uniform_loss", ":"), ("unigram_loss", "--")):
            if name in row:
                label = name.replace("_", " ")
                axis.axhline(row[name], color="grey", linestyle=style, label=label)
