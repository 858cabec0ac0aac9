"""What a path holds, and opening it: the formats in which BERT checkpoints come.

What a path holds is recognised from the names and the content of files (`locate`), never from
whether reading them one way or the other fails; so exactly one layout is ever tried.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import glob
import json
import logging
import math
import os
import pathlib
import re
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import h5py
import keras
import numpy as np
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models.encoder import Bert
from bert_tf.models.layers import initial_values
from bert_tf.models.task_models import HEADS
from bert_tf.weights import tensor_files
from bert_tf.weights.layouts import (
    HEAD_MARKS,
    HF,
    KERAS_HUB,
    OURS,
    TF1,
    Layout,
    abbreviate,
    is_object_checkpoint,
    kinds_of_heads,
    model_garden,
    unique_names,
)
from bert_tf.weights.tensor_files import CorruptCheckpointError, TensorSource, checkpoint_steps

_log = logging.getLogger(__name__)

CONFIG_NAME = "bert_config.json"
HF_CONFIG_NAME = "config.json"
VOCAB_NAME = "vocab.txt"
LABELS_NAME = "labels.txt"
WEIGHTS_NAME = "bert_model.ckpt"
KERAS_SUFFIX = ".keras"
KERAS_WEIGHTS_SUFFIX = ".weights.h5"

KERAS_HUB_WEIGHTS = "model.weights.h5"
_KERAS_HUB_VOCAB = "assets/tokenizer/vocabulary.txt"
_KERAS_HUB_CLASSES = ("keras_hub>BertBackbone", "keras_nlp>BertBackbone")  # the latter is older
_TORCH_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What transformers writes for frameworks other than PyTorch, also in shards.
_OTHER_FRAMEWORKS = {
    "TensorFlow": re.compile(r"^tf_model(-\d+-of-\d+)?\.h5(\.index\.json)?$"),
    "Flax": re.compile(r"^flax_model(-\d+-of-\d+)?\.msgpack(\.index\.json)?$"),
}


# --- what a path holds ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LocatedCheckpoint:
    """What `locate` found.

    Attributes:
        format: "tf" (TF1-format checkpoint or TF2 object checkpoint), "hf" (transformers),
            "keras_hub", "keras" (.keras) or "keras_weights" (.weights.h5).
        path: the prefix, file or, for KerasHub, directory that holds the weights.
        description: one phrase for the log.
        config_file: the configuration beside it, or None.
        vocab_file: the vocabulary beside it, one piece a line, or None.
    """

    format: str
    path: str
    description: str
    config_file: str | None
    vocab_file: str | None


def locate(path: str | os.PathLike) -> LocatedCheckpoint:
    """Find the checkpoint that a user means: a file, a TensorFlow prefix, or a directory.

    In a directory the first of these counts: bert_model.ckpt, model.safetensors (also in shards), a
    KerasHub preset, the newest `model.ckpt-<step>` of a run, pytorch_model.bin, and a .keras or
    .weights.h5 file if there is only one.

    Raises:
        FileNotFoundError: there is no checkpoint there, or a part of it is missing.
        CorruptCheckpointError: a file is not what its name says, or a pointer of git-lfs.
        ValueError: a file of another format.
    """
    text = os.fspath(path)
    if os.path.isdir(text):
        return _locate_in(pathlib.Path(text))
    prefix = re.sub(r"\.(index|data-\d+-of-\d+|meta)$", "", text)
    if os.path.exists(prefix + ".index"):
        return _located("tf", prefix, "TensorFlow checkpoint")
    _refuse_data_alone(pathlib.Path(prefix))
    if not os.path.isfile(text):
        raise FileNotFoundError(
            f"{text}: no such file or directory; expected a model directory, a weights file, or "
            f"the prefix of a TensorFlow checkpoint (as in .../{WEIGHTS_NAME})"
        )
    _refuse_other_frameworks(pathlib.Path(text))
    tensor_files.refuse_pointer(text)
    found = tensor_files.recognise(text)
    if found in ("safetensors", "torch") or (
        found == "json" and text.endswith(tensor_files.INDEX_SUFFIX)
    ):
        return _located("hf", text, "transformers weights")
    if found == "keras":
        return _located("keras", text, "Keras model")
    if found == "hdf5" and _keras_hub_class(pathlib.Path(text)) is not None:
        return _locate_in(pathlib.Path(text).parent)
    if found == "hdf5" and text.endswith(KERAS_WEIGHTS_SUFFIX):
        return _located("keras_weights", text, "Keras weights")
    if text.endswith((".safetensors", ".bin", ".pt", ".pth", KERAS_SUFFIX, KERAS_WEIGHTS_SUFFIX)):
        raise CorruptCheckpointError(f"{text}: its content is not that of such a file")
    raise ValueError(
        f"{text}: not a format that is read; expected safetensors, a torch state dict, .keras, "
        f"{KERAS_WEIGHTS_SUFFIX}, a TensorFlow checkpoint or a directory with one of them"
    )


def _locate_in(folder: pathlib.Path) -> LocatedCheckpoint:
    safetensors = folder / tensor_files.SAFETENSORS_NAME
    for found in (safetensors, folder / f"{safetensors.name}{tensor_files.INDEX_SUFFIX}"):
        if (folder / f"{WEIGHTS_NAME}.index").exists():
            return _located("tf", folder / WEIGHTS_NAME, "model directory")
        if found.exists():
            return _located("hf", found, "transformers weights")
    preset = folder / KERAS_HUB_WEIGHTS
    if preset.exists() and (found := _keras_hub_class(preset)) is not None:
        if found not in _KERAS_HUB_CLASSES:
            raise ValueError(f"{folder}: a preset of {found}; expected {_KERAS_HUB_CLASSES[0]}")
        vocab = folder / _KERAS_HUB_VOCAB
        return _without_pointers(
            LocatedCheckpoint(
                "keras_hub",
                str(folder),
                f"KerasHub preset {folder}",
                str(folder / HF_CONFIG_NAME),
                str(vocab) if vocab.exists() else None,
            ),
            [preset],
        )
    if steps := checkpoint_steps(folder):
        return _located("tf", folder / f"model.ckpt-{steps[-1]}", "newest checkpoint of a run")
    for name in _TORCH_NAMES:
        if (folder / name).exists():
            return _located("hf", folder / name, "transformers weights")
    keras_files = sorted(
        path
        for path in folder.iterdir()
        # A write that was killed leaves a temporary file.
        if path.name.endswith((KERAS_SUFFIX, KERAS_WEIGHTS_SUFFIX)) and ".tmp." not in path.name
    )
    if len(keras_files) == 1:
        return locate(keras_files[0])
    others = [file.name for file in keras_files] + sorted(p.name for p in folder.glob("*.index"))
    if not others:
        _refuse_known_folders(folder)
    raise FileNotFoundError(
        f"{folder}: expected {WEIGHTS_NAME}.index, {safetensors.name}, a KerasHub preset or "
        "model.ckpt-<step>.index in this folder"
        + (f"; name one of {', '.join(others)}" if others else "")
    )


def _refuse_known_folders(folder: pathlib.Path) -> None:
    """Say what a folder without a checkpoint is, where that shows."""
    paths = sorted(folder.iterdir())
    for path in paths:
        _refuse_other_frameworks(path)
        if re.search(r"\.data-\d+-of-\d+$", path.name):
            _refuse_data_alone(path.with_suffix(""))
    # sentence-transformers keeps the encoder in a folder of its own, that modules.json names.
    names = [path.name for path in paths if re.match(r"^0_[A-Z]\w*$", path.name)]
    with contextlib.suppress(OSError, ValueError, RecursionError):
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        modules = modules if isinstance(modules, list) else []
        names = [m["path"] for m in modules if isinstance(m, dict) and _is_name(m.get("path"))]
    for name in names:
        if (folder / name / HF_CONFIG_NAME).is_file():
            raise FileNotFoundError(
                f"{folder}: a folder of sentence-transformers, whose encoder is in the folder "
                f"{name}; name {folder / name}"
            )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _refuse_other_frameworks(path: pathlib.Path) -> None:
    for framework, names in _OTHER_FRAMEWORKS.items():
        if names.match(path.name) and path.is_file():
            raise ValueError(
                f"{path}: weights that transformers wrote for {framework}, which are not read; "
                f"get {tensor_files.SAFETENSORS_NAME} or {_TORCH_NAMES[0]} of the same model, or "
                "load it with transformers and save it with save_pretrained from PyTorch"
            )


def _refuse_data_alone(prefix: pathlib.Path) -> None:
    """Tell of the data of a TensorFlow checkpoint that lie there without their index."""
    data = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*"))
    if data and not os.path.exists(f"{prefix}.index"):
        raise FileNotFoundError(
            f"{prefix}.index: no such file; {data[0].name} beside it is only a part of a "
            "TensorFlow checkpoint, and cannot be read without the index"
        )


def _without_pointers(found: LocatedCheckpoint, weights: list[pathlib.Path]) -> LocatedCheckpoint:
    """Refuse what was found if git has put a pointer where one of its files should be."""
    for path in (*weights, found.config_file, found.vocab_file):
        if path is not None and os.path.isfile(path):
            tensor_files.refuse_pointer(path)
    return found


def _keras_hub_class(weights: pathlib.Path) -> str | None:
    """Return what KerasHub class a preset's weights are of; None if they are not of a preset."""
    config = weights.parent / HF_CONFIG_NAME
    if weights.name != KERAS_HUB_WEIGHTS or not config.exists():
        return None
    name = read_json(config).get("registered_name")
    return name if isinstance(name, str) else None


def _located(kind: str, path: str | os.PathLike, description: str) -> LocatedCheckpoint:
    folder = pathlib.Path(path).parent
    # A run's folder has a config.json of another kind: the settings of the run.
    names = (HF_CONFIG_NAME, CONFIG_NAME) if kind == "hf" else (CONFIG_NAME,)
    configs = [folder / name for name in names if (folder / name).exists()]
    vocab = folder / VOCAB_NAME
    weights = [pathlib.Path(path)]
    if kind == "tf":
        name = glob.escape(weights[0].name)
        weights = [folder / f"{weights[0].name}.index", *folder.glob(f"{name}.data-*-of-*")]
    located = LocatedCheckpoint(
        format=kind,
        path=str(path),
        description=f"{description} {path}",
        config_file=str(configs[0]) if configs else None,
        vocab_file=str(vocab) if vocab.exists() else None,
    )
    return _without_pointers(located, weights)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file holds something else; the message names it.
        CorruptCheckpointError: it is a pointer of git-lfs.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (ValueError, RecursionError) as error:
        tensor_files.refuse_pointer(path)
        raise ValueError(f"{os.fspath(path)}: not a JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{os.fspath(path)}: expected a JSON object")
    return values


# --- opening --------------------------------------------------------------------------------------


def read_config(found: LocatedCheckpoint) -> BertConfig | None:
    """Read the configuration that lies beside weights; None where there is none."""
    if found.config_file is None or found.format == "keras_hub":
        return None
    # "gelu" is one thing in config.json and another in bert_config.json.
    is_theirs = pathlib.Path(found.config_file).name == HF_CONFIG_NAME
    return BertConfig.from_json_file(found.config_file, style="hf" if is_theirs else None)


class _ModelSource:
    """The weights of a Keras model, as `tensor_files.TensorSource`."""

    def __init__(self, model: keras.Model):
        self._weights = weights_by_name(model)
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
        return _open_model(_collected(_load_keras_hub(found)), found)
    if found.format == "keras":
        return _open_model(_collected(_load_keras(found.path)), found)
    # Keras reads the weights into a model, which has to be the one they were written from.
    if found.config_file and (config is None or found.format == "keras_weights"):
        config = read_config(found)
    if found.format == "keras_weights":
        return _open_model(_collected(_load_keras_weights(found, config)), found)
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


def _open_model(model: keras.Model, found: LocatedCheckpoint | None) -> Checkpoint:
    if type(model).__name__ == "BertBackbone" and type(model).__module__.startswith("keras_hub."):
        return Checkpoint(found, KERAS_HUB, _ModelSource(model), _keras_hub_config(model), model)
    if type(model).__module__.startswith("keras_hub.") and hasattr(model, "backbone"):
        raise ValueError(
            f"expected a BertBackbone, got KerasHub's {type(model).__name__}, whose head is not "
            "read; pass its .backbone"
        )
    config = config_of(model)
    return Checkpoint(found, OURS, _ModelSource(model), config, model)


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


def _load_keras(path: str) -> keras.Model:
    # The library's own load_model would read the weights within the file into memory twice.
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                weights = archive.extract(f"model{KERAS_WEIGHTS_SUFFIX}", folder)
        except _ZIP_ERRORS as error:
            raise CorruptCheckpointError(f"{path}: not a whole .keras file: {error}") from error
        sizes = _sizes_of_keras(path, config)
        shapes = _hdf5_shapes(path, weights)
        _check_sizes(path, shapes, sizes)
        config["compile_config"] = None
        with without_initial_values():
            model = _deserialized(path, config)
        _check_shapes(path, shapes, model)
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
        raise ValueError(f"{path}: Keras cannot make its model: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
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


def _hdf5_shapes(path: str, weights: str) -> dict[str, tuple[int, ...]]:
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
            f"{path}: not a whole HDF5 file: {_one_line(error).replace(weights, path)}"
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


def _check_sizes(path: str, shapes: Mapping[str, tuple[int, ...]], config: BertConfig) -> None:
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


def _check_shapes(path: str, shapes: Mapping[str, tuple[int, ...]], model: keras.Model) -> None:
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
        _read_all(path, weights)
        reason = _one_line(error).replace(weights, path)
        raise ValueError(f"{path}: does not fit the configuration with it: {reason}") from error


def _read_all(path: str, weights: str) -> None:
    """Raise CorruptCheckpointError if a weight cannot be read; Keras does not tell which."""
    try:
        with h5py.File(weights, "r") as file:
            for name in _hdf5_shapes(path, weights):
                file[name][()]  # pyright: ignore[reportIndexIssue]
    except Exception as error:  # as in _hdf5_shapes
        raise CorruptCheckpointError(
            f"{path}: not a whole HDF5 file: {_one_line(error).replace(weights, path)}"
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


def _load_keras_weights(found: LocatedCheckpoint, config: BertConfig | None) -> keras.Model:
    if config is None:
        raise FileNotFoundError(f"{found.path}: no {CONFIG_NAME} beside it; name one with config=")
    shapes = _hdf5_shapes(found.path, found.path)
    layers = {name.split("/")[1] for name in shapes}
    kinds = [kind for name, kind in _H5_KINDS.items() if name in layers]
    if "bert" not in layers or len(kinds) > 1:
        raise ValueError(f"{found.path}: expected the weights of a model of bert_tf")
    _check_sizes(found.path, shapes, config)
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
    _check_shapes(found.path, shapes, model)
    _load_hdf5(model, found.path, found.path)
    return model


def _load_keras_hub(found: LocatedCheckpoint) -> keras.Model:
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
    shapes = _hdf5_shapes(weights, weights)
    _check_sizes(weights, shapes, _sizes_of_preset(os.path.join(found.path, HF_CONFIG_NAME)))
    try:
        backbone = keras_hub.models.BertBackbone.from_preset(found.path, dtype="float32")
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        _read_all(weights, weights)
        raise ValueError(
            f"{found.path}: KerasHub cannot read the preset: {_one_line(error)}"
        ) from error
    _check_shapes(found.path, shapes, backbone)
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


def _keras_hub_config(backbone: Any) -> BertConfig:
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


# --- models in memory -----------------------------------------------------------------------------


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


def kind_of(model: keras.Model) -> tuple[str, int | None]:
    """Return the kind (key of `heads.HEADS`) of a model and, for classifiers, its label count."""
    shapes = {weight.path: tuple(weight.shape) for weight in model.weights}
    kinds = kinds_of_heads(OURS, shapes)
    kind = kinds[0] if kinds else "encoder"
    return kind, shapes[HEAD_MARKS[kind]][0] if HEADS[kind].has_labels else None


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
