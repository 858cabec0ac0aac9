"""Fine-tuning on multiple choice: SWAG."""

from __future__ import annotations

import csv
import pathlib

import numpy as np

from bert_tf.files import write_whole
from bert_tf.tasks.table import TASKS
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.weights.load import LoadedModel
from data_prep.finetuning.options import file_sources
from experiments.finetuning.flow import Plan, fine_tune, make_job
from experiments.finetuning.initial_model import StartingPoint
from experiments.finetuning.options import MultipleChoiceOptions
from experiments.finetuning.splits import (
    Data,
    Evaluator,
    make_records,
    predict_records,
    probabilities_of,
)


def run(options: MultipleChoiceOptions) -> None:
    """Train, evaluate and predict as the options say; raises what `fine_tune` does."""
    fine_tune(options, lambda start: _plan(options, start))


def _plan(options: MultipleChoiceOptions, start: StartingPoint) -> Plan:
    task, sources = file_sources(options.files, TASKS["swag"])
    print(f"{task.num_choices} choices")
    data, folder = make_records(task, sources, options, start), pathlib.Path(options.output_dir)
    evaluator = Evaluator(data, options) if options.do_eval else None

    def predict(loaded: LoadedModel) -> None:
        outputs = predict_records(
            data.records("test"), loaded.model, options, batch_size=options.predict_batch_size
        )
        path = folder / "predictions.csv"
        write_predictions(path, data, outputs["logits"])
        print(f"wrote {path}")

    return Plan(
        task=task,
        job=make_job(
            data,
            TrainedTask(task.kind, options.max_seq_length, has_pairs=True),
            evaluator,
            baseline=evaluator.baseline if evaluator else None,
        )
        if options.do_train
        else None,
        evaluate=(lambda loaded: evaluator.report(loaded, folder)) if evaluator else None,
        predict=predict if options.do_predict else None,
    )


def write_predictions(path: pathlib.Path, data: Data, logits: np.ndarray) -> None:
    """Write of each test example its id, the choice from 0, and all probabilities.

    Args:
        path: the CSV file.
        data: with a test split.
        logits: [N, C].
    """
    probabilities = probabilities_of(data.task.kind, logits)
    with write_whole(path, "w") as stream:
        writer = csv.writer(stream)
        endings = (f"probability of ending{i}" for i in range(logits.shape[1]))
        writer.writerow(["id", "choice", *endings])
        for example, row in zip(data.examples("test"), probabilities, strict=True):
            writer.writerow([example.guid, row.argmax(), *(f"{number:.6g}" for number in row)])
