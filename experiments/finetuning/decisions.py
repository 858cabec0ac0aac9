"""What a classifier decides, and how sure it is: chosen on the dev set, and reported by label."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import logging

from bert_tf.files import write_json, write_text
from bert_tf.tasks.calibration import (
    CALIBRATED_KINDS,
    fit_temperature,
    mean_loss,
    reliability_of,
)
from bert_tf.tasks.class_report import class_report
from bert_tf.tasks.thresholds import best_thresholds
from bert_tf.tasks.trained_task import TrainedTask
from experiments.command_line.exit_status import InputError
from experiments.finetuning.options import ClassifierOptions
from experiments.finetuning.splits import Evaluator
from experiments.plots.predictions import plot_reliability

_SHOWN_LABELS = 30  # of a report on the terminal


def check_kind(options: ClassifierOptions, kind: str) -> None:
    """Refuse to choose what a kind of task does not have.

    Raises:
        InputError: one line names the option.
    """
    if options.calibrate and kind not in CALIBRATED_KINDS:
        raise InputError(f"calibrate: is for kind {' or '.join(CALIBRATED_KINDS)}, got {kind}")
    if options.thresholds != "kept" and kind != "multi_label":
        raise InputError(f"thresholds: is for kind multi_label, got {kind}")


def check_place(model_folder: pathlib.Path | None, output: pathlib.Path) -> None:
    """Refuse to write what was chosen for a model into another one's folder.

    Raises:
        InputError: the model does not lie in the output folder.
    """
    if model_folder is None or not output.is_dir() or not model_folder.samefile(output):
        raise InputError(
            f"output_dir: temperature and thresholds are written beside the model, and it lies in "
            f"{model_folder}; give that as --output_dir"
        )


def choose_decision(
    evaluator: Evaluator, trained: TrainedTask, options: ClassifierOptions
) -> TrainedTask:
    """Choose temperature and thresholds on the (first) dev split, as the options say.

    Args:
        evaluator: with the logits of the model.
        trained: what the model is for, with what it had before.
        options: of the command.

    Returns:
        The same with what was chosen. Thresholds that are kept decide as before at another
        temperature.

    Raises:
        InputError: a logit is no finite number.
    """
    split, logits = next(iter(evaluator.logits.items()))
    if bad := _num_not_finite(logits):
        raise InputError(
            f"{split}: {bad} of {len(logits)} examples have logits that are not finite; nothing "
            "can be chosen by them"
        )
    labels, kind = evaluator.labels[split], trained.kind
    if options.calibrate:
        temperature = fit_temperature(kind, logits, labels)
        if temperature is None:
            logging.warning(
                "calibrate: the %d examples of the dev set do not tell the temperature, as where "
                "all answers are right; it is set to 1: try a larger dev set",
                len(logits),
            )
        trained = trained.at_temperature(temperature or 1.0)
        print(f"temperature: {trained.temperature:.4g}")
    if options.thresholds != "kept":
        probabilities = trained.probabilities(logits)
        chosen = best_thresholds(probabilities, labels, each=options.thresholds == "each")
        trained = dataclasses.replace(trained, thresholds=chosen)
        names = evaluator.task.labels or ()
        if unseen := [names[k] for k in np.flatnonzero(labels.sum(axis=0) == 0)]:
            logging.warning("thresholds: no example of the dev set has %s", ", ".join(unseen))
        shown = (f"{name} {value:.4g}" for name, value in zip(names, chosen, strict=True))
        print(f"thresholds: {', '.join(shown)}")
    return trained


def _num_not_finite(logits: np.ndarray) -> int:
    """Count examples of which a logit [N, K] is no finite number."""
    return int(np.count_nonzero(~np.isfinite(logits).all(axis=1)))


def report_calibration(
    evaluator: Evaluator, trained: TrainedTask, folder: pathlib.Path, *, draw: bool
) -> dict[str, float]:
    """Return the expected calibration error of each dev split whose logits are finite.

    Args:
        evaluator: with the logits of the model.
        trained: with its temperature.
        folder: where to write.
        draw: whether to write calibration.json and reliability.png: what probabilities were worth
            at the temperature 1, and at the model's.
    """
    errors = {}
    for number, (split, logits) in enumerate(evaluator.logits.items()):
        if bad := _num_not_finite(logits):
            logging.warning(
                "%s: %d of %d examples have logits that are not finite, and so there is no "
                "expected calibration error",
                *(split, bad, len(logits)),
            )
            continue
        labels, suffix = evaluator.labels[split], split.removeprefix("dev")
        found: dict[str, Any] = {"temperature": trained.temperature}
        curves = {}
        for name, temperature in (("before", 1.0), ("after", trained.temperature)):
            curve = reliability_of(trained.kind, logits / temperature, labels)
            loss = mean_loss(trained.kind, logits, labels, temperature)
            found[name] = {"ece": curve.error, "loss": loss, **curve.to_dict()}
            curves[name] = curve
        errors[f"ece{suffix if number else ''}"] = curves["after"].error
        if draw:
            write_json(folder / f"calibration{suffix}.json", found)
            plot_reliability(curves, folder / f"reliability{suffix}.png")
            print(
                f"expected calibration error of {split}: {curves['before'].error:.4f}, with the "
                f"temperature {curves['after'].error:.4f}"
            )
    return errors


def report_classes(evaluator: Evaluator, trained: TrainedTask, folder: pathlib.Path) -> None:
    """Write class_report.txt and .json of each dev split, and print them.

    Args:
        evaluator: with the logits of the model.
        trained: with its temperature and thresholds.
        folder: where to write.
    """
    names = evaluator.task.labels or ()
    for split, logits in evaluator.logits.items():
        suffix = split.removeprefix("dev")
        report = class_report(trained.decide(logits), evaluator.labels[split], names)
        write_text(folder / f"class_report{suffix}.txt", report.text())
        write_json(folder / f"class_report{suffix}.json", report.to_dict())
        if len(names) <= _SHOWN_LABELS:
            if len(evaluator.logits) > 1:
                print(f"{split}:")
            print(report.text(), end="")
        else:
            print(f"wrote {folder / f'class_report{suffix}.txt'}")
