"""Learning curves drawn from metrics.jsonl."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_tf.training.log import METRICS_NAME, read_metrics
from experiments.plots.figures import draw_baseline, save_figure, subplots
from experiments.plots.options import CurvesOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What log lines hold beside losses and scores.
_NOT_SCORES = {
    *("kind", "step", "learning_rate", "loss_scale", "skipped_steps", "tokens"),
    *("sequences_per_second", "tokens_per_second", "time_seconds", "cpu_seconds"),
}
_LABELS = {
    "mlm_loss": "all predictions",
    "mlm_accuracy": "all predictions",
    "mlm_loss_at_mask": "those that show [MASK]",
    "mlm_accuracy_at_mask": "those that show [MASK]",
}

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One of the axes of a figure.

    Attributes:
        title: what it shows.
        unit: of its vertical axis.
        names: figures of the log lines.
        baselines: keys of the baseline line -> label.
        limits: of the vertical axis; None for those of the data.
    """

    title: str
    unit: str
    names: tuple[str, ...]
    baselines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: tuple[float, float | None] | None = None


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
    save_figure(curves_figure(metrics_file), png)
    return pathlib.Path(png)


def curves_figure(metrics_file: str | os.PathLike) -> Figure:
    """Draw what `plot_curves` does; raises what it raises."""
    train: list[Line] = read_metrics(metrics_file)
    evaluations: list[Line] = read_metrics(metrics_file, "eval")
    if not train:
        raise ValueError(f"{metrics_file}: no training line to draw")
    names = {name.removeprefix("eval_") for row in train + evaluations for name in row}
    scores = sorted(name for name in names if "loss" not in name and name not in _NOT_SCORES)
    in_percent = any(row.get(f"eval_{name}", 0) > 1.1 for row in evaluations for name in scores)
    if in_percent:  # as of entities and answers, while the running ones are fractions
        train = [{k: 100 * v if k in scores else v for k, v in row.items()} for row in train]
    panels = _pretraining_panels(names) if "mlm_loss" in names else _task_panels(names, scores)
    if in_percent:
        panels[1] = dataclasses.replace(panels[1], unit="percent", limits=(0, 100))
    panels += [
        Panel("Learning rate", "", ("learning_rate",)),
        Panel("Throughput", "tokens a second", ("tokens_per_second",), limits=(0, None)),
    ]
    figure, axes = subplots(len(panels) // 2, 2, figsize=(12, 2 * len(panels)))
    baselines: Line = next(iter(read_metrics(metrics_file, "baseline")[-1:]), {})
    for axis, panel in zip(axes.flat, panels, strict=True):
        _draw(axis, panel, train, evaluations)
        _draw_baselines(axis, panel, baselines)
    for axis in axes[0]:
        _add_tokens(axis, train)
    return figure


def _pretraining_panels(names: set[str]) -> list[Panel]:
    """Return those of the language model, and of next sentence prediction where there is one."""
    unigram = {"unigram_loss": "unigram model", "uniform_loss": "uniform guess"}
    panels = [
        Panel("Language model: loss", "nats a piece", ("mlm_loss", "mlm_loss_at_mask"), unigram),
        Panel(
            "Language model: accuracy",
            "share",
            ("mlm_accuracy", "mlm_accuracy_at_mask"),
            {"unigram_accuracy": "most frequent piece"},
            (0, None),
        ),
    ]
    if "nsp_loss" in names:
        panels += [
            Panel("Next sentence: loss", "nats", ("nsp_loss",)),
            Panel("Next sentence: accuracy", "share", ("nsp_accuracy",)),
        ]
    return panels


def _task_panels(names: set[str], scores: list[str]) -> list[Panel]:
    losses = sorted(name for name in names if name.endswith("_loss")) or ["loss"]
    return [
        Panel("Loss", "nats", tuple(losses)),
        Panel("Scores", "share", tuple(scores), limits=(0, 1)),
    ]


def _draw(axis: Axes, panel: Panel, train: list[Line], evaluations: list[Line]) -> None:
    """Draw figures over the steps, of training as lines and of held-out records as points."""
    labels = 0
    for number, name in enumerate(panel.names):
        for rows, prefix, style in ((train, "", "-"), (evaluations, "eval_", "o")):
            points = [(row["step"], row[prefix + name]) for row in rows if prefix + name in row]
            if points:
                label = _LABELS.get(name, name.replace("_", " "))
                axis.plot(
                    *zip(*points, strict=True),
                    style,
                    color=f"C{number}",
                    alpha=1 if prefix else 0.6,
                    label=f"{label} (held out)" if prefix else label,
                    markersize=5,
                )
                labels += 1
    last = max(row["step"] for row in train + evaluations)
    axis.set(title=panel.title, xlabel="steps", ylabel=panel.unit, xlim=(0, 1.01 * last))
    axis.grid(alpha=0.3)
    if panel.limits:
        axis.set_ylim(*panel.limits)
    if labels > 1:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2, frameon=False)


def _draw_baselines(axis: Axes, panel: Panel, baselines: Line) -> None:
    """Draw what a model that looks at no context has, each with its name at the line."""
    for name, label in panel.baselines.items():
        if name in baselines:
            draw_baseline(axis, baselines[name], label)


def _add_tokens(axis: Axes, train: list[Line]) -> None:
    """Add an axis on top that counts tokens; logs of earlier versions do not hold them."""
    rows = [row for row in train if row.get("tokens")]
    if len(rows) < 2:
        return
    end = 10  # beyond what is drawn, since a tick there would be drawn at the end
    steps = np.array([0, *(row["step"] for row in rows), end * rows[-1]["step"]], float)
    millions = np.array([0, *(row["tokens"] for row in rows), end * rows[-1]["tokens"]]) / 1e6
    both_ways: Any = (
        functools.partial(np.interp, xp=steps, fp=millions),
        functools.partial(np.interp, xp=millions, fp=steps),
    )
    axis.secondary_xaxis("top", functions=both_ways).set_xlabel("million tokens")
