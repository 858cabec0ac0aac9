"""What labels count in the training loss: their weights and smoothing, as the options say."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_tf.training.objectives import FineTuningObjective
from experiments.command_line.exit_status import InputError
from experiments.finetuning.options import LabelLossOptions
from experiments.finetuning.splits import Data

_WEIGHTED_KINDS = ("classification", "token_classification")


def label_loss_arguments(data: Data, options: LabelLossOptions) -> dict[str, Any]:
    """Return the fields of a `Job` on its loss.

    Args:
        data: with the records of the train split.
        options: what labels count.

    Raises:
        InputError: weights that do not fit the labels.
        ValueError: labels of this kind cannot be smoothed.
    """
    FineTuningObjective(data.task.kind, options.label_smoothing)  # refuses what is wrong
    return {
        "class_weights": _class_weights(data, options.class_weights),
        "label_smoothing": options.label_smoothing,
    }


def _class_weights(data: Data, given: Sequence[str]) -> tuple[float, ...] | None:
    """Return what an example, or token, weighs by its label; None where all weigh the same.

    Balanced weights are those of scikit-learn: the mean count of a label over its own.
    """
    if not given:
        return None
    if data.task.kind not in _WEIGHTED_KINDS:
        kinds = " or ".join(_WEIGHTED_KINDS)
        raise InputError(f"class_weights: is for kind {kinds}, got {data.task.kind}")
    names = data.task.labels or ()
    if tuple(given) == ("balanced",):
        counts = _label_counts(data, len(names))
        weights = (counts.mean() / np.maximum(counts, 1)).tolist()
    else:
        try:
            weights = [float(number) for number in given]
        except ValueError:
            weights = []
        if (
            len(weights) != len(names)
            or not all(0 <= w < math.inf for w in weights)
            or not any(weights)
        ):
            raise InputError(
                "class_weights: expected balanced, or a number of at least 0 for each of the "
                f"labels {', '.join(names)}; got {','.join(given)}"
            )
    shown = (f"{name} {weight:.4g}" for name, weight in zip(names, weights, strict=True))
    print(f"weights of the labels in the loss: {', '.join(shown)}")
    return tuple(weights)


def _label_counts(data: Data, num_labels: int) -> np.ndarray:
    """Return how many training examples, or words, have each label, integer [K]."""
    labels = data.records("train").labels()
    if isinstance(labels, dict):  # of tokens; a word counts once, by its first piece
        labels = labels["label_ids"][labels["label_mask"] == 1]
    return np.bincount(labels, minlength=num_labels)
