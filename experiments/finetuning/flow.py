"""The way of every fine-tuning command: data, training, evaluation, predictions."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

import keras

from bert_tf.models.lora import check_arguments
from bert_tf.tasks.table import Task
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.training.log import RUN_CONFIG_NAME
from bert_tf.weights.load import LoadedModel
from experiments.command_line.exit_status import InputError
from experiments.command_line.training_setup import strategy_of, with_precision
from experiments.finetuning.cross_validation import check_room_of_folds, cross_validate, folds_of
from experiments.finetuning.initial_model import InitialModel, find_trained
from experiments.finetuning.options import CrossValidatedOptions, FineTuningOptions
from experiments.finetuning.report import write_report
from experiments.finetuning.results import draw_curves, report_combinations, report_runs
from experiments.finetuning.runs import best_run, check_room, planned_runs, train_all
from experiments.finetuning.seed_training import Job
from experiments.finetuning.splits import Data
from experiments.finetuning.teacher import find_teacher, student_or_initial
from experiments.plots.report_page import Section

Options = TypeVar("Options", bound=FineTuningOptions)


class Plan:
    """What a command does once its data are there.

    Attributes:
        task: the task, with its labels.
        job: what is trained; None without --do_train.
        loaded: the model, where preparing the data has loaded it already.
        model_folder: where the model lies that `evaluate` and `predict` are of; None if nowhere.
    """

    task: Task
    job: Job | None = None
    loaded: LoadedModel | None = None
    model_folder: pathlib.Path | None = None

    def check(self, loaded: LoadedModel) -> None:
        """Refuse a model that does not fit the data."""

    def load(self, options: FineTuningOptions, start: InitialModel) -> LoadedModel:
        """Return the model that the figures and predictions are of."""
        loaded, self.model_folder = find_trained(options, start, self.task.kind)
        return loaded

    def finish(self, start: InitialModel) -> None:
        """Write what else a model that was trained is kept as; it lies in the output folder."""

    def evaluate(self, loaded: LoadedModel) -> None:
        """Write and print the figures of a model."""

    def sections(self) -> list[Section]:
        """Return what the report shows of the model that was evaluated."""
        return []

    def predict(self, loaded: LoadedModel) -> None:
        """Write the predictions of a model."""


def fine_tune(options: FineTuningOptions, make_plan: Callable[..., Plan]) -> None:
    """Train, evaluate and predict as the options say.

    Args:
        options: of the command.
        make_plan: options and the model to begin with -> the data, made ready, and what to do with
            them. Of commands that have --folds a third argument is the `Fold` that is held out.

    Raises:
        InputError, ValueError, OSError, RuntimeError: bad options, data or model; one line says
            what.
    """
    began = time.time()
    check_options(options)
    if has_folds := _has_folds(options):
        check_room_of_folds(options)
    elif options.do_train:
        check_room(options)
    folder = pathlib.Path(options.output_dir)
    options = _with_precision(options)
    start = student_or_initial(options)
    if _has_folds(options):
        options = cross_validate(
            options, start, lambda of_fold, fold: _job_of(make_plan(of_fold, start, fold))
        )
        print("all examples:")
    plan = make_plan(options, start)
    if plan.job is not None:
        job = plan.job
        teacher = find_teacher(options, start, job.kind, job.labels, job.window_pooling)
        plan.job = dataclasses.replace(job, teacher=teacher)
        print(f"{plan.task.name}: begins with {start.description}")
        runs = train_all(plan.job, start, options)
        metric, baseline = plan.job.selection_metric, plan.job.baseline
        if has_folds:
            draw_curves(runs)
        else:
            report = report_combinations if options.is_grid else report_runs
            report(runs, best_run(plan.job, runs), folder, metric, baseline)
        start = start.trained(folder)
        plan.finish(start)
    if options.do_eval or options.do_predict:
        folder.mkdir(parents=True, exist_ok=True)
        loaded = plan.loaded or plan.load(options, start)
        plan.check(loaded)
        if options.do_eval:
            plan.evaluate(loaded)
            if options.report:
                write_report(folder, plan.task, plan.sections())
        if options.do_predict:
            plan.predict(loaded)
    print(f"{folder}: {time.time() - began:.0f} s in all")


def _has_folds(options: FineTuningOptions) -> TypeGuard[CrossValidatedOptions]:
    return isinstance(options, CrossValidatedOptions) and options.num_folds > 0


def _with_precision(options: Options) -> Options:
    """Return the options with the precision that runs in the folder have, or that suits."""
    of_runs = [options]
    if _has_folds(options):
        of_runs = [*folds_of(options), options]
    folders = [one.folder for of_run in of_runs for one in planned_runs(of_run)]
    begun = (place for place in folders if (place / RUN_CONFIG_NAME).exists())
    of_run = next(begun, folders[0])  # all have one precision
    training = with_precision(options.training, of_run, one_shape=options.pad_to_max_seq_length)
    return dataclasses.replace(options, training=training)


def _job_of(plan: Plan) -> Job:
    assert plan.job is not None  # noqa: S101 - of folds there is always training
    return plan.job


def make_job(
    data: Data,
    trained_task: TrainedTask,
    evaluate: Callable[[keras.Model], dict[str, float]] | None,
    **changes: Any,
) -> Job:
    """Make the job of training on the train split.

    Args:
        data: with the records of the train split.
        trained_task: what the model will be for.
        evaluate: model -> figures of the dev split; None not to evaluate.
        **changes: fields of the job that are not those of the task and its records.
    """
    # Weights depend on the dev set only where they are chosen by it.
    parts = ("train", "dev") if evaluate is not None else ("train",)
    fields = {
        "labels": data.task.labels,
        "num_examples": data.prepared["train"].num_examples,
        "selection_metric": data.task.selection_metric,
        "baseline": getattr(evaluate, "baseline", None),
        **changes,
    }
    return Job(
        trained_task,
        records=data.records("train"),
        fingerprint=data.fingerprint(*parts),
        evaluate=evaluate,
        **fields,
    )


def check_options(options: FineTuningOptions) -> None:
    """Refuse what no run could have, and make the devices ready.

    Raises:
        InputError, ValueError: one line names the option.
    """
    options.check_together()
    if options.lora_rank:
        try:
            check_arguments(options.lora_rank, options.lora_alpha, options.lora_targets)
        except ValueError as error:
            raise InputError(f"lora_{error}") from error
    strategy_of(options.training)  # made here, before anything else of TensorFlow runs
