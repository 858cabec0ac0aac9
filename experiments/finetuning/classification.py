"""Fine-tuning on sentences and pairs: GLUE, and tables of one's own."""

from __future__ import annotations

import csv
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags, logging

from bert_tf.options import read
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.trained_task import TrainedTask
from data_prep.finetuning import glue
from data_prep.finetuning.flags import sources_from_flags
from experiments.command_line.exit_status import InputError
from experiments.command_line.tables import print_table
from experiments.command_line.training_options import TrainingOptions
from experiments.command_line.training_setup import chief_first
from experiments.finetuning import flags as finetuning_flags
from experiments.finetuning.initial_model import StartingPoint, load_trained, starting_point
from experiments.finetuning.results import report_runs, with_step, write_results
from experiments.finetuning.runs import Job, train_all
from experiments.finetuning.splits import (
    Data,
    Evaluator,
    leave_out,
    make_records,
    predict,
    probabilities_of,
)

# === Data ===


def prepare(values: flags.FlagValues, start: StartingPoint) -> Data:
    """Make the records that the flags ask for, or find them made.

    Without a training file the labels of one's own tables are those of the fine-tuned model.

    Raises:
        InputError, ValueError, OSError: bad flags or data.
    """
    own = values.task_name is None and values.kind != "regression" and len(values.label_column) < 2
    if own and not (values.do_train or values.labels or values.train_file):
        values.labels = list(load_trained(values, start, values.kind).labels or ())
    return make_records(*sources_from_flags(values), values, start)


# === Predictions ===


def write_predictions(
    data: Data, split: str, logits: np.ndarray, values: flags.FlagValues, majority: str | None
) -> list[pathlib.Path]:
    """Write test_results.tsv, and the submission of GLUE or predictions.csv of own data."""
    task, folder = data.task, pathlib.Path(values.output_dir)
    suffix = split.removeprefix("test")
    probabilities = probabilities_of(task.kind, logits)
    paths = [folder / f"test_results{suffix}.tsv"]
    with open(paths[0], "w", encoding="utf-8") as stream:
        stream.writelines("\t".join(map(str, row)) + "\n" for row in probabilities.tolist())
    decided = get_kind(task.kind).decide(logits)
    examples = list(data.sources[split].read(leave_out if values.skip_bad_examples else None, None))
    if values.task_name is not None:
        answers: Any = decided if majority is None else [majority] * len(examples)
        paths.append(folder / glue.submission_file_name(task, split))
        glue.write_submission(paths[-1], task, examples, answers)
        return paths
    paths.append(folder / f"predictions{suffix}.csv")
    labels = task.labels or ()
    with open(paths[-1], "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "prediction", *(f"probability of {label}" for label in labels)])
        for example, answer, row in zip(examples, decided, probabilities, strict=True):
            if task.kind == "multi_label":
                names = [label for label, holds in zip(labels, answer, strict=True) if holds]
                shown: Any = values.label_separator.join(names)
            else:
                shown = float(answer) if task.kind == "regression" else labels[int(answer)]
            numbers = row.tolist() if labels else []
            writer.writerow([example.guid, shown, *(f"{number:.6g}" for number in numbers)])
    return paths


# === The script ===


def run(values: flags.FlagValues) -> None:
    """Train, evaluate and predict as the flags say.

    Raises:
        InputError, ValueError, OSError: bad flags, data or model; one line says what.
    """
    began = time.time()
    finetuning_flags.check_flags(values)
    folder = pathlib.Path(values.output_dir)
    start = starting_point(values)
    with chief_first(read(TrainingOptions, values)):
        data = prepare(values, start)
    task, vocab_size = data.task, start.config.vocab_size
    evaluator = Evaluator(data, values, vocab_size) if values.do_eval else None
    majority = _majority(data, values)
    job = Job(
        task=TrainedTask(task.kind, values.max_seq_length, task.has_pairs),
        labels=task.labels,
        records=data.records("train", vocab_size) if values.do_train else None,
        num_examples=data.made["train"].num_examples if values.do_train else 0,
        fingerprint=data.fingerprint,
        evaluate=evaluator,
        selection_metric=task.selection_metric,
        baseline=evaluator.baseline if evaluator else None,
    )
    model = step = None
    if values.do_train:
        print(f"{task.name}: begins with {start.description}")
        trained = train_all(job, start, values)
        report_runs(trained, folder, job.selection_metric, job.baseline)
        start = start.trained(folder)
    if values.do_eval or values.do_predict:
        loaded = load_trained(values, start, task.kind)
        model, step = loaded.model, loaded.transfer.step
        _check_labels(task, loaded)
    if evaluator:
        figures = evaluator(model)
        results = {f"eval_{name}": value for name, value in figures.items()}
        write_results(folder, with_step({**results, "loss": figures["loss"]}, step))
        print("evaluation:")
        rows = [(name, f"{value:.6g}") for name, value in results.items()]
        if job.baseline is not None:
            rows.append((f"{job.selection_metric} of a constant", f"{job.baseline:.6g}"))
        print_table(rows)
        _draw(evaluator, folder)
    if values.do_predict:
        for split in data.of("test"):
            records = data.records(split, vocab_size)
            logits = predict(records, model, values, batch_size=values.predict_batch_size)
            for path in write_predictions(data, split, logits, values, majority):
                print(f"wrote {path}")
    print(f"{folder}: {time.time() - began:.0f} s in all")


def _check_labels(task: Any, loaded: Any) -> None:
    if task.labels is not None and loaded.labels is not None and loaded.labels != task.labels:
        raise InputError(
            f"the model's labels are {', '.join(loaded.labels)}, the task's "
            f"{', '.join(task.labels)}"
        )
    found, expected = loaded.model.output_shape[-1], len(task.labels) if task.labels else 1
    if found != expected:
        raise InputError(
            f"the model has {found} outputs, and the task, {task.kind}, needs {expected}"
        )


def _majority(data: Data, values: flags.FlagValues) -> str | None:
    """Return the label to predict for all, where that is asked for."""
    wanted = values.majority_class
    if wanted is None:
        wanted = data.task.name == "wnli"
    if not wanted or not values.do_predict:
        return None
    if data.task.kind != "classification" or not data.of("train"):
        raise InputError("majority_class: needs a training set with one label for each example")
    labels = (example.label for example in data.sources["train"].read(None, None))
    label = glue.majority_label(labels)
    logging.warning("%s: predicts %s, the commonest label, for all", data.task.name, label)
    return label


def _draw(evaluator: Evaluator, folder: pathlib.Path) -> None:
    from experiments.plots.predictions import plot_confusion, plot_regression

    task = evaluator.task
    for split, logits in evaluator.logits.items():
        labels, suffix = evaluator.labels[split], split.removeprefix("dev")
        decided = get_kind(task.kind).decide(logits)
        if task.kind == "classification":
            plot_confusion(labels, decided, task.labels, folder / f"confusion_matrix{suffix}.png")
        elif task.kind == "regression":
            plot_regression(labels, decided, folder / f"regression{suffix}.png")
