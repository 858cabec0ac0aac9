"""Fine-tuning on multiple choice: SWAG."""

import csv
import pathlib

import numpy as np

from bert_tf.files import write_whole
from bert_tf.tasks.table import TASKS
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.weights.load import LoadedModel
from data_prep.finetuning.folds import Fold, with_fold
from data_prep.finetuning.options import file_sources
from experiments.finetuning import splits
from experiments.finetuning.flow import Plan, fine_tune, make_job
from experiments.finetuning.initial_model import InitialModel
from experiments.finetuning.options import MultipleChoiceOptions
from experiments.finetuning.report_of_texts import text_sections
from experiments.plots.report_page import Section


def run(options: MultipleChoiceOptions) -> None:
    """Train, evaluate and predict as the options say; raises what `fine_tune` does."""
    fine_tune(options, _MultipleChoice)


class _MultipleChoice(Plan):
    def __init__(
        self, options: MultipleChoiceOptions, start: InitialModel, fold: Fold | None = None
    ):
        self.options, evaluate = options, None
        self.task, sources = file_sources(options.files, TASKS["swag"])
        print(f"{self.task.num_choices} choices")
        on_bad = splits.ignore_message if options.records.skip_bad_examples else None
        sources = with_fold(fold, self.task, sources, on_bad)
        self.data = splits.make_records(self.task, sources, options, start)
        if options.do_eval:
            evaluate = self.evaluator = splits.Evaluator(self.data, options)
        if options.do_train:
            trained_task = TrainedTask(self.task.kind, options.max_seq_length, has_pairs=True)
            self.job = make_job(self.data, trained_task, evaluate)

    def evaluate(self, loaded: LoadedModel) -> None:
        self.evaluator.run(loaded.model)
        self.evaluator.report(loaded)

    def sections(self) -> list[Section]:
        return text_sections(self.data, self.evaluator, TrainedTask(self.task.kind))

    def predict(self, loaded: LoadedModel) -> None:
        path = pathlib.Path(self.options.output_dir) / "predictions.csv"
        logits = splits.test_logits(self.data, "test", loaded.model, self.options)
        write_predictions(path, self.data, logits)
        print(f"wrote {path}")


def write_predictions(path: pathlib.Path, data: splits.Data, logits: np.ndarray) -> None:
    """Write of each test example its id, the choice from 0, and all probabilities.

    Args:
        path: the CSV file.
        data: with a test split.
        logits: [N, C].
    """
    probabilities = TrainedTask(data.task.kind).probabilities(logits)
    with write_whole(path, "w") as stream:
        writer = csv.writer(stream)
        endings = (f"probability of ending{i}" for i in range(logits.shape[1]))
        writer.writerow(["id", "choice", *endings])
        for example, row in zip(data.examples("test"), probabilities, strict=True):
            name = example.guid.removeprefix("test-")
            writer.writerow([name, row.argmax(), *(f"{number:.6g}" for number in row)])
