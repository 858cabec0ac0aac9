"""What a path holds, and opening it: the formats in which BERT checkpoints come.

What a path holds is recognised from the names and the content of files (`locate`), never from
whether reading them one way or the other fails; so exactly one layout is ever tried.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import re
from typing import Any

import keras

from bert_tf.config import BertConfig
from bert_tf.models.variables import abbreviate, config_of
from bert_tf.weights import tensor_files
from bert_tf.weights.keras_archives import load_keras, load_keras_weights
from bert_tf.weights.keras_hub import keras_hub_config, load_keras_hub
from bert_tf.weights.layouts import (
    HF,
    KERAS_HUB,
    OURS,
    TF1,
    Layout,
    is_object_checkpoint,
    model_garden,
)
from bert_tf.weights.locate import LocatedCheckpoint, locate, read_config
from bert_tf.weights.model_weights import ModelSource, import_tensor_bundle
from bert_tf.weights.tensor_files import TensorSource

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        located: where it lies; None for a model in memory.
        layout: how its weights are named and shaped.
        source: its tensors.
        config: the configuration that lies with it, or None.
        model: the model, where the format holds one.
    """

    located: LocatedCheckpoint | None
    layout: Layout
    source: TensorSource
    config: BertConfig | None
    model: keras.Model | None = None

    @property
    def description(self) -> str:
        """One phrase for messages."""
        return self.located.path if self.located else f"{self.layout.name} model"

    @property
    def state(self) -> tuple[str, ...]:
        """Names in the file that `canonical` leaves out, sorted: what needs no place in a model.

        That is optimizer state, buffers and second copies of a weight (see `Layout.ignored`).

        Raises:
            ValueError: two names in the file are the same weight.
        """
        names = self._names()
        return tuple(sorted(actual for n, actual in names.items() if self._is_ignored(n)))

    def canonical(self) -> dict[str, str]:
        """Return the names that the layout gives -> the names in the file, `state` left out.

        Raises:
            ValueError: two names in the file are the same weight.
        """
        return {n: actual for n, actual in self._names().items() if not self._is_ignored(n)}

    def _names(self) -> dict[str, str]:
        try:
            return self.layout.canonical(self.source.shapes)
        except ValueError as error:
            raise ValueError(f"{self.description}: {error}") from error

    def _is_ignored(self, name: str) -> bool:
        return re.search(self.layout.ignored, name) is not None


def open_checkpoint(path: Any, *, config: BertConfig | None = None) -> Checkpoint:
    """Open a checkpoint of any format, or a KerasHub backbone or model of ours in memory.

    Args:
        path: see `locate`; or a `keras_hub.models.BertBackbone` or a model of this package; what
            is open already is returned.
        config: the model's configuration; by default the one that lies with the weights.

    Raises:
        FileNotFoundError, ValueError: see `locate`.
        CorruptCheckpointError: a file is damaged.
    """
    if isinstance(path, Checkpoint):
        return path
    if isinstance(path, keras.Model):
        return _open_model(path, None)
    found = locate(path)
    if found.format == "keras_hub":
        return _open_model(_collected(load_keras_hub(found)), found)
    if found.format == "keras":
        return _open_model(_collected(load_keras(found.path)), found)
    # Keras reads the weights into a model, which has to be the one they were written from.
    if found.config_file and (config is None or found.format == "keras_weights"):
        config = read_config(found)
    if found.format == "keras_weights":
        return _open_model(_collected(load_keras_weights(found, config)), found)
    if found.format == "hf":
        return Checkpoint(found, HF, tensor_files.open_tensors(found.path), config)
    tensor_bundle = import_tensor_bundle(found.path)
    bundle = tensor_bundle.TensorBundle(found.path)
    layout = TF1
    if is_object_checkpoint(bundle.shapes):
        layout = model_garden(bundle.shapes)
        if layout is None:
            raise ValueError(
                f"{found.path}: a TensorFlow 2 object checkpoint, but not of Model Garden's BERT "
                f"encoder; it holds {abbreviate(sorted(bundle.shapes), 6)}"
            )
    return Checkpoint(found, layout, bundle, config)


def _collected(model: keras.Model) -> keras.Model:
    """Free what Keras leaves behind, half a model's size and more, before another is made."""
    gc.collect()
    return model


def _open_model(model: keras.Model, found: LocatedCheckpoint | None) -> Checkpoint:
    if type(model).__name__ == "BertBackbone" and type(model).__module__.startswith("keras_hub."):
        return Checkpoint(found, KERAS_HUB, ModelSource(model), keras_hub_config(model), model)
    if type(model).__module__.startswith("keras_hub.") and hasattr(model, "backbone"):
        raise ValueError(
            f"expected a BertBackbone, got KerasHub's {type(model).__name__}, whose head is not "
            "read; pass its .backbone"
        )
    config = config_of(model)
    return Checkpoint(found, OURS, ModelSource(model), config, model)
