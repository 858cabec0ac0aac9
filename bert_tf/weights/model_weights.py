"""The weights of a made model as a source of tensors."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from bert_tf.models.layers import initial_values
from bert_tf.models.task_models import HEADS
from bert_tf.models.variables import HEADS_PATTERN, abbreviate, to_numpy, weights_by_name
from bert_tf.weights.layouts import HEAD_MARKS, OURS, kinds_of_heads


class ModelSource:
    """The weights of a Keras model, as `tensor_files.TensorSource`."""

    def __init__(self, model: keras.Model):
        self._weights = weights_by_name(model)
        refuse_quantized(self._weights)
        self.shapes = {name: tuple(weight.shape) for name, weight in self._weights.items()}

    def check(self, names: list[str]) -> None:
        """Do nothing: weights of a model are floats."""

    def read(self, names: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield (name, array) for each name.

        With TensorFlow a tensor that shares memory with the model until one of them is changed.
        Elsewhere a copy: what JAX trains it takes the memory of.
        """
        for name in names:
            if keras.backend.backend() == "tensorflow":
                yield name, self._weights[name].value
            else:
                yield name, to_numpy(self._weights[name]).copy()


def without_initial_values() -> contextlib.AbstractContextManager[None]:
    """Return the context to make models in whose every weight is then loaded.

    Weights hold zeros, and with TensorFlow whatever lies in memory: to leave that untouched saves
    its size until the values come.
    """
    if keras.backend.backend() != "tensorflow":
        return initial_values(keras.initializers.Zeros())
    from bert_tf.weights.uninitialized import Uninitialized

    return initial_values(Uninitialized())


def import_tensor_bundle(path: str | os.PathLike):
    """Import the module that needs TensorFlow."""
    try:
        from bert_tf.weights import tensor_bundle
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{os.fspath(path)}: a TensorFlow checkpoint takes TensorFlow to read or write, and "
            f"that is not installed ({error}); safetensors do not"
        ) from error
    return tensor_bundle


def kind_of(model: keras.Model) -> tuple[str, int | None]:
    """Return a model's kind (key of `task_models.HEADS`), and of classifiers the label count."""
    shapes = {weight.path: tuple(weight.shape) for weight in model.weights}
    kinds = kinds_of_heads(OURS, shapes)
    kind = kinds[0] if kinds else "encoder"
    return kind, shapes[HEAD_MARKS[kind]][0] if HEADS[kind].has_labels else None


def weights_to_write(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the weights of a model by name.

    Raises:
        ValueError: some are of the user's own layers, or are quantized.
    """
    weights = weights_by_name(model)
    refuse_quantized(weights)
    others = [n for n in weights if not re.search(rf"^bert/|{HEADS_PATTERN}", n)]
    if others:
        raise ValueError(
            "model: has weights that are not of BERT or of a head of this package, for which other "
            f"systems have no place: {abbreviate(others)}; model.save keeps them"
        )
    return weights


def refuse_quantized(weights: Mapping[str, keras.Variable]) -> None:
    """Raise ValueError for weights that are integers, with scales that no other model has."""
    quantized = [name for name, weight in weights.items() if "int" in str(weight.dtype)]
    if quantized:
        raise ValueError(
            f"model: is quantized, and integers ({abbreviate(quantized, 2)}) are no weights for "
            "another; model.save keeps it, and keras.saving.load_model reads that"
        )
