"""Options of the `Trainer`, without the cost of importing TensorFlow."""

import dataclasses
from collections.abc import Callable, Sequence

from bert_tf.options import check, option

JIT_CHOICES = ("auto", "true", "false", "pointwise")
LOSS_NORMALIZATIONS = ("global", "per_replica")


@dataclasses.dataclass(frozen=True)
class TrainerOptions:
    """How a `Trainer` computes its steps, and what it writes on the way.

    Raises:
        ValueError: an option is out of bounds; the message names it.
    """

    jit_compile: str | bool = option(
        "auto",
        "XLA; auto means on a GPU only, pointwise all but the matrix products, for CPUs.",
        choices=JIT_CHOICES,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Parts of a training batch that are computed one after another, to need less memory.",
        minimum=1,
    )
    loss_normalization: str = option(
        "global",
        "Whether losses are means over the whole batch or, as in the original, over each "
        "replica's part.",
        choices=LOSS_NORMALIZATIONS,
    )
    steps_per_call: int = option(1000, "Steps at most in one call of the graph.", minimum=1)
    log_steps: int = option(
        25, "Steps between two log lines, whose figures are means over them.", minimum=1
    )
    save_checkpoints_steps: int | None = option(
        1000, "Steps between two checkpoints; None for no checkpoints.", minimum=1
    )
    keep_checkpoints: int = option(5, "Newest checkpoints to keep, beside the best.", minimum=1)
    keep_best_by: str | None = option(
        None,
        "Figure of the evaluations on the way; where it is lowest, a checkpoint is written and "
        "kept. None for no such checkpoint.",
    )
    tensorboard: bool = option(True, "Whether to write TensorBoard summaries.")
    profile_steps: tuple[int, ...] = option(
        (), "First and last step of a TensorBoard profile, as in 10,20; none by default.", minimum=1
    )
    verbose: bool = option(True, "Whether to show a progress bar.")
    after_save: Callable[[], object] | None = None  # called when a checkpoint is written

    def __post_init__(self):
        if isinstance(self.jit_compile, bool):
            object.__setattr__(self, "jit_compile", str(self.jit_compile).lower())
        check(self)
        check_profile_steps(self.profile_steps)


def check_profile_steps(steps: Sequence[int]) -> None:
    """Refuse what is no first and last step.

    Args:
        steps: none, or two.

    Raises:
        ValueError: one line names the option.
    """
    if len(steps) not in (0, 2) or list(steps) != sorted(steps):
        raise ValueError(
            "profile_steps: expected a first step and a last one, as in 10,20, got "
            f"{','.join(map(str, steps))}"
        )
