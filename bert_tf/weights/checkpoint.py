"""What a path holds, and opening it: the formats in which BERT checkpoints come.

What a path holds is recognised from the names and the content of files (`locate`), never from
whether reading them one way or the other fails; so exactly one layout is ever tried.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import re

import keras

from bert_tf.config import BertConfig
from bert_tf.files import original_names
from bert_tf.models.variables import abbreviate, config_of
from bert_tf.weights import layouts, tensor_files
from bert_tf.weights.hdf5 import Hdf5File, check_sizes
from bert_tf.weights.keras_archives import load_keras
from bert_tf.weights.locate import (
    KERAS_HUB_WEIGHTS,
    LocatedCheckpoint,
    config_of_keras_hub,
    locate,
    read_config,
)
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
        doubts_told: whether the doubts about its vocabulary are, or will be, logged.
    """

    located: LocatedCheckpoint | None
    layout: layouts.Layout
    source: TensorSource
    config: BertConfig | None
    model: keras.Model | None = None
    doubts_told: bool = False

    @property
    def description(self) -> str:
        """One phrase for messages."""
        return original_names(self.located.path) if self.located else f"{self.layout.name} model"

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


# What names a checkpoint, or is one: see `open_checkpoint`.
CheckpointLike = str | os.PathLike[str] | keras.Model | Checkpoint


def open_checkpoint(path: CheckpointLike, *, config: BertConfig | None = None) -> Checkpoint:
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
    located = locate(path)
    if located.format == "keras":
        model = load_keras(located.path)
        # What Keras leaves behind is half a model's size and more, and another is made next.
        gc.collect()
        return _open_model(model, located)
    if located.format in ("keras_hub", "keras_weights"):
        return _open_hdf5(located, config)
    if config is None:
        config = read_config(located)
    if located.format == "hf":
        return Checkpoint(located, layouts.HF, tensor_files.open_tensors(located.path), config)
    tensor_bundle = import_tensor_bundle(located.path)
    bundle = tensor_bundle.TensorBundle(located.path)
    layout = layouts.TF1
    if layouts.is_object_checkpoint(bundle.shapes):
        layout = layouts.model_garden(bundle.shapes)
        if layout is None:
            raise ValueError(
                f"{located.path}: a TensorFlow 2 object checkpoint, but not of Model Garden's BERT "
                f"encoder; it holds {abbreviate(sorted(bundle.shapes), 6)}"
            )
    return Checkpoint(located, layout, bundle, config)


def _open_hdf5(located: LocatedCheckpoint, config: BertConfig | None) -> Checkpoint:
    """Open the weights of a KerasHub preset, or those that a model of ours has saved."""
    # A file without a head does not say what it was made for: what lies beside it does.
    config = read_config(located) or config
    layout, path = layouts.OURS, located.path
    if located.format == "keras_hub":
        if os.path.exists(os.path.join(path, "task.json")):
            _log.warning("%s: a preset of a task; its head is not read", path)
        layout, path = layouts.KERAS_HUB, os.path.join(path, KERAS_HUB_WEIGHTS)
    source = Hdf5File(path)
    if layout.theirs(layouts.WORD_EMBEDDINGS) not in layout.canonical(source.shapes):
        raise ValueError(f"{path}: expected the weights of a model of {layout.name}")
    if config is not None:
        check_sizes(source, layout, config)
    return Checkpoint(located, layout, source, config)


def _open_model(model: keras.Model, located: LocatedCheckpoint | None) -> Checkpoint:
    if type(model).__name__ == "BertBackbone" and type(model).__module__.startswith("keras_hub."):
        config = config_of_keras_hub(model.get_config(), "model")
        return Checkpoint(located, layouts.KERAS_HUB, ModelSource(model), config, model)
    if type(model).__module__.startswith("keras_hub.") and hasattr(model, "backbone"):
        raise ValueError(
            f"expected a BertBackbone, got KerasHub's {type(model).__name__}, whose head is not "
            "read; pass its .backbone"
        )
    return Checkpoint(located, layouts.OURS, ModelSource(model), config_of(model), model)
