"""Fine-tuning: the model and the objective of each kind of task, and which weights learn.

Shapes: B batch, F sequence length, C choices, K labels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models.task_models import HEADS
from bert_tf.training import losses

# Kind of task -> key of HEADS. A regression is a classifier of one logit, and several labels at
# once are one whose logits are read each by itself.
HEAD_OF_KIND = {
    "classification": "classification",
    "regression": "classification",
    "multi_label": "classification",
    "multiple_choice": "multiple_choice",
    "token_classification": "token_classification",
    "span": "span",
}


def make_model(
    kind: str, config: BertConfig, num_labels: int | None = None, **arguments: Any
) -> keras.Model:
    """Make the model of a kind of task.

    Args:
        kind: key of HEAD_OF_KIND.
        config: the model's configuration.
        num_labels: K, for kinds with labels; a regression has one.
        **arguments: of the head's function, as dropout_rate or dtype.

    Raises:
        ValueError: a kind that is not there, or num_labels for a kind that has none.
    """
    if kind not in HEAD_OF_KIND:
        raise ValueError(f"kind: expected one of {', '.join(HEAD_OF_KIND)}, got {kind!r}")
    head = HEADS[HEAD_OF_KIND[kind]]
    if kind == "regression":
        if num_labels not in (None, 1):
            raise ValueError(f"num_labels: a regression has 1, got {num_labels}")
        num_labels = 1
    if head.has_labels != (num_labels is not None):
        expected = "a number of labels" if head.has_labels else "none"
        raise ValueError(f"num_labels: {kind} takes {expected}, got {num_labels}")
    if num_labels is not None:
        arguments["num_labels"] = num_labels
    return head.make(config, **arguments)


@dataclasses.dataclass(frozen=True)
class FineTuningObjective:
    """Loss and running metrics of a kind of task, for `training.Trainer`.

    The loss is the mean over the examples of a batch (over the labels that count, for tokens).

    Attributes:
        kind: key of HEAD_OF_KIND.
    """

    kind: str

    def __post_init__(self):
        if self.kind not in HEAD_OF_KIND:
            raise ValueError(f"kind: expected one of {', '.join(HEAD_OF_KIND)}, got {self.kind!r}")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order of the log."""
        if self.kind in ("regression", "multi_label"):
            return ("loss",)
        if self.kind == "span":
            return ("loss", "start_accuracy", "end_accuracy")
        return ("loss", "accuracy")

    def loss_weights(self, labels: Any, weights: Any) -> dict[str, Any]:
        """Compute what the loss of a batch is divided by; see `training.Objective`."""
        if self.kind == "span":
            weights = weights["start_logits"]
        return {"loss": ops.sum(ops.cast(weights, "float32"))}

    def __call__(self, outputs: Any, labels: Any, weights: Any, whole: Any = None):
        """Compute loss and metrics of a batch, or its part in those of a larger one.

        Args:
            outputs: of the model.
            labels: as `finetuning_pipeline.TaskRecords` gives them; for span, where they hold
                input_mask [B, F], positions of padding cannot be chosen.
            weights: likewise.
            whole: `loss_weights` of the batch that this one is a part of; None for a whole one.

        Returns:
            The loss, a float32 scalar, and name -> (sum, weight).
        """
        if self.kind == "span":
            found = self._span(outputs, labels, weights)
        elif self.kind == "regression":
            found = {"loss": losses.regression_loss(outputs, labels, weights)}
        elif self.kind == "multi_label":
            found = {"loss": losses.multi_label_loss(outputs, labels, weights)}
        else:
            found = {
                "loss": losses.classification_loss(outputs, labels, weights),
                "accuracy": losses.classification_accuracy(outputs, labels, weights),
            }
        total, weight = found["loss"]
        return ops.divide_no_nan(total, weight if whole is None else whole["loss"]), found

    def _span(self, outputs: Any, labels: Any, weights: Any) -> dict[str, tuple[Any, Any]]:
        start, end = outputs["start_logits"], outputs["end_logits"]
        first, last = labels["start_logits"], labels["end_logits"]
        weights = weights["start_logits"]
        if "input_mask" in labels:  # for the accuracies too
            mask = labels["input_mask"]
            start, end = losses.masked_logits(start, mask), losses.masked_logits(end, mask)
        return {
            "loss": losses.span_loss(start, end, first, last, weights),
            "start_accuracy": losses.classification_accuracy(start, first, weights),
            "end_accuracy": losses.classification_accuracy(end, last, weights),
        }


def freeze(model: keras.Model, patterns: Sequence[str]) -> list[str]:
    """Keep weights from learning. Call it before the optimizer is made.

    Args:
        model: any model.
        patterns: regular expressions, searched for in `variable.path`.

    Returns:
        The paths of the weights that are frozen now and were not before.

    Raises:
        ValueError: a pattern is no regular expression or finds no weight, or none is left to learn.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {pattern!r}: {error}") from error
        if not any(re.search(pattern, weight.path) for weight in model.weights):
            raise ValueError(f"no weight of the model matches {pattern!r}; nothing was frozen")
    frozen = [
        weight
        for weight in model.trainable_weights
        if any(re.search(pattern, weight.path) for pattern in patterns)
    ]
    if len(frozen) == len(model.trainable_weights):
        raise ValueError(f"patterns: no weight is left to learn after {', '.join(patterns)}")
    for weight in frozen:
        weight.trainable = False
    return [weight.path for weight in frozen]


def frozen_layers(num_frozen: int, num_layers: int) -> tuple[str, ...]:
    """Return the patterns that freeze the embeddings and the lowest layers of the encoder.

    Args:
        num_frozen: how many layers; 0 for the embeddings alone.
        num_layers: how many there are.

    Raises:
        ValueError: num_frozen is out of range.
    """
    if not 0 <= num_frozen <= num_layers:
        raise ValueError(f"num_frozen must be from 0 to {num_layers}, got {num_frozen}")
    layers = tuple(f"^bert/encoder/layer_{i}/" for i in range(num_frozen))
    return ("^bert/embeddings/", *layers)
