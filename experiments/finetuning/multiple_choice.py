"""Fine-tuning on multiple choice: SWAG."""

import csv
import functools
import pathlib

import numpy as np

from bert_tf.files import write_whole
from bert_tf.tasks.table import TASKS
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.weights.load import LoadedModel
from data_prep.finetuning.options import file_sources
from experiments.finetuning import splits
from experiments.finetuning.flow import Plan, fine_tune, make_job
from experiments.finetuning.initial_model import InitialModel
from experiments.finetuning.options import MultipleChoiceOptions


def run(options: MultipleChoiceOptions) -> None:
    """Train, evaluate and predict as the options say; raises what `fine_tune` does."""
    fine_tune(options, lambda start: _plan(options, start))


def _plan(options: MultipleChoiceOptions, start: InitialModel) -> Plan:
    task, sources = file_sources(options.files, TASKS["swag"])
    print(f"{task.num_choices} choices")
    data, job = splits.make_records(task, sources, options, start), None
    evaluator = splits.Evaluator(data, options) if options.do_eval else None
    folder = pathlib.Path(options.output_dir)
    if options.do_train:
        trained_task = TrainedTask(task.kind, options.max_seq_length, has_pairs=True)
        job = make_job(data, trained_task, evaluator)
    return Plan(
        task=task,
        job=job,
        evaluate=functools.partial(evaluator.report, folder) if evaluator else None,
        predict=functools.partial(_predict, data, options) if options.do_predict else None,
    )


def _predict(data: splits.Data, options: MultipleChoiceOptions, loaded: LoadedModel) -> None:
    path = pathlib.Path(options.output_dir) / "predictions.csv"
    write_predictions(path, data, splits.test_logits(data, "test", loaded.model, options))
    print(f"wrote {path}")


def write_predictions(path: pathlib.Path, data: splits.Data, logits: np.ndarray) -> None:
    """Write of each test example its id, the choice from 0, and all probabilities.

    Args:
        path: the CSV file.
        data: with a test split.
        logits: [N, C].
    """
    probabilities = splits.probabilities_of(data.task.kind, logits)
    with write_whole(path, "w") as stream:
        writer = csv.writer(stream)
        endings = (f"probability of ending{i}" for i in range(logits.shape[1]))
        writer.writerow(["id", "choice", *endings])
        for example, row in zip(data.examples("test"), probabilities, strict=True):
            name = example.guid.removeprefix("test-")
            writer.writerow([name, row.argmax(), *(f"{number:.6g}" for number in row)])
