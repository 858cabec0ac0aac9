"""Tensors in files: safetensors, in one file or several, and PyTorch's without unpickling.

What a file is shows in its first bytes and its neighbours, never in whether reading it happens to
fail. TF1-format checkpoints, which take TensorFlow to read, are in `tensor_bundle`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from bert_tf.files import check_declared, parse_json, replacing

SAFETENSORS_NAME = "model.safetensors"
INDEX_SUFFIX = ".index.json"

TABLE_MAGIC = bytes.fromhex("57fb808b247547db")  # the end of a table file, LevelDB's
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
_LFS_MAGIC = b"version https://git-lfs"
_MOST_PADDING = 4096  # bytes at a file's beginning that its format is told from

_STEP = re.compile(r"^model\.ckpt-(\d+)\.index$")

# safetensors' names of the types that weights have. The library's NumPy half lacks BF16.
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class CorruptCheckpointError(OSError):
    """A checkpoint file is truncated, damaged or incomplete."""


class TensorSource(Protocol):
    """Named tensors, read one by one."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        ...

    def check(self, names: list[str]) -> None:
        """Raise ValueError unless these tensors are of a type that weights have."""
        ...

    def read(self, names: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield (name, array) for each name, in order."""
        ...


def recognise(path: str | os.PathLike) -> str | None:
    """Tell the format of a file by its content.

    Returns:
        "safetensors", "torch", "keras" (a .keras file), "hdf5", "tf_index" (the index of a
        TensorFlow checkpoint), "json", "git_lfs" (a pointer that git has put where the file should
        be), or None for anything else.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(8 + _MOST_PADDING)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if head.startswith(_LFS_MAGIC):
        return "git_lfs"
    if tail == TABLE_MAGIC:
        return "tf_index"
    if head.startswith(_HDF5_MAGIC):
        return "hdf5"
    # Of JSON's white space, which writers may put before the header too.
    header = head[8:].lstrip(b" \t\n\r")
    if header.startswith(b"{") and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head.startswith(_ZIP_MAGIC):
        names = _names_in_zip(path)
        if "metadata.json" in names and "config.json" in names:
            return "keras"
        return "torch" if any(name.endswith("/data.pkl") for name in names) else None
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"  # a pickle: what torch wrote before it used zip
    return "json" if head.lstrip()[:1] == b"{" else None


def refuse_pointer(path: str | os.PathLike) -> None:
    """Raise CorruptCheckpointError if a file is what git-lfs keeps in place of one."""
    if recognise(path) == "git_lfs":
        raise CorruptCheckpointError(
            f"{os.fspath(path)}: a pointer of git-lfs, not the file itself; run git lfs pull in "
            "its repository"
        )


def checkpoint_steps(directory: str | os.PathLike) -> list[int]:
    """Return the steps of the `model.ckpt-<step>` checkpoints in a folder, ascending."""
    folder = pathlib.Path(directory)
    if not folder.is_dir():
        return []
    return sorted(int(m.group(1)) for p in folder.iterdir() if (m := _STEP.match(p.name)))


def _names_in_zip(path: str | os.PathLike) -> list[str]:
    """Return the names of the files in an archive; none for a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return []


def check_archive(path: str | os.PathLike) -> None:
    """Refuse an archive that holds far more than its size; what is none is left to its reader.

    Raises:
        CorruptCheckpointError: it declares so much that unpacking would exhaust memory or disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return
    try:
        check_declared(declared, os.path.getsize(path), "the archive")
    except ValueError as error:
        raise CorruptCheckpointError(f"{os.fspath(path)}: {error}") from error


class SafetensorsFile:
    """Tensors of one safetensors file."""

    # Read from their offsets one at a time: mapping the file would count all of it as used memory.

    def __init__(self, path: str | os.PathLike):
        """Open a file.

        Raises:
            CorruptCheckpointError: it is truncated, or its header is not what the format allows.
            ValueError: a tensor has a type that weights cannot have.
        """
        self.path = os.fspath(path)
        try:
            with safetensors.safe_open(self.path, "numpy"):
                pass  # it checks the header against the size of the file
        except safetensors.SafetensorError as error:
            raise CorruptCheckpointError(
                f"{self.path}: not a whole safetensors file: {error}"
            ) from error
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self._start = 8 + length
        self._header = header
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}

    def check(self, names: list[str]) -> None:
        """Raise ValueError unless these tensors are of a type that weights have."""
        for name in names:
            if self._header[name]["dtype"] not in _DTYPES:
                raise ValueError(
                    f"{self.path}: {name} has type {self._header[name]['dtype']}; weights are one "
                    f"of {', '.join(_DTYPES)}"
                )

    def read(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, array) for each name.

        Raises:
            CorruptCheckpointError: the file has become shorter.
            ValueError: a tensor has a type that weights cannot have.
        """
        self.check(names)
        with open(self.path, "rb") as file:
            for name in names:
                entry = self._header[name]
                dtype, count = _DTYPES[entry["dtype"]], math.prod(entry["shape"])
                file.seek(self._start + entry["data_offsets"][0])
                array = np.fromfile(file, dtype, count)
                if array.size != count:
                    raise CorruptCheckpointError(f"{self.path}: ends within {name}")
                yield name, array.reshape(entry["shape"])


class ShardedFiles:
    """Tensors of several files that an index in their folder lists (`*.index.json`)."""

    def __init__(self, index: str | os.PathLike):
        """Open an index and all files that it names.

        Raises:
            FileNotFoundError: a file is missing.
            CorruptCheckpointError: the index or a file is damaged.
            ValueError: the index names a file outside its folder, or a tensor that the file it
                names does not hold.
        """
        self.path = os.fspath(index)
        weight_map = _read_index(self.path)
        folder = pathlib.Path(self.path).parent
        opened: dict[str, TensorSource] = {}
        for file in sorted(set(weight_map.values())):
            is_name = pathlib.PurePath(file).name == file and file not in (".", "..")
            if not is_name or "\\" in file or not file.isprintable():
                raise ValueError(f"{self.path}: names {file!r}, which is not a file of its folder")
            if not os.path.isfile(folder / file):  # Path.is_file fails for a name too long
                raise FileNotFoundError(f"{folder / file}: no such file; {self.path} names it")
            opened[file] = _open_file(folder / file)
        self.shapes = {}
        self._file_of: dict[str, TensorSource] = {}
        for name, file in weight_map.items():
            if name not in opened[file].shapes:
                raise ValueError(f"{self.path}: says that {file} holds {name}, but it does not")
            self.shapes[name] = opened[file].shapes[name]
            self._file_of[name] = opened[file]
        unlisted = [n for s in opened.values() for n in s.shapes if n not in weight_map]
        if unlisted:
            raise ValueError(f"{self.path}: does not list {', '.join(sorted(unlisted)[:12])}")

    def check(self, names: list[str]) -> None:
        """Raise ValueError unless these tensors are of a type that weights have."""
        for name in names:
            self._file_of[name].check([name])

    def read(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, array) for each name."""
        for name in names:
            yield from self._file_of[name].read([name])


def _read_index(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            weight_map = parse_json(file.read())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(
            f"{path}: expected a JSON object with a weight_map: {error!r}"
        ) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{path}: weight_map names no tensors")
    wrong = [name for name, file in weight_map.items() if not isinstance(file, str)]
    if wrong:
        raise CorruptCheckpointError(f"{path}: no file name for {wrong[0]}")
    return weight_map


class TorchFile:
    """Tensors of a file of torch.save (`.bin`, `.pt`), by torch's weights-only reader."""

    def __init__(self, path: str | os.PathLike):
        """Open a file.

        Raises:
            ValueError: torch is not installed, or the file holds more than tensors by their names;
                where these are in a mapping within it, the message names that.
            CorruptCheckpointError: the file is damaged.
        """
        self.path = os.fspath(path)
        if importlib.util.find_spec("torch") is None:
            raise ValueError(
                f"{self.path}: pickled weights are only read with torch's weights-only reader, and "
                "torch is not installed, since unpickling runs whatever code a file holds. Install "
                "torch, or convert the file where it is: "
                "safetensors.torch.save_file(torch.load(path, weights_only=True), "
                f"{SAFETENSORS_NAME!r})"
            )
        import torch  # pyright: ignore[reportMissingImports]

        check_archive(self.path)
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch raise any of a dozen types
            refused = re.search(r"(?i)unsupported (?:global: )?GLOBAL (\S+\w)", str(error))
            if isinstance(error, pickle.UnpicklingError) and refused:
                raise ValueError(
                    f"{self.path}: holds more than tensors ({refused[1]}), and is not unpickled"
                ) from error
            # torch's own message begins with how to unpickle the file all the same.
            reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
            reason = (reason or type(error).__name__).splitlines()[0]
            raise CorruptCheckpointError(f"{self.path}: not a whole file: {reason}") from error
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor)
            for name, value in state.items()
        ):
            raise ValueError(
                f"{self.path}: expected names and tensors, got {type(state).__name__}"
                + _inner_weights(state)
            )
        for name, value in state.items():
            # A view may repeat one number as often as it says.
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise CorruptCheckpointError(
                    f"{self.path}: {name} has shape {tuple(value.shape)}, but the file does not "
                    "hold that much"
                )
        self._state: dict[str, Any] = dict(state)
        self.shapes = {name: tuple(value.shape) for name, value in self._state.items()}

    def check(self, names: list[str]) -> None:
        """Raise ValueError unless these tensors are of a type that weights have."""
        for name in names:
            if not self._state[name].is_floating_point():
                raise ValueError(
                    f"{self.path}: {name} has type {self._state[name].dtype}; weights are floats"
                )

    def read(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, float32 array) for each name."""
        self.check(names)
        for name in names:
            yield name, self._state[name].detach().float().numpy()


# Under which of its keys a file that holds more than weights keeps them, the usual ones first.
_INNER_KEYS = ("state_dict", "model_state_dict", "model")


def _inner_weights(state: Any) -> str:
    """Say which mapping within what a torch file holds has the weights; "" where none has."""
    if not isinstance(state, Mapping):
        return ""
    for key in sorted(state, key=lambda key: key not in _INNER_KEYS):
        inner = state[key]
        if isinstance(inner, Mapping) and any(hasattr(value, "shape") for value in inner.values()):
            return (
                f" with the weights under {key!r}; save that alone: "
                f"torch.save(torch.load(path, weights_only=True)[{key!r}], other_path)"
            )
    return ""


def open_tensors(path: str | os.PathLike) -> TensorSource:
    """Open a safetensors file, a torch file, or the index of several.

    Raises:
        ValueError: the file is none of these.
        CorruptCheckpointError: it is damaged.
    """
    if recognise(path) == "json" and os.fspath(path).endswith(INDEX_SUFFIX):
        return ShardedFiles(path)
    return _open_file(path)


def _open_file(path: str | os.PathLike) -> TensorSource:
    content = recognise(path)
    if content == "safetensors":
        return SafetensorsFile(path)
    if content == "torch":
        return TorchFile(path)
    refuse_pointer(path)
    raise CorruptCheckpointError(
        f"{os.fspath(path)}: expected a safetensors file or a torch file; its content is neither"
    )


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file as transformers writes it, whole or not at all.

    Args:
        path: the file.
        tensors: name -> contiguous array.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            pathlib.Path(temporary).touch()
            mode = os.stat(temporary).st_mode
            safetensors.numpy.save_file(dict(tensors), temporary, metadata={"format": "pt"})
            os.chmod(temporary, mode)  # the library makes files that their owner alone can read
    except safetensors.SafetensorError as error:
        raise OSError(f"{os.fspath(path)}: cannot write the file: {error}") from error
