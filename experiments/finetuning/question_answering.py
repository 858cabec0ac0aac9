"""Fine-tuning on SQuAD."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import flags, logging

from bert_tf.options import read
from bert_tf.tasks import squad_metrics
from bert_tf.tasks.answer_decoding import Predictions, decode_answers, write_predictions
from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tasks.table import get_task
from bert_tf.tasks.trained_task import TrainedTask
from data_prep.finetuning import prepare as finetuning_prepare
from data_prep.finetuning import squad
from data_prep.finetuning.flags import BadExamples
from data_prep.finetuning.prepare import TokenizerSettings
from data_prep.finetuning.sources import file_source
from experiments.command_line.exit_status import InputError
from experiments.command_line.tables import print_table
from experiments.command_line.training_options import TrainingOptions
from experiments.command_line.training_setup import chief_first
from experiments.finetuning import flags as finetuning_flags
from experiments.finetuning.initial_model import StartingPoint, load_trained, starting_point
from experiments.finetuning.results import report_runs, with_step, write_results
from experiments.finetuning.runs import Job, train_all
from experiments.finetuning.splits import digest_of, leave_out

PADDING_LOGIT = -1e9  # as in the loss


def check_flags(values: flags.FlagValues) -> None:
    """Refuse what no run could have.

    Raises:
        InputError, ValueError, OSError: one line says what.
    """
    finetuning_flags.check_flags(values)
    needed = {
        "train_file": ("do_train",) if values.do_train else (),
        "predict_file": tuple(n for n in ("do_eval", "do_predict") if getattr(values, n)),
    }
    for name, users in needed.items():
        path = getattr(values, name)
        if users and not path:
            raise InputError(f"{name}: needed for --{users[0]}")
        if users and not os.path.isfile(path):
            raise FileNotFoundError(f"{name}: no such file: {path}")
    for name in ("n_best_size", "max_answer_length", "max_seq_length"):
        if getattr(values, name) is None or getattr(values, name) < 1:
            raise InputError(f"{name}: expected at least 1, got {getattr(values, name)}")
    if math.isnan(values.null_score_diff_threshold):
        raise InputError("null_score_diff_threshold: expected a number, got nan")
    window_rule(values)


def window_rule(values: flags.FlagValues) -> WindowRule:
    """Return how documents are cut into windows.

    Raises:
        ValueError: there is no room for a document.
    """
    return WindowRule(values.max_seq_length, values.doc_stride, values.max_query_length)


# === Data ===


@dataclasses.dataclass(frozen=True)
class Split:
    """The questions of a file.

    Attributes:
        source: where they come from.
        made: their records, one a window.
        on_bad: what reading them again does with the bad ones.
    """

    source: Any
    made: Any
    on_bad: Any

    def records(self, vocab_size: int) -> Any:
        """Open the records as `finetuning_pipeline.TaskRecords`."""
        from bert_tf.input_pipeline.finetuning import TaskRecords

        return TaskRecords.open(self.made.record_file, vocab_size=vocab_size)


def prepare(values: flags.FlagValues, start: StartingPoint, name: str, path: str) -> Split:
    """Make the records of a file, or find them made.

    Args:
        values: the flags.
        start: whose vocabulary the records are of.
        name: "train", for records with answers, or "dev".
        path: SQuAD's JSON.

    Raises:
        ValueError, OSError: bad data.
    """
    task = get_task("squad2.0" if values.version_2_with_negative else "squad1.1")
    source = file_source(task, path, name)
    source = distinct(source) if name != "train" else source
    if values.verbose_logging:
        source = _telling(source)
    bad = BadExamples(values.max_bad_shown)
    rule = window_rule(values)
    made = finetuning_prepare.prepare(
        task,
        source,
        TokenizerSettings(start.vocab_file, start.do_lower_case),
        values.max_seq_length,
        values.cache_dir or os.path.join(values.output_dir, "records"),
        values.num_workers or None,
        bad if values.skip_bad_examples else None,
        extra={"doc_stride": rule.doc_stride, "max_query_length": rule.max_query_length},
    )
    counts = made.manifest["counts"]
    print(
        f"{name}: {counts['examples']:,} questions in {counts['records']:,} windows, "
        f"{counts['tokens'] / max(1, counts['records']):.1f} tokens each"
        + (f"; left out {bad.count:,} bad ones" if bad.count else "")
    )
    if counts["without_gold_label"]:
        logging.warning(
            "%s: left out %d questions whose answer is not at its place; --verbose_logging shows "
            "them as records are made",
            path,
            counts["without_gold_label"],
        )
    return Split(source, made, leave_out if values.skip_bad_examples else None)


def distinct(source: Any) -> Any:
    """Make a question whose id came before a bad example: files of answers have one for each id."""

    def read(on_bad: Any, on_skip: Any) -> Iterator[squad.SquadExample]:
        seen = set()
        for example in source.read(on_bad, on_skip):
            if example.qas_id not in seen:
                seen.add(example.qas_id)
                yield example
                continue
            message = f"{example.location}: expected distinct ids, and this one came before"
            if on_bad is None:
                raise ValueError(message)
            on_bad(message)

    settings = {**source.settings, "distinct_ids": True}
    return dataclasses.replace(source, read=read, settings=settings)


def _telling(source: Any) -> Any:
    """Log each question that is left out because its answer is not at its place."""

    def read(on_bad: Any, on_skip: Any) -> Iterator[squad.SquadExample]:
        def tell(message: str) -> None:
            logging.warning("%s", message)
            if on_skip is not None:
                on_skip(message)

        return source.read(on_bad, tell)

    return dataclasses.replace(source, read=read)


# === Answers ===


def padding_too(outputs: Mapping[str, Any]) -> Any:
    """Keep what a model gives at padding, [B, 2, L] of the starts and ends, as the original has it.

    `TaskRecords.predict` fills the padding of outputs that have the length as their second axis.
    """
    from keras import ops

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
    return {
        "exact_match": figures.pop("exact"),
        **figures,
        "tuned_f1": tuned["best_f1"],
        "tuned_f1_thresh": tuned["best_f1_thresh"],
    }


# Of the figures of an evaluation what is logged during training.
LOGGED = ("exact_match", "f1", "HasAns_f1", "NoAns_f1", "best_f1", "tuned_f1")


class Answerer:
    """Answers the questions of --predict_file, and scores the answers.

    Called with a model it gives the figures that training logs and chooses by.
    """

    def __init__(self, split: Split, start: StartingPoint, values: flags.FlagValues):
        self.values = values
        self.tokenizer = start.tokenizer
        self.examples = list(split.source.read(split.on_bad, None))
        self.windows = squad.make_windows(self.examples, self.tokenizer, window_rule(values))
        self.records = split.records(start.config.vocab_size)
        if len(self.windows) != len(self.records):
            raise RuntimeError(
                f"{split.made.record_file}: has {len(self.records)} records, expected "
                f"{len(self.windows)}; remove its folder and start again"
            )
        self.references: dict[str, tuple[str, ...]] = {}
        if values.do_eval:
            self.references = self._read_references(split.source.files[0])

    def _read_references(self, path: str) -> dict[str, tuple[str, ...]]:
        references = {example.qas_id: example.answers for example in self.examples}
        if not any(references.values()):
            squad_metrics.read_references(path)  # complains where there are none to read
        if not self.values.version_2_with_negative:
            for example in self.examples:
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
        return "tuned_f1" if self.values.version_2_with_negative else "f1"

    @property
    def baseline(self) -> float | None:
        """F1 of a constant answer, which can only be none; None where nothing can be better."""
        if not self.values.version_2_with_negative or not any(self.references.values()):
            return None
        return squad_metrics.evaluate_v2(self.references, dict.fromkeys(self.references, ""))["f1"]

    def best_spans(self, model: Any, *, batch_size: int) -> Predictions:
        """Answer all questions with a span, if any could be an answer."""
        values = self.values
        starts, ends = self._logits(model, batch_size)
        return decode_answers(
            self.examples,
            self.windows,
            starts,
            ends,
            self.tokenizer,
            n_best_size=values.n_best_size,
            max_answer_length=values.max_answer_length,
            version_2_with_negative=values.version_2_with_negative,
            null_score_diff_threshold=math.inf,
        )

    def _logits(self, model: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits of starts and of ends, float32 [N, L]."""
        from bert_tf.training.trainer import resolve_jit_compile

        values = self.values
        predict = functools.partial(
            self.records.predict,
            model,
            batch_size=batch_size,
            jit_compile=resolve_jit_compile(values.jit_compile),
            group_by_length=values.group_by_length,
        )
        if values.pad_to_max_seq_length:
            logits = predict(pad_to_max=True, reduce=padding_too)["logits"]
            return logits[:, 0], logits[:, 1]
        found = predict(fill=PADDING_LOGIT)
        return found["start_logits"], found["end_logits"]

    def figures(self, best_spans: Predictions) -> dict[str, float]:
        """Score answers; see `figures_of`."""
        values = self.values
        return figures_of(
            self.references,
            best_spans,
            values.null_score_diff_threshold,
            values.version_2_with_negative,
        )

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the figures of a model in training."""
        best_spans = self.best_spans(model, batch_size=self.values.eval_batch_size)
        figures = self.figures(best_spans)
        return {name: float(figures[name]) for name in LOGGED if name in figures}


# === The script ===


def run(values: flags.FlagValues) -> None:
    """Train, predict and evaluate as the flags say.

    Raises:
        InputError, ValueError, OSError, RuntimeError: bad flags, data or model; one line says what.
    """
    began = time.time()
    check_flags(values)
    folder = pathlib.Path(values.output_dir)
    start = starting_point(values)
    train = answerer = dev = None
    with chief_first(read(TrainingOptions, values)):
        if values.do_train:
            train = prepare(values, start, "train", values.train_file)
        if values.do_eval or values.do_predict:
            dev = prepare(values, start, "dev", values.predict_file)
    if dev is not None:
        answerer = Answerer(dev, start, values)
    if train is not None:
        job = _job(values, start, train, dev, answerer)
        print(f"begins with {start.description}")
        trained = train_all(job, start, values)
        report_runs(trained, folder, job.selection_metric, job.baseline)
    if answerer is not None:
        if train is not None:
            start = start.trained(folder)
        loaded = load_trained(values, start, "span")
        _answer(values, answerer, loaded.model, loaded.transfer.step)
    print(f"{folder}: {time.time() - began:.0f} s in all")


def _job(
    values: flags.FlagValues,
    start: StartingPoint,
    train: Split,
    dev: Split | None,
    answerer: Answerer | None,
) -> Job:
    # Weights depend on the dev set only where they are chosen by it.
    chosen_by = [dev.made.manifest["fingerprint"]] if dev is not None and values.do_eval else []
    return Job(
        task=TrainedTask(
            "span",
            max_seq_length=values.max_seq_length,
            has_pairs=True,
            doc_stride=values.doc_stride,
            max_query_length=values.max_query_length,
            max_answer_length=values.max_answer_length,
            n_best_size=values.n_best_size,
            version_2_with_negative=values.version_2_with_negative,
            null_score_diff_threshold=values.null_score_diff_threshold,
        ),
        labels=None,
        records=train.records(start.config.vocab_size),
        num_examples=train.made.num_examples,
        fingerprint=digest_of(train.made.manifest["fingerprint"], *chosen_by),
        evaluate=answerer if values.do_eval else None,
        selection_metric=answerer.selection_metric if answerer is not None else "f1",
        baseline=answerer.baseline if answerer is not None and values.do_eval else None,
    )


def _answer(values: flags.FlagValues, answerer: Answerer, model: Any, step: int | None) -> None:
    """Write predictions and results."""
    folder = pathlib.Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    batch_size = values.predict_batch_size if values.do_predict else values.eval_batch_size
    best_spans = answerer.best_spans(model, batch_size=batch_size)
    if values.do_predict:
        predictions = with_threshold(best_spans, values.null_score_diff_threshold)
        for path in write_predictions(predictions, folder):
            print(f"wrote {path}")
    if not values.do_eval:
        return
    figures = answerer.figures(best_spans)
    write_results(folder, with_step(figures, step))
    print(f"evaluation of {values.predict_file}:")
    print_table((name, _with_unit(name, value)) for name, value in figures.items())
    if answerer.baseline is not None:
        print(f"  no answer to all questions would have F1 {answerer.baseline:.2f} %")
    # Where no threshold is better than no answer at all, the official search says 0.
    if values.version_2_with_negative and figures["tuned_f1"] > 1e-9 + max(
        figures["f1"], answerer.baseline or 0.0
    ):
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
