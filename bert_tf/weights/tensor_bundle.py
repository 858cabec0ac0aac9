"""TF1-format checkpoint files: `<prefix>.index` and `<prefix>.data-*`, a TensorFlow tensor bundle.

Weights of released models come so, and the state of a run is kept so (see `training_state`).
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bert_tf.files import local_path
from bert_tf.weights.bundle_index import check_index
from bert_tf.weights.tensor_files import CorruptCheckpointError

_DATA_SUFFIX = ".data-00000-of-00001"

# What TensorFlow raises on truncated or altered files, depending on where they are damaged.
_READ_ERRORS = (tf.errors.OpError, RuntimeError, ValueError, IndexError)


def write_tensors(prefix: str | os.PathLike, tensors: Mapping[str, Any]) -> None:
    """Write tensors as a TF1-format checkpoint.

    The index is renamed last: a killed process leaves a whole checkpoint or one without an index.

    Args:
        prefix: path without `.index`; its folder is made where it is missing.
        tensors: name -> array, tensor or variable.

    Raises:
        OSError: the files cannot be written; the message names the prefix.
    """
    prefix = os.fspath(local_path(prefix))
    os.makedirs(os.path.dirname(prefix) or ".", exist_ok=True)
    # Were an older index left in place while its data is replaced, a kill between the two renames
    # would leave an index that describes other data.
    pathlib.Path(prefix + ".index").unlink(missing_ok=True)
    names = sorted(tensors)
    try:
        with tf.device("/CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[tf.convert_to_tensor(_value(tensors[name])) for name in names],
            )
    except tf.errors.OpError as error:
        _remove_temporaries(prefix)
        raise OSError(f"{prefix}: cannot write the checkpoint: {error.message}") from error


def rename_tensors(prefix: str | os.PathLike, target: str | os.PathLike) -> None:
    """Give a checkpoint that `write_tensors` wrote another prefix in the same folder.

    Args:
        prefix: path without `.index`.
        target: the new prefix; an older checkpoint there is replaced.
    """
    prefix, target = os.fspath(prefix), os.fspath(target)
    pathlib.Path(target + ".index").unlink(missing_ok=True)  # as in `write_tensors`
    os.replace(prefix + _DATA_SUFFIX, target + _DATA_SUFFIX)
    os.replace(prefix + ".index", target + ".index")


def list_tensors(prefix: str | os.PathLike) -> dict[str, tuple[tuple[int, ...], str]]:
    """Names in a checkpoint: name -> (shape, dtype name).

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CorruptCheckpointError: its index cannot be read.
    """
    with _opened(prefix) as reader:
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    return {name: (tuple(shapes[name]), dtypes[name].name) for name in sorted(shapes)}


def read_tensors(
    prefix: str | os.PathLike, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Read tensors from a checkpoint, each verified against its checksum.

    Args:
        prefix: path without `.index`.
        names: which to read; all by default.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CorruptCheckpointError: a file is truncated or its checksum does not match.
    """
    with _opened(prefix) as reader:
        chosen = list(names) if names is not None else sorted(reader.get_variable_to_shape_map())
        return {name: _read(reader, prefix, name) for name in chosen}


def _read(reader, prefix: str | os.PathLike, name: str) -> np.ndarray:
    try:
        return reader.get_tensor(name)
    except _READ_ERRORS as error:
        raise CorruptCheckpointError(f"{prefix}: cannot read {name!r}: {error}") from error


@contextlib.contextmanager
def _opened(prefix: str | os.PathLike) -> Iterator[Any]:
    """Open a reader; its tensors can be read until the context ends."""
    prefix = os.fspath(prefix)
    if not os.path.exists(prefix + ".index"):
        raise FileNotFoundError(
            f"{prefix}.index: no such file; expected the prefix of a TF checkpoint, "
            "as in .../bert_model.ckpt"
        )
    with contextlib.ExitStack() as stack:
        # TensorFlow takes the prefix for a pattern when it looks for the index, and for a name when
        # it opens it. A path with brackets is no match of itself, and escaped it is no name.
        name = prefix
        if re.search(r"[\[\\]", prefix):
            name = stack.enter_context(_linked(prefix))
        try:
            check_index(prefix + ".index")
            reader = tf.train.load_checkpoint(name)
            reader.get_variable_to_shape_map()  # a name may be no text
        except _READ_ERRORS as error:
            reason = str(error).replace(name, prefix)
            raise CorruptCheckpointError(
                f"{prefix}: cannot read the checkpoint: {reason}"
            ) from error
        try:
            yield reader
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(str(error).replace(name, prefix)) from error


@contextlib.contextmanager
def _linked(prefix: str) -> Iterator[str]:
    """Give a checkpoint a second prefix, of links in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        name = os.path.join(folder, "model.ckpt")
        for suffix in [".index", *_data_suffixes(prefix)]:
            os.symlink(os.path.abspath(prefix + suffix), name + suffix)
        yield name


def _data_suffixes(prefix: str) -> list[str]:
    paths = glob.glob(f"{glob.escape(prefix)}.data-*")
    return [path.removeprefix(prefix) for path in paths]


def _value(variable: Any) -> Any:
    if not isinstance(variable, keras.Variable):
        return variable
    if keras.backend.backend() == "tensorflow":
        return variable.value
    return keras.ops.convert_to_numpy(variable.value)


def _remove_temporaries(prefix: str) -> None:
    folder, base = os.path.split(prefix)
    for path in pathlib.Path(folder or ".").glob(f"{glob.escape(base)}*.tempstate*"):
        path.unlink(missing_ok=True)


class TensorBundle:
    """The tensors of a checkpoint, as `tensor_files.TensorSource`."""

    def __init__(self, prefix: str | os.PathLike):
        """Read the index; errors as in `list_tensors`."""
        self.path = os.fspath(prefix)
        tensors = list_tensors(prefix)
        # TensorFlow takes memory for a shape before it looks for the data.
        stored = sum(os.path.getsize(self.path + suffix) for suffix in _data_suffixes(self.path))
        for name, (shape, dtype) in tensors.items():
            if math.prod(shape) * tf.as_dtype(dtype).size > stored:
                raise CorruptCheckpointError(
                    f"{self.path}: cannot read {name!r}: it has shape {shape}, but the data have "
                    f"{stored:,} bytes"
                )
        self.shapes = {name: shape for name, (shape, _) in tensors.items()}
        self._dtypes = {name: dtype for name, (_, dtype) in tensors.items()}

    def check(self, names: list[str]) -> None:
        """Raise ValueError unless these tensors are of a type that weights have."""
        for name in names:
            if not tf.as_dtype(self._dtypes[name]).is_floating:
                raise ValueError(
                    f"{self.path}: {name} has type {self._dtypes[name]}; weights are floats"
                )

    def read(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, array) for each name, once all have been read and verified."""
        values = read_tensors(self.path, names)
        for name in names:
            yield name, values.pop(name)
