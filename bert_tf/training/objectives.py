"""Objectives: the loss to minimise and the metrics to report, of a batch or of its parts.

Shapes: B batch, F sequence length, P predictions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.tasks.kinds import get_kind
from bert_tf.training import losses
from bert_tf.training.losses import MaskedLMLoss, NextSentenceLoss

Figures = dict[str, tuple[Any, Any]]  # name -> (sum, weight); a mean is the one by the other
StepResult = tuple[Any, Figures]  # the total loss, and metrics over any number of batches


class Objective(Protocol):
    """Turns a model's outputs into the loss to minimise and the metrics to report.

    A batch may be a part of a larger one: of a global batch over replicas and accumulation steps.
    Losses and metrics of the parts then add up to those of the whole, since each part divides by
    the weights of the whole, which follow from labels alone.
    """

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics."""
        ...

    def loss_weights(self, labels: Any, weights: Any) -> dict[str, Any]:
        """Return what the losses of a batch are divided by, name -> float32 scalar."""
        ...

    def __call__(
        self, outputs: Any, labels: Any, weights: Any, whole: Mapping[str, Any] | None = None
    ) -> StepResult:
        """Return the loss of the batch and, for each of `metric_names`, (sum, weight).

        `whole` is `loss_weights` of the batch that this one is a part of; None for a whole one.
        """
        ...


@dataclasses.dataclass(frozen=True)
class PretrainingObjective:
    """Masked language model and next sentence prediction, added.

    Each loss is the mean over its batch, the first as sum / (weight + 1e-5).

    Attributes:
        next_sentence: whether the model predicts the next sentence.
        at_mask: whether evaluation also reports the predictions that show [MASK] apart, by the
            weights masked_lm_at_mask of `pretraining_dataset`: half of the others stand in the text
            as they are, and to copy them is no knowledge of language.
        next_sentence_weight: what the second loss counts in the sum; 1 in the paper. It has one
            label a sequence, so in small batches its gradient is mostly noise, which keeps Adam
            from following the first.

    Raises:
        ValueError: a weight below 0, or no number.

    Reference:
        google-research/bert run_pretraining.py, lines 140-148 and 245-305.
    """

    next_sentence: bool = True
    at_mask: bool = False
    next_sentence_weight: float = 1.0

    def __post_init__(self):
        _check_next_sentence_weight(self.next_sentence_weight)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of the log."""
        names = ("loss", "mlm_loss", "mlm_accuracy")
        return (*names, "nsp_loss", "nsp_accuracy") if self.next_sentence else names

    @property
    def evaluation_metric_names(self) -> tuple[str, ...]:
        """Names of the metrics of an evaluation."""
        names = ("mlm_loss_at_mask", "mlm_accuracy_at_mask")
        return (*self.metric_names, *names) if self.at_mask else self.metric_names

    def loss_weights(self, labels: Any, weights: Any) -> dict[str, Any]:
        """Compute what the losses are divided by, and the number of sequences.

        Args:
            labels: as of a call.
            weights: as of a call.

        Returns:
            float32 scalars "mlm_loss", "nsp_loss" and "sequences".
        """
        real = weights["masked_lm_logits"]
        sums = {"mlm_loss": ops.sum(ops.cast(real, "float32"))}
        if self.next_sentence:
            rows = weights["next_sentence_logits"]
            sums["nsp_loss"] = ops.sum(ops.cast(rows, "float32"))
        return {**sums, "sequences": _rows(real)}

    def __call__(
        self, outputs: Any, labels: Any, weights: Any, whole: Mapping[str, Any] | None = None
    ) -> StepResult:
        """Compute loss and metrics of a batch, or its part in those of a larger one.

        Args:
            outputs: masked_lm_logits [B, P, V] and, with next_sentence,
                next_sentence_logits [B, 2].
            labels: int32 masked_lm_logits [B, P], next_sentence_logits [B]; the latter of packed
                rows [B, K], and their logits [B, K, 2].
            weights: float32, of the labels' shapes, and perhaps masked_lm_at_mask [B, P].
            whole: `loss_weights` of the batch that this one is a part of; None for a whole one.

        Returns:
            The total loss, a float32 scalar, and name -> (sum, weight).
        """
        logits = outputs["masked_lm_logits"]
        ids, real = labels["masked_lm_logits"], weights["masked_lm_logits"]
        loss_sum, loss_weight = losses.masked_lm_loss(logits, ids, real)
        divisor = loss_weight if whole is None else whole["mlm_loss"]
        total = loss_sum / (divisor + losses.MASKED_LM_WEIGHT_EPSILON)
        figures = {
            "mlm_loss": (loss_sum, loss_weight),
            "mlm_accuracy": losses.masked_lm_accuracy(logits, ids, real),
        }
        if "masked_lm_at_mask" in weights:
            shown = weights["masked_lm_at_mask"]
            figures["mlm_loss_at_mask"] = losses.masked_lm_loss(logits, ids, shown)
            figures["mlm_accuracy_at_mask"] = losses.masked_lm_accuracy(logits, ids, shown)
        if self.next_sentence:
            logits = outputs["next_sentence_logits"]
            ids, real = labels["next_sentence_logits"], weights["next_sentence_logits"]
            loss_sum, loss_weight = losses.next_sentence_loss(logits, ids, real)
            divisor = loss_weight if whole is None else whole["nsp_loss"]
            total += self.next_sentence_weight * ops.divide_no_nan(loss_sum, divisor)
            figures["nsp_loss"] = (loss_sum, loss_weight)
            figures["nsp_accuracy"] = losses.next_sentence_accuracy(logits, ids, real)
        share = ops.ones_like(total)
        if whole is not None:
            share = _rows(weights["masked_lm_logits"]) / whole["sequences"]
        figures["loss"] = (total, share)
        return total, figures


def _check_next_sentence_weight(weight: float) -> None:
    """Refuse what a loss cannot be multiplied with.

    Raises:
        ValueError: a weight below 0, or no number.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"next_sentence_weight: expected a number of at least 0, got {weight}")


def _rows(tensor: Any) -> Any:
    return ops.cast(ops.shape(tensor)[0], "float32")


def pretraining_compile_arguments(
    config: BertConfig, next_sentence_weight: float = 1.0
) -> dict[str, Any]:
    """Return the losses and metrics of pre-training, as `Model.compile` takes them.

    The dataset then yields (inputs, labels, sample weights): labels are "masked_lm_logits" integer
    [B, P] and "next_sentence_logits" integer [B, 1], sample weights the masked LM weights [B, P]
    and ones [B, 1], under the same two names.

    "val_loss" is then the mean over all predictions, whatever the batches, and without the 1e-5.
    Of a model of your own around the encoder it is one over batches, each counting by its rows,
    though rows hold more masked pieces or fewer: there let callbacks monitor the metric
    "cross_entropy".

    Args:
        config: the model's configuration.
        next_sentence_weight: as of `PretrainingObjective`.

    Returns:
        dict with "loss" and "weighted_metrics", and "loss_weights" where these differ from 1.

    Raises:
        ValueError: a weight below 0, or no number.
    """
    _check_next_sentence_weight(next_sentence_weight)
    loss: dict[str, Any] = {"masked_lm_logits": MaskedLMLoss()}
    arguments: dict[str, Any] = {"loss": loss}
    if config.next_sentence_prediction:
        loss["next_sentence_logits"] = NextSentenceLoss()
        if next_sentence_weight != 1:
            arguments["loss_weights"] = {
                "masked_lm_logits": 1.0,
                "next_sentence_logits": next_sentence_weight,
            }
    return {**arguments, "weighted_metrics": {output: _class_metrics() for output in loss}}


def _class_metrics() -> list[keras.metrics.Metric]:
    return [
        keras.metrics.SparseCategoricalCrossentropy("cross_entropy", from_logits=True),
        keras.metrics.SparseCategoricalAccuracy("accuracy"),
    ]


def finetuning_compile_arguments(kind: str) -> dict[str, Any]:
    """Return the losses and metrics of a kind of task, as `Model.compile` takes them.

    The dataset is one of `TaskRecords`. "val_loss" is then the mean over all examples, or labels of
    tokens; for a span the sum of that of its start and that of its end; of retrieval, whose texts
    are sought among those of their batch, it depends on the batches. Of a tagger of your own
    around the encoder it is a mean over batches, though examples have more labels or fewer: there
    let callbacks monitor "val_cross_entropy".

    Args:
        kind: key of `tasks.KINDS`.

    Returns:
        dict with "loss" and "weighted_metrics".

    Raises:
        ValueError: a kind that is not there.
    """
    loss, metrics = LOSSES[get_kind(kind).loss].compiled()
    return {"loss": loss, "weighted_metrics": metrics}


_SPAN_OUTPUTS = ("start_logits", "end_logits")
_BY_WEIGHT = "mean_with_sample_weight"  # so that tokens without a label do not count


def _cross_entropy_loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=_BY_WEIGHT)


@dataclasses.dataclass(frozen=True)
class TaskLoss:
    """What a model is fine-tuned by.

    Attributes:
        metric_names: names of the metrics, in the order of the log.
        figures: (outputs, labels, weights, any settings) -> name -> (sum, weight); "loss" is the
            loss.
        compiled: makes the losses and the weighted metrics that `Model.compile` takes.
        smoothed: (outputs, labels, weights, label_smoothing) -> (sum, weight) of the loss with
            smoothed labels; None where labels cannot be smoothed.
    """

    metric_names: tuple[str, ...]
    figures: Callable[..., Figures]
    compiled: Callable[[], tuple[Any, Any]]
    smoothed: Callable[[Any, Any, Any, float], tuple[Any, Any]] | None = None


def _classification(outputs: Any, labels: Any, weights: Any) -> Figures:
    return {
        "loss": losses.classification_loss(outputs, labels, weights),
        "accuracy": losses.classification_accuracy(outputs, labels, weights),
    }


def _span(outputs: Any, labels: Any, weights: Any) -> Figures:
    start, end = outputs["start_logits"], outputs["end_logits"]
    first, last = labels["start_logits"], labels["end_logits"]
    weights = weights["start_logits"]
    if "input_mask" in labels:  # masked here, for the accuracies too
        mask = labels["input_mask"]
        start, end = losses.masked_logits(start, mask), losses.masked_logits(end, mask)
    return {
        "loss": losses.span_loss(start, end, first, last, weights),
        "start_accuracy": losses.classification_accuracy(start, first, weights),
        "end_accuracy": losses.classification_accuracy(end, last, weights),
    }


def _multiple_negatives(
    outputs: Any, labels: Any, weights: Any, scale: float = losses.COSINE_SCALE
) -> Figures:
    return {
        "loss": losses.multiple_negatives_loss(outputs, labels, weights, scale),
        "accuracy": losses.multiple_negatives_accuracy(outputs, labels, weights),
    }


LOSSES: dict[str, TaskLoss] = {
    "classification": TaskLoss(
        ("loss", "accuracy"),
        _classification,
        lambda: (_cross_entropy_loss(), _class_metrics()),
        losses.classification_loss,
    ),
    "regression": TaskLoss(
        ("loss",),
        lambda *batch: {"loss": losses.regression_loss(*batch)},
        lambda: (keras.losses.MeanSquaredError(_BY_WEIGHT), []),
    ),
    "multi_label": TaskLoss(
        ("loss",),
        lambda *batch: {"loss": losses.multi_label_loss(*batch)},
        lambda: (keras.losses.BinaryCrossentropy(from_logits=True, reduction=_BY_WEIGHT), []),
        losses.multi_label_loss,
    ),
    "cosine_similarity": TaskLoss(
        ("loss",),
        lambda *batch: {"loss": losses.cosine_similarity_loss(*batch)},
        lambda: (losses.CosineSimilarityLoss(), []),
    ),
    "multiple_negatives": TaskLoss(
        ("loss", "accuracy"), _multiple_negatives, lambda: (losses.MultipleNegativesLoss(), [])
    ),
    "span": TaskLoss(
        ("loss", "start_accuracy", "end_accuracy"),
        _span,
        lambda: (
            {output: _cross_entropy_loss() for output in _SPAN_OUTPUTS},
            {output: _class_metrics() for output in _SPAN_OUTPUTS},
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class FineTuningObjective:
    """Loss and running metrics of a kind of task, for the `Trainer`.

    The loss is the mean over the examples of a batch (over the labels that count, for tokens).

    Attributes:
        kind: key of `tasks.KINDS`.
        label_smoothing: part of a label's probability that is spread over all labels, 0 to below
            1; of kinds whose labels are classes.
        settings: of the loss: for retrieval "scale", times the cosines.

    Raises:
        ValueError: a kind that is not there, or a smoothing that is out of range or not for it.
    """

    kind: str
    label_smoothing: float = 0.0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        get_kind(self.kind)
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing: expected at least 0 and below 1, got {self.label_smoothing}"
            )
        if self.label_smoothing and self._loss.smoothed is None:
            raise ValueError(f"label_smoothing: is for labels that are classes, got {self.kind}")

    @property
    def _loss(self) -> TaskLoss:
        return LOSSES[get_kind(self.kind).loss]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of the log."""
        return self._loss.metric_names

    def loss_weights(self, labels: Any, weights: Any) -> dict[str, Any]:
        """Compute what the loss of a batch is divided by; see `Objective`."""
        if isinstance(weights, Mapping):  # of several outputs, each with the example's weight
            weights = next(iter(weights.values()))
        return {"loss": ops.sum(ops.cast(weights, "float32"))}

    def __call__(
        self, outputs: Any, labels: Any, weights: Any, whole: Mapping[str, Any] | None = None
    ) -> StepResult:
        """Compute loss and metrics of a batch, or its part in those of a larger one.

        Args:
            outputs: of the model.
            labels: as `TaskRecords` gives them; for span, where they hold
                input_mask [B, F], positions of padding cannot be chosen.
            weights: likewise.
            whole: `loss_weights` of the batch that this one is a part of; None for a whole one.

        Returns:
            The loss, a float32 scalar, and name -> (sum, weight).
        """
        figures = self._loss.figures(outputs, labels, weights, **self.settings)
        if self.label_smoothing and self._loss.smoothed is not None:
            smoothed = self._loss.smoothed(outputs, labels, weights, self.label_smoothing)
            figures = {**figures, "loss": smoothed}
        total, weight = figures["loss"]
        return ops.divide_no_nan(total, weight if whole is None else whole["loss"]), figures
