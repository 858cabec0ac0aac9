"""Options of learning from a teacher, in fine-tuning; pre-training has more."""

import dataclasses
import math

from bert_tf.options import option
from experiments.command_line.exit_status import InputError


@dataclasses.dataclass(frozen=True)
class DistillationOptions:
    """A teacher, and how much is learnt from it.

    Raises:
        InputError: layers of no teacher.
    """

    teacher_dir: str | None = option(
        None,
        "Fine-tuned model of the same task, labels and vocabulary, from whose answers the model "
        "learns too.",
        path="model",
        group="distillation",
    )
    distill_temperature: float = option(
        2.0,
        "What the logits of both are divided by before they are compared.",
        above=0,
        below=math.inf,
    )
    distill_alpha: float = option(
        0.5, "Part of the loss that is the teacher's, not the task's.", minimum=0, maximum=1
    )
    student_layers: tuple[int, ...] = option(
        (),
        "Begin with these layers of the teacher, as 0,2,4, and its embeddings and head, in place "
        "of --model_dir.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        if self.student_layers and not self.teacher_dir:
            raise InputError("student_layers: needs --teacher_dir, whose layers they are")
