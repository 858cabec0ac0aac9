"""Files of the Beam runner, on any file system that Beam knows: whole or not there at all."""

import atexit
import contextlib
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from bert_tf.files import move
from data_prep.corpus.text_files import is_remote, open_input

exists = FileSystems.exists
lock = threading.RLock()  # some runners have several threads in a worker
_copies: dict[tuple[str, ...], str] = {}


def read(path: str) -> bytes:
    """Return the bytes of a file."""
    with open_input(path) as stream:
        return stream.read()


def read_json(path: str) -> Any:
    """Return the value that a JSON file holds."""
    return json.loads(read(path))


@contextlib.contextmanager
def write_whole(path: str) -> Iterator[BinaryIO]:
    """Open a file that appears under its name once it is whole."""
    # No process number in the name: workers of several machines may write the same file.
    temporary = f"{path}.tmp-{uuid.uuid4().hex}"
    with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        yield stream
    rename(temporary, path)


def write_json(path: str, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with write_whole(path) as stream:
        stream.write(json.dumps(value).encode())


def rename(source: str, target: str) -> None:
    """Give a file another name, in place of the file that has it."""
    if not is_remote(target):
        move(source, target)
        return
    # Not every file system renames onto a file.
    if exists(target):
        FileSystems.delete([target])
    FileSystems.rename([source], [target])


def local_folder(folder: str, names: Sequence[str]) -> str:
    """Return the folder, or where its files are elsewhere, one on this machine with copies."""
    if not is_remote(folder):
        return folder
    with lock:
        if (folder, *names) not in _copies:
            copy = tempfile.mkdtemp(prefix="pretraining-data-")
            atexit.register(shutil.rmtree, copy, ignore_errors=True)
            for name in names:
                with open_input(f"{folder}/{name}") as source:
                    with open(os.path.join(copy, name), "wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
            _copies[folder, *names] = copy
    return _copies[folder, *names]
