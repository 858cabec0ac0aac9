"""Weights of KerasHub presets."""

from __future__ import annotations

import logging
import os
from typing import Any

import keras

from bert_tf.config import BertConfig
from bert_tf.weights.keras_archives import (
    check_shapes,
    check_sizes,
    hdf5_shapes,
    one_line,
    read_all,
)
from bert_tf.weights.locate import HF_CONFIG_NAME, KERAS_HUB_WEIGHTS, LocatedCheckpoint, read_json

_log = logging.getLogger(__name__)


def load_keras_hub(found: LocatedCheckpoint) -> keras.Model:
    """Open a KerasHub preset."""
    try:
        import keras_hub
    except ImportError as error:
        raise ValueError(
            f"{found.path}: a preset of KerasHub takes the package keras-hub to read, and that "
            f"cannot be imported ({error}); pip install keras-hub"
        ) from error

    if os.path.exists(os.path.join(found.path, "task.json")):
        _log.warning("%s: a preset of a task; its head is not read", found.path)
    weights = os.path.join(found.path, KERAS_HUB_WEIGHTS)
    shapes = hdf5_shapes(weights, weights)
    check_sizes(weights, shapes, _sizes_of_preset(os.path.join(found.path, HF_CONFIG_NAME)))
    try:
        backbone = keras_hub.models.BertBackbone.from_preset(found.path, dtype="float32")
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        read_all(weights, weights)
        raise ValueError(
            f"{found.path}: KerasHub cannot read the preset: {one_line(error)}"
        ) from error
    check_shapes(found.path, shapes, backbone)
    return backbone


def _sizes_of_preset(path: str) -> BertConfig:
    """Return the sizes that a preset's config.json gives."""
    values = read_json(path).get("config")
    try:
        values = {**_KERAS_HUB_DEFAULTS, **values}  # pyright: ignore[reportGeneralTypeIssues]
        return BertConfig(**{ours: values[theirs] for ours, theirs in _KERAS_HUB_SIZES.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the configuration of a BertBackbone: {error!r}") from error


# Our names of sizes -> KerasHub's, and those that it may leave out.
_KERAS_HUB_SIZES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
}
_KERAS_HUB_DEFAULTS = {"max_sequence_length": 512, "num_segments": 2}


def keras_hub_config(backbone: Any) -> BertConfig:
    """Return the configuration of a preset's backbone."""
    return BertConfig(
        vocab_size=backbone.vocabulary_size,
        hidden_size=backbone.hidden_dim,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=backbone.num_heads,
        intermediate_size=backbone.intermediate_dim,
        hidden_dropout_prob=backbone.dropout,
        attention_probs_dropout_prob=backbone.dropout,
        max_position_embeddings=backbone.max_sequence_length,
        type_vocab_size=backbone.num_segments,
    )
