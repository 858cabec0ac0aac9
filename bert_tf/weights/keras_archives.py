"""Weights in Keras' own files: `.keras` archives and `.weights.h5`."""

from __future__ import annotations

import collections
import json
import math
import re
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import h5py
import keras

from bert_tf.config import BertConfig
from bert_tf.models.task_models import HEADS
from bert_tf.models.variables import abbreviate
from bert_tf.weights.locate import CONFIG_NAME, KERAS_WEIGHTS_SUFFIX, LocatedCheckpoint
from bert_tf.weights.model_weights import without_initial_values
from bert_tf.weights.tensor_files import CorruptCheckpointError

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
        try:
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                weights = archive.extract(f"model{KERAS_WEIGHTS_SUFFIX}", folder)
        except _ZIP_ERRORS as error:
            raise CorruptCheckpointError(f"{path}: not a whole .keras file: {error}") from error
        sizes = _sizes_of_keras(path, config)
        shapes = hdf5_shapes(path, weights)
        check_sizes(path, shapes, sizes)
        config["compile_config"] = None
        with without_initial_values():
            model = _deserialized(path, config)
        check_shapes(path, shapes, model)
        _load_hdf5(model, weights, path)
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
        found = re.search(r"Could not (?:locate|deserialize) \w+ '([^']+)'", str(error))
        if found:
            raise ValueError(
                f"{path}: holds {found[1]}, which Keras does not know; import the module that "
                "defines it before, and let it be decorated with "
                "@keras.saving.register_keras_serializable()"
            ) from error
        raise ValueError(f"{path}: Keras cannot make its model: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return what an exception says, without the configuration that Keras puts before it."""
    text = str(error).rpartition("Exception encountered:")[2]
    return textwrap.shorten(text, 600) or type(error).__name__


# Deflate, the one compression in use that takes much out, never makes less of bytes than this.
_MOST_COMPRESSED = 1032
_SEED_NAME = "layers/bert/vars/dropout_seed"
_WEIGHTS_PER_LAYER = 16  # four matrices of attention, two of the rest, two normalizations


class _Entry(NamedTuple):
    """What an HDF5 file says of a dataset.

    Attributes:
        name: path within the file.
        shape: None for a dataset of nothing at all, which HDF5 has.
        is_float: whether it is of a type that weights have.
        num_bytes: size of what its shape claims.
        num_stored: the most that the bytes which the file holds of it can stand for.
        is_elsewhere: whether its values are in other files or datasets.
    """

    name: str
    shape: tuple[int, ...] | None
    is_float: bool
    num_bytes: int
    num_stored: int
    is_elsewhere: bool


def hdf5_shapes(path: str, weights: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the weights in an HDF5 file of Keras, without reading one.

    Args:
        path: what the user named, for messages.
        weights: the HDF5 file.

    Raises:
        CorruptCheckpointError: the file is damaged, or claims more than it holds.
        ValueError: a weight is no float, or in another file.
    """
    entries: list[_Entry] = []

    def visit(name: str, node: Any) -> None:
        # Beside "layers" lie the optimizer and metrics of a model that was compiled.
        if name.startswith("layers/") and isinstance(node, h5py.Dataset):
            entries.append(_entry(name, node))

    try:
        with h5py.File(weights, "r") as file:
            file.visititems(visit)
    except Exception as error:  # damage makes h5py raise any of half a dozen types
        raise CorruptCheckpointError(
            f"{path}: not a whole HDF5 file: {one_line(error).replace(weights, path)}"
        ) from error
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        if entry.is_elsewhere:
            raise ValueError(f"{path}: {entry.name} is kept in another file, which is not read")
        # HDF5 gives zeros for what was never written.
        if entry.shape is None or entry.num_bytes > entry.num_stored:
            raise CorruptCheckpointError(
                f"{path}: not a whole HDF5 file: {entry.name} has shape {entry.shape}, but the "
                "file does not hold that much"
            )
        if entry.name == _SEED_NAME and entry.shape != (2,):
            raise ValueError(f"{path}: {entry.name} has shape {entry.shape}, expected (2,)")
        if re.search(r"/vars/\d+$", entry.name):
            if not entry.is_float:
                raise ValueError(f"{path}: {entry.name} is of a type that weights do not have")
            shapes[entry.name] = entry.shape
    return shapes


def _entry(name: str, dataset: h5py.Dataset) -> _Entry:
    stored = dataset.id.get_storage_size()
    has_filters = dataset.id.get_create_plist().get_nfilters() > 0
    return _Entry(
        name=name,
        shape=dataset.shape,
        # h5py has no name for bfloat16; Keras leaves a note.
        is_float=dataset.dtype.kind == "f" or dataset.attrs.get("dtype") == "bfloat16",
        num_bytes=0 if dataset.shape is None else math.prod(dataset.shape) * dataset.dtype.itemsize,
        num_stored=stored * _MOST_COMPRESSED if has_filters else stored,
        is_elsewhere=bool(dataset.external) or dataset.is_virtual,
    )


def check_sizes(path: str, shapes: Mapping[str, tuple[int, ...]], config: BertConfig) -> None:
    """Refuse a configuration that no model of these weights has, before a model is made of it.

    To make one with a wrong size may take more memory than there is.
    """
    width = config.hidden_size
    for name, shape in {
        "vocab_size": (config.vocab_size, width),
        "max_position_embeddings": (config.max_position_embeddings, width),
        "type_vocab_size": (config.type_vocab_size, width),
        "intermediate_size": (width, config.intermediate_size),
    }.items():
        if shape not in shapes.values():
            raise ValueError(
                f"{path}: does not fit the configuration with it: {name} {getattr(config, name)} "
                f"and hidden_size {width} take a weight of shape {shape}, and there is none"
            )
    layers = config.num_hidden_layers
    if layers * _WEIGHTS_PER_LAYER > len(shapes):
        raise ValueError(
            f"{path}: does not fit the configuration with it: num_hidden_layers {layers} take "
            f"{layers * _WEIGHTS_PER_LAYER} weights, and there are {len(shapes)}"
        )


def check_shapes(path: str, shapes: Mapping[str, tuple[int, ...]], model: keras.Model) -> None:
    """Refuse weights of other shapes, and those of further layers, which Keras would leave out.

    Which is which of one shape Keras finds by its name.
    """
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


def _load_hdf5(model: keras.Model, weights: str, path: str) -> None:
    """Fill a model whose shapes are those of the file."""
    try:
        model.load_weights(weights)
    except Exception as error:  # what h5py raises of damaged data, and Keras of it
        read_all(path, weights)
        reason = one_line(error).replace(weights, path)
        raise ValueError(f"{path}: does not fit the configuration with it: {reason}") from error


def read_all(path: str, weights: str) -> None:
    """Raise CorruptCheckpointError if a weight cannot be read; Keras does not tell which."""
    try:
        with h5py.File(weights, "r") as file:
            for name in hdf5_shapes(path, weights):
                file[name][()]  # pyright: ignore[reportIndexIssue]
    except Exception as error:  # as in _hdf5_shapes
        raise CorruptCheckpointError(
            f"{path}: not a whole HDF5 file: {one_line(error).replace(weights, path)}"
        ) from error


# The class of a head as .weights.h5 files name it -> the kind of model.
_H5_KINDS = {
    "pretraining_heads": "pretraining",
    "next_sentence_scope": "next_sentence",
    "classification_head": "classification",
    "span_head": "span",
    "token_classification_head": "token_classification",
    "multiple_choice_head": "multiple_choice",
}


def load_keras_weights(found: LocatedCheckpoint, config: BertConfig | None) -> keras.Model:
    """Open a `.weights.h5` file beside a configuration."""
    if config is None:
        raise FileNotFoundError(f"{found.path}: no {CONFIG_NAME} beside it; name one with config=")
    shapes = hdf5_shapes(found.path, found.path)
    layers = {name.split("/")[1] for name in shapes}
    kinds = [kind for name, kind in _H5_KINDS.items() if name in layers]
    if "bert" not in layers or len(kinds) > 1:
        raise ValueError(f"{found.path}: expected the weights of a model of bert_tf")
    check_sizes(found.path, shapes, config)
    kind = kinds[0] if kinds else "encoder"
    arguments = {}
    if HEADS[kind].has_labels:
        name = next(name for name, of in _H5_KINDS.items() if of == kind)
        bias = shapes.get(f"layers/{name}/vars/1", ())
        if len(bias) != 1 or not bias[0]:
            raise ValueError(f"{found.path}: layers/{name} has no bias for each label")
        arguments["num_labels"] = bias[0]
    with without_initial_values():
        model = HEADS[kind].make(config, **arguments)
    check_shapes(found.path, shapes, model)
    _load_hdf5(model, found.path, found.path)
    return model
