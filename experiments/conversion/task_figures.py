"""Figures of the task for a model that was exported, beside those of the model itself."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bert_tf.input_pipeline.finetuning import TaskRecords
from bert_tf.serving.saved_model import Run, run_arrays
from bert_tf.serving.served_model import ServedModel
from bert_tf.tasks.entity_metrics import entity_scores
from bert_tf.tasks.kinds import get_kind
from bert_tf.tasks.metrics import METRICS
from bert_tf.tasks.trained_task import TrainedTask
from experiments.command_line.exit_status import InputError

_BATCH_SIZE = 32

Arrays = Mapping[str, np.ndarray]


def open_records(path: str, served: ServedModel) -> TaskRecords:
    """Open records of the task that a model is for.

    Raises:
        InputError: they are of another task, other labels, or longer than the model can read.
        ValueError, OSError: they cannot be read, or hold ids beyond the model's vocabulary.
    """
    records = TaskRecords.open(path, vocab_size=served.config.vocab_size)
    task = get_kind(records.kind).served_by
    if task != served.task:
        raise InputError(f"{path}: holds records of {task}, and the model is for {served.task}")
    if (records.max_windows is None) != (served.windows is None):
        held = "texts of one sequence" if records.max_windows is None else "texts in windows"
        raise InputError(f"{path}: holds {held}, which the model does not read")
    names = records.label_names or ()
    if served.label_names and tuple(served.label_names) != tuple(names):
        raise InputError(
            f"{path}: has the labels {', '.join(names)}, the model {', '.join(served.label_names)}"
        )
    if records.max_seq_length > served.config.max_position_embeddings:
        raise InputError(
            f"{path}: has records of {records.max_seq_length} pieces, the model "
            f"{served.config.max_position_embeddings} positions"
        )
    return records


def inputs_of(records: TaskRecords) -> Iterator[Arrays]:
    """Give the inputs of single records, int32 [1, L], L their own length.

    Of choices and windows [1, C, L]; of the texts of a vector model [C, L].
    """
    for inputs, _, _ in records.evaluation_dataset(batch_size=1, pad_to_max=False):
        yield _rows(records, inputs)


def _rows(records: TaskRecords, inputs: Mapping[str, Any]) -> Arrays:
    """Return inputs as the served model takes them: vectors are of each text by itself."""
    arrays = _numpy(inputs)
    if get_kind(records.kind).served_by != "embeddings":
        return arrays
    return {name: array.reshape(-1, array.shape[-1]) for name, array in arrays.items()}


class TaskFigures:
    """The figure of a task that an exported model has to keep; a `Check` of the exporters."""

    def __init__(self, path: str, served: ServedModel, tolerance: float):
        """Compute the figures of the model itself.

        Args:
            path: of the records, which have labels.
            served: the model, before it is exported.
            tolerance: how much lower the first figure may be, of 1.

        Raises:
            InputError, ValueError, OSError: as of `open_records`.
        """
        self._name, self._tolerance = pathlib.PurePath(path).name, tolerance
        self._records = open_records(path, served)
        if get_kind(self._records.kind).labels == "text":
            raise InputError(f"{path}: dev_file: needs labels, which records of retrieval lack")
        self._trained = TrainedTask(self._records.kind, thresholds=served.thresholds)
        self._expected = self._figures(lambda **arrays: run_arrays(served, arrays))

    def __call__(self, run: Run) -> Sequence[str]:
        """Compute the figures of what was exported; return a line for the model card.

        Raises:
            RuntimeError: the first is lower than the model's, by more than is allowed.
        """
        figures = self._figures(run)
        first = next(iter(figures))
        lost = self._expected[first] - figures[first]
        if not lost <= self._tolerance:
            raise RuntimeError(
                f"dev_file: {first} on {self._name} is {figures[first]:.4f}, of the model "
                f"{self._expected[first]:.4f}: more than --dev_tolerance={self._tolerance:g} lower"
            )
        shown = (f"{k} {v:.4f} (model: {self._expected[k]:.4f})" for k, v in figures.items())
        line = f"On the {len(self._records):,} records of {self._name}: {', '.join(shown)}."
        print(line)
        return [line]

    def _figures(self, run: Run) -> dict[str, float]:
        return figures_of(self._records, run, self._trained.decide)


def figures_of(
    records: TaskRecords, run: Run, decide: Callable[[np.ndarray], np.ndarray] | None = None
) -> dict[str, float]:
    """Return the figures of a task, of 1 each, by what its model gives for all records.

    Of spans, which need their documents for more: the fraction of records whose likeliest first
    and last pieces are the true ones.

    Args:
        records: with labels.
        run: inputs by name -> outputs by name.
        decide: logits -> what the model predicts; that of the records' kind by default.
    """
    kind = get_kind(records.kind)
    collect = {"token": _entities, "span": _spans}.get(kind.labels)
    batches = [
        (run(**_rows(records, inputs)), labels, weights)
        for inputs, labels, weights in records.evaluation_dataset(
            batch_size=_BATCH_SIZE, group_by_length=True, pad_to_max=False
        )
    ]
    if collect is not None:
        return collect(records, batches)
    decided = np.concatenate(
        [(decide or kind.decide)(_logits(outputs, len(labels))) for outputs, labels, _ in batches]
    )
    labels = np.concatenate([labels.numpy() for _, labels, _ in batches])
    binary = len(records.label_names or ()) == 2
    names = kind.binary_metrics if binary and kind.binary_metrics else kind.metrics
    return {name: METRICS[name](decided, labels) for name in names}


def _logits(outputs: Arrays, examples: int) -> np.ndarray:
    """Return what a kind decides by, [N, ...]: logits, or vectors [N, C, D] of the texts."""
    if "logits" in outputs:
        return outputs["logits"]
    vectors = outputs["embedding" if "embedding" in outputs else "mean"]
    return vectors.reshape(examples, -1, vectors.shape[-1])


def _entities(records: TaskRecords, batches: Sequence[Any]) -> dict[str, float]:
    names: Any = np.array(records.label_names, object)
    true, predicted = [], []
    for outputs, labels, weights in batches:
        decided = np.argmax(outputs["logits"], axis=-1)
        for row, counts in enumerate(weights.numpy() > 0):
            true.append(names[labels.numpy()[row][counts]].tolist())
            predicted.append(names[decided[row][counts]].tolist())
    scores = entity_scores(true, predicted, records.label_names or ())
    return {"entity_f1": scores.f1 / 100, "token_accuracy": scores.accuracy / 100}


def _spans(records: TaskRecords, batches: Sequence[Any]) -> dict[str, float]:
    right = []
    for outputs, labels, _ in batches:
        ends = [np.argmax(outputs[n], axis=-1) == value.numpy() for n, value in labels.items()]
        right.append(np.logical_and.reduce(ends))
    return {"span_accuracy": float(np.mean(np.concatenate(right)))}


def _numpy(tensors: Mapping[str, Any]) -> Arrays:
    return {name: value.numpy() for name, value in tensors.items()}
