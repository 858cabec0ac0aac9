"""The archives of google-research/bert.

Kept in the folder google of BERT_TF_CACHE (~/.cache/bert_tf), one folder a model, without the
archive. BERT_TF_GOOGLE_MIRROR names another place that has the same archives.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import os
import pathlib
import re
import shutil
import zipfile
import zlib

import filelock
import requests
from tqdm import tqdm

from bert_tf.config import BertConfig
from bert_tf.files import check_declared
from bert_tf.weights.google_digests import DIGESTS, FILES
from bert_tf.weights.published import cause_of
from bert_tf.weights.released import RELEASED
from bert_tf.weights.tensor_files import CorruptCheckpointError

STORAGE = "https://storage.googleapis.com/bert_models"
_OPTIONAL = "bert_model.ckpt.meta"  # the graph, which nothing here reads
_ATTEMPTS = 5
_SECONDS = (10, 60)  # to connect, and between pieces
_PIECE_BYTES = 1 << 16  # of a piece that is cut off nothing is kept
_BLOCK_BYTES = 1 << 20


def cache_folder() -> pathlib.Path:
    """Return the folder that fetched models are kept in."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return pathlib.Path(os.environ.get("BERT_TF_CACHE") or f"{home}/bert_tf").expanduser()


def fetch(name: str) -> str:
    """Return the folder of a model, fetched unless it is there; see `published`."""
    archive = _archive(name)
    folder = cache_folder() / "google" / archive
    if folder.is_dir():
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if folder.is_dir():  # another process had it
            return str(folder)
        part = folder.with_name(f"{folder.name}.zip.part")
        mirror = os.environ.get("BERT_TF_GOOGLE_MIRROR") or STORAGE
        try:
            _download(name, f"{mirror.rstrip('/')}/{archive}.zip", part, folder)
            _unpack(name, part, folder)
        except CorruptCheckpointError:
            part.unlink()
            raise
        part.unlink()
    return str(folder)


def _archive(name: str) -> str:
    """Return the folder and name of an archive at Google."""
    archives = {preset.names[0]: preset.archive for preset in RELEASED}
    archives |= {f"google://{archive}": archive for archive in archives.values()}
    if name.rstrip("/") not in archives:
        near = difflib.get_close_matches(name, archives, 3, 0.3)
        meant = f"is it one of {', '.join(near)}? " if near else ""
        raise ValueError(
            f"{name}: no such model of google-research/bert; {meant}bert_tf.presets() lists all"
        )
    return archives[name.rstrip("/")]


# === The download ===


def _download(name: str, url: str, part: pathlib.Path, folder: pathlib.Path) -> None:
    """Fetch an archive, from where an earlier attempt ended."""
    reason = "the connection ended early"
    for _ in range(_ATTEMPTS):
        before = _size(part)
        try:
            if _receive(name, url, part):
                return
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status < 500 and status != 429:
                raise OSError(f"{name}: {url} cannot be had: {error}") from error
            reason = cause_of(error)
        except requests.ConnectionError as error:  # no network; or nothing more came for a minute
            reason = cause_of(error)
            if _size(part) <= before:
                break
        except requests.RequestException as error:
            reason = cause_of(error)
    raise OSError(
        f"{name}: not in {folder}, and {url} cannot be had ({reason}); connect and try again (what "
        "came is kept), name a mirror with BERT_TF_GOOGLE_MIRROR, or unpack the archive there"
    )


def _size(part: pathlib.Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(name: str, url: str, part: pathlib.Path) -> bool:
    """Ask for the rest of an archive, and tell whether it is whole.

    Raises:
        CorruptCheckpointError: it is not what the server says that it has.
        requests.RequestException: it cannot be had.
    """
    start = _size(part)
    # As it is, for the sizes below to mean bytes of the file.
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with requests.get(url, stream=True, timeout=_SECONDS, headers=headers) as response:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code == 416:  # there is no more
            if total != str(start):
                part.unlink()
                return False
        else:
            response.raise_for_status()
            if response.status_code != 206:  # the whole of it, though the rest was asked for
                start, total = 0, response.headers.get("Content-Length", "")
            size = int(total) if total.isdecimal() else None
            with (
                open(part, "ab" if start else "wb") as file,
                tqdm(
                    desc=name, total=size, initial=start, unit="B", unit_scale=True, disable=None
                ) as bar,
            ):
                for block in response.iter_content(_PIECE_BYTES):
                    file.write(block)
                    bar.update(len(block))
        if total.isdecimal() and _size(part) != int(total):
            return False
        # Google's storage says what the MD5 of the whole is.
        digests = re.search(r"md5=([\w+/=]+)", response.headers.get("x-goog-hash", ""))
    if digests and digests[1] != _md5(part):
        raise CorruptCheckpointError(
            f"{name}: the archive came damaged (its MD5 differs from the server's), and was "
            "removed; try again"
        )
    return True


def _md5(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode()


# === The archive ===


def _unpack(name: str, path: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the files of a model into its folder, which appears whole.

    Raises:
        CorruptCheckpointError: it is not the archive of this model.
    """
    made = folder.with_name(f".unpacked-{folder.name}")
    shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
    made.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive)
            total = sum(member.file_size for member in members.values())
            check_declared(total, path.stat().st_size, "the archive")
            digests = {f: _write(archive, m, made / f) for f, m in members.items()}
        _check(made, folder.name, digests, DIGESTS.get(f"{folder.parent.name}/{folder.name}"))
        os.replace(made, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise CorruptCheckpointError(
            f"{name}: not the archive that it should be ({error}), and removed; try again"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return file -> its entry: those of a model, at the top or in one folder, and no other."""
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        *parents, file = entry.filename.split("/")
        if file not in FILES or len(parents) > 1 or parents in ([".."], [""]):
            continue
        if file in members:
            raise ValueError(f"it has {file} twice")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{file} is compressed in another way than Google's")
        members[file] = entry
    missing = set(FILES) - set(members) - {_OPTIONAL}
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return members


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: pathlib.Path) -> str:
    """Write an entry, whose CRC is compared at its end, and return its SHA-256."""
    digest = hashlib.sha256()
    with archive.open(entry) as source, open(target, "wb") as file:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _check(
    made: pathlib.Path, name: str, digests: dict[str, str], expected: tuple[str, ...] | None
) -> None:
    """Compare a model's files with the digests that are known, and its sizes with its name."""
    for file, digest in zip(FILES, expected or (), strict=bool(expected)):
        if digests.get(file) != digest:
            raise ValueError(f"SHA-256 of {file} is {digests.get(file)}, expected {digest}")
    config = BertConfig.from_json_file(made / "bert_config.json")
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    if not name.endswith("L-{}_H-{}_A-{}".format(*sizes)):
        raise ValueError(f"its bert_config.json has {sizes} layers, width and heads")
