"""Fine-tuning on tagged words."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags, logging

from bert_tf.options import read
from bert_tf.tasks.entity_metrics import EntityScores, entity_scores
from bert_tf.tasks.table import TASKS
from bert_tf.tasks.trained_task import TrainedTask
from data_prep.finetuning import ner
from data_prep.finetuning.flags import tagged_sources
from data_prep.finetuning.sources import read_tagged
from experiments.command_line.exit_status import InputError
from experiments.command_line.training_options import TrainingOptions
from experiments.command_line.training_setup import chief_first
from experiments.finetuning import flags as finetuning_flags
from experiments.finetuning.initial_model import StartingPoint, load_trained, starting_point
from experiments.finetuning.results import report_runs, with_step, write_results
from experiments.finetuning.runs import Job, train_all
from experiments.finetuning.splits import Data, leave_out, make_records

TASK = TASKS["ner"]


# === Figures ===


class TaggedSplit:
    """The sentences of a split, their records, and what a model makes of them.

    Attributes:
        sentences: the sentences with the tags of the file, also those that no label stands for.
        labelled: whether the file has tags.
        records: the sequences, as `finetuning_pipeline.TaskRecords`.
        predicted: tags of each sentence by the last model.
    """

    def __init__(self, data: Data, split: str, values: flags.FlagValues, start: StartingPoint):
        self._values, self._labels = values, data.task.labels
        source = data.sources[split]
        self.labelled: bool = source.labelled
        self.sentences = list(
            read_tagged(
                source.files[0],
                values.token_column,
                values.tag_column if source.labelled else None,
                values.tag_scheme,
                leave_out if values.skip_bad_examples else None,
            )
        )
        # The same as in the records, which hold no trace of the words.
        self._windows = ner.make_windows(
            self.sentences, start.tokenizer, values.max_seq_length, values.document_context
        )
        self.records = data.records(split, start.config.vocab_size)
        self.predicted: list[list[str]] = []

    def tag(self, model: Any, batch_size: int) -> list[list[str]]:
        """Return a model's tags of each sentence, and keep them."""
        from bert_tf.training.trainer import resolve_jit_compile

        found = self.records.predict(
            model,
            batch_size=batch_size,
            jit_compile=resolve_jit_compile(self._values.jit_compile),
            group_by_length=self._values.group_by_length,
            pad_to_max=self._values.pad_to_max_seq_length,
            reduce=_most_likely,
            fill=0,
        )
        return self.read(found["predicted_ids"])

    def read(self, label_ids: np.ndarray) -> list[list[str]]:
        """Return the tags of each sentence, from a label for each token, and keep them.

        Args:
            label_ids: integers [N, L], of each sequence of `records`.
        """
        self.predicted = ner.collect_tags(self._windows, label_ids, self._labels)
        return self.predicted

    def scores(self) -> EntityScores:
        """Return what conlleval says of the tags that were predicted last."""
        return entity_scores([sentence.tags for sentence in self.sentences], self.predicted)


def _most_likely(logits: Any) -> dict[str, Any]:
    from keras import ops

    return {"predicted_ids": ops.argmax(logits, axis=-1)}


def figures_of(scores: EntityScores) -> dict[str, float]:
    """Return the figures of all types together, in percent."""
    return {
        "entity_precision": scores.precision,
        "entity_recall": scores.recall,
        "entity_f1": scores.f1,
        "token_accuracy": scores.accuracy,
    }


def write_scores(scores: EntityScores, folder: pathlib.Path, suffix: str = "") -> None:
    """Write ner_report.txt and, if there are entities, ner_types.png."""
    from experiments.plots.predictions import plot_types

    report = scores.report()
    (folder / f"ner_report{suffix}.txt").write_text(report, encoding="utf-8")
    print(report, end="")
    if scores.by_type:
        types = {name: (s.precision, s.recall, s.f1) for name, s in scores.by_type.items()}
        plot_types(types, folder / f"ner_types{suffix}.png")


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
    loaded = None if values.do_train else load_trained(values, start, TASK.kind)
    task, sources = tagged_sources(values, loaded and loaded.labels)
    with chief_first(read(TrainingOptions, values)):
        data = make_records(task, sources, values, start)
    dev = TaggedSplit(data, "dev", values, start) if values.do_eval else None
    if values.do_train:
        train(data, dev, start, values)
        loaded = load_trained(values, start.trained(folder), TASK.kind)
    assert loaded is not None  # noqa: S101
    _check_labels(loaded, task.labels or ())
    if dev is not None:
        dev.tag(loaded.model, values.eval_batch_size)
        results = {f"eval_{name}": value for name, value in figures_of(dev.scores()).items()}
        write_results(folder, with_step(results, loaded.transfer.step))
        print("evaluation:")
        write_scores(dev.scores(), folder)
        ner.write_conll(folder / "predictions_dev.conll", dev.sentences, dev.predicted)
        print(f"wrote {folder / 'predictions_dev.conll'}")
    if values.do_predict:
        predict(TaggedSplit(data, "test", values, start), loaded.model, values)
    print(f"{folder}: {time.time() - began:.0f} s in all")


def train(
    data: Data,
    dev: TaggedSplit | None,
    start: StartingPoint,
    values: flags.FlagValues,
) -> None:
    """Train the runs of all seeds, and report them."""

    def evaluate(model: Any) -> dict[str, float]:
        assert dev is not None  # noqa: S101
        dev.tag(model, values.eval_batch_size)
        return figures_of(dev.scores())

    print(f"begins with {start.description}; {len(data.task.labels)} labels")
    job = Job(
        task=TrainedTask(TASK.kind, values.max_seq_length),
        labels=data.task.labels,
        records=data.records("train", start.config.vocab_size),
        # An epoch is a pass over the sequences: long sentences make several, and with
        # --document_context the examples are whole documents.
        num_examples=data.made["train"].num_records,
        fingerprint=data.fingerprint,
        evaluate=evaluate if dev is not None else None,
        selection_metric=TASK.selection_metric,
        baseline=0.0,
    )
    finished = train_all(job, start, values)
    report_runs(finished, pathlib.Path(values.output_dir), job.selection_metric, job.baseline)


def predict(test: TaggedSplit, model: Any, values: flags.FlagValues) -> None:
    """Write the tags of the test set, and their scores if its own tags are known."""
    folder = pathlib.Path(values.output_dir)
    test.tag(model, values.predict_batch_size)
    path = folder / "predictions_test.conll"
    ner.write_conll(path, test.sentences, test.predicted, with_true=test.labelled)
    if not test.labelled:
        logging.info("the test file has no tags to compare with")
    elif not test.scores().num_true:
        print("the test file has tags but no entity; predictions are not scored")
    else:
        results = {f"test_{name}": value for name, value in figures_of(test.scores()).items()}
        write_results(folder, results, "test_results")
        print("test:")
        write_scores(test.scores(), folder, "_test")
    print(f"wrote {path}")


def _check_labels(loaded: Any, labels: Sequence[str]) -> None:
    """Refuse labels, of a training file, that are not those of a model that has no names."""
    num_labels = loaded.model.output_shape[-1]
    if num_labels != len(labels):
        raise InputError(
            f"the model has {num_labels} labels, the training file {len(labels)}: "
            f"{', '.join(labels)}"
        )
