"""Fine-tuning on sentences and pairs: GLUE, and tables of one's own."""

import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import logging

from bert_tf.config import WINDOW_POOLINGS
from bert_tf.files import write_text, write_whole
from bert_tf.tasks.calibration import CALIBRATED_KINDS
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.table import Task
from bert_tf.tasks.trained_task import TRAINED_TASK_NAME, TrainedTask, read_trained_task
from bert_tf.weights.load import LoadedModel
from data_prep.finetuning import glue
from data_prep.finetuning.folds import Fold, with_fold
from data_prep.finetuning.options import TaggedOptions, extra_settings, find_sources
from experiments.command_line.exit_status import InputError
from experiments.finetuning.decisions import (
    check_kind,
    check_place,
    choose_decision,
    report_calibration,
    report_classes,
)
from experiments.finetuning.flow import Plan, fine_tune, make_job
from experiments.finetuning.initial_model import InitialModel, load_trained, trained_task_of
from experiments.finetuning.label_loss import label_loss_arguments
from experiments.finetuning.options import ClassifierOptions
from experiments.finetuning.report_of_texts import text_sections
from experiments.finetuning.splits import (
    Data,
    Evaluator,
    ignore_message,
    make_records,
    test_logits,
)
from experiments.plots.predictions import plot_confusion, plot_regression
from experiments.plots.report_page import Section


def run(options: ClassifierOptions) -> None:
    """Train, evaluate and predict as the options say; raises what `fine_tune` does."""
    fine_tune(options, _Classification)


class _Classification(Plan):
    def __init__(self, options: ClassifierOptions, start: InitialModel, fold: Fold | None = None):
        self.options = options = _with_windows_of_model(options, start)
        self.data = prepare(options, start, fold=fold)
        self.task = task = self.data.task
        self.folder = pathlib.Path(options.output_dir)
        check_kind(options, task.kind)
        self.majority, evaluate = _majority_label(self.data, options), None
        if options.do_eval:
            evaluate = self.evaluator = Evaluator(self.data, options)
        if options.do_train:
            loss = label_loss_arguments(self.data, options.label_loss)
            self.job = make_job(
                self.data,
                _trained_task(task, options),
                evaluate,
                window_pooling=_window_pooling(options),
                **loss,
            )

    def check(self, loaded: LoadedModel) -> None:
        labels, pooling = self.task.labels, loaded.config.window_pooling
        if (pooling is None) != (self.options.windows.doc_stride is None):
            raise InputError(
                "doc_stride: the model was trained on texts of one sequence each, not on windows"
                if pooling is None
                else "doc_stride: needed, as the model was trained on texts in windows, and no "
                f"{TRAINED_TASK_NAME} beside its weights has the stride"
            )
        if self.options.window_pooling not in (None, pooling):
            raise InputError(
                f"window_pooling: the model has {pooling}, got {self.options.window_pooling}"
            )
        if labels is not None and loaded.labels is not None and loaded.labels != labels:
            raise InputError(
                f"the model's labels are {', '.join(loaded.labels)}, the task's {', '.join(labels)}"
            )
        num_outputs, expected = loaded.model.output_shape[-1], len(labels) if labels else 1
        if num_outputs != expected:
            raise InputError(
                f"the model has {num_outputs} outputs, and the task, {self.task.kind}, needs "
                f"{expected}"
            )

    def evaluate(self, loaded: LoadedModel) -> None:
        trained, more = self._trained(), {}
        if self.options.chooses_decision:
            check_place(self.model_folder, self.folder)
        self.evaluator.run(loaded.model)
        if self.options.chooses_decision:
            trained = choose_decision(self.evaluator, trained, self.options)
            trained.write(self.folder)
        if self.task.kind in CALIBRATED_KINDS:
            more = report_calibration(
                self.evaluator, trained, self.folder, draw=self.options.calibrate
            )
        self.evaluator.report(loaded, trained, more)
        _draw(self.evaluator, trained, self.folder)
        if self.task.labels:
            report_classes(self.evaluator, trained, self.folder)
        self.evaluated = trained

    def sections(self) -> list[Section]:
        return text_sections(self.data, self.evaluator, self.evaluated)

    def predict(self, loaded: LoadedModel) -> None:
        trained = self._trained()
        for split in self.data.splits("test"):
            logits = test_logits(self.data, split, loaded.model, self.options)
            paths = write_predictions(
                self.data, split, logits, self.options, self.majority, trained
            )
            for path in paths:
                print(f"wrote {path}")

    def _trained(self) -> TrainedTask:
        """Return what the model's folder says of its decisions."""
        folder, task, options = self.model_folder, self.task, self.options
        trained = read_trained_task(folder) if folder is not None else None
        trained = trained or _trained_task(task, options)
        if not trained.max_windows:  # of a file without them, if the model has some
            trained = dataclasses.replace(trained, **options.windows.of(task))
        if trained.thresholds and len(trained.thresholds) != len(task.labels or ()):
            raise InputError(
                f"{folder}: has {len(trained.thresholds)} thresholds, the task "
                f"{len(task.labels or ())} labels"
            )
        return trained


# === Data ===


def prepare(
    options: ClassifierOptions,
    start: InitialModel,
    tagged: TaggedOptions | None = None,
    fold: Fold | None = None,
) -> Data:
    """Make the records that the options ask for, or find them made.

    Without a training file the labels of one's own tables are those of the fine-tuned model.

    Args:
        options: of the command.
        start: whose vocabulary the records are of.
        tagged: of a command that takes tagged words too.
        fold: the part of the training set that is held out; None for none.

    Raises:
        InputError, ValueError, OSError: bad options or data.
    """
    data = options.data
    names_needed = get_kind(data.kind).least_labels and len(data.columns.label) < 2
    names_given = options.do_train or data.labels or data.files.train_file
    if data.task_name is None and names_needed and not names_given:
        labels = load_trained(options, start, data.kind).labels or ()
        data = dataclasses.replace(data, labels=tuple(labels))
    skip_bad_examples = options.records.skip_bad_examples
    task, sources = find_sources(
        data, tagged, skip_bad_examples=skip_bad_examples, test_labels=False
    )
    sources = with_fold(fold, task, sources, ignore_message if skip_bad_examples else None)
    extra = extra_settings(task, tagged, windows=options.windows)
    return make_records(task, sources, options, start, extra=extra)


def _trained_task(task: Task, options: ClassifierOptions) -> TrainedTask:
    """Return what the model will be for."""
    of_windows = options.windows.of(task)
    return TrainedTask(task.kind, options.max_seq_length, task.has_pairs, **of_windows)


def _window_pooling(options: ClassifierOptions) -> str | None:
    """Return how the windows of training become one vector; None without windows."""
    if options.windows.doc_stride is None:
        return None
    return options.window_pooling or WINDOW_POOLINGS[0]


def _with_windows_of_model(options: ClassifierOptions, start: InitialModel) -> ClassifierOptions:
    """Return the options with the windows of a model that is not trained, where none are given.

    Raises:
        InputError: those given are others, and what is chosen would be kept beside the model's.
    """
    trained = None if options.do_train else trained_task_of(options, start)
    if trained is None or not trained.max_windows:
        return options
    if options.max_seq_length != trained.max_seq_length:
        raise InputError(
            f"max_seq_length: the model was trained on windows of {trained.max_seq_length} pieces, "
            f"got {options.max_seq_length}"
        )
    windows, taken = options.windows, {}
    of_pairs = ("max_query_length",) if trained.has_pairs else ()
    for name in ("doc_stride", "max_windows", *of_pairs):
        given, before = getattr(windows, name), getattr(trained, name)
        taken[name] = before if given is None else given
        if taken[name] != before:
            if options.chooses_decision:
                raise InputError(
                    f"{name}: temperature and thresholds are chosen on windows as in training, "
                    f"with {before}, got {given}; leave it out"
                )
            logging.warning(
                "%s: the model was trained with %s, and figures and predictions are with %s",
                *(name, before, given),
            )
    return dataclasses.replace(options, windows=dataclasses.replace(windows, **taken))


def _majority_label(data: Data, options: ClassifierOptions) -> str | None:
    """Return the label to predict for all, where that is asked for."""
    is_asked = options.majority_class
    if is_asked is None:
        is_asked = data.task.name == "wnli"
    if not is_asked or not options.do_predict:
        return None
    if data.task.kind != "classification" or not data.splits("train"):
        raise InputError("majority_class: needs a training set with one label for each example")
    examples = data.sources["train"].read(None, None)
    label = glue.majority_label(example.label for example in examples)
    logging.warning("%s: predicts %s, the commonest label, for all", data.task.name, label)
    return label


# === Files ===


def write_predictions(
    data: Data,
    split: str,
    logits: np.ndarray,
    options: ClassifierOptions,
    majority: str | None,
    trained: TrainedTask,
) -> list[pathlib.Path]:
    """Write test_results.tsv, and the submission of GLUE or predictions.csv of own data.

    Args:
        data: the data.
        split: of the test.
        logits: [N, K] of its examples.
        options: of the command.
        majority: label to submit for all, or None.
        trained: temperature and thresholds of the model.

    Returns:
        The files.
    """
    task, folder = data.task, pathlib.Path(options.output_dir)
    suffix = split.removeprefix("test")
    probabilities = trained.probabilities(logits)
    results = folder / f"test_results{suffix}.tsv"
    rows = ("\t".join(map(str, row)) + "\n" for row in probabilities.tolist())
    write_text(results, "".join(rows))
    decided = trained.decide(logits)
    examples = data.examples(split)
    if options.data.task_name is not None:
        answers: Any = decided if majority is None else [majority] * len(examples)
        submission = folder / glue.submission_file_name(task, split)
        glue.write_submission(submission, task, examples, answers)
        return [results, submission]
    table, labels = folder / f"predictions{suffix}.csv", task.labels or ()
    with write_whole(table, "w") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "prediction", *(f"probability of {label}" for label in labels)])
        for example, answer, row in zip(examples, decided, probabilities, strict=True):
            shown = _answer_text(task, answer, options.data.columns.separator)
            numbers = row.tolist() if labels else []
            name = example.guid.removeprefix(f"{split}-")
            writer.writerow([name, shown, *(f"{number:.6g}" for number in numbers)])
    return [results, table]


def _answer_text(task: Task, answer: Any, separator: str) -> str | float:
    """Return an answer as a table shows it."""
    labels = task.labels or ()
    if get_kind(task.kind).labels == "row":
        return separator.join(label for label, holds in zip(labels, answer, strict=True) if holds)
    return float(answer) if task.kind == "regression" else labels[int(answer)]


def _draw(evaluator: Evaluator, trained: TrainedTask, folder: pathlib.Path) -> None:
    task = evaluator.task
    for split, logits in evaluator.logits.items():
        labels, suffix = evaluator.labels[split], split.removeprefix("dev")
        decided = trained.decide(logits)
        if task.kind == "classification":
            png = folder / f"confusion_matrix{suffix}.png"
            plot_confusion(labels, decided, task.labels or (), png)
        elif task.kind == "regression":
            plot_regression(labels, decided, folder / f"regression{suffix}.png")
