"""Tensors of Keras' HDF5 files, checked before memory is taken for any of them."""

from __future__ import annotations

import math
import mmap
import os
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import ml_dtypes
import numpy as np

from bert_tf.config import BertConfig
from bert_tf.files import check_declared
from bert_tf.weights.layouts import Layout
from bert_tf.weights.tensor_files import CorruptCheckpointError

# Deflate, the one compression in use that takes much out, never makes less of bytes than this.
_MOST_COMPRESSED = 1032
_BFLOAT16 = "bfloat16"  # as Keras notes it
_HEAP_MAGIC = b"GCOL\1"  # with the version that there is
_HEAP_HEADER_BYTES = 16  # of the heap, and of each string
_SEED_NAME = "layers/bert/vars/dropout_seed"
_WEIGHTS_PER_LAYER = 16  # four matrices of attention, two of the rest, two normalizations


class _Entry(NamedTuple):
    """What an HDF5 file says of a dataset.

    Attributes:
        name: path within the file.
        shape: None for a dataset of nothing at all, which HDF5 has.
        is_float: whether it is of a type that weights have.
        is_quantized: whether it is of one that quantized weights have.
        num_bytes: size of what its shape claims.
        num_stored: the most that the bytes which the file holds of it can stand for.
        is_packed: whether filters, as compression, stand before its values.
        is_elsewhere: whether its values are in other files or datasets.
    """

    name: str
    shape: tuple[int, ...] | None
    is_float: bool
    is_quantized: bool
    num_bytes: int
    num_stored: int
    is_packed: bool
    is_elsewhere: bool


class Hdf5File:
    """The weights in an HDF5 file of Keras, as `tensor_files.TensorSource`."""

    def __init__(self, file: str | os.PathLike, path: str | None = None):
        """Open a file, without reading a weight.

        Args:
            file: the HDF5 file.
            path: what the user named, for messages; None for the file itself.

        Raises:
            CorruptCheckpointError: the file is damaged, or claims more than it holds.
            ValueError: a weight is no float, or in another file.
        """
        self._file = os.fspath(file)
        self.path = path or self._file
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._packed: set[str] = set()
        self._are_heaps_checked = False
        packed_bytes = 0
        for entry in self._entries():
            if entry.is_elsewhere:
                raise ValueError(
                    f"{self.path}: {entry.name} is kept in another file, which is not read"
                )
            # HDF5 gives zeros for what was never written.
            if entry.shape is None or entry.num_bytes > entry.num_stored:
                raise CorruptCheckpointError(
                    f"{self.path}: not a whole HDF5 file: {entry.name} has shape {entry.shape}, "
                    "but the file does not hold that much"
                )
            if entry.name == _SEED_NAME and entry.shape != (2,):
                raise ValueError(
                    f"{self.path}: {entry.name} has shape {entry.shape}, expected (2,)"
                )
            if re.search(r"/vars/\d+$", entry.name):
                if not entry.is_float:
                    raise ValueError(f"{self.path}: {_what_it_is(entry, self.path)}")
                self.shapes[entry.name] = entry.shape
                packed_bytes += entry.num_bytes if entry.is_packed else 0
                if entry.is_packed:
                    self._packed.add(entry.name)
        try:
            check_declared(packed_bytes, os.path.getsize(self._file), "its compressed data")
        except ValueError as error:
            raise CorruptCheckpointError(f"{self.path}: {error}") from error

    def _entries(self) -> list[_Entry]:
        entries: list[_Entry] = []

        def visit(name: str, node: Any) -> None:
            # Beside "layers" lie the optimizer and metrics of a model that was compiled.
            if name.startswith("layers/") and isinstance(node, h5py.Dataset):
                entries.append(_entry(name, node, self._note(node)))

        try:
            with h5py.File(self._file, "r") as file:
                file.visititems(visit)
        except Exception as error:  # damage makes h5py raise any of half a dozen types
            raise self._damage(error) from error
        return entries

    def _note(self, dataset: h5py.Dataset) -> Any:
        """Return what Keras notes of a type that h5py has no name for; None where it did not."""
        if "dtype" not in dataset.attrs:
            return None
        if not self._are_heaps_checked:
            _check_heaps(self._file, dataset.file.id.get_create_plist().get_sizes())
            self._are_heaps_checked = True
        return dataset.attrs["dtype"]

    def _damage(self, error: Exception) -> CorruptCheckpointError:
        reason = one_line(error).replace(self._file, self.path)
        return CorruptCheckpointError(f"{self.path}: not a whole HDF5 file: {reason}")

    def check(self, names: list[str]) -> None:
        """Do nothing: types are checked on opening."""

    def read(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, array) for each name.

        Raises:
            CorruptCheckpointError: a weight cannot be read.
        """
        # Whether a chunk can be unpacked shows in doing so: of a damaged file nothing is handed on.
        for name in self._packed.intersection(names):
            self._array(name)
        for name in names:
            yield name, self._array(name)

    def _array(self, name: str) -> np.ndarray:
        try:
            with h5py.File(self._file, "r") as file:
                dataset: Any = file[name]
                is_bfloat16 = self._note(dataset) == _BFLOAT16
                return np.array(dataset, ml_dtypes.bfloat16 if is_bfloat16 else None)
        except Exception as error:  # as in `_entries`
            raise self._damage(error) from error


def _check_heaps(path: str, sizes: tuple[int, int]) -> None:
    """Refuse a heap of strings in which HDF5 would go round for ever, to find one.

    Args:
        path: the file.
        sizes: bytes of its addresses and of its lengths.
    """
    if sizes != (8, 8):
        raise ValueError(f"its addresses and lengths have {sizes} bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(_HEAP_MAGIC)
        while place >= 0:
            position = place + _HEAP_HEADER_BYTES
            end = place + int.from_bytes(data[place + 8 : position], "little")
            while position + _HEAP_HEADER_BYTES <= end:
                head = data[position : position + _HEAP_HEADER_BYTES]
                size = int.from_bytes(head[8:], "little")
                if head[:2] != bytes(2):  # 0 is the number of what is free, header included
                    size = _HEAP_HEADER_BYTES + -(-size // 8) * 8
                position += size
                if size < _HEAP_HEADER_BYTES or position > min(end, len(data)):
                    raise ValueError("a heap of strings is damaged")
            place = data.find(_HEAP_MAGIC, place + 1)


def _entry(name: str, dataset: h5py.Dataset, note: Any) -> _Entry:
    stored = dataset.id.get_storage_size()
    is_packed = dataset.id.get_create_plist().get_nfilters() > 0
    return _Entry(
        name=name,
        shape=dataset.shape,
        is_float=dataset.dtype.kind == "f" or note == _BFLOAT16,
        is_quantized=dataset.dtype.kind in "iu" and dataset.dtype.itemsize == 1,
        num_bytes=0 if dataset.shape is None else math.prod(dataset.shape) * dataset.dtype.itemsize,
        num_stored=stored * _MOST_COMPRESSED if is_packed else stored,
        is_packed=is_packed,
        is_elsewhere=bool(dataset.external) or dataset.is_virtual,
    )


def _what_it_is(entry: _Entry, path: str) -> str:
    """Say of an entry that is no float what reads it."""
    if not entry.is_quantized:
        return f"{entry.name} is of a type that weights do not have"
    reader = "keras.saving.load_model(path)"
    if path.endswith(".weights.h5"):
        reader = "load_weights(path) of a model that was quantized alike"
    return (
        f"holds a quantized model ({entry.name} is of integers), which Keras alone reads, with "
        f"{reader}; for all else save the model before model.quantize"
    )


def one_line(error: Exception) -> str:
    """Return what an exception says, without the configuration that Keras puts before it."""
    text = str(error).rpartition("Exception encountered:")[2]
    return textwrap.shorten(text, 600) or type(error).__name__


def check_sizes(source: Hdf5File, layout: Layout, config: BertConfig) -> None:
    """Refuse a configuration that no model of these weights has, before a model is made of it.

    To make one with a wrong size may take more memory than there is.
    """
    width, problem = config.hidden_size, f"{source.path}: does not fit the configuration with it"
    for name, shape in {
        "vocab_size": (config.vocab_size, width),
        "max_position_embeddings": (config.max_position_embeddings, width),
        "type_vocab_size": (config.type_vocab_size, width),
        "intermediate_size": (width, config.intermediate_size),
    }.items():
        if shape not in source.shapes.values():
            raise ValueError(
                f"{problem}: {name} {getattr(config, name)} and hidden_size {width} take a weight "
                f"of shape {shape}, and there is none"
            )
    layers = config.num_hidden_layers
    if layers * _WEIGHTS_PER_LAYER > len(source.shapes):
        raise ValueError(
            f"{problem}: num_hidden_layers {layers} take {layers * _WEIGHTS_PER_LAYER} weights, "
            f"and there are {len(source.shapes)}"
        )
    if layout.theirs(f"bert/encoder/layer_{layers}/output/dense/bias") in layout.canonical(
        source.shapes
    ):
        raise ValueError(f"{problem}: num_hidden_layers is {layers}, and the file has more")
