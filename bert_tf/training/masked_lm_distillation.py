"""Distillation of pre-training: a student learns to fill masks as a teacher does.

The loss is (1 - alpha) * that of pre-training + alpha * T^2 KL(teacher || student) of the pieces at
the masked positions, at a temperature T, + hidden_weight * the mean squared distance of hidden
states from the teacher's, where layers are matched. States of another width are first multiplied
with a matrix that is learnt with the student and is no part of it.

References: of the answers Hinton et al. (arXiv 1503.02531) and DistilBERT (Sanh et al.,
arXiv 1910.01108); of hidden states TinyBERT (Jiao et al., arXiv 1909.10351, equation 8).

Shapes: B batch, F sequence length, P predictions, V vocabulary, D hidden size of the teacher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from bert_tf.models import variables
from bert_tf.training import losses
from bert_tf.training.distillation import ALPHA, TEMPERATURE, Taught
from bert_tf.training.objectives import PretrainingObjective, StepResult

_STATES = "hidden_states_"  # with the number of a layer's output: 0 for the embeddings
_MATCHED = "matched_states_"  # of the student, as wide as the teacher's


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainingDistillation:
    """Loss and running metrics of a student in pre-training, for the `Trainer`.

    The teacher sees what the student sees, without dropout; it is not trained, and is no part of
    what the `Trainer` saves. Evaluation needs no teacher: its figures are the task's own.

    Attributes:
        task: the objective without a teacher.
        teacher: a `bert_pretrainer` of the same pieces, of any size; with hidden_states where
            layers are matched; None for a run that is only evaluated.
        temperature: T, above 0.
        alpha: the part of the loss that is the teacher's answers', 0 to 1.
        layers: for each layer of the student the teacher's whose output it is to have, from 0; ()
            to match none. The student is then made with `matched_student`.
        hidden_weight: of the distance of hidden states.

    Raises:
        ValueError: a number out of range, or layers that the teacher does not have.
    """

    task: PretrainingObjective
    teacher: keras.Model | None
    temperature: float = TEMPERATURE
    alpha: float = ALPHA
    layers: tuple[int, ...] = ()
    hidden_weight: float = 1.0

    def __post_init__(self):
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number above 0, got {self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected 0 to 1, got {self.alpha}")
        if not 0 <= self.hidden_weight < float("inf"):
            raise ValueError(f"hidden_weight: expected at least 0, got {self.hidden_weight}")
        if self.teacher is None:
            return
        check_matched(self.layers, variables.config_of(self.teacher).num_hidden_layers)
        if self.layers and f"{_STATES}0" not in self.teacher.output:
            raise ValueError("teacher: expected one that was made with hidden_states")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics of training, in the order of the log."""
        hidden = ("hidden_loss",) if self.layers else ()
        return (*self.task.metric_names, "task_loss", "teacher_loss", *hidden)

    @property
    def evaluation_metric_names(self) -> tuple[str, ...]:
        """Names of the metrics of an evaluation: the task's."""
        return self.task.evaluation_metric_names

    def taught(self, inputs: Any, labels: Any) -> Taught:
        """Return the labels of a batch with what the teacher says of it, as a call takes them."""
        if self.teacher is None:
            raise ValueError("teacher: training needs one")
        outputs = self.teacher(inputs, training=False)
        kept = {"masked_lm_logits": outputs["masked_lm_logits"]}
        for number, layer in enumerate(self.layers):
            kept[f"{_MATCHED}{number}"] = outputs[f"{_STATES}{layer + 1}"]
        return Taught(labels, {**kept, "input_mask": inputs["input_mask"]})

    def loss_weights(self, labels: Any, weights: Any) -> dict[str, Any]:
        """Compute what the losses of a batch are divided by; see `Objective`."""
        sums = self.task.loss_weights(labels, weights)
        return {**sums, "hidden_loss": _rows_that_count(weights)} if self.layers else sums

    def __call__(
        self, outputs: Any, labels: Any, weights: Any, whole: Mapping[str, Any] | None = None
    ) -> StepResult:
        """Compute loss and metrics of a batch, or its part in those of a larger one.

        Args:
            outputs: of the student; with layers those of `matched_student`.
            labels: of `taught`; without the teacher's outputs loss and metrics are the task's.
            weights: as the task's.
            whole: `loss_weights` of the batch that this one is a part of; None for a whole one.

        Returns:
            The total loss, a float32 scalar, and name -> (sum, weight).
        """
        if not isinstance(labels, Taught):
            return self.task(outputs, labels, weights, whole)
        theirs = labels.teacher_outputs
        task, figures = self.task(outputs, labels.labels, weights, whole)
        _, share = figures["loss"]
        real = weights["masked_lm_logits"]
        soft, weight = losses.soft_label_loss(
            outputs["masked_lm_logits"], theirs["masked_lm_logits"], real, self.temperature
        )
        divisor = weight if whole is None else whole["mlm_loss"]
        total = (1.0 - self.alpha) * task
        total += self.alpha * soft / (divisor + losses.MASKED_LM_WEIGHT_EPSILON)
        of_both = {"task_loss": (task, share), "teacher_loss": (soft, weight)}
        if self.layers:
            distance = _hidden_distance(outputs, theirs, len(self.layers))
            rows = _rows_that_count(weights)
            divisor = ops.maximum(rows if whole is None else whole["hidden_loss"], 1.0)
            total += self.hidden_weight * distance / divisor
            of_both["hidden_loss"] = (distance, rows)
        return total, {**figures, "loss": (total, share), **of_both}


def _rows_that_count(weights: Any) -> Any:
    """Return the rows that have predictions: of a batch that is not full others hold nothing."""
    real = ops.cast(weights["masked_lm_logits"], "float32")  # [B, P]
    return ops.sum(ops.cast(ops.any(real > 0, axis=1), "float32"))


def _hidden_distance(outputs: Any, theirs: Any, count: int) -> Any:
    """Return the sum over rows of the mean squared distance of their states.

    The mean is over the tokens that are no padding, the hidden size and the matched layers.
    """
    mask = ops.cast(theirs["input_mask"] > 0, "float32")  # [B, F]; of packed rows their number
    tokens = ops.maximum(ops.sum(mask, axis=1), 1.0)  # [B]
    total = 0.0
    for number in range(count):
        name = f"{_MATCHED}{number}"
        ours, target = (ops.cast(x[name], "float32") for x in (outputs, theirs))  # [B, F, D]
        squared = ops.mean(ops.square(ours - target), axis=-1)  # [B, F]
        total = total + ops.sum(ops.sum(squared * mask, axis=1) / tokens)
    return total / count


def matched_student(student: keras.Model, width: int) -> keras.Model:
    """Make the model that trains a student whose layers are matched.

    Args:
        student: a `bert_pretrainer` that was made with hidden_states.
        width: D, of the teacher.

    Returns:
        A model with the student's variables and logits, and as further outputs the states of its
        layers, as wide as the teacher's. Where the widths differ each has a matrix of its own, in
        "distillation_<layer>", that the student does not have.

    Raises:
        ValueError: the student was made without hidden_states.
    """
    config, outputs = variables.config_of(student), dict(student.output)
    if f"{_STATES}0" not in outputs:
        raise ValueError("student: expected one that was made with hidden_states")
    kept = {name: value for name, value in outputs.items() if not name.startswith(_STATES)}
    for number in range(config.num_hidden_layers):
        states = outputs[f"{_STATES}{number + 1}"]
        if config.hidden_size != width:
            project = keras.layers.Dense(
                width,
                use_bias=False,
                kernel_initializer=keras.initializers.TruncatedNormal(config.initializer_range),
                dtype="float32",
                name=f"distillation_{number}",
            )
            states = project(states)
        kept[f"{_MATCHED}{number}"] = states
    return keras.Model(student.input, kept, name="matched_student")


def check_matched(
    layers: Sequence[int], num_layers: int, student_layers: int | None = None
) -> None:
    """Refuse a map of layers that cannot be.

    Args:
        layers: for each layer of the student the teacher's, from 0; () for none.
        num_layers: of the teacher.
        student_layers: of the student; None not to compare.

    Raises:
        ValueError: one line says what was expected.
    """
    if not layers:
        return
    if student_layers is not None and len(layers) != student_layers:
        raise ValueError(
            f"layers: expected one of the teacher's for each of the student's {student_layers}, "
            f"got {len(layers)}"
        )
    if min(layers) < 0 or max(layers) >= num_layers:
        shown = ",".join(map(str, layers))
        raise ValueError(f"layers: the teacher has 0 to {num_layers - 1}, got {shown}")
