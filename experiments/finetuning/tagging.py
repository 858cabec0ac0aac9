"""Fine-tuning on tagged words."""

import pathlib
from typing import Any

import keras
import numpy as np
from absl import logging
from keras import ops

from bert_tf.files import write_text
from bert_tf.tasks.entity_metrics import EntityScores, entity_scores
from bert_tf.tasks.table import TASKS
from bert_tf.tasks.tag_schemes import TagScheme
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.weights.load import LoadedModel
from data_prep.finetuning import ner
from data_prep.finetuning.folds import Fold, with_fold
from data_prep.finetuning.options import TaggedOptions, extra_settings, tagged_sources
from data_prep.finetuning.sources import read_tagged
from experiments.command_line.exit_status import InputError
from experiments.command_line.result_files import write_results
from experiments.finetuning.flow import Plan, fine_tune, make_job
from experiments.finetuning.initial_model import InitialModel, load_trained
from experiments.finetuning.label_loss import label_loss_arguments
from experiments.finetuning.options import FineTuningOptions, TaggingOptions
from experiments.finetuning.report_of_words import tagging_sections
from experiments.finetuning.results import with_step
from experiments.finetuning.splits import Data, ignore_message, make_records, predict_records
from experiments.plots.predictions import plot_types
from experiments.plots.report_page import Section

# === Figures ===


class TaggedSplit:
    """The sentences of a split, their records, and what a model makes of them.

    Args:
        data: the data.
        split: of which split.
        options: of the command.
        tagged: how the file is read.
        start: whose tokenizer the records are of.

    Attributes:
        sentences: the sentences with the tags of the file, also those that no label stands for.
        labelled: whether the file has tags.
        records: the sequences.
        predicted: tags of each sentence by the last model.
    """

    def __init__(
        self,
        data: Data,
        split: str,
        options: FineTuningOptions,
        tagged: TaggedOptions,
        start: InitialModel,
    ):
        self._options, self._labels = options, data.task.labels or ()
        source = data.sources[split]
        self.labelled: bool = source.labelled
        scheme = source.settings.get("scheme")
        if "fold" in source.settings:  # part of the training file, whose tags all are labels
            self.sentences = [s for group in source.read(data.on_bad, None) for s in group]
        else:
            self.sentences = list(
                read_tagged(
                    source.files[0],
                    tagged if source.labelled else tagged.without_tags(),
                    data.on_bad,
                    scheme and TagScheme(scheme),
                )
            )
        # The same as in the records, which hold no trace of the words.
        self._windows = ner.sentence_windows(
            self.sentences, start.tokenizer, options.max_seq_length, tagged.document_context
        )
        self.records = data.records(split)
        self.predicted: list[list[str]] = []

    def tag(self, model: keras.Model, batch_size: int) -> None:
        """Tag each sentence with a model, and keep the tags."""
        outputs = predict_records(
            self.records, model, self._options, batch_size=batch_size, reduce=_most_likely, fill=0
        )
        self.read(outputs["predicted_ids"])

    def read(self, label_ids: np.ndarray) -> None:
        """Read the tags of each sentence from a label for each token, and keep them.

        Args:
            label_ids: integers [N, L], of each sequence of `records`.
        """
        self.predicted = ner.collect_tags(self._windows, label_ids, self._labels)

    def scores(self) -> EntityScores:
        """Return what conlleval says of the tags that were predicted last."""
        true = [sentence.tags for sentence in self.sentences]
        return entity_scores(true, self.predicted, self._labels)


def _most_likely(logits: Any) -> dict[str, Any]:
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
    report = scores.report()
    write_text(folder / f"ner_report{suffix}.txt", report)
    print(report, end="")
    if scores.by_type:
        types = {name: (s.precision, s.recall, s.f1) for name, s in scores.by_type.items()}
        plot_types(types, folder / f"ner_types{suffix}.png")


# === The run ===


def run(options: TaggingOptions) -> None:
    """Train, evaluate and predict as the options say; raises what `fine_tune` does."""
    fine_tune(options, _Tagging)


class _Tagging(Plan):
    def __init__(self, options: TaggingOptions, start: InitialModel, fold: Fold | None = None):
        self.options, self.start, self.folder = options, start, pathlib.Path(options.output_dir)
        if not options.do_train:
            self.loaded = load_trained(options, start, TASKS["ner"].kind)
        self.task, sources = tagged_sources(
            options.files,
            options.tagged,
            self.loaded and self.loaded.labels,
            skip_bad_examples=options.records.skip_bad_examples,
        )
        on_bad = ignore_message if options.records.skip_bad_examples else None
        sources = with_fold(fold, self.task, sources, on_bad)
        extra = extra_settings(self.task, options.tagged)
        self.data = make_records(self.task, sources, options, start, extra=extra)
        if options.do_eval:
            self.dev = self._split("dev")
        if options.do_train:
            self.job = make_job(
                self.data,
                TrainedTask(self.task.kind, options.max_seq_length),
                self._dev_figures if options.do_eval else None,
                baseline=0.0,
                # An epoch is a pass over the sequences: long sentences make several, and with
                # --document_context the examples are whole documents.
                num_examples=self.data.prepared["train"].num_records,
                **label_loss_arguments(self.data, options.label_loss),
            )

    def _split(self, name: str) -> TaggedSplit:
        return TaggedSplit(self.data, name, self.options, self.options.tagged, self.start)

    def _dev_figures(self, model: keras.Model) -> dict[str, float]:
        self.dev.tag(model, self.options.eval_batch_size)
        return figures_of(self.dev.scores())

    def check(self, loaded: LoadedModel) -> None:
        # Labels of a training file may not be those of a model that has no names.
        num_labels, labels = loaded.model.output_shape[-1], self.task.labels or ()
        if num_labels != len(labels):
            raise InputError(
                f"the model has {num_labels} labels, the training file {len(labels)}: "
                f"{', '.join(labels)}"
            )

    def evaluate(self, loaded: LoadedModel) -> None:
        results = {f"eval_{n}": value for n, value in self._dev_figures(loaded.model).items()}
        write_results(self.folder, with_step(results, loaded.transfer.step))
        print("evaluation:")
        write_scores(self.dev.scores(), self.folder)
        path = self.folder / "predictions_dev.conll"
        ner.write_conll(path, self.dev.sentences, self.dev.predicted)
        print(f"wrote {path}")

    def sections(self) -> list[Section]:
        dev = self.dev
        return tagging_sections(dev.sentences, dev.predicted, dev.scores(), self.task.labels or ())

    def predict(self, loaded: LoadedModel) -> None:
        """Write the tags of the test set, and their scores if its own tags are known."""
        test, path = self._split("test"), self.folder / "predictions_test.conll"
        test.tag(loaded.model, self.options.predict_batch_size)
        ner.write_conll(path, test.sentences, test.predicted, with_true=test.labelled)
        if not test.labelled:
            logging.info("the test file has no tags to compare with")
        elif not (scores := test.scores()).num_true:
            print("the test file has tags but no entity; predictions are not scored")
        else:
            results = {f"test_{name}": value for name, value in figures_of(scores).items()}
            write_results(self.folder, results, "test_results")
            print("test:")
            write_scores(scores, self.folder, "_test")
        print(f"wrote {path}")
