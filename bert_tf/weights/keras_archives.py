"""Keras' archives (`.keras`), whose models may have layers of the user's own."""

from __future__ import annotations

import collections
import re
import tempfile
import zipfile
import zlib
from typing import Any

import keras

from bert_tf.config import BertConfig
from bert_tf.files import parse_json
from bert_tf.models.variables import abbreviate
from bert_tf.weights.hdf5 import Hdf5File, check_sizes, one_line
from bert_tf.weights.layouts import OURS
from bert_tf.weights.locate import KERAS_WEIGHTS_SUFFIX
from bert_tf.weights.model_weights import without_initial_values
from bert_tf.weights.tensor_files import CorruptCheckpointError, check_archive

# What damaged archives make zipfile and json raise.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


def load_keras(path: str) -> keras.Model:
    """Open a `.keras` archive."""
    # The library's own load_model would read the weights within the file into memory twice.
    with tempfile.TemporaryDirectory() as folder:
        check_archive(path)
        try:
            with zipfile.ZipFile(path) as archive:
                config = parse_json(archive.read("config.json"))
                weights = archive.extract(f"model{KERAS_WEIGHTS_SUFFIX}", folder)
        except _ZIP_ERRORS as error:
            raise CorruptCheckpointError(f"{path}: not a whole .keras file: {error}") from error
        sizes = _sizes_of_keras(path, config)
        source = Hdf5File(weights, path)
        check_sizes(source, OURS, sizes)
        config["compile_config"] = None
        with without_initial_values():
            model = _deserialized(path, config)
        _check_shapes(source, model)
        _load_weights(model, source, weights)
    return model


def _sizes_of_keras(path: str, config: Any) -> BertConfig:
    """Return the configuration of BERT within the config.json of a .keras file."""
    try:
        layers = config["config"]["layers"]
        ours = [layer for layer in layers if layer["registered_name"] == "bert_tf>Bert"]
    except (KeyError, TypeError):
        ours = []
    if not ours:
        what = config.get("class_name") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path}: expected a model of bert_tf, got {what}")
    try:
        return BertConfig.from_dict(ours[0]["config"]["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: the configuration within it is not one of BERT: {error}"
        ) from error


def _deserialized(path: str, config: Any) -> keras.Model:
    try:
        return keras.saving.deserialize_keras_object(config, safe_mode=True)
    except Exception as error:  # Keras lets out whatever the arguments of a layer end in
        unknown = re.search(r"Could not (?:locate|deserialize) \w+ '([^']+)'", str(error))
        if unknown:
            raise ValueError(
                f"{path}: holds {unknown[1]}, which Keras does not know; import the module that "
                "defines it before, and let it be decorated with "
                "@keras.saving.register_keras_serializable()"
            ) from error
        raise ValueError(f"{path}: Keras cannot make its model: {one_line(error)}") from error


def _check_shapes(source: Hdf5File, model: keras.Model) -> None:
    """Refuse weights of other shapes, and those of further layers, which Keras would leave out.

    Which is which of one shape Keras finds by its name.
    """
    path, shapes = source.path, source.shapes
    if len(shapes) != len(model.weights):
        raise ValueError(
            f"{path}: holds {len(shapes)} weights, but the configuration with it is of a model "
            f"with {len(model.weights)}"
        )
    rest = collections.Counter(tuple(weight.shape) for weight in model.weights)
    rest.subtract(shapes.values())
    wrong = [f"{name} {shape}" for name, shape in shapes.items() if rest[shape] < 0]
    if wrong:
        expected = [str(shape) for shape, count in rest.items() if count > 0]
        raise ValueError(
            f"{path}: does not fit the configuration with it, that has weights of shape "
            f"{abbreviate(expected, 6)} in place of some of {abbreviate(wrong, 6)}"
        )


def _load_weights(model: keras.Model, source: Hdf5File, weights: str) -> None:
    """Fill a model whose shapes are those of the file."""
    try:
        model.load_weights(weights)
    except Exception as error:  # what h5py raises of damaged data, and Keras of it
        for _ in source.read(list(source.shapes)):  # Keras does not tell which is damaged
            pass
        reason = one_line(error).replace(weights, source.path)
        raise ValueError(
            f"{source.path}: does not fit the configuration with it: {reason}"
        ) from error
