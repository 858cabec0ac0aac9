"""What a fine-tuned model is for, kept beside its weights."""

import dataclasses
import os
import sys

from bert_tf.files import read_json, write_json
from bert_tf.tasks.kinds import get_kind

TRAINED_TASK_NAME = "bert_task.json"

# Smallest values of the whole numbers in it, and the largest of them all: none is more than the
# pieces of a document.
_LEAST = {
    "max_seq_length": 1,
    "doc_stride": 1,
    "max_query_length": 1,
    "max_answer_length": 1,
    "n_best_size": 1,
}
_MOST = 1 << 20


@dataclasses.dataclass(frozen=True)
class TrainedTask:
    """What a fine-tuned model is for, beside its weights: all that its use needs to know.

    Attributes:
        kind: key of KINDS; heads and weights do not tell some of them apart.
        max_seq_length: tokens of a sequence in training.
        has_pairs: whether an example has two texts.
        doc_stride: of span, pieces between the starts of two windows.
        max_query_length: of span, pieces of the question that are kept.
        max_answer_length: of span, longest answer, in pieces.
        n_best_size: of span, how many starts, ends and answers are looked at.
        version_2_with_negative: of span, whether there may be no answer.
        null_score_diff_threshold: of span, no answer if the null odds are greater.
    """

    kind: str
    max_seq_length: int = 128
    has_pairs: bool = False
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30
    n_best_size: int = 20
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise ValueError(f"{field.name} must be true or false, got {value!r}")
            if isinstance(field.default, float):
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if not is_number or not abs(value) <= sys.float_info.max:
                    raise ValueError(f"{field.name} must be a finite number, got {value!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            is_int = isinstance(value, int) and not isinstance(value, bool)
            if not is_int or not least <= value <= _MOST:
                raise ValueError(
                    f"{name} must be an integer of {least} to {_MOST:,}, got {value!r}"
                )

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write bert_task.json.

        Args:
            folder: the model's, which exists.
        """
        path = os.path.join(folder, TRAINED_TASK_NAME)
        write_json(path, dataclasses.asdict(self), sort_keys=False)


def read_trained_task(folder: str | os.PathLike[str]) -> TrainedTask | None:
    """Read bert_task.json; None where a model directory has none.

    Args:
        folder: of the model.

    Raises:
        ValueError: the file is damaged.
    """
    path = os.path.join(folder, TRAINED_TASK_NAME)
    if not os.path.exists(path):
        return None
    try:
        trained = TrainedTask(**read_json(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not what training writes: {error}") from error
    try:
        get_kind(trained.kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return trained
