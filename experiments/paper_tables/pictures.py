"""Pictures of a table's report."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Sequence

from bert_tf.training.log import METRICS_NAME, read_metrics_or_nothing
from experiments.paper_tables.results import Result
from experiments.paper_tables.tables import Table
from experiments.plots.figures import draw_baseline, png_of, subplots


def draw_bars(table: Table, results: Sequence[Sequence[Result]]) -> bytes:
    """Draw a bar for each row in a panel for each column, ours with deviation, the paper's as o."""
    columns = len(table.columns)
    across = min(columns, 4)
    down = math.ceil(columns / across)
    figure, axes = subplots(
        down,
        across,
        figsize=(1.6 + 2.6 * across, down * (0.9 + 0.34 * len(table.rows))),
        sharey=True,
        squeeze=False,
    )
    labels = [row.label for row in table.rows]
    for number, axis in enumerate(axes.flat):
        if number >= columns:
            axis.set_axis_off()
            continue
        axis.set_title(table.columns[number], fontsize=10)
        for place, (row, row_results) in enumerate(zip(table.rows, results, strict=True)):
            result, cell = row_results[number], row.cells[number]
            if result.mean is not None:
                axis.barh(place, result.mean, xerr=result.std, color="#4c72b0", height=0.6)
            if cell.paper is not None:
                axis.plot(cell.paper, place, "o", color="#c44e52", fillstyle="none")
        axis.set_yticks(range(len(labels)), labels, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].invert_yaxis()
    figure.suptitle("bars: here, with standard deviation over seeds; o: the paper", fontsize=9)
    return png_of(figure)


def draw_curves(table: Table, root: pathlib.Path) -> bytes | None:
    """Draw loss and accuracy of the pre-training runs over steps, or None where there are none.

    Lines are of training text, points of held-out text; runs of several seeds have one colour.
    """
    panels = (
        ("mlm_loss", "loss, all predictions (nats)"),
        ("mlm_loss_at_mask", "loss where [MASK] stands (nats)"),
        ("mlm_accuracy", "accuracy, all predictions"),
        ("nsp_accuracy", "accuracy, next sentence"),
    )
    figure, axes = subplots(2, 2, figsize=(10, 7))
    drawn, unigram = False, []
    for number, (label, names) in enumerate(table.curves):
        paths = [root / name / METRICS_NAME for name in names]
        for path in paths:
            unigram += [line["unigram_loss"] for line in read_metrics_or_nothing(path, "baseline")]
        parts = (("train", "", "-"), ("eval", "eval_", "o"))
        for path, (part, prefix, style) in itertools.product(paths, parts):
            lines = read_metrics_or_nothing(path, part)
            for axis, (metric, _) in zip(axes.flat, panels, strict=True):
                points = [(r["step"], r[prefix + metric]) for r in lines if prefix + metric in r]
                if not points:
                    continue
                drawn = True
                axis.plot(
                    *zip(*points, strict=True),
                    style,
                    color=f"C{number}",
                    alpha=0.6 if part == "train" else 1.0,
                    markersize=3,
                    label=label if part == "train" and path == paths[0] else None,
                )
    for axis, (_, title) in zip(axes.flat, panels, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step (points: held-out text)", fontsize=9)
        axis.grid(alpha=0.3)
    if not drawn:
        return None
    if unigram:
        draw_baseline(axes[0, 1], unigram[0], "unigram model")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    return png_of(figure)


def draw_finetuning_curves(
    table: Table, results: Sequence[Sequence[Result]], root: pathlib.Path
) -> bytes | None:
    """Draw the loss of fine-tuning over steps, or None where no run left one.

    A panel for each column, a colour for each row, a line for each seed of the chosen choice.
    Columns of the same runs, as of two figures of one task, have one panel.
    """
    panels: dict[str, dict[int, list[list[tuple[float, float]]]]] = {}
    # Pre-training is drawn by itself.
    seen = {name for _, names in table.curves for name in names}
    for number, title in enumerate(table.columns):
        for place, (row, row_results) in enumerate(zip(table.rows, results, strict=True)):
            result, cell = row_results[number], row.cells[number]
            for name in dict(cell.choices)[result.choice]:
                read = read_metrics_or_nothing(root / name / METRICS_NAME, "train")
                points = [(line["step"], line["loss"]) for line in read if "loss" in line]
                if points and name not in seen:
                    panels.setdefault(title, {}).setdefault(place, []).append(points)
                seen.add(name)
    if not panels:
        return None
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure, axes = subplots(down, across, figsize=(4 * across, 0.8 + 2.8 * down), squeeze=False)
    handles = {}
    for number, axis in enumerate(axes.flat):
        if number >= len(panels):
            axis.set_axis_off()
            continue
        title, lines = list(panels.items())[number]
        for place, seeds in lines.items():
            for points in seeds:
                (handles[place],) = axis.plot(
                    *zip(*points, strict=True), color=f"C{place}", alpha=0.7
                )
        axis.set_title(f"runs of {title}", fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylabel("training loss", fontsize=9)
        axis.grid(alpha=0.3)
    shown_rows = sorted(handles)
    figure.legend(
        [handles[place] for place in shown_rows],
        [table.rows[place].label for place in shown_rows],
        loc="outside lower center",
        ncols=min(across, len(shown_rows)),
        fontsize=8,
    )
    return png_of(figure)
