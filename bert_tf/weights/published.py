"""Published models by name, brought here by the library of the place that has them.

| name | is |
|---|---|
| `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION/FOLDER` | a repository of the Hugging Face Hub |
| `kaggle://OWNER/MODEL/FRAMEWORK/VARIATION`, with `/VERSION` | a model of Kaggle, as KerasHub's |
| `google://NAME` | an archive of google-research/bert |
"""

from __future__ import annotations

import importlib
import os

from bert_tf.files import Path, is_published, reason_of

# Scheme -> the module that knows it, and the package that it needs.
_SOURCES = {
    "hf": ("hugging_face", "huggingface_hub"),
    "kaggle": ("kaggle", "kagglehub"),
    "google": ("google_archive", "requests"),
}


def fetched(path: Path) -> str:
    """Return where on this machine a published model lies, and any other path as it is.

    What is not here yet is fetched. Nothing of it is executed.

    Raises:
        OSError: it is not here and cannot be had; the message says what to do.
        CorruptCheckpointError: what came is damaged.
        ValueError: it is not a name of this form, or the model is in no format that is read.
    """
    name = os.fspath(path)
    if not is_published(name):
        return name
    module, package = _SOURCES[name.partition(":")[0]]
    try:
        source = importlib.import_module(f"bert_tf.weights.{module}")  # which no other path needs
    except ImportError as error:
        raise OSError(f"{name}: pip install {package}, which fetches it ({error})") from error
    return source.fetch(name)


def cause_of(error: BaseException) -> str:
    """Return in one line what an error of a network came from."""
    while error.__context__ is not None:
        error = error.__context__
    return reason_of(error)
