"""Distillation: a student learns from the answers of a teacher beside the labels.

The loss is (1 - alpha) * the task's + alpha * the teacher's, which is T^2 KL(teacher || student) of
the probabilities at a temperature T, and for numbers the squared difference.

Reference: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531).

Shapes: B batch, K labels.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from bert_tf.models import variables
from bert_tf.tasks.kinds import KINDS, get_kind
from bert_tf.training import losses
from bert_tf.training.objectives import FineTuningObjective, StepResult

TEMPERATURE, ALPHA = 2.0, 0.5  # defaults


def _regression(outputs: Any, teacher: Any, weights: Any, temperature: float) -> tuple[Any, Any]:
    del temperature  # a number has no probability
    return losses.regression_loss(outputs, teacher, weights)


# Loss of a kind -> (outputs, the teacher's, weights, temperature) -> (sum, weight).
_SOFT_LOSSES: dict[str, Callable[[Any, Any, Any, float], tuple[Any, Any]]] = {
    "classification": losses.soft_label_loss,
    "multi_label": losses.soft_multi_label_loss,
    "regression": _regression,
}
DISTILLED_KINDS = tuple(name for name, kind in KINDS.items() if kind.loss in _SOFT_LOSSES)


class Taught(NamedTuple):
    """Labels with what the teacher says of their examples."""

    labels: Any
    teacher_outputs: Any


@dataclasses.dataclass(frozen=True, eq=False)
class DistillationObjective:
    """Loss and running metrics of a student, for the `Trainer`.

    The teacher sees what the student sees, without dropout; it is not trained, and is no part of
    what the `Trainer` saves. Under a strategy it must have been made within the scope. Evaluation
    needs no teacher: its figures are the task's own.

    Attributes:
        task: the objective without a teacher, of a kind in DISTILLED_KINDS.
        teacher: a model of the same inputs and outputs, of any size.
        temperature: T, above 0; for numbers without effect.
        alpha: the teacher's part of the loss, 0 to 1.

    Raises:
        ValueError: a kind that cannot be distilled, outputs that differ, or a number out of range.
    """

    task: FineTuningObjective
    teacher: keras.Model
    temperature: float = TEMPERATURE
    alpha: float = ALPHA

    def __post_init__(self):
        check_settings(self.task.kind, self.temperature, self.alpha)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics of training, in the order of the log."""
        return (*self.task.metric_names, "task_loss", "teacher_loss")

    @property
    def evaluation_metric_names(self) -> tuple[str, ...]:
        """Names of the metrics of an evaluation: the task's."""
        return self.task.metric_names

    def taught(self, inputs: Any, labels: Any) -> Taught:
        """Return the labels of a batch with the teacher's outputs, as a call takes them."""
        return Taught(labels, self.teacher(inputs, training=False))

    def loss_weights(self, labels: Any, weights: Any) -> dict[str, Any]:
        """Compute what the loss of a batch is divided by; see `Objective`."""
        return self.task.loss_weights(labels, weights)

    def __call__(
        self, outputs: Any, labels: Any, weights: Any, whole: Mapping[str, Any] | None = None
    ) -> StepResult:
        """Compute loss and metrics of a batch, or its part in those of a larger one.

        Args:
            outputs: of the student.
            labels: of `taught`; without the teacher's outputs loss and metrics are the task's.
            weights: as the task's; an example weighs the same in both losses.
            whole: `loss_weights` of the batch that this one is a part of; None for a whole one.

        Returns:
            The loss, a float32 scalar, and name -> (sum, weight).
        """
        if not isinstance(labels, Taught):
            return self.task(outputs, labels, weights, whole)
        _, figures = self.task(outputs, labels.labels, weights, whole)
        task, weight = figures["loss"]
        soft, _ = soft_loss(
            self.task.kind, outputs, labels.teacher_outputs, weights, self.temperature
        )
        total = (1.0 - self.alpha) * task + self.alpha * soft
        loss = ops.divide_no_nan(total, weight if whole is None else whole["loss"])
        of_both = {"task_loss": (task, weight), "teacher_loss": (soft, weight)}
        return loss, {**figures, "loss": (total, weight), **of_both}


def soft_loss(
    kind: str, outputs: Any, teacher_outputs: Any, weights: Any = None, temperature: float = 1.0
) -> tuple[Any, Any]:
    """Return (sum, weight) of the loss against a teacher's answers.

    Args:
        kind: one of DISTILLED_KINDS.
        outputs: float [..., K], of the student.
        teacher_outputs: likewise, of the teacher.
        weights: float [...]; None: 1 for each.
        temperature: T.

    Raises:
        ValueError: the outputs are of different numbers of labels.
    """
    ours, theirs = outputs.shape[-1], teacher_outputs.shape[-1]
    if ours != theirs:
        raise ValueError(f"teacher: expected {ours} outputs, as the student has, got {theirs}")
    return _SOFT_LOSSES[get_kind(kind).loss](outputs, teacher_outputs, weights, temperature)


def check_settings(kind: str, temperature: float, alpha: float) -> None:
    """Refuse what no distillation could have.

    Raises:
        ValueError: one line names the argument.
    """
    if get_kind(kind).loss not in _SOFT_LOSSES:
        raise ValueError(
            f"teacher: distillation is for kinds {', '.join(DISTILLED_KINDS)}, got {kind}"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 to 1, got {alpha}")


class DistilledModel(keras.Model):
    """A student whose `fit` learns from a teacher; everything else is the student's.

        model = DistilledModel(student, teacher, "classification")
        model.compile(optimizer, **finetuning_compile_arguments("classification"))
        model.fit(...)
        student.save(...)

    The compiled loss is the task's. It is reported by `evaluate`, and by `fit` with the teacher's
    part added. The teacher's weights are none of this model's.

    Args:
        student: the model to train.
        teacher: a model of the same inputs and outputs.
        kind: one of DISTILLED_KINDS.
        temperature: as of `DistillationObjective`.
        alpha: likewise.
        **kwargs: of `keras.Model`.

    Raises:
        ValueError: as of `DistillationObjective`.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        kind: str,
        temperature: float = TEMPERATURE,
        alpha: float = ALPHA,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_settings(kind, temperature, alpha)
        self.student, self.kind = student, kind
        self.temperature, self.alpha = temperature, alpha
        # Keras does not look for weights in it.
        self._ask_teacher = functools.partial(teacher, training=False)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the student's outputs."""
        return self.student(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the task's loss, in training with the teacher's."""
        task = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return task
        answers = ops.stop_gradient(self._ask_teacher(x))
        total, weight = soft_loss(self.kind, y_pred, answers, sample_weight, self.temperature)
        return (1.0 - self.alpha) * task + self.alpha * ops.divide_no_nan(total, weight)


def copy_layers(teacher: keras.Model, student: keras.Model, layers: Sequence[int]) -> None:
    """Give a student the weights of a teacher: some of its layers, and all that is no layer's.

    Args:
        teacher: a model of this package.
        student: one like it, with as many layers as `layers` has.
        layers: for each layer of the student the teacher's that it begins as, from 0.

    Raises:
        ValueError: the layers are not the teacher's, or a weight is missing or of another shape.
    """
    mine, theirs = variables.config_of(student), variables.config_of(teacher)
    if len(layers) != mine.num_hidden_layers:
        raise ValueError(
            f"layers: expected {mine.num_hidden_layers}, as the student has, got {len(layers)}"
        )
    check_layers(layers, theirs.num_hidden_layers)
    sources = variables.weights_by_name(teacher)
    pairs = []
    for name, weight in variables.weights_by_name(student).items():
        source = re.sub(
            r"^(bert/encoder/layer_)(\d+)(?=/)", lambda m: f"{m[1]}{layers[int(m[2])]}", name
        )
        if source not in sources or sources[source].shape != weight.shape:
            found = sources[source].shape if source in sources else "none"
            raise ValueError(f"{name}: expected the teacher's of {weight.shape}, found {found}")
        pairs.append((weight, sources[source]))
    for weight, source in pairs:
        weight.assign(source.value)


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Refuse layers that a teacher does not have, or that are not in order.

    Raises:
        ValueError: one line names them.
    """
    in_order = all(one < other for one, other in zip(layers, layers[1:], strict=False))
    if not layers or not in_order or layers[0] < 0 or layers[-1] >= num_layers:
        shown = ",".join(map(str, layers))
        raise ValueError(
            f"layers: expected some of 0 to {num_layers - 1} in order, as 0,2,4; got {shown}"
        )
