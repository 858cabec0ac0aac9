"""Models of the Hugging Face Hub, by huggingface_hub.

Its settings hold: HF_ENDPOINT, HF_HOME and HF_HUB_CACHE (the cache that transformers uses too),
HF_HUB_OFFLINE, and the token of HF_TOKEN or of `hf auth login`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from huggingface_hub import HfApi, constants, errors, snapshot_download, try_to_load_from_cache

from bert_tf.files import sha256
from bert_tf.weights.published import cause_of
from bert_tf.weights.tensor_files import CorruptCheckpointError

_log = logging.getLogger(__name__)

# The kinds of weights of a repository, best first; of each the file to open, and the others.
_WEIGHTS = (
    ("model.safetensors", "-"),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("bert_model.ckpt.index", "bert_model.ckpt.*"),
    ("model.weights.h5", "-"),
    ("pytorch_model.bin", "-"),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ("*.keras", "-"),
)
_BESIDE = r"[^/]+\.(json|txt)|assets/tokenizer/.+"


class Name(NamedTuple):
    """The parts of hf://OWNER/NAME@REVISION/FOLDER."""

    repository: str
    revision: str | None
    folder: str  # "" for the repository itself

    @classmethod
    def of(cls, name: str) -> Name:
        """Take a name apart; ValueError if it is none."""
        match = re.fullmatch(r"hf://([^/@]+(?:/[^/@]+)?)(?:@([^/]+))?(?:/(.+?))?/?", name)
        if match is None:
            raise ValueError(f"{name}: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
        return cls(match[1], match[2], match[3] or "")


def fetch(name: str) -> str:
    """Return the path of a model's weights in the cache of huggingface_hub; see `published`."""
    repository, revision, folder = Name.of(name)
    try:
        seconds = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().repo_info(repository, revision=revision, timeout=seconds)
    except (errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise _explained(name, error) from error
    except Exception as error:  # of the Hub, of httpx, of sockets
        return _cached(name, error)
    wanted = wanted_files(name, [file.rfilename for file in info.siblings or ()], folder)
    known = {f for f in wanted if try_to_load_from_cache(repository, f, revision=info.sha)}
    try:
        # By the name, not the commit: the cache then knows what the name means without a network.
        # The file to open comes last: where it is, the others are.
        for part in (wanted[1:], wanted[:1]):
            found = snapshot_download(repository, revision=revision, allow_patterns=part)
    except Exception as error:
        raise _explained(name, error) from error
    finally:  # also of a download that ended early: what came of it is not fetched again
        now = (try_to_load_from_cache(repository, f, revision=info.sha) for f in wanted)
        came = [path for file, path in zip(wanted, now, strict=True) if file not in known]
        _check_digests(name, [path for path in came if isinstance(path, str)])
    return os.path.join(found, wanted[0])


def wanted_files(name: str, files: Iterable[str], folder: str) -> list[str]:
    """Return the files of a repository to have: those of the best weights, and what is beside.

    The first is the one to open.

    Raises:
        ValueError: it holds no weights of a kind that is read.
    """
    prefix = f"{folder}/" if folder else ""
    within = sorted(file.removeprefix(prefix) for file in files if file.startswith(prefix))
    beside = [file for file in within if re.fullmatch(_BESIDE, file)]
    for first, others in _WEIGHTS:
        opened = [file for file in within if fnmatch.fnmatch(file, first) and "/" not in file]
        if len(opened) == 1:
            rest = [file for file in within if fnmatch.fnmatch(file, others)] + beside
            return [prefix + file for file in dict.fromkeys(opened + rest)]
    kinds = ", ".join(first for first, _ in _WEIGHTS)
    raise ValueError(f"{name}: expected one of {kinds} there, got {', '.join(within) or 'nothing'}")


def _cached(name: str, error: Exception) -> str:
    """Return the path of a model's weights that are in the cache without the Hub's help."""
    repository, revision, folder = Name.of(name)
    try:
        # The patterns match nothing: the file to open, fetched last, tells whether all is there.
        found = snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=[]
        )
        files = [p.relative_to(found).as_posix() for p in pathlib.Path(found).rglob("*")]
        wanted = wanted_files(name, files, folder)
    except (errors.LocalEntryNotFoundError, ValueError):
        raise _explained(name, error) from error
    if not constants.HF_HUB_OFFLINE:
        _log.warning("%s: %s; the copy in the cache is taken", name, cause_of(error))
    return os.path.join(found, wanted[0])


def _explained(name: str, error: Exception) -> OSError:
    """Return an error of one line that says what to do."""
    repository, revision, _ = Name.of(name)
    page = f"{constants.ENDPOINT}/{repository}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{name}: a gated model; accept its conditions on {page}, and {login}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{name}: {page} has no revision {revision}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(f"{name}: no such model, or a private one; see {page}, or {login}")
    if isinstance(error, errors.HFValidationError):
        return FileNotFoundError(f"{name}: {cause_of(error)}")
    remedy = "connect and try again (files that came are kept), or name a mirror with HF_ENDPOINT"
    if constants.HF_HUB_OFFLINE:
        remedy = "unset HF_HUB_OFFLINE to fetch it"
    return OSError(
        f"{name}: not whole in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot "
        f"be asked ({cause_of(error)}); {remedy}, or copy the model's folder and give its path"
    )


def _check_digests(name: str, paths: Iterable[str]) -> None:
    """Compare files that came with the digests that the Hub calls them by; remove the damaged.

    In the cache a file's name is a link to the digest: SHA-256 of large files, git's of others.
    """
    damaged = []
    for path in paths:
        file = pathlib.Path(path).resolve()
        if re.fullmatch(r"[0-9a-f]{64}", file.name):
            digest = sha256(file)
        elif re.fullmatch(r"[0-9a-f]{40}", file.name):
            content = file.read_bytes()
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324
        else:
            continue
        if digest != file.name:
            file.unlink()
            os.unlink(path)
            damaged.append(
                f"{os.path.basename(path)} came damaged (digest {digest}, expected {file.name})"
            )
    if damaged:
        raise CorruptCheckpointError(f"{name}: {', '.join(damaged)}, and was removed; try again")
