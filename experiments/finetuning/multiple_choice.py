"""Fine-tuning on multiple choice: SWAG."""

from __future__ import annotations

import csv
import pathlib
import time

import numpy as np
from absl import flags

from bert_tf.options import read
from bert_tf.tasks.table import TASKS
from bert_tf.tasks.trained_task import TrainedTask
from data_prep.finetuning.flags import file_sources
from experiments.command_line.tables import print_table
from experiments.command_line.training_options import TrainingOptions
from experiments.command_line.training_setup import chief_first
from experiments.finetuning import flags as finetuning_flags
from experiments.finetuning.initial_model import load_trained, starting_point
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

TASK = TASKS["swag"]


def run(values: flags.FlagValues) -> None:
    """Train, evaluate and predict as the flags say.

    Raises:
        InputError, ValueError, OSError: bad flags, data or model; one line says what.
    """
    began = time.time()
    finetuning_flags.check_flags(values)
    folder = pathlib.Path(values.output_dir)
    start = starting_point(values)
    task, sources = file_sources(values, TASK)
    print(f"{task.num_choices} choices")
    with chief_first(read(TrainingOptions, values)):
        data = make_records(task, sources, values, start)
    vocab_size = start.config.vocab_size
    evaluator = Evaluator(data, values, vocab_size) if values.do_eval else None
    if values.do_train:
        job = Job(
            task=TrainedTask(task.kind, values.max_seq_length, has_pairs=True),
            labels=None,
            records=data.records("train", vocab_size),
            num_examples=data.made["train"].num_examples,
            fingerprint=data.fingerprint,
            evaluate=evaluator,
            selection_metric=task.selection_metric,
            baseline=evaluator.baseline if evaluator else None,
        )
        print(f"begins with {start.description}")
        trained = train_all(job, start, values)
        report_runs(trained, folder, job.selection_metric, job.baseline)
        start = start.trained(folder)
    loaded = load_trained(values, start, task.kind)
    model, step = loaded.model, loaded.transfer.step
    if evaluator is not None:
        figures = evaluator(model)
        results = {f"eval_{name}": value for name, value in figures.items()}
        write_results(folder, with_step({**results, "loss": figures["loss"]}, step))
        print("evaluation:")
        rows = [(name, f"{value:.6g}") for name, value in results.items()]
        rows.append(("accuracy of a constant", f"{evaluator.baseline:.6g}"))
        print_table(rows)
    if values.do_predict:
        records = data.records("test", vocab_size)
        logits = predict(records, model, values, batch_size=values.predict_batch_size)
        print(f"wrote {write_predictions(data, logits, values)}")
    print(f"{folder}: {time.time() - began:.0f} s in all")


def write_predictions(data: Data, logits: np.ndarray, values: flags.FlagValues) -> pathlib.Path:
    """Write predictions.csv: of each example its id, the choice from 0, and all probabilities.

    Args:
        data: with a test split.
        logits: [N, C].
        values: flags.
    """
    path = pathlib.Path(values.output_dir) / "predictions.csv"
    probabilities = probabilities_of(data.task.kind, logits)
    examples = data.sources["test"].read(leave_out if values.skip_bad_examples else None, None)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        endings = (f"probability of ending{i}" for i in range(logits.shape[1]))
        writer.writerow(["id", "choice", *endings])
        for example, row in zip(examples, probabilities, strict=True):
            writer.writerow([example.guid, row.argmax(), *(f"{number:.6g}" for number in row)])
    return path
