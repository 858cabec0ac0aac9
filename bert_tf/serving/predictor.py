"""Answers in Python from a SavedModel or a model directory, one method for each task.

A SavedModel is all that it needs: neither a checkpoint nor a vocabulary. Answers are those of the
SavedModel's "serving_default", which TF Serving gives too.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the operations of SavedModels that take strings)

from bert_tf.files import is_published, local_copy
from bert_tf.serving.explanations import Explanation, explain
from bert_tf.serving.like_lengths import batches_of_like_length
from bert_tf.serving.load import load_served_model
from bert_tf.serving.served_model import ServedModel

# An output that no other task has -> the task.
_TASK_OF_OUTPUT = {
    "mask_count": "fill_mask",
    "label": "classification",
    "is_label": "multi_label",
    "value": "regression",
    "null_score": "question_answering",
    "entity_count": "token_classification",
    "choice": "multiple_choice",
    "mean": "embeddings",
    "is_next": "next_sentence",
}


def newest_version(path: str | os.PathLike) -> pathlib.Path | None:
    """Find a SavedModel: the folder itself, or of its subfolders the one with the highest number.

    Args:
        path: a SavedModel, or the folder of a model's versions.

    Returns:
        None if neither holds a SavedModel.
    """
    if is_published(path):
        return None  # of checkpoints
    root = pathlib.Path(local_copy(path))
    if (root / "saved_model.pb").is_file():
        return root
    versions = [p.parent for p in root.glob("*/saved_model.pb") if p.parent.name.isdecimal()]
    return max(versions, key=lambda folder: int(folder.name), default=None)


class Predictor:
    """A model that is loaded once and then answers.

    Attributes:
        task: what it does, such as "classification".
        inputs: names of what `predict` takes.
    """

    def __init__(self, path: str | os.PathLike, *, batch_size: int = 32, **options: Any):
        """Load it.

        Args:
            path: a SavedModel of export_model.py, the folder of its versions (the newest is taken),
                or a model directory, checkpoint or name that `load_served_model` reads.
            batch_size: rows that are run together at most: those of like length, so that little
                of what is computed is padding.
            **options: of `load_served_model`, for a model directory.

        Raises:
            FileNotFoundError: there is nothing of the kind.
            ValueError: a SavedModel that export_model.py did not write, or an ids-only one; options
                for a SavedModel, which holds its own; a batch_size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.batch_size = batch_size
        folder = newest_version(path)
        if folder is None:
            self._model: Any = load_served_model(path, **options)
            self._answer: Callable[..., Mapping[str, tf.Tensor]] = self._model.answer
            self.inputs = tuple(spec.name for spec in self._model.answer.input_signature)
            self.task: str = self._model.task
            return
        if options:
            raise ValueError(f"{', '.join(options)}: for a model directory; {folder} holds its own")
        self._model = tf.saved_model.load(os.fspath(folder))
        self._answer = self._model.signatures["serving_default"]
        outputs = set(self._answer.structured_outputs)
        tasks = [task for name, task in _TASK_OF_OUTPUT.items() if name in outputs]
        specs = self._answer.structured_input_signature[1]
        if not tasks or any(spec.dtype != tf.string for spec in specs.values()):
            raise ValueError(
                f"{folder}: expected a SavedModel of export_model.py that takes strings, got one "
                f"that takes {', '.join(sorted(specs))} and gives {', '.join(sorted(outputs))}"
            )
        self.task = tasks[0]
        order = ("question", "context", "text", "text_b", "choices")
        self.inputs = tuple(sorted(specs, key=order.index))

    def predict(self, *columns: Sequence[Any]) -> dict[str, np.ndarray]:
        """Answer rows, in batches of like length.

        Args:
            *columns: for each name of `inputs` N strings, or (choices) N lists of strings.

        Returns:
            name -> array [N, ...] in the order of the rows; where batches differ in another
            dimension, padded with 0 or b"".

        Raises:
            ValueError: columns that are not as many as `inputs`, or not equally long.
        """
        _check_columns(self.inputs, columns)
        arrays = [_strings(name, column) for name, column in zip(self.inputs, columns, strict=True)]
        sizes = [
            sum(len(text) for array in arrays for text in np.ravel(array[row]))
            for row in range(len(arrays[0]))
        ]
        # No rows are one batch of none, whose answer has the names and shapes.
        batches = [*batches_of_like_length(sizes, self.batch_size)] or [np.arange(0)]
        parts: list[dict[str, np.ndarray]] = []
        for rows in batches:
            tensors = (tf.constant(array[rows], tf.string) for array in arrays)
            answer = self._answer(**dict(zip(self.inputs, tensors, strict=True)))
            parts.append({name: value.numpy() for name, value in answer.items()})
        order = np.concatenate(batches)
        return {name: _joined([part[name] for part in parts], order) for name in parts[0]}

    def fill_mask(self, texts: Sequence[str]) -> list[list[list[tuple[str, float]]]]:
        """Return for each text, and each [MASK] in it, the candidates (piece, probability)."""
        answers = self._predict("fill_mask", texts)
        return [
            [
                [(token.decode(), float(score)) for token, score in zip(*row, strict=True)]
                for row in zip(tokens[:count], scores[:count], strict=True)
            ]
            for tokens, scores, count in zip(
                answers["tokens"], answers["scores"], answers["mask_count"], strict=True
            )
        ]

    def classify(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> list[dict]:
        """Return for each text or pair {label: probability}, likeliest first."""
        answers = self._predict(("classification", "multi_label"), texts, texts_b)
        rows = zip(answers["labels"], answers["probabilities"], strict=True)
        return [
            {labels[i].decode(): float(scores[i]) for i in np.argsort(-scores, kind="stable")}
            for labels, scores in rows
        ]

    def labels(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> list[Any]:
        """Return for each text or pair its label; of several labels a list of those that hold.

        Those hold whose probability is above their threshold: that of training, or one half.
        """
        answers = self._predict(("classification", "multi_label"), texts, texts_b)
        if "label" in answers:
            return [label.decode() for label in answers["label"]]
        rows = zip(answers["labels"], answers["is_label"], strict=True)
        return [[name.decode() for name in labels[holds]] for labels, holds in rows]

    def regress(self, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> np.ndarray:
        """Return a number for each text or pair, float32 [N]."""
        return self._predict("regression", texts, texts_b)["value"]

    def answer(self, questions: Sequence[str], contexts: Sequence[str]) -> list[dict[str, Any]]:
        """Return for each question answer, char_start, char_end, score and null_score."""
        answers = self._predict("question_answering", questions, contexts)
        names = ("answer", "char_start", "char_end", "score", "null_score")
        rows = zip(*(answers[name] for name in names), strict=True)
        return [{n: _plain(v) for n, v in zip(names, row, strict=True)} for row in rows]

    def entities(self, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        """Return for each text its entities: text, type, char_start, char_end and score."""
        answers = self._predict("token_classification", texts)
        names = ("text", "type", "char_start", "char_end", "score")
        return [
            [
                {name: _plain(answers[f"entity_{name}"][row, i]) for name in names}
                for i in range(answers["entity_count"][row])
            ]
            for row in range(len(texts))
        ]

    def choose(self, texts: Sequence[str], choices: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the place of the best choice for each text, int32 [N]."""
        return self._predict("multiple_choice", texts, choices)["choice"]

    def embed(self, texts: Sequence[str], output: str | None = None) -> np.ndarray:
        """Return a vector for each text, float32 [N, H].

        Args:
            texts: N of them.
            output: "embedding", of a model that was trained for vectors, "mean" or "pooled"; None
                for "embedding" where the model has it, or else "mean".

        Raises:
            ValueError: the model has no such output.
        """
        answers = self._predict("embeddings", texts)
        if output is None:
            output = "embedding" if "embedding" in answers else "mean"
        if output not in answers:
            raise ValueError(f"output: expected one of {', '.join(answers)}, got {output!r}")
        return answers[output]

    def follows(self, texts: Sequence[str], texts_b: Sequence[str]) -> np.ndarray:
        """Return the probability that the second text follows the first, float32 [N]."""
        return self._predict("next_sentence", texts, texts_b)["is_next"]

    def explain(self, *columns: Sequence[Any], **options: Any) -> list[Explanation]:
        """Tell which words the answers hang on, by integrated gradients and attention rollout.

        For classification of texts or pairs (also with several labels), regression, question
        answering and entities.

        Args:
            *columns: as for `predict`.
            **options: `target`, `baseline`, `tolerance`, `max_steps` and `entity` of
                `explanations.explain`.

        Returns:
            One for each row, or of entities one for each that is found (`entity=0`: the first
            alone); `row` tells of which row.

        Raises:
            ValueError: the model is a SavedModel, which holds no gradients, or for another task; or
                an option is out of range.
        """
        if not isinstance(self._model, ServedModel):
            raise ValueError(
                "explain: a SavedModel holds no gradients; load the model directory that it was "
                "exported from"
            )
        _check_columns(self.inputs, columns)
        for name, column in zip(self.inputs, columns, strict=True):
            _strings(name, column)
        return explain(self._model, columns, **options)

    def _predict(
        self, tasks: str | tuple[str, ...], *columns: Sequence[Any] | None
    ) -> dict[str, np.ndarray]:
        tasks = (tasks,) if isinstance(tasks, str) else tasks
        if self.task not in tasks:
            raise ValueError(f"this model is for {self.task}, not for {' or '.join(tasks)}")
        return self.predict(*(column for column in columns if column is not None))


def _check_columns(inputs: Sequence[str], columns: Sequence[Sequence[Any]]) -> None:
    if len(columns) != len(inputs) or len({len(column) for column in columns}) > 1:
        raise ValueError(
            f"expected {len(inputs)} equally long lists ({', '.join(inputs)}), got "
            f"{len(columns)} of {', '.join(str(len(column)) for column in columns)}"
        )


def _strings(name: str, column: Sequence[Any]) -> np.ndarray:
    """Strings as UTF-8, object [N] or [N, C]."""
    if isinstance(column, str | bytes):
        raise ValueError(f"{name}: expected a list of strings, got one string")
    encode = np.vectorize(lambda x: x.encode() if isinstance(x, str) else x, otypes=[object])
    array = np.array(column, dtype=object)
    if name == "choices" and array.ndim != 2:
        if array.size:
            raise ValueError("choices: expected as many for each text")
        array = array.reshape(0, 1)
    for text in array.flat:
        if not isinstance(text, str | bytes):
            raise ValueError(f"{name}: expected strings, got {text!r}")
    return encode(array) if array.size else array


def _joined(parts: Sequence[np.ndarray], order: np.ndarray) -> np.ndarray:
    """Rows of batches in the order of the input, padded to one shape."""
    shape = np.max([part.shape[1:] for part in parts], axis=0).astype(int).tolist()
    fill = b"" if parts[0].dtype == object else 0
    joined = np.full([len(order), *shape], fill, parts[0].dtype)
    start = 0
    for part in parts:
        rows = order[start : start + len(part)]
        joined[(rows, *(slice(size) for size in part.shape[1:]))] = part
        start += len(part)
    return joined


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value.item()
