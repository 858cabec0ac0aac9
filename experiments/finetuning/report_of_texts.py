"""What the report shows of texts with one answer: labels, numbers, choices."""

from collections.abc import Iterator, Sequence

import numpy as np

from bert_tf.tasks.calibration import CALIBRATED_KINDS, reliability_of
from bert_tf.tasks.class_report import ClassReport, class_report
from bert_tf.tasks.error_analysis import losses_of, worst
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.trained_task import TrainedTask
from data_prep.finetuning.kinds import reader_of
from experiments.finetuning.report import NUM_WORST, length_section
from experiments.finetuning.splits import Data, Evaluator
from experiments.plots.predictions import regression_figure, reliability_figure
from experiments.plots.report_page import (
    Element,
    Section,
    count_cell,
    element,
    number,
    paragraph,
    picture,
    table,
    text_cell,
)

_WIDEST = 30  # labels whose confusion matrix is shown
_NUM_CONFUSIONS = 10  # pairs of labels that are taken for one another


def text_sections(data: Data, evaluator: Evaluator, trained: TrainedTask) -> list[Section]:
    """Show what a model makes of the dev splits.

    Args:
        data: with the examples.
        evaluator: with the logits of the model.
        trained: with its temperature and thresholds.
    """
    sections = []
    for split, logits in evaluator.logits.items():
        shown = _Split(data, split, logits, evaluator.labels[split], trained)
        name = f" ({split})" if len(evaluator.logits) > 1 else ""
        for section in shown.sections():
            sections.append(Section(section.heading + name, section.elements))
    return sections


class _Split:
    """What a model makes of one split.

    Args:
        data: with the split.
        split: its name.
        logits: of its examples [N, K].
        labels: theirs.
        trained: the model's temperature and thresholds.
    """

    def __init__(
        self, data: Data, split: str, logits: np.ndarray, labels: np.ndarray, trained: TrainedTask
    ):
        self._data, self._split, self._logits, self._labels = data, split, logits, labels
        self._task, self._kind = data.task, data.task.kind
        self._names = data.task.labels or ()
        self._trained = trained
        self._probabilities = trained.probabilities(logits)
        self._decided = trained.decide(logits)
        self._lengths = np.load(data.prepared[split].lengths_file)

    def sections(self) -> Iterator[Section]:
        if self._names:
            report = class_report(self._decided, self._labels, self._names)
            yield Section("Labels", [self._compared(), *_label_elements(report)])
        elif self._kind == "regression":
            figure = regression_figure(self._labels, self._decided)
            shown = picture(figure, "Predicted numbers over the true ones")
            yield Section("Predicted and true", [self._compared(), shown])
        if self._kind in CALIBRATED_KINDS and np.isfinite(self._logits).all():
            yield self._reliability()
        values, measure = self._measured()
        name = "pieces of the longest choice" if self._task.num_choices else "pieces"
        yield length_section(
            self._lengths, values, measure=measure, unit=name, full=max(values.max(), 1e-12)
        )
        yield self._worst()

    def _compared(self) -> Element:
        """Say how much was measured, and what the best constant answer has."""
        metric = self._task.selection_metric
        constant = get_kind(self._kind).constant_figure(self._labels, metric)
        text = f"{len(self._labels):,} examples."
        if constant is not None:
            name = metric.replace("_", " ")
            text += f" The best answer that is the same for all has {name} {number(constant)}."
        return paragraph(text)

    def _reliability(self) -> Section:
        """Show how far probabilities can be trusted, before and after a temperature."""
        temperature, curves = self._trained.temperature, {}
        if temperature != 1:
            curves["without temperature"] = reliability_of(self._kind, self._logits, self._labels)
        named = f"at temperature {temperature:.3g}" if curves else "the model"
        curves[named] = reliability_of(self._kind, self._logits / temperature, self._labels)
        said = paragraph(
            "How often answers were right, by how sure the model was: bars on the dashed line are "
            "what probabilities promise, bars below it are answers that the model is too sure of."
        )
        shown = picture(reliability_figure(curves), "Part of answers that is right by probability")
        return Section("How far probabilities can be trusted", [said, shown])

    def _is_right(self) -> np.ndarray:
        right = self._decided == self._labels
        return right.all(axis=1) if right.ndim == 2 else right

    def _measured(self) -> tuple[np.ndarray, str]:
        """Return of each example whether it is right, or how far it is off."""
        if self._kind == "regression":
            return np.abs(self._decided - self._labels), "mean distance"
        return self._is_right().astype(np.float64), "accuracy"

    def _worst(self) -> Section:
        """Show the examples that the model gets wrong the most."""
        losses = losses_of(self._kind, self._probabilities, self._labels)
        wrong = losses > 0 if self._kind == "regression" else ~self._is_right()
        chosen = worst(losses, wrong, NUM_WORST)
        examples, texts_of = self._data.examples(self._split), reader_of(self._task).texts
        rows = []
        for n in chosen.tolist():
            texts = map(text_cell, self._texts(n, texts_of(examples[n])))
            place = examples[n].location.rpartition(", ")[2]
            rows.append((place, *texts, *self._answers(n), f"{self._lengths[n]:,}"))
        said = f"The {len(chosen)} examples that are furthest off."
        if self._kind != "regression":
            said = (
                f"{int(wrong.sum()):,} of {len(wrong):,} examples are wrong. Below: the "
                f"{len(chosen)} whose true label the model found least likely. Look for labels "
                "that are wrong in the data themselves, and for what many of them share."
            )
        shown = [table(self._heads(), rows)] if rows else []
        return Section("Worst errors", [paragraph(said), *shown])

    def _heads(self) -> tuple[str, ...]:
        if self._task.num_choices:
            texts: tuple[str, ...] = ("beginning", "right ending", "chosen ending")
            return ("where", *texts, "probability of the right one", "of the chosen one", "pieces")
        texts = ("text", "second text") if self._task.has_pairs else ("text",)
        if self._kind == "regression":
            return ("where", *texts, "true", "predicted", "pieces")
        if self._kind == "multi_label":
            return ("where", *texts, "true labels", "predicted", "pieces")
        return ("where", *texts, "true label", "predicted", "pieces")

    def _texts(self, n: int, texts: Sequence[str]) -> Sequence[str]:
        """Return which of an example's texts are shown."""
        if self._task.num_choices:
            beginning, *choices = texts
            return beginning, choices[int(self._labels[n])], choices[int(self._decided[n])]
        return texts if self._task.has_pairs else texts[:1]

    def _answers(self, n: int) -> tuple[str, ...]:
        """Return what is right and what was predicted of an example, each with its probability."""
        true, predicted, shares = self._labels[n], self._decided[n], self._probabilities[n]
        if self._kind == "regression":
            return number(float(true)), number(float(predicted))
        if self._kind == "multi_label":
            return self._held(true, shares), self._held(predicted, shares)
        if self._task.num_choices:
            return f"{shares[true]:.3f}", f"{shares[predicted]:.3f}"
        return tuple(f"{self._names[k]} ({shares[k]:.3f})" for k in (int(true), int(predicted)))

    def _held(self, holds: np.ndarray, shares: np.ndarray) -> str:
        """Return the names of the labels that hold."""
        named = [f"{self._names[k]} ({shares[k]:.3f})" for k in np.flatnonzero(holds)]
        return ", ".join(named) or "none"


# === Labels ===


def _label_elements(report: ClassReport) -> Iterator[Element]:
    """Show precision, recall and F1 of each label, and which are taken for which."""
    rows = [
        (
            name,
            *(f"{values[k]:.4f}" for values in (report.precision, report.recall, report.f1)),
            int(report.support[k]),
        )
        for k, name in enumerate(report.names)
    ]
    yield table(("label", "precision", "recall", "F1", "examples"), rows)
    if report.confusion.ndim != 2:
        return
    if len(report.names) <= _WIDEST:
        yield _confusion_matrix(report)
    if len(report.names) > 2 and (pairs := _confusions(report)):
        yield table(("true label", "taken for", "examples"), pairs, "Taken for one another most")


def _confusion_matrix(report: ClassReport) -> Element:
    counts = report.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for name, of_label, parts in zip(report.names, counts, shares, strict=True):
        cells = map(count_cell, of_label.tolist(), parts.tolist())
        rows.append((element("td", element("strong", name), dir="auto"), *cells))
    return table(
        ("", *report.names),
        rows,
        "True label (row) by predicted label (column): the darker, the greater its part of the row",
    )


def _confusions(report: ClassReport) -> list[tuple[str, str, int]]:
    wrong = report.confusion * (1 - np.eye(len(report.names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_NUM_CONFUSIONS]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(report.names[t], report.names[p], int(wrong[t, p])) for t, p in places if wrong[t, p]]
