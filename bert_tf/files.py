"""Files, here or remote: they appear whole or not at all; JSON, digests, files with wildcards.

A path with a scheme, as gs://bucket/file, is remote: fsspec opens it, with the package that knows
its file system (gcsfs for gs://, s3fs for s3://). What is written there is made on this machine
first, in the system's folder of temporary files, and then sent in one go, since object stores have
no rename. What is read from the middle, or more than once, is copied here (`local_copy`).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import glob
import gzip
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

_BLOCK_BYTES = 1 << 20
# What a file says to hold may be this many times its own size, and this many bytes in any case.
# Weights and records that compression makes smaller than that are of zeros alone.
_MOST_TIMES = 16
_MOST_BYTES_IN_ANY_CASE = 1 << 26

_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/")
# hf:// also names what is not a model: data sets and the like, which fsspec reads.
_PUBLISHED = re.compile(r"(hf://(?!(datasets|spaces|buckets)/)|kaggle://|google://)")

Path = str | os.PathLike[str]

# Folders of this machine that a command works in, in the place of remote ones.
stand_ins: set[str] = set()


# === Remote paths ===


def is_remote(path: Path) -> bool:
    """Tell whether a path names its file system by a scheme, such as gs:// or memory://."""
    return "://" in os.fspath(path) or _SCHEME.match(os.fspath(path)) is not None


def is_published(path: Path) -> bool:
    """Tell whether a path is the name of a published model, as hf://OWNER/NAME.

    `weights.published` brings these here; to the rest of this module they are remote paths.
    """
    return _PUBLISHED.match(os.fspath(path)) is not None


def reason_of(error: BaseException) -> str:
    """Return in one line what an error says, or of which type it is where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Make of what file systems raise, which may be anything, an error that names the path.

    Raises:
        OSError: in place of what is neither that nor a ValueError.
    """
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise OSError(f"{os.fspath(path)}: {reason_of(error)}") from error


def file_system(path: Path) -> tuple[Any, str]:
    """Return the fsspec file system of a remote path, and the path within it.

    Raises:
        ValueError: fsspec does not know the scheme, or needs another package for it.
    """
    import fsspec  # late: most paths are local

    if "://" not in os.fspath(path):
        raise ValueError(f"{os.fspath(path)}: expected two slashes after the scheme")
    try:
        return fsspec.url_to_fs(os.fspath(path))
    except Exception as error:  # a file system may want credentials already here
        reason = reason_of(error)
        raise ValueError(f"{os.fspath(path)}: no such file system here: {reason}") from error


def open_file(path: Path) -> IO[bytes]:
    """Open a file, here or remote, for reading bytes; the stream can seek.

    Raises:
        OSError: it cannot be read.
        ValueError: as of `file_system`.
    """
    if not is_remote(path):
        return open(path, "rb")
    system, name = file_system(path)
    with errors_naming(path):
        return system.open(name, "rb")


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return what a text file, here or remote, holds."""
    with open_file(path) as stream:
        return stream.read().decode(encoding)


def is_file(path: Path) -> bool:
    """Tell whether a file is there, here or remote."""
    if not is_remote(path):
        return os.path.isfile(path)
    system, name = file_system(path)
    with errors_naming(path), contextlib.suppress(OSError):
        return system.info(name)["type"] == "file"  # isfile says no to wrong credentials too
    return False


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there, here or remote."""
    if not is_remote(path):
        return os.path.isdir(path)
    system, name = file_system(path)
    with errors_naming(path):
        return system.isdir(name)


def size_of(path: Path) -> int:
    """Return the bytes of a file, here or remote."""
    if not is_remote(path):
        return os.path.getsize(path)
    system, name = file_system(path)
    with errors_naming(path):
        return system.size(name)


def stamp_of(path: Path) -> list[str | int]:
    """Return what changes when a file does: its path, size and time, or a remote one's digest."""
    if not is_remote(path):
        stat = os.stat(path)
        return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
    system, name = file_system(path)
    with errors_naming(path):
        return [os.fspath(path), system.ukey(name)]


def absolute(path: Path) -> str:
    """Return a local path from the root, links followed, and a remote one as it is."""
    return os.fspath(path) if is_remote(path) else os.path.realpath(path)


def beside(path: Path, name: str) -> str:
    """Return the path of another file in a file's folder."""
    text = os.fspath(path)
    return text[: len(text) - len(os.path.basename(text))] + name


@functools.cache
def _copies() -> str:
    folder = tempfile.mkdtemp(prefix="bert-tf-copies-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def local_copy(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> str:
    """Return a path on this machine that holds what a path does; of a remote one that is a copy.

    Copies are made once, and go when the process ends.

    Args:
        path: a file or folder.
        wanted: of the path of a file within the folder: whether it is copied.

    Raises:
        OSError: it cannot be read.
        ValueError: as of `file_system`.
    """
    if not is_remote(path):
        return os.fspath(path)
    system, name = file_system(path)
    if (place := worked_on_place(path)) and os.path.exists(place):
        return place  # newer than what is there
    copy = local_place(path, "copies")
    with errors_naming(path):
        if system.isdir(name):
            os.makedirs(copy, exist_ok=True)
            for file in system.find(name):
                if wanted(within := file[len(name) :].strip("/")):
                    _download(system, file, os.path.join(copy, within))
        else:
            _download(system, name, copy)
    return copy


def local_place(path: Path, kind: str) -> str:
    """Return where on this machine something stands in for a remote path; see `original_names`."""
    scheme, _, rest = os.fspath(path).partition("://")
    return os.path.join(_copies(), kind, f"{scheme}:", rest.strip("/"))


def worked_on_place(path: Path) -> str | None:
    """Return where a remote path lies in a folder of `stand_ins`; None where it is in none."""
    place = local_place(path, "folders")
    return place if any(f"{place}/".startswith(f"{folder}/") for folder in stand_ins) else None


def _download(system: Any, name: str, copy: str) -> None:
    if os.path.exists(copy):
        return
    with replacing(copy) as temporary:
        system.get_file(name, temporary)


def original_names(text: str) -> str:
    """Put in a text the remote paths themselves in place of those that stand in for them."""
    if not _copies.cache_info().currsize:
        return text
    return re.sub(rf"{re.escape(_copies())}/\w+/([^/]+):/", r"\1://", text)


class _OriginalNames:
    """A stream in which the names of remote paths stand as `original_names` puts them."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(original_names(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def printing_original_names() -> Iterator[None]:
    """Within it what is printed or logged has the remote paths themselves; see `original_names`."""
    out, err = (cast(IO[str], _OriginalNames(stream)) for stream in (sys.stdout, sys.stderr))
    handlers = [getattr(x, "python_handler", x) for x in logging.root.handlers]  # absl's has one
    handlers = [
        x for x in handlers if isinstance(x, logging.StreamHandler) and x.stream is sys.stderr
    ]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with contextlib.ExitStack() as stack:
            for handler in handlers:
                stack.callback(handler.setStream, handler.setStream(err))
            yield


def send(source: Path, path: Path) -> None:
    """Put a local file to a remote path, where it appears whole or not at all."""
    system, name = file_system(path)
    with errors_naming(path):
        system.makedirs(system._parent(name), exist_ok=True)
        if (
            "hdfs" in system.protocol
        ):  # which can rename, but not hold back a file until it is whole
            system.put_file(source, f"{name}.tmp-{os.getpid()}")
            system.mv(f"{name}.tmp-{os.getpid()}", name)
            return
        # With it ends what a file system has for this: a rename, or the last of an upload's parts.
        with system.transaction, open(source, "rb") as stream, system.open(name, "wb") as target:
            shutil.copyfileobj(stream, target, _BLOCK_BYTES)


def remove(path: Path) -> None:
    """Remove a file, here or remote, where it is there."""
    with contextlib.suppress(FileNotFoundError):
        if not is_remote(path):
            os.unlink(path)
        else:
            system, name = file_system(path)
            with errors_naming(path):
                system.rm_file(name)


# === Writing ===


def check_output(path: Path, argument: str) -> None:
    """Make sure that a file can be written, before there is work that would be lost.

    Args:
        path: the file; its folder is made where it is missing.
        argument: name of the flag or argument that it comes from, for the message.

    Raises:
        ValueError: it cannot be written, or is a folder, a device or a pipe.
    """
    text = os.fspath(path)
    try:
        if not os.path.basename(text) or is_folder(text):
            raise ValueError(f"{argument}: {text} is a folder, expected a file's name")
        _refuse_special(text)
        probe = beside(text, f".{os.path.basename(text)}.probe")
        if is_remote(text):
            system, name = file_system(probe)
            with errors_naming(text):
                system.makedirs(system._parent(name), exist_ok=True)
                system.pipe_file(name, b"")
        else:
            os.makedirs(os.path.dirname(text) or ".", exist_ok=True)
            with open(probe, "wb"):
                pass
        remove(probe)
    except ValueError as error:
        prefix = "" if str(error).startswith(f"{argument}: ") else f"{argument}: "
        raise ValueError(f"{prefix}{error}") from error.__cause__
    except OSError as error:
        reason = error.strerror or str(error).removeprefix(f"{text}: ")
        raise ValueError(f"{argument}: cannot write to {text}: {reason}") from error


def _refuse_special(path: Path) -> None:
    """Refuse a device or a pipe, which a file would take the place of."""
    if not is_remote(path) and os.path.exists(path) and not os.path.isfile(path):
        if not os.path.isdir(path):
            raise ValueError(
                f"{os.fspath(path)} is a device or a pipe, which a file would take the place of; "
                "give the name of a file"
            )


def local_path(path: Path) -> pathlib.Path:
    """Return a path that must be on this machine, as of a folder that is worked in.

    Raises:
        ValueError: it is remote.
    """
    if is_remote(path):
        raise ValueError(f"{os.fspath(path)}: expected a path on this machine, to copy from then")
    return pathlib.Path(path)


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[str]:
    """Give a name to write to; the file gets its own name when it is whole.

    Nothing is left of it where writing fails, and what was there stays.

    Args:
        path: the file; its folder is made where it is missing.
        suffix: end of the name to write to, for libraries that choose a format by it.

    Raises:
        ValueError: the path is of a device or a pipe, or as of `file_system`.
    """
    if is_remote(path):
        file_system(path)  # refuses one that is unknown
        with tempfile.TemporaryDirectory(prefix="bert-tf-") as folder:
            yield (temporary := os.path.join(folder, f"{os.path.basename(path)}{suffix}"))
            send(temporary, path)
        return
    _refuse_special(path)
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


def move(source: Path, path: Path) -> None:
    """Give a local file another name, maybe on another file system; it appears whole there."""
    if not is_remote(path):
        try:
            os.replace(source, path)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
    os.unlink(source)


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
    return read_text(path) if is_file(path) else None


def write_json(path: Path, value: Any, indent: int | None = 2, sort_keys: bool = True) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys) + "\n")


def read_json(path: Path) -> Any:
    """Return the value that a JSON file holds; errors as of `parse_json`."""
    return parse_json(read_text(path))


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
    with open_file(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _glob(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return glob.glob(pattern, recursive=True)
    system, name = file_system(pattern)
    with errors_naming(pattern):
        return [system.unstrip_protocol(path) for path in system.glob(name)]


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
        found = [pattern] if is_file(pattern) else []
        if not found and glob.has_magic(pattern):
            found = [path for path in _glob(pattern) if is_file(path)]
        if not found:
            reason = "is a folder" if is_folder(pattern) else "matches no file"
            raise FileNotFoundError(f"{argument}: {pattern!r} {reason}")
        paths += sorted(found)
    if not paths:
        raise FileNotFoundError(f"{argument}: no files are named by {patterns!r}")
    return paths
