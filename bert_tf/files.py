"""Files: they appear whole or not at all; JSON, digests, and lists of files with wildcards."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

_BLOCK_BYTES = 1 << 20
# What a file says to hold may be this many times its own size, and this many bytes in any case.
# Weights and records that compression makes smaller than that are of zeros alone.
_MOST_TIMES = 16
_MOST_BYTES_IN_ANY_CASE = 1 << 26

Path = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[str]:
    """Give a name to write to; the file gets its own name when it is whole.

    Nothing is left of it where writing fails, and what was there stays.

    Args:
        path: the file; its folder is made where it is missing.
        suffix: end of the name to write to, for libraries that choose a format by it.
    """
    os.makedirs(os.path.dirname(os.fspath(path)) or ".", exist_ok=True)
    # In the same folder, since a file can only be renamed within a file system.
    temporary = f"{os.fspath(path)}.tmp-{os.getpid()}{suffix}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def write_whole(path: Path, mode: str = "wb", **arguments: Any) -> Iterator[IO[Any]]:
    """Open a file that appears under its name once everything is written, or not at all.

    Args:
        path: the file; where its name ends in .gz and bytes are written, they are compressed.
        mode: "wb" or "w"; text is UTF-8 with the line ends that are written.
        arguments: others of `open`.
    """
    if "b" not in mode:
        arguments = {"encoding": "utf-8", "newline": "", **arguments}
    with replacing(path) as temporary, open(temporary, mode, **arguments) as stream:
        if "b" in mode and os.fspath(path).endswith(".gz"):
            # No name and no time in the header: the same content gives the same bytes.
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0) as compressed:
                yield cast(IO[Any], compressed)
        else:
            yield stream


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with write_whole(path, "w") as stream:
        stream.write(text)


def read_text_or_none(path: Path) -> str | None:
    """Return what a text file holds; None where there is no such file."""
    path = pathlib.Path(path)
    return path.read_text(encoding="utf-8") if path.exists() else None


def write_json(path: Path, value: Any, indent: int | None = 2, sort_keys: bool = True) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys) + "\n")


def read_json(path: Path) -> Any:
    """Return the value that a JSON file holds; errors as of `parse_json`."""
    return parse_json(pathlib.Path(path).read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def check_declared(num_bytes: int, file_bytes: int, what: str) -> None:
    """Refuse a size that a file declares, before memory or disk is taken for it.

    Args:
        num_bytes: the size that is declared, unpacked.
        file_bytes: size of the file itself.
        what: what is said to be so large, for the message.

    Raises:
        ValueError: no file of that size holds so much, but one made to exhaust memory.
    """
    most = max(_MOST_BYTES_IN_ANY_CASE, _MOST_TIMES * file_bytes)
    if num_bytes > most:
        raise ValueError(
            f"{what} declares {num_bytes:,} bytes; expected at most {most:,} in a file of "
            f"{file_bytes:,}"
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def expand(patterns: str | Sequence[str], argument: str) -> list[str]:
    """Return the files that paths and wildcards name.

    Args:
        patterns: paths and wildcards parted by commas, or a sequence of such; `**` crosses folders.
            A file whose own name holds a wildcard is that file.
        argument: name of the flag or argument that they come from, for the message.

    Returns:
        Paths in the order of the patterns, sorted within each; a file named twice is there twice.

    Raises:
        FileNotFoundError: a pattern names no file.
    """
    texts = [patterns] if isinstance(patterns, str) else list(patterns)
    paths: list[str] = []
    for pattern in filter(None, (part.strip() for text in texts for part in text.split(","))):
        if glob.has_magic(pattern) and not os.path.exists(pattern):
            found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        else:
            found = [pattern] if os.path.isfile(pattern) else []
        if not found:
            reason = "is a folder" if os.path.isdir(pattern) else "matches no file"
            raise FileNotFoundError(f"{argument}: {pattern!r} {reason}")
        paths += sorted(found)
    if not paths:
        raise FileNotFoundError(f"{argument}: no files are named by {patterns!r}")
    return paths
