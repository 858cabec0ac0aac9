"""The splits of a task as the fine-tuning commands use them: records, predictions and figures."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from bert_tf.input_pipeline.finetuning import TaskRecords
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.metrics import METRICS
from bert_tf.tasks.table import Task
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.training.objectives import LOSSES
from bert_tf.training.trainer import resolve_jit_compile
from bert_tf.weights.load import LoadedModel
from data_prep.finetuning.kinds import FeatureSettings
from data_prep.finetuning.options import BadExamples
from data_prep.finetuning.prepare import PreparedData, TokenizerSettings, prepare
from data_prep.finetuning.sources import Source
from data_prep.finetuning.task_records import windows_text
from experiments.command_line.exit_status import InputError
from experiments.command_line.result_files import write_results
from experiments.command_line.tables import print_table
from experiments.command_line.training_setup import chief_first
from experiments.finetuning.initial_model import InitialModel
from experiments.finetuning.options import FineTuningOptions
from experiments.finetuning.results import with_step

# === Records ===


@dataclasses.dataclass(frozen=True)
class Data:
    """The splits of a task.

    Attributes:
        task: the task, with its labels.
        sources: split -> where its examples come from.
        prepared: split -> its records, of the splits that were asked for.
        vocab_size: of the model.
        on_bad: what reading the sources again does with bad examples, which were shown when the
            records were made: nothing where they are left out; None to raise an error.
    """

    task: Task
    sources: Mapping[str, Source]
    prepared: Mapping[str, PreparedData]
    vocab_size: int
    on_bad: Callable[[str], None] | None = None

    def records(self, split: str) -> TaskRecords:
        """Open the records of a split."""
        prepared = self.prepared[split]
        return TaskRecords(
            prepared.record_file,
            self.task.kind,
            prepared.features,
            num_choices=self.task.num_choices,
            max_windows=prepared.manifest["extra"].get("max_windows"),
            lengths=np.load(prepared.lengths_file),
            vocab_size=self.vocab_size,
        )

    def examples(self, split: str) -> list[Any]:
        """Read the examples of a split."""
        return list(self.sources[split].read(self.on_bad, None))

    def fingerprint(self, *parts: str) -> str:
        """Return a digest of the records of training, and of choosing weights.

        Args:
            parts: "train", "dev", "test": of which splits.
        """
        splits = [split for part in parts for split in self.splits(part) if split in self.prepared]
        text = json.dumps([self.prepared[split].manifest["fingerprint"] for split in splits])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def splits(self, part: str) -> list[str]:
        """Return the names of the splits for "train", "dev" or "test"."""
        return [split for split in self.sources if part_of(split) == part]


def part_of(split: str) -> str:
    """Return what a split is for: of "dev_matched", "dev"."""
    return split.partition("_")[0]


def ignore_message(message: str) -> None:
    """Take the message of a bad example that was shown when the records were made."""


def make_records(
    task: Task,
    sources: Sequence[Source],
    options: FineTuningOptions,
    start: InitialModel,
    parts: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
    describe: Callable[[PreparedData], str] | None = None,
) -> Data:
    """Make the records of the splits that are needed.

    Of several hosts the chief makes them first, and the others find them.

    Args:
        task: the task, with its labels.
        sources: where the examples of its splits come from.
        options: of the command.
        start: whose vocabulary the records are of.
        parts: which of "train", "dev" and "test" are needed; by default those of --do_train,
            --do_eval and --do_predict.
        extra: settings of the task's kind; see `prepare`.
        describe: says in a line what a split has; `describe_examples` by default.

    Raises:
        InputError, ValueError, OSError: bad data.
    """
    if parts is None:
        asked = {"train": options.do_train, "dev": options.do_eval, "test": options.do_predict}
        parts = [part for part, is_asked in asked.items() if is_asked]
    by_name = {source.split: source for source in sources}
    for part in parts:
        if part not in map(part_of, by_name):
            names = ", ".join(by_name) or "none"
            raise InputError(f"{task.name}: no {part} split among {names}")
    prepared: dict[str, PreparedData] = {}
    with chief_first(options.training):
        for split, source in by_name.items():
            if part_of(split) not in parts:
                continue
            if not source.labelled and part_of(split) != "test":
                raise InputError(f"{source.files[0]}: the {split} split has no labels")
            bad = BadExamples(options.records.max_bad_shown)
            prepared[split] = prepare(
                source,
                FeatureSettings(task, options.max_seq_length, extra or {}),
                TokenizerSettings(start.vocab_file, start.do_lower_case, start.strip_accents),
                options.cache_dir or os.path.join(options.output_dir, "records"),
                options.records.num_workers or None,
                bad if options.records.skip_bad_examples else None,
            )
            left_out = f"; left out {bad.count:,} bad ones" if bad.count else ""
            print(f"{split}: {(describe or describe_examples)(prepared[split])}{left_out}")
    on_bad = ignore_message if options.records.skip_bad_examples else None
    return Data(task, by_name, prepared, start.config.vocab_size, on_bad)


def describe_examples(prepared: PreparedData) -> str:
    """Return how many examples there are, and how long."""
    counts = prepared.manifest["counts"]
    several = counts["records"] != counts["examples"]
    return (
        f"{counts['examples']:,} examples, "
        + (f"{counts['records']:,} sequences, " if several else "")
        + f"{counts['tokens'] / max(1, counts['records']):.1f} tokens each, "
        f"{counts['full_length_records']:,} of full length"
        + (f", {windows_text(counts)}" if "windows" in counts else "")
    )


# === Figures ===


def predict_records(
    records: TaskRecords,
    model: keras.Model,
    options: FineTuningOptions,
    *,
    batch_size: int,
    **arguments: Any,
) -> dict[str, np.ndarray]:
    """Return the outputs of all records, grouped and padded as the options say.

    Args:
        records: N of them.
        model: of their kind.
        options: of the command.
        batch_size: records at once.
        **arguments: others of `TaskRecords.predict`.
    """
    return records.predict(
        model,
        batch_size=batch_size,
        jit_compile=resolve_jit_compile(options.training.jit_compile) is True,
        group_by_length=options.group_by_length,
        pad_to_max=options.pad_to_max_seq_length,
        **arguments,
    )


def test_logits(
    data: Data, split: str, model: keras.Model, options: FineTuningOptions
) -> np.ndarray:
    """Return the logits of a test split's records, float32 [N, K]."""
    batch_size = options.predict_batch_size
    return predict_records(data.records(split), model, options, batch_size=batch_size)["logits"]


def figures_of(
    task: Task, logits: np.ndarray, labels: np.ndarray, trained: TrainedTask | None = None
) -> dict[str, float]:
    """Return the task's metrics and the mean loss of all examples.

    Args:
        task: the task.
        logits: of its examples, [N, K].
        labels: theirs.
        trained: temperature and thresholds of the model; None for 1 and one half.
    """
    kind, trained = get_kind(task.kind), trained or TrainedTask(task.kind)
    predictions = trained.decide(logits)
    figures = {name: METRICS[name](predictions, labels) for name in task.metrics}
    scaled = logits if trained.temperature == 1 else logits / trained.temperature
    total, weight = LOSSES[kind.loss].figures(scaled, labels, None)["loss"]
    return {**figures, "loss": float(total) / float(weight)}


class Evaluator:
    """Figures of a model on the dev splits; of MNLI, the first split's carry no suffix.

    Attributes:
        task: the task.
        labels: split -> labels of its examples.
        logits: split -> logits of the model that was evaluated last.
    """

    def __init__(self, data: Data, options: FineTuningOptions):
        self.task, self._options = data.task, options
        self._records = {split: data.records(split) for split in data.splits("dev")}
        self.labels: dict[str, np.ndarray] = {
            split: np.asarray(records.labels()) for split, records in self._records.items()
        }
        self.logits: dict[str, np.ndarray] = {}

    def __call__(self, model: keras.Model) -> dict[str, float]:
        """Return the figures of a model, and keep its logits."""
        self.run(model)
        return self.figures()

    def run(self, model: keras.Model) -> None:
        """Keep the logits of a model."""
        batch_size = self._options.eval_batch_size
        for split, records in self._records.items():
            outputs = predict_records(records, model, self._options, batch_size=batch_size)
            self.logits[split] = outputs["logits"]

    def figures(self, trained: TrainedTask | None = None) -> dict[str, float]:
        """Return the figures of the logits that are kept.

        Args:
            trained: as for `figures_of`.
        """
        figures: dict[str, float] = {}
        for number, split in enumerate(self._records):
            suffix = f"_{split.partition('_')[2]}" if number else ""
            of_split = figures_of(self.task, self.logits[split], self.labels[split], trained)
            figures |= {f"{name}{suffix}": value for name, value in of_split.items()}
        return figures

    @property
    def baseline(self) -> float | None:
        """The selection metric of a constant answer."""
        labels = next(iter(self.labels.values()))
        return get_kind(self.task.kind).constant_figure(labels, self.task.selection_metric)

    def report(
        self,
        loaded: LoadedModel,
        trained: TrainedTask | None = None,
        more: Mapping[str, float] | None = None,
    ) -> None:
        """Write eval_results.txt and .json of the logits that are kept, and print them.

        Args:
            loaded: the model that they are of.
            trained: as for `figures_of`.
            more: other figures.
        """
        figures = {**self.figures(trained), **(more or {})}
        results = {f"eval_{name}": value for name, value in figures.items()}
        results_file = with_step({**results, "loss": figures["loss"]}, loaded.transfer.step)
        write_results(pathlib.Path(self._options.output_dir), results_file)
        print("evaluation:")
        rows = [(name, f"{value:.6g}") for name, value in results.items()]
        if self.baseline is not None:
            rows.append((f"{self.task.selection_metric} of a constant", f"{self.baseline:.6g}"))
        print_table(rows)
