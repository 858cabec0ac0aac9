"""Files that every worker of a cluster reaches: whole or not there at all."""

import abc
import atexit
import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any, BinaryIO, cast

from bert_tf import files
from bert_tf.files import is_remote

lock = threading.RLock()  # some runners have several threads in a worker
_copies: dict[tuple[str, ...], str] = {}


class ClusterFiles(abc.ABC):
    """The file systems of a runner; those of two processes are equal where their classes are."""

    @abc.abstractmethod
    def exists(self, path: str) -> bool:
        """Tell whether a file or folder is there."""

    @abc.abstractmethod
    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading; a compressed one is not decompressed."""

    @abc.abstractmethod
    def create(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a file for writing what is not compressed."""

    @abc.abstractmethod
    def make_folder(self, path: str) -> None:
        """Make a folder that is not there."""

    @abc.abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that it holds."""

    @abc.abstractmethod
    def rename_remote(self, source: str, target: str) -> None:
        """Give a remote file a name that no file has."""

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, in place of the file that has it."""
        if not is_remote(target):
            files.move(source, target)
            return
        # Not every file system renames onto a file.
        if self.exists(target):
            self.remove(target)
        self.rename_remote(source, target)

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        with self.open(path) as stream:
            return stream.read()

    def local_folder(self, folder: str, names: Sequence[str]) -> str:
        """Return the folder, or where its files are elsewhere, one on this machine with copies."""
        if not is_remote(folder):
            return folder
        with lock:
            if (folder, *names) not in _copies:
                copy = tempfile.mkdtemp(prefix="pretraining-data-")
                atexit.register(shutil.rmtree, copy, ignore_errors=True)
                for name in names:
                    with self.open(f"{folder}/{name}") as source:
                        with open(os.path.join(copy, name), "wb") as target:
                            shutil.copyfileobj(source, target, 1 << 20)
                _copies[folder, *names] = copy
        return _copies[folder, *names]

    def read_json(self, path: str) -> Any:
        """Return the value that a JSON file holds."""
        return json.loads(self.read(path))

    @contextlib.contextmanager
    def write_whole(self, path: str, replace: bool = False) -> Iterator[BinaryIO]:
        """Open a file that appears under its name once it is whole.

        Args:
            path: the file.
            replace: whether it takes the place of another of the name. Else that is taken for the
                work of another attempt at the same task, and stays: this one may be ended at any
                time, and then must not have taken away what the other has reported.
        """
        # No process number in the name: workers of several machines may write the same file.
        temporary = f"{path}.tmp-{uuid.uuid4().hex}"
        with self.create(temporary) as stream:
            yield stream
        if replace or not is_remote(path):
            self.rename(temporary, path)
            return
        if not self.exists(path):
            try:
                self.rename_remote(temporary, path)
                return
            except Exception:
                if not self.exists(path):
                    raise
        self.remove(temporary)

    def write_json(self, path: str, value: Any) -> None:
        """Write a JSON file whole or not at all."""
        with self.write_whole(path) as stream:
            stream.write(json.dumps(value).encode())


@dataclasses.dataclass(frozen=True)
class FsspecFiles(ClusterFiles):
    """Files of this machine, or of any file system that fsspec knows."""

    def exists(self, path: str) -> bool:
        """See the base class."""
        if not is_remote(path):
            return os.path.exists(path)
        system, name = files.file_system(path)
        with files.errors_naming(path):  # not isfile: it takes what cannot be asked for not there
            try:
                system.info(name)
            except FileNotFoundError:
                return False
        return True

    def open(self, path: str) -> IO[bytes]:
        """See the base class."""
        return files.open_file(path)

    def create(self, path: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """See the base class."""
        if not is_remote(path):
            return cast(BinaryIO, open(path, "wb"))
        system, name = files.file_system(path)
        with files.errors_naming(path):
            return system.open(name, "wb")

    def make_folder(self, path: str) -> None:
        """See the base class."""
        system, name = files.file_system(path)
        with files.errors_naming(path):
            system.makedirs(name, exist_ok=True)

    def remove(self, path: str) -> None:
        """See the base class."""
        if not is_remote(path):
            files.remove(path)
            return
        system, name = files.file_system(path)
        with files.errors_naming(path), contextlib.suppress(FileNotFoundError):
            system.rm(name, recursive=True)

    def rename_remote(self, source: str, target: str) -> None:
        """See the base class."""
        system, name = files.file_system(source)
        with files.errors_naming(target):
            system.mv(name, files.file_system(target)[1])
