"""Files: written whole or not at all, digests, JSON."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_text_or_none(path: pathlib.Path) -> str | None:
    """Return what a text file holds; None where there is no such file."""
    return path.read_text(encoding="utf-8") if path.exists() else None


@contextlib.contextmanager
def atomic_output(path: str | None) -> Iterator[Callable[[bytes], object]]:
    """Yield a write function; the file gets its name only when everything was written."""
    if path is None:
        yield lambda data: None
        return
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            if path.endswith(".gz"):
                # No name and no time in the header: the same text gives the same bytes.
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as stream:
                    yield stream.write
            else:
                yield file.write
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


# === Work folder ===


def write_json(path: str, value: Any) -> None:
    """Write a value; the file appears under its name once it is whole."""
    temporary = f"{path}.tmp-{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.write("\n")
    os.replace(temporary, path)


def read_json(path: str) -> Any:
    """Read what `write_json` wrote."""
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()
