"""A page of one fine-tuning: its runs, its curves, and what is shown of its kind of task."""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from bert_tf.files import read_json, write_text
from bert_tf.tasks.error_analysis import by_length
from bert_tf.tasks.table import Task
from bert_tf.training.log import METRICS_NAME, RUN_CONFIG_NAME
from experiments.command_line.result_files import (
    COMBINATIONS_NAME,
    FOLDS_NAME,
    REPORT_NAME,
    RESULTS_NAME,
    SEEDS_NAME,
)
from experiments.plots.curves import curves_figure
from experiments.plots.report_page import (
    Element,
    Section,
    bar,
    number,
    paragraph,
    picture,
    table,
    to_page,
)

_NAMES = {"eval_ece": "expected calibration error", "eval_f1": "F1", "global_step": "steps"}
NUM_WORST = 30  # errors that are shown
# Settings of a run that the page names; config.json has all.
_SETTINGS = (
    "learning_rate train_batch_size num_train_epochs num_train_steps warmup_proportion seed "
    "optimizer lora_rank precision"
).split()
_NONE_AT_0 = ("lora_rank", "num_train_steps")


def write_report(folder: pathlib.Path, task: Task, sections: Sequence[Section]) -> None:
    """Write report.html of what a finished evaluation left in a folder.

    Args:
        folder: with eval_results.json, and what training left, if there was any.
        task: of the model.
        sections: what is shown of its kind of task.
    """
    results = read_json(folder / f"{RESULTS_NAME}.json")
    rows = [
        (_NAMES.get(name, name.removeprefix("eval_").replace("_", " ")), value)
        for name, value in results.items()
        if name != "loss" or "eval_loss" not in results  # which the original's file has twice
    ]
    figures = table(("figure of the dev set", ""), rows)
    name = "texts" if task.name == "custom" else task.name
    introduction = [
        paragraph(f"Kind of task: {task.kind.replace('_', ' ')}. Folder: {folder.name}."),
        figures,
    ]
    page = to_page(f"Fine-tuning on {name}", introduction, [*_training_sections(folder), *sections])
    write_text(folder / REPORT_NAME, page)
    print(f"wrote {folder / REPORT_NAME}")


# === Training ===


def _training_sections(folder: pathlib.Path) -> list[Section]:
    """Show what training left in a folder: settings and curves of the run that is kept."""
    elements: list[Element] = []
    kept, runs = _runs_of(folder)
    if (folder / FOLDS_NAME).exists():
        elements.append(_table_of_folds(read_json(folder / FOLDS_NAME)))
    if len(runs) > 1:
        elements.append(_table_of_runs(runs))
    config = read_json(kept / RUN_CONFIG_NAME) if (kept / RUN_CONFIG_NAME).exists() else {}
    rows = [
        (name.replace("_", " "), str(config[name]))
        for name in _SETTINGS
        if config.get(name) is not None and not (name in _NONE_AT_0 and config[name] == 0)
    ]
    if rows:
        of_kept = " of the run that is kept" if len(runs) > 1 else ""
        elements.append(table((f"setting{of_kept}", ""), rows))
    if (kept / METRICS_NAME).exists():
        try:
            figure = curves_figure(kept / METRICS_NAME)
        except ValueError as error:  # as of a log without a line of training
            logging.warning("no curves: %s", error)
        else:
            shown = "Loss, scores, learning rate and throughput over the steps of training"
            elements.append(picture(figure, shown))
    return [Section("Training", elements)] if elements else []


def _runs_of(folder: pathlib.Path) -> tuple[pathlib.Path, list[dict[str, Any]]]:
    """Return the folder of the run that is kept, and all runs."""
    if (folder / COMBINATIONS_NAME).exists():
        report = read_json(folder / COMBINATIONS_NAME)
        best = pathlib.Path(report["best"]["folder"])  # which may have been moved
        runs = [run for one in report["combinations"] for run in one["runs"]]
        return folder / best.parent.name / best.name, runs
    if not (folder / SEEDS_NAME).exists():
        return folder, []
    report = read_json(folder / SEEDS_NAME)
    runs, kept = report["runs"], report.get("kept")
    return folder if len(runs) == 1 or kept is None else folder / f"seed-{kept}", runs


def _table_of_folds(report: dict[str, Any]) -> Element:
    metric, rows = report["selection_metric"], []
    for one in report["combinations"]:
        figure = one["figures"].get(metric, {})
        numbers = (figure.get(name, float("nan")) for name in ("mean", "std", "min", "max"))
        rows.append((str(one["learning_rate"]), str(one["train_batch_size"]), *numbers))
    header = ("learning rate", "batch size", "mean", "standard deviation", "least", "greatest")
    name = metric.replace("_", " ")
    return table(
        header, rows, f"{name.capitalize()} over {report['folds']} folds of the training set"
    )


def _table_of_runs(runs: Sequence[dict[str, Any]]) -> Element:
    names = sorted({name for run in runs for name in run["figures"]})
    header = ("learning rate", "batch size", "seed", "best step", *names, "CPU seconds", "failed")
    rows = [
        (
            str(run["learning_rate"]),
            str(run["train_batch_size"]),
            str(run["seed"]),
            int(run["best_step"]),
            *(run["figures"].get(name, float("nan")) for name in names),
            round(run["cpu_seconds"]),
            run["diverged"] or "",
        )
        for run in runs
    ]
    header = tuple(name.replace("_", " ") for name in header)
    return table(header, rows, f"{len(runs)} runs; figures of the dev set")


# === Parts of several kinds ===


def length_section(
    lengths: Any, values: Any, *, measure: str, unit: str, full: float = 1.0
) -> Section:
    """Show what was measured of examples by their length.

    Args:
        lengths: integer [N].
        values: float [N].
        measure: what was measured.
        unit: of the lengths.
        full: the value whose bar has the full length.
    """
    rows = [
        (
            f"{one.shortest:,} to {one.longest:,}",
            one.count,
            bar(one.mean / full if full else 0.0, number(one.mean)),
            f"± {one.standard_error:.2g}" if one.count > 1 else "",
        )
        for one in by_length(lengths, values)
    ]
    said = paragraph(
        "The bins have like numbers of examples. The last column is the standard error: of two "
        "bins that are less than about three of them apart, the difference may be chance."
    )
    shown = table((unit, "examples", measure, "standard error"), rows)
    return Section(f"{measure.capitalize()} by length", [said, shown])
