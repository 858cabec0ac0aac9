"""What fine-tuning came to: results as files, and what the seeds have in common."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from bert_tf.files import original_names, write_json
from bert_tf.training.log import METRICS_NAME
from experiments.command_line.result_files import COMBINATIONS_NAME, FOLDS_NAME, SEEDS_NAME
from experiments.command_line.tables import print_rows
from experiments.plots.curves import plot_curves

_REMEDY = "  what may help: --bias_correction, a lower --learning_rate, more steps"


def rank_of(figures: Mapping[str, float], name: str) -> float:
    """Return a figure to compare with others: the lowest of all where it is missing or no number.

    NaN compares as neither less nor more, and would stay the best where it comes first.
    """
    value = figures.get(name, math.nan)
    return -math.inf if math.isnan(value) else value


@dataclasses.dataclass
class FineTuningRun:
    """A finished run.

    Attributes:
        seed: its seed.
        folder: its folder, with the model.
        steps: steps trained.
        figures: dev figures of the weights that were kept.
        best_step: the step of these weights.
        seconds: wall time of training and evaluation.
        cpu_seconds: processor time of them.
        diverged: what went wrong, or None.
        learning_rate: its peak learning rate; None of a run that did not write it down.
        train_batch_size: examples of its training batches; likewise.
    """

    seed: int
    folder: str
    steps: int
    figures: dict[str, float]
    best_step: int
    seconds: float
    cpu_seconds: float
    diverged: str | None = None
    learning_rate: float | None = None
    train_batch_size: int | None = None


def with_step(figures: Mapping[str, Any], step: int | None) -> dict[str, Any]:
    """Add `global_step`, as the original does, to the figures of a model whose steps are known."""
    return dict(figures) if step is None else {**figures, "global_step": step}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, median, standard deviation, least and greatest of figures, at least one."""
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


def summary_over_seeds(
    runs: Sequence[FineTuningRun], selection_metric: str, baseline: float | None
) -> dict[str, Any]:
    """Return mean, median, standard deviation, least and greatest of each figure, and failed runs.

    A run has failed if its loss became infinite, or if it is not better than a constant answer.

    Args:
        runs: one for each seed.
        selection_metric: the figure in which it has to be better.
        baseline: what the constant answer has in it, if known.
    """
    failed = {run.seed: run.diverged for run in runs if run.diverged}
    for run in runs:
        score = run.figures.get(selection_metric)
        if run.diverged is None and baseline is not None and score is not None:
            if score <= baseline + 1e-9:
                failed[run.seed] = (
                    f"{selection_metric} {score:.4f} is not above that of a constant answer, "
                    f"{baseline:.4f}"
                )
    names = sorted({name for run in runs for name in run.figures})
    figures = {}
    for name in names:
        values = [run.figures[name] for run in runs if name in run.figures]
        figures[name] = spread(values)
    return {
        "figures": figures,
        "runs": [{**dataclasses.asdict(run), "folder": original_names(run.folder)} for run in runs],
        "failed": {str(seed): reason for seed, reason in failed.items()},
    }


def report_runs(
    runs: Sequence[FineTuningRun],
    best: FineTuningRun,
    folder: pathlib.Path,
    selection_metric: str,
    baseline: float | None,
) -> None:
    """Write seeds.json, what the seeds gave, and print it: a table, for more than one.

    Args:
        runs: one for each seed.
        best: that of them whose model is kept.
        folder: where to write.
        selection_metric: as for `summary_over_seeds`.
        baseline: likewise.
    """
    summary = summary_over_seeds(runs, selection_metric, baseline)
    write_json(folder / SEEDS_NAME, {**summary, "kept": best.seed})
    for name in (COMBINATIONS_NAME, FOLDS_NAME):  # of other runs than the folder's model
        (folder / name).unlink(missing_ok=True)
    if len(runs) > 1:
        print(f"over {len(runs)} seeds:")
        for name, row in summary["figures"].items():
            print(
                f"  {name:<24} mean {row['mean']:.4f}  median {row['median']:.4f}  "
                f"std {row['std']:.4f}  from {row['min']:.4f} to {row['max']:.4f}"
            )
    for seed, reason in summary["failed"].items():
        print(f"  failed: seed {seed}: {reason}")
    if summary["failed"]:
        print(_REMEDY)
    draw_curves(runs)


def report_combinations(
    runs: Sequence[FineTuningRun],
    best: FineTuningRun,
    folder: pathlib.Path,
    selection_metric: str,
    baseline: float | None,
) -> None:
    """Write combinations.json, what learning rates and batch sizes gave, and print a table.

    Args:
        runs: one for each combination and seed.
        best: that of them whose model is kept.
        folder: where to write.
        selection_metric: as for `summary_over_seeds`.
        baseline: likewise.
    """
    groups: dict[tuple[float | None, int | None], list[FineTuningRun]] = {}
    for run in runs:
        groups.setdefault((run.learning_rate, run.train_batch_size), []).append(run)
    found, reason = [], None
    rows: list[tuple[str, ...]] = [
        ("learning rate", "batch size", "runs", "failed", "mean", "best", "")
    ]
    for (rate, size), of_one in groups.items():
        summary = summary_over_seeds(of_one, selection_metric, baseline)
        found.append({"learning_rate": rate, "train_batch_size": size, **summary})
        figure = summary["figures"].get(selection_metric)
        numbers = [f"{figure[name]:.4f}" if figure else "none" for name in ("mean", "max")]
        mark = "kept" if best in of_one else ""
        if best in of_one:
            reason = summary["failed"].get(str(best.seed))
        counts = (str(len(of_one)), str(len(summary["failed"])))
        rows.append((str(rate), str(size), *counts, *numbers, mark))
    chosen = {**dataclasses.asdict(best), "folder": original_names(best.folder)}
    report = {"selection_metric": selection_metric, "best": chosen, "combinations": found}
    write_json(folder / COMBINATIONS_NAME, report)
    for name in (SEEDS_NAME, FOLDS_NAME):  # of other runs than the folder's model
        (folder / name).unlink(missing_ok=True)
    print_rows(f"{selection_metric} of the dev set:", rows)
    if reason is not None:  # and so every other has
        print(f"  the one that is kept has failed: {reason}\n{_REMEDY}")
    draw_curves(runs)


def draw_curves(runs: Sequence[FineTuningRun]) -> None:
    """Write curves.png of each run into its folder."""
    for run in runs:
        metrics = pathlib.Path(run.folder) / METRICS_NAME
        if not metrics.exists():
            continue
        try:
            plot_curves(metrics, pathlib.Path(run.folder) / "curves.png")
        except (ImportError, ValueError) as error:
            logging.warning("no curves: %s", error)
