"""What a fine-tuned model is for, kept beside its weights."""

import dataclasses
import os
import sys
from collections.abc import Sequence

import numpy as np

from bert_tf.files import read_json, write_json
from bert_tf.tasks.kinds import get_kind

TRAINED_TASK_NAME = "bert_task.json"
POOLINGS = ("mean", "cls", "max")  # as `models.functional` has them

# Smallest values of the whole numbers in it, and the largest of them all: none is more than the
# pieces of a document.
_LEAST = {
    "max_seq_length": 1,
    "doc_stride": 1,
    "max_windows": 0,
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
        doc_stride: of span and of texts in windows, pieces between the starts of two windows.
        max_windows: of texts in windows, how many of one are read at most; 0 for texts that are one
            sequence.
        max_query_length: of span and of pairs in windows, pieces of the first text that are kept.
        max_answer_length: of span, longest answer, in pieces.
        n_best_size: of span, how many starts, ends and answers are looked at.
        version_2_with_negative: of span, whether there may be no answer.
        null_score_diff_threshold: of span, no answer if the null odds are greater.
        temperature: what logits are divided by before they become probabilities; see
            `tasks.calibration`.
        thresholds: of multi_label, the probability that each label must exceed to hold; () for one
            half of all.
        pooling: of similarity and retrieval, how the vector of a text is made, one of POOLINGS.
        normalize: likewise, whether it has length 1.
    """

    kind: str
    max_seq_length: int = 128
    has_pairs: bool = False
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30
    n_best_size: int = 20
    max_windows: int = 0
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    pooling: str | None = None
    normalize: bool = False

    def __post_init__(self):
        if self.pooling not in (None, *POOLINGS):
            raise ValueError(
                f"pooling must be one of {', '.join(POOLINGS)} or null, got {self.pooling!r}"
            )
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
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature!r}")
        given: object = self.thresholds
        if not isinstance(given, list | tuple):
            raise ValueError(f"thresholds must be a list of numbers, got {given!r}")
        for value in given:
            # Not a number first: a Boolean is one, to Python.
            if type(value) not in (int, float) or not 0 < value < 1:
                raise ValueError(f"thresholds must be numbers between 0 and 1, got {value!r}")
        object.__setattr__(self, "thresholds", tuple(self.thresholds))  # JSON has lists

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return what a table of predictions shows, float64.

        Args:
            logits: of the model, [N, K].
        """
        return get_kind(self.kind).probabilities(self._calibrated(logits))

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Return what the model predicts, as the kind's metrics take it; see `Kind.decide`.

        Args:
            logits: of the model, [N, K].
        """
        scores = self._calibrated(logits)
        if self.thresholds:
            scores = scores - threshold_logits(self.thresholds)
        return get_kind(self.kind).decide(scores)

    def at_temperature(self, temperature: float) -> "TrainedTask":
        """Return the same at another temperature; its thresholds decide as before.

        Args:
            temperature: above 0.
        """
        thresholds = self.thresholds
        if thresholds and temperature != self.temperature:
            logits = threshold_logits(thresholds) * (self.temperature / temperature)
            # Within what leaves a probability between 0 and 1.
            thresholds = tuple((1 / (1 + np.exp(-np.clip(logits, -700, 36)))).tolist())
        return dataclasses.replace(self, temperature=temperature, thresholds=thresholds)

    def _calibrated(self, logits: np.ndarray) -> np.ndarray:
        return logits.astype(np.float64) / self.temperature

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write bert_task.json.

        Args:
            folder: the model's, which exists.
        """
        values = dataclasses.asdict(self)
        if self.pooling is None:
            del values["pooling"], values["normalize"]  # which mean nothing
        write_json(os.path.join(folder, TRAINED_TASK_NAME), values, sort_keys=False)


def threshold_logits(thresholds: Sequence[float]) -> np.ndarray:
    """Return the logits of probabilities, float64 [K]."""
    chosen = np.asarray(thresholds, np.float64)
    return np.log(chosen) - np.log1p(-chosen)


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
        values = read_json(path)
        known = {field.name for field in dataclasses.fields(TrainedTask)}
        if unknown := set(values) - known:
            # In quotes, since a key may hold a line break.
            raise ValueError(f"unknown keys {', '.join(map(repr, sorted(unknown)))}")
        trained = TrainedTask(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not what training writes: {error}") from error
    try:
        get_kind(trained.kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return trained
