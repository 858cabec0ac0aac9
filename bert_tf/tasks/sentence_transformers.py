"""The files by which sentence-transformers knows how a model makes vectors of texts.

Beside the encoder, as transformers keeps it, lies modules.json, which names what follows it: a
folder with the pooling's settings, and one for making vectors of length 1.

Reference: sentence-transformers, `SentenceTransformer.save`.
"""

import logging
import os
import pathlib
from typing import Any

from bert_tf.files import read_json, write_json
from bert_tf.tasks.trained_task import POOLINGS, TrainedTask

_log = logging.getLogger(__name__)

MODULES_NAME = "modules.json"
_POOLING_FOLDER, _NORMALIZE_FOLDER = "1_Pooling", "2_Normalize"
_SETTINGS_NAME = "sentence_bert_config.json"
_PROMPTS_NAME = "config_sentence_transformers.json"
# Pooling -> the key that says so; what other modes there are is False.
_MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
}
_OTHER_MODES = (
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)
_TOKENIZER_NAME = "tokenizer_config.json"
_LONGEST = 512  # of a folder that does not say
_MOST = 1 << 20


def read_sentence_transformers(folder: str | os.PathLike) -> TrainedTask | None:
    """Read what a folder of sentence-transformers says of its vectors.

    Args:
        folder: of the encoder: the folder itself, or within it that of the first module.

    Returns:
        None where it is no such folder, or, with a warning, where its vectors are made in a way
        that is not known here.

    Raises:
        ValueError: a file is damaged, missing, or out of the folder.
    """
    encoder = root = pathlib.Path(folder)
    modules = _modules(root)
    if modules is None:
        root = root.parent
        modules = _modules_with(root, encoder.name)
    if modules is None:
        return None
    names = [str(module.get("type")).rpartition(".")[2] for module in modules]
    pooling = reason = None
    if names[:2] == ["Transformer", "Pooling"] and names[2:] in ([], ["Normalize"]):
        settings = _pooling_settings(root, modules[1].get("path"))
        pooling, reason = _pooling(settings), _other_ways(root, encoder, settings)
    if pooling is None or reason is not None:
        _log.warning(
            "%s: a folder of sentence-transformers whose vectors are made in a way that is not "
            "known here (%s): those of the encoder alone are others",
            root,
            reason or ", ".join(names),
        )
        return None
    return TrainedTask(
        "similarity", _length(encoder), pooling=pooling, normalize="Normalize" in names
    )


def _other_ways(root: pathlib.Path, encoder: pathlib.Path, pooling: dict[str, Any]) -> str | None:
    """Return which setting makes vectors other than pooling does; None where there is none."""
    values = _values(root / _PROMPTS_NAME)
    name, prompts = values.get("default_prompt_name"), values.get("prompts")
    prompts = prompts if isinstance(prompts, dict) else {}
    prompts = {key: text for key, text in prompts.items() if text}
    if isinstance(name, str) and name in prompts:
        return f"the prompt {prompts[name]!r} stands before each text"
    if pooling.get("include_prompt") is False:
        return "a prompt before a text is left out of the pooling"
    if _values(encoder / _SETTINGS_NAME).get("do_lower_case") is True:
        if _values(encoder / _TOKENIZER_NAME).get("do_lower_case") is not True:
            return "texts become lower case before the tokenizer"
    if prompts:
        _log.warning(
            "%s: has prompts, %s, which nothing here puts before a text, nor keeps: let your texts "
            "begin with them",
            root,
            ", ".join(f"{key} {text!r}" for key, text in prompts.items()),
        )
    return None


def _values(path: pathlib.Path) -> dict[str, Any]:
    """Return the settings that a file holds; none where it is not there, or no object."""
    values = read_json(path) if path.is_file() else {}
    return values if isinstance(values, dict) else {}


def _length(folder: pathlib.Path) -> int:
    """Return the pieces of a text that count: those of sentence-transformers, or the tokenizer."""
    for name, key in ((_SETTINGS_NAME, "max_seq_length"), (_TOKENIZER_NAME, "model_max_length")):
        length = _values(folder / name).get(key)
        # The tokenizer's may be a huge number that stands for none.
        if isinstance(length, int) and 3 <= length <= _MOST:
            return length
    return _LONGEST


def _modules(folder: pathlib.Path) -> list[dict[str, Any]] | None:
    path = folder / MODULES_NAME
    if not path.is_file():
        return None
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"{path}: expected a list of modules")
    return modules


def _modules_with(folder: pathlib.Path, name: str) -> list[dict[str, Any]] | None:
    """Return the modules of the folder above an encoder's; None where they are of another model.

    Then its modules.json may be anything.
    """
    try:
        modules = _modules(folder)
    except ValueError:
        return None
    return modules if modules and modules[0].get("path") == name else None


def _pooling_settings(root: pathlib.Path, path: Any) -> dict[str, Any]:
    """Read the settings of the pooling; what is out of the folder is another's."""
    place = pathlib.PurePath(str(path))
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(
            f"{root / MODULES_NAME}: module 1: expected a path within the folder, got {path!r}"
        )
    file = root / place / "config.json"
    if not file.is_file():
        raise ValueError(f"{root / MODULES_NAME}: module 1: there is no {file}")
    return _values(file)


def _pooling(settings: dict[str, Any]) -> str | None:
    """Return the pooling that settings say; None for one that is not known, or for several."""
    if "pooling_mode" in settings:  # one word, as newer releases write it
        modes = settings["pooling_mode"]
        modes = modes if isinstance(modes, list) else [modes]
        return modes[0] if len(modes) == 1 and modes[0] in POOLINGS else None
    modes = [name for name, is_on in settings.items() if name.startswith("pooling_mode_") and is_on]
    return next((p for p, mode in _MODES.items() if modes == [mode]), None)


def write_sentence_transformers(
    folder: str | os.PathLike, trained: TrainedTask, hidden_size: int
) -> None:
    """Write the files that make a folder of transformers one of sentence-transformers.

    Args:
        folder: with config.json, model.safetensors and the tokenizer.
        trained: with its pooling, normalize and max_seq_length.
        hidden_size: D.

    Raises:
        ValueError: the model was not trained for vectors.
        OSError: a file cannot be written.
    """
    if trained.pooling is None:
        raise ValueError(f"trained: a model for {trained.kind} has no pooling")
    root = pathlib.Path(folder)
    types = [("", "Transformer"), (_POOLING_FOLDER, "Pooling")]
    types += [(_NORMALIZE_FOLDER, "Normalize")] if trained.normalize else []
    (root / _POOLING_FOLDER).mkdir(exist_ok=True)
    modes = {mode: pooling == trained.pooling for pooling, mode in _MODES.items()}
    write_json(
        root / _POOLING_FOLDER / "config.json",
        {
            "word_embedding_dimension": hidden_size,
            **modes,
            **dict.fromkeys(_OTHER_MODES, False),
            "include_prompt": True,
        },
        sort_keys=False,
    )
    if trained.normalize:
        (root / _NORMALIZE_FOLDER).mkdir(exist_ok=True)  # which needs no settings
    # The tokenizer has its own casing.
    settings = {"max_seq_length": trained.max_seq_length, "do_lower_case": False}
    write_json(root / _SETTINGS_NAME, settings, sort_keys=False)
    write_json(
        root / _PROMPTS_NAME,
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        sort_keys=False,
    )
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": path,
            "type": f"sentence_transformers.models.{name}",
        }
        for number, (path, name) in enumerate(types)
    ]
    write_json(root / MODULES_NAME, modules, sort_keys=False)  # last: by it the folder is known
