"""Models of Kaggle, by kagglehub: presets of KerasHub, in the cache that KerasHub uses.

Its settings hold: KAGGLEHUB_CACHE, and the token of KAGGLE_API_TOKEN or of `kagglehub.login()`.
"""

from __future__ import annotations

import logging
import os
import pathlib
import re

import kagglehub
import requests
from kagglehub.config import get_cache_folder
from kagglehub.exceptions import DataCorruptionError

from bert_tf.weights.published import cause_of
from bert_tf.weights.tensor_files import CorruptCheckpointError

_log = logging.getLogger(__name__)


def fetch(name: str) -> str:
    """Return the folder of a model in the cache of kagglehub; see `published`."""
    handle = name.partition("://")[2].rstrip("/")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){3}(/\d+)?", handle) or ".." in handle:
        raise ValueError(
            f"{name}: expected kaggle://OWNER/MODEL/FRAMEWORK/VARIATION, or that with /VERSION, as "
            "in kaggle://keras/bert/keras/bert_base_en_uncased/3"
        )
    try:
        return kagglehub.model_download(handle)
    except DataCorruptionError as error:
        raise CorruptCheckpointError(
            f"{name}: a file came damaged (its digest differs), and was removed; try again"
        ) from error
    except requests.RequestException as error:
        if (cached := _cached(handle)) is not None:
            _log.warning("%s: %s; the copy in the cache is taken", name, cause_of(error))
            return cached
        status = error.response.status_code if error.response is not None else None
        page = f"https://www.kaggle.com/models/{handle}"
        if status in (401, 403):
            raise PermissionError(
                f"{name}: not open to all; accept its conditions on {page}, and set "
                "KAGGLE_API_TOKEN or call kagglehub.login()"
            ) from error
        if status == 404:
            raise FileNotFoundError(f"{name}: no such model; see {page}") from error
        raise OSError(
            f"{name}: not whole in the cache {get_cache_folder()}, and Kaggle cannot be asked "
            f"({cause_of(error)}); connect and try again (what came is kept), or copy the model's "
            "folder and give its path"
        ) from error


def _cached(handle: str) -> str | None:
    """Return the folder of a model's newest version in the cache that is whole; None without one.

    kagglehub marks what it has fetched: a model, or of one that KerasHub fetched each file.
    """
    parts = handle.split("/")
    folder, versions = pathlib.Path(get_cache_folder(), "models", *parts[:4]), parts[4:]
    versions = versions or [path.name for path in folder.glob("*") if path.name.isdecimal()]
    for version in sorted(versions, key=int, reverse=True):
        weights = folder / ".complete" / version / "model.weights.h5.complete"
        if (folder / f"{version}.complete").exists() or weights.exists():
            return os.fspath(folder / version)
    return None
