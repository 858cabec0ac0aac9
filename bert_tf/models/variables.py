"""The variables of a model by their names, and a model's configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models.encoder import Bert

# === Models in memory ===


def weights_by_name(model: keras.Model) -> dict[str, keras.Variable]:
    """Weights of a model by their checkpoint names (the variable paths).

    Raises:
        ValueError: two weights have one name.
    """
    return unique_names((variable.path, variable) for variable in model.weights)


def to_numpy(weight: keras.Variable) -> np.ndarray:
    """Return the value of a weight; on every backend, and without NumPy's warnings."""
    if keras.backend.backend() == "tensorflow":
        return np.asarray(weight.value)
    return ops.convert_to_numpy(weight.value)


def config_of(model: keras.Model) -> BertConfig:
    """Return the configuration of a model of this package.

    Raises:
        ValueError: if it is another model.
    """
    return bert_layer(model).config


def bert_layer(model: keras.Model) -> Bert:
    """Return the encoder within a model of this package; ValueError for another model."""
    layers = [layer for layer in model.layers if isinstance(layer, Bert)]
    if len(layers) != 1:
        raise ValueError(f"expected a model of bert_tf, got {type(model).__name__} {model.name!r}")
    return layers[0]


# Our weights outside the encoder.
HEADS_PATTERN = r"^(cls|classifier|token_classification|multiple_choice|bilstm|window_pooling)/"


def unique_names(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of (name, variable) pairs; ValueError if two have one name."""
    variables: dict[str, Any] = {}
    for name, variable in pairs:
        if name in variables:
            raise ValueError(f"two variables are named {name!r}; checkpoint names must differ")
        variables[name] = variable
    return variables


def abbreviate(names: Sequence[str], limit: int = 12) -> str:
    """List names for a message, at most `limit` of them."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
