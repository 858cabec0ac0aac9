"""Fine-tuning on SQuAD."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging
from keras import ops

from bert_tf.files import is_file, local_copy
from bert_tf.tasks import squad_metrics
from bert_tf.tasks.answer_decoding import AnswerRule, Predictions, decode_answers, write_predictions
from bert_tf.tasks.table import Task, get_task
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.weights.load import LoadedModel
from data_prep.finetuning import squad
from data_prep.finetuning.folds import Fold
from data_prep.finetuning.glue import OnBad, refuse
from data_prep.finetuning.options import extra_settings
from data_prep.finetuning.prepare import PreparedData
from data_prep.finetuning.sources import Source, file_source
from experiments.command_line.exit_status import InputError
from experiments.command_line.result_files import write_results
from experiments.command_line.tables import print_table
from experiments.finetuning.flow import Plan, fine_tune, make_job
from experiments.finetuning.initial_model import InitialModel
from experiments.finetuning.options import QuestionAnsweringOptions
from experiments.finetuning.report_of_words import answer_sections
from experiments.finetuning.results import with_step
from experiments.finetuning.seed_training import Job
from experiments.finetuning.splits import Data, ignore_message, make_records, predict_records
from experiments.plots.report_page import Section

PADDING_LOGIT = -1e9  # as in the loss
# Of the figures of an evaluation what is logged during training.
LOGGED = ("exact_match", "f1", "HasAns_f1", "NoAns_f1", "best_f1", "tuned_f1")


def run(options: QuestionAnsweringOptions) -> None:
    """Train, evaluate and predict as the options say; raises what `fine_tune` does."""
    fine_tune(options, _QuestionAnswering)


class _QuestionAnswering(Plan):
    def __init__(
        self, options: QuestionAnsweringOptions, start: InitialModel, fold: Fold | None = None
    ):
        self.options, self.folder = options, pathlib.Path(options.output_dir)
        data, answerer = prepare(options, start, fold), None
        self.task = data.task
        if options.do_eval or options.do_predict:
            answerer = self.answerer = Answerer(data, start, options)
        if options.do_train:
            self.job = _job(options, data, answerer)

    def evaluate(self, loaded: LoadedModel) -> None:
        self.best_spans = self.answerer.final_spans(loaded.model)
        figures = self.answerer.figures(self.best_spans)
        write_results(self.folder, with_step(figures, loaded.transfer.step))
        _print_figures(figures, self.answerer, self.options)

    def sections(self) -> list[Section]:
        return self.answerer.sections(self.best_spans)

    def predict(self, loaded: LoadedModel) -> None:
        best_spans = self.answerer.final_spans(loaded.model)
        predictions = with_threshold(best_spans, self.options.null_score_diff_threshold)
        for path in write_predictions(predictions, self.folder):
            print(f"wrote {path}")


def _job(options: QuestionAnsweringOptions, data: Data, answerer: Answerer | None) -> Job:
    evaluate = answerer if options.do_eval else None
    trained_task = TrainedTask(
        data.task.kind,
        max_seq_length=options.max_seq_length,
        has_pairs=True,
        doc_stride=options.spans.doc_stride,
        max_query_length=options.spans.max_query_length,
        max_answer_length=options.max_answer_length,
        n_best_size=options.n_best_size,
        version_2_with_negative=options.version_2_with_negative,
        null_score_diff_threshold=options.null_score_diff_threshold,
    )
    selection_metric = answerer.selection_metric if answerer else "f1"
    return make_job(data, trained_task, evaluate, selection_metric=selection_metric)


# === Data ===


def prepare(
    options: QuestionAnsweringOptions, start: InitialModel, fold: Fold | None = None
) -> Data:
    """Make the records of the files that the options ask for, or find them made.

    Args:
        options: of the command.
        start: whose vocabulary the records are of.
        fold: the part of the training set that is held out; None for none.

    Returns:
        Data of the splits "train", whose records have answers, and "dev".

    Raises:
        InputError, ValueError, OSError: bad options or data.
    """
    task = get_task("squad2.0" if options.version_2_with_negative else "squad1.1")
    sources = []
    for split, path in _files(options).items():
        source = file_source(task, path, split)
        source = source if split == "train" else with_distinct_ids(source)
        sources.append(_with_log(source) if options.verbose_logging else source)
    if fold is not None:
        sources = _sources_of_fold(fold, task, options, sources)
    options.window_rule  # noqa: B018 - refuses windows without room for a document
    data = make_records(
        task,
        sources,
        options,
        start,
        parts=[source.split for source in sources],
        extra=extra_settings(task, spans=options.spans),
        describe=_describe_windows,
    )
    for split, prepared in data.prepared.items():
        if without_answer := prepared.manifest["counts"]["without_gold_label"]:
            logging.warning(
                "%s: left out %d questions whose answer is not at its place; --verbose_logging "
                "shows them as records are made",
                data.sources[split].files[0],
                without_answer,
            )
    return data


def _files(options: QuestionAnsweringOptions) -> dict[str, str]:
    """Return split -> file of what is to be read."""
    files = {}
    evaluates = options.do_eval and not options.num_folds  # else on parts of the training file
    for option, split, name, is_asked in (
        ("do_train", "train", "train_file", options.do_train),
        ("do_eval", "dev", "predict_file", evaluates),
        ("do_predict", "dev", "predict_file", options.do_predict),
    ):
        if not is_asked:
            continue
        path = options.train_file if split == "train" else options.predict_file
        if not path:
            raise InputError(f"{name}: needed for --{option}")
        if not is_file(path):
            raise FileNotFoundError(f"{name}: no such file: {path}")
        files[split] = local_copy(path)
    return files


def _sources_of_fold(
    fold: Fold, task: Task, options: QuestionAnsweringOptions, sources: Sequence[Source]
) -> list[Source]:
    """Return the training set without a part, and that part with the answers of all annotators."""
    (train,) = sources
    held_out = with_distinct_ids(file_source(task, train.files[0], "dev"))
    on_bad = ignore_message if options.records.skip_bad_examples else None
    return fold.sources(task, train, on_bad, held_out)


def _describe_windows(prepared: PreparedData) -> str:
    counts = prepared.manifest["counts"]
    return (
        f"{counts['examples']:,} questions in {counts['records']:,} windows, "
        f"{counts['tokens'] / max(1, counts['records']):.1f} tokens each"
    )


def with_distinct_ids(source: Source) -> Source:
    """Make a question whose id came before a bad example: files of answers have one for each id."""

    def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[squad.SquadExample]:
        ids = set()
        for example in source.read(on_bad, on_skip):
            if example.qas_id not in ids:
                ids.add(example.qas_id)
                yield example
                continue
            refuse(on_bad, f"{example.location}: expected distinct ids, and this one came before")

    settings = {**source.settings, "distinct_ids": True}
    return dataclasses.replace(source, read=read, settings=settings)


def _with_log(source: Source) -> Source:
    """Log each question that is left out because its answer is not at its place."""

    def read(on_bad: OnBad, on_skip: OnBad) -> Iterator[squad.SquadExample]:
        def log(message: str) -> None:
            logging.warning("%s", message)
            if on_skip is not None:
                on_skip(message)

        return source.read(on_bad, log)

    return dataclasses.replace(source, read=read)


# === Answers ===


def with_padding(outputs: Mapping[str, Any]) -> Any:
    """Keep what a model gives at padding, [B, 2, L] of the starts and ends, as the original has it.

    `TaskRecords.predict` fills the padding of outputs that have the length as their second axis.
    """
    return ops.stack([outputs["start_logits"], outputs["end_logits"]], axis=1)


def with_threshold(predictions: Predictions, threshold: float) -> Predictions:
    """Answer nothing where the null odds exceed a threshold.

    Args:
        predictions: decoded with the threshold inf, so that each answer is the best span.
        threshold: --null_score_diff_threshold.
    """
    odds = predictions.null_odds
    answers = {
        name: "" if name in odds and odds[name] > threshold else answer
        for name, answer in predictions.answers.items()
    }
    return dataclasses.replace(predictions, answers=answers)


def figures_of(
    references: Mapping[str, tuple[str, ...]],
    best_spans: Predictions,
    threshold: float,
    version_2: bool,
) -> dict[str, float]:
    """Score answers as the official scripts do.

    Args:
        references: question id -> answers.
        best_spans: decoded with the threshold inf.
        threshold: --null_score_diff_threshold.
        version_2: whether questions may have no answer.

    Returns:
        What `squad_metrics.evaluate_v1` or `evaluate_v2` gives for predictions.json (and
        null_odds.json), and total; the v2.0 "exact" is called exact_match as in v1.1. The search
        for the best threshold in predictions.json cannot find one above `threshold`, where answers
        are missing; tuned_f1 and tuned_f1_thresh are of the same search over the best spans, which
        can.
    """
    answers = with_threshold(best_spans, threshold).answers
    if not version_2:
        return {**squad_metrics.evaluate_v1(references, answers), "total": len(references)}
    figures = squad_metrics.evaluate_v2(references, answers, best_spans.null_odds, math.inf)
    tuned = squad_metrics.evaluate_v2(
        references, best_spans.answers, best_spans.null_odds, math.inf
    )
    threshold = tuned["best_f1_thresh"]
    # Of answering nothing the official search says 0, which is what gives that only by chance.
    without_answer = sum(not texts for texts in references.values())
    if tuned["best_f1"] == 100.0 * without_answer / len(references):
        threshold = min(best_spans.null_odds.values()) - 1.0
    return {
        "exact_match": figures.pop("exact"),
        **figures,
        "tuned_f1": tuned["best_f1"],
        "tuned_f1_thresh": threshold,
    }


class Answerer:
    """Answers the questions of --predict_file, and scores the answers.

    Called with a model it gives the figures that training logs and chooses by.

    Args:
        data: with a dev split.
        start: whose tokenizer the records are of.
        options: of the command.
    """

    def __init__(self, data: Data, start: InitialModel, options: QuestionAnsweringOptions):
        self._options, self._tokenizer = options, start.tokenizer
        self._examples = data.examples("dev")
        self._windows = squad.question_windows(self._examples, self._tokenizer, options.window_rule)
        self._records = data.records("dev")
        if len(self._windows) != len(self._records):
            raise RuntimeError(
                f"{self._records.path}: has {len(self._records)} records, expected "
                f"{len(self._windows)}; remove its folder and start again"
            )
        # Answers of the final model, once for its figures and its predictions.
        self.final_spans = functools.lru_cache(maxsize=1)(self._final_spans)
        self._references: dict[str, tuple[str, ...]] = {}
        if options.do_eval:
            self._references = self._read_references(data.sources["dev"].files[0])

    def _read_references(self, path: str) -> dict[str, tuple[str, ...]]:
        references = {example.qas_id: example.answers for example in self._examples}
        if not any(references.values()):
            squad_metrics.read_references(path)  # complains where there are none to read
        if not self._options.version_2_with_negative:
            for example in self._examples:
                if not example.answers:
                    raise InputError(
                        f"{example.location}: has no answer, which --do_eval needs; questions of "
                        "SQuAD 2.0 need --version_2_with_negative"
                    )
        return references

    @property
    def selection_metric(self) -> str:
        """The figure by which weights and runs are chosen.

        For version 2.0 F1 at the best threshold: the threshold is set after training, and at 0 a
        model that says nothing yet would be as good as one that has only learned caution.
        """
        return "tuned_f1" if self._options.version_2_with_negative else "f1"

    @property
    def baseline(self) -> float | None:
        """F1 of a constant answer, which can only be none; None where nothing can be better."""
        if not self._options.version_2_with_negative or not any(self._references.values()):
            return None
        no_answers = dict.fromkeys(self._references, "")
        return squad_metrics.evaluate_v2(self._references, no_answers)["f1"]

    def best_spans(self, model: keras.Model, *, batch_size: int) -> Predictions:
        """Answer all questions with a span, if any could be an answer."""
        options = self._options
        starts, ends = self._logits(model, batch_size)
        return decode_answers(
            self._examples,
            self._windows,
            starts,
            ends,
            self._tokenizer,
            AnswerRule(
                options.n_best_size,
                options.max_answer_length,
                options.version_2_with_negative,
                null_score_diff_threshold=math.inf,
            ),
        )

    def _final_spans(self, model: keras.Model) -> Predictions:
        options = self._options
        sizes = (options.eval_batch_size, options.predict_batch_size)
        return self.best_spans(model, batch_size=sizes[options.do_predict])

    def _logits(self, model: keras.Model, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits of starts and of ends, float32 [N, L]."""
        predict = functools.partial(
            predict_records, self._records, model, self._options, batch_size=batch_size
        )
        if self._options.pad_to_max_seq_length:
            logits = predict(reduce=with_padding)["logits"]  # [N, 2, L]
            return logits[:, 0], logits[:, 1]
        outputs = predict(fill=PADDING_LOGIT)
        return outputs["start_logits"], outputs["end_logits"]

    def figures(self, best_spans: Predictions) -> dict[str, float]:
        """Score answers; see `figures_of`."""
        options = self._options
        return figures_of(
            self._references,
            best_spans,
            options.null_score_diff_threshold,
            options.version_2_with_negative,
        )

    def sections(self, best_spans: Predictions) -> list[Section]:
        """Return what the report shows of answers."""
        options = self._options
        answers = with_threshold(best_spans, options.null_score_diff_threshold).answers
        probabilities = {}
        for name, likely in best_spans.nbest.items():
            of_texts = {one["text"]: one["probability"] for one in reversed(likely)}
            probabilities[name] = of_texts.get(answers[name], likely[0]["probability"])
        return answer_sections(
            self._examples,
            self._references,
            answers,
            probabilities,
            version_2=options.version_2_with_negative,
        )

    def __call__(self, model: keras.Model) -> dict[str, float]:
        """Return the figures of a model in training."""
        best_spans = self.best_spans(model, batch_size=self._options.eval_batch_size)
        figures = self.figures(best_spans)
        return {name: float(figures[name]) for name in LOGGED if name in figures}


# === Report ===


def _print_figures(
    figures: Mapping[str, float], answerer: Answerer, options: QuestionAnsweringOptions
) -> None:
    print(f"evaluation of {options.predict_file}:")
    print_table((name, _with_unit(name, value)) for name, value in figures.items())
    if answerer.baseline is not None:
        print(f"  no answer to all questions would have F1 {answerer.baseline:.2f} %")
    if options.version_2_with_negative and figures["tuned_f1"] > figures["f1"] + 1e-9:
        print(
            f"  --null_score_diff_threshold={figures['tuned_f1_thresh']!r} would give F1 "
            f"{figures['tuned_f1']:.2f} %, chosen on these very questions"
        )


def _with_unit(name: str, value: float) -> str:
    if name.endswith("total"):
        return f"{int(value):,} questions"
    if name.endswith("_thresh"):
        return f"{value:.4f} (difference of logits)"
    return f"{value:.2f} %"
