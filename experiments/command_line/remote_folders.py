"""Remote output folders, for which a folder on this machine stands in while a command works.

TensorFlow and Keras write checkpoints, summaries and models piece by piece, and rename them, which
object stores cannot. So a command works in a folder of this machine, to which what the remote one
holds was copied, and what has changed is sent at each checkpoint and at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import typing
from collections.abc import Iterator
from typing import TypeVar

from bert_tf.files import (
    errors_naming,
    file_system,
    is_remote,
    local_place,
    printing_original_names,
    remove,
    send,
    stand_ins,
)
from bert_tf.options import any_remote

T = TypeVar("T")
_SMALL_BYTES = 1 << 20
# What is left where it is: prepared records, locks and what has not got its name yet.
_KEPT_HERE = re.compile(r"(^|/)(records|feature_cache)/|(^|/)lock$|\.tmp[.-]|\.tempstate|\.removed")
_DATA = re.compile(r"\.data-\d+-of-\d+$")
_active: list[RemoteFolder] = []


class RemoteFolder:
    """A remote folder and the one that stands in for it.

    Attributes:
        path: the remote folder.
        here: the one on this machine.
        names_only: whether it holds copies of small files only.
    """

    def __init__(self, path: str, names_only: bool = False):
        """Copy what the remote folder holds.

        Args:
            path: the folder, which need not be there.
            names_only: do so with small files only; in place of others lie empty ones.

        Raises:
            OSError: it cannot be read.
        """
        self.path = path.rstrip("/")
        self.names_only = names_only
        self.here = pathlib.Path(local_place(self.path, "names" if names_only else "folders"))
        self.here.mkdir(parents=True)
        try:
            with errors_naming(self.path):
                self._copy(names_only)
        except BaseException:
            shutil.rmtree(self.here)
            raise
        self._sent = self._state()
        stand_ins.add(str(self.here))

    def _copy(self, names_only: bool) -> None:
        system, name = file_system(self.path)
        found = system.find(name, detail=True) if system.isdir(name) else {}
        for file, info in found.items():
            within = file[len(name) :].strip("/")
            copy = self.here / within
            if _KEPT_HERE.search(within):
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            if names_only and info["size"] > _SMALL_BYTES:
                copy.touch()
            else:
                system.get_file(file, copy)

    def _state(self) -> dict[str, tuple[int, int]]:
        """Return size and time of each file that is to be in the remote folder."""
        state = {}
        for path in self.here.rglob("*"):
            name = path.relative_to(self.here).as_posix()
            if path.is_file() and not _KEPT_HERE.search(name):
                state[name] = (path.stat().st_size, path.stat().st_mtime_ns)
        return state

    def send(self) -> None:
        """Send what has changed since the last time.

        A checkpoint is there if its index is: that is sent after its data, and removed before them.

        Raises:
            OSError: it cannot be written.
        """
        now, before = self._state(), self._sent
        changed = {name for name in now if before.get(name) != now[name]}
        indices = {_DATA.sub(".index", name) for name in changed if _DATA.search(name)}
        for name in indices & set(before):
            remove(f"{self.path}/{name}")
        for name in sorted(changed | (indices & set(now)), key=_is_last):
            send(self.here / name, f"{self.path}/{name}")
        for name in sorted(set(before) - set(now), key=_is_last, reverse=True):
            remove(f"{self.path}/{name}")
        self._sent = now

    def close(self) -> None:
        """Remove the folder on this machine."""
        shutil.rmtree(self.here)
        stand_ins.discard(str(self.here))


def _is_last(name: str) -> bool:
    """Tell whether a file says that the others of a model are there."""
    return name.endswith((".index", "saved_model.pb", "checkpoint"))


def send_all() -> None:
    """Send what has changed in all folders that stand in for remote ones."""
    for folder in _active:
        folder.send()


def _stand_in(path: str, names_only: bool) -> str:
    """Return what stands in for a remote path: in a folder that there is, or in one of its own."""
    for folder in _active:
        if folder.names_only == names_only and f"{path}/".startswith(f"{folder.path}/"):
            return os.path.join(folder.here, path[len(folder.path) + 1 :]).rstrip("/")
    # A model in one file has others beside it.
    parent, _, name = path.rpartition("/")
    root, rest = (parent, name) if re.search(r"\.(keras|h5)$", name) else (path, "")
    _active.append(folder := RemoteFolder(root, names_only))
    return os.path.join(folder.here, rest).rstrip("/")


@contextlib.contextmanager
def on_this_machine(options: T) -> Iterator[T]:
    """Put folders of this machine in the place of remote ones that a command writes to.

    What was written is sent in the end, also where the command failed. What is printed has the
    remote paths.

    Args:
        options: a dataclass made with `bert_tf.options.option`.

    Yields:
        The same with other paths.

    Raises:
        OSError: a folder cannot be read or written.
    """
    values: dict[str, str] = {}
    try:
        remote = [
            (getattr(options, field.name), field.name, field.metadata["path"] == "new_folder")
            for field in dataclasses.fields(typing.cast(typing.Any, options))
            if field.metadata.get("path") in ("folder", "new_folder")
            and is_remote(getattr(options, field.name) or "")
        ]
        for path, name, names_only in sorted(remote):  # a folder before those within it
            values[name] = _stand_in(path.rstrip("/"), names_only)
        with printing_original_names() if any_remote(options) else contextlib.nullcontext():
            yield dataclasses.replace(typing.cast(typing.Any, options), **values)
    finally:
        try:
            send_all()
        finally:
            while _active:
                _active.pop().close()
