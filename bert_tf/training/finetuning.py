"""The model that fine-tuning begins with, for each kind of task."""

from typing import Any

import keras

from bert_tf.config import BertConfig
from bert_tf.models.task_models import HEADS
from bert_tf.tasks.kinds import get_kind


def make_model(
    kind: str, config: BertConfig, num_labels: int | None = None, **arguments: Any
) -> keras.Model:
    """Make the model of a kind of task.

    Args:
        kind: key of `tasks.KINDS`.
        config: the model's configuration.
        num_labels: K, for kinds with labels; a regression has one.
        **arguments: of the head's function, as dropout_rate or dtype.

    Raises:
        ValueError: a kind that is not there, or num_labels for a kind that has none.
    """
    row = get_kind(kind)
    head = HEADS[row.head]
    if row.num_outputs is not None:
        if num_labels not in (None, row.num_outputs):
            raise ValueError(f"num_labels: a {kind} has {row.num_outputs}, got {num_labels}")
        num_labels = row.num_outputs
    if head.has_labels != (num_labels is not None):
        expected = "a number of labels" if head.has_labels else "none"
        raise ValueError(f"num_labels: {kind} takes {expected}, got {num_labels}")
    if num_labels is not None:
        arguments["num_labels"] = num_labels
    return (head.tuned or head.make)(config, **arguments)
