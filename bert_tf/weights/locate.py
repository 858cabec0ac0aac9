"""What a path holds, told from the names and the content of files."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from bert_tf.config import BertConfig
from bert_tf.files import (
    beside,
    expand,
    is_file,
    is_folder,
    is_remote,
    local_copy,
    local_place,
    original_names,
    parse_json,
    read_text,
    worked_on_place,
)
from bert_tf.tokenization.vocabulary import VOCAB_NAME
from bert_tf.weights import tensor_files
from bert_tf.weights.published import fetched
from bert_tf.weights.shipped import shipped_models
from bert_tf.weights.tensor_files import CorruptCheckpointError, checkpoint_steps

CONFIG_NAME = "bert_config.json"
HF_CONFIG_NAME = "config.json"
LABELS_NAME = "labels.txt"
WEIGHTS_NAME = "bert_model.ckpt"
KERAS_SUFFIX = ".keras"
KERAS_WEIGHTS_SUFFIX = ".weights.h5"

KERAS_HUB_WEIGHTS = "model.weights.h5"
_KERAS_HUB_VOCAB = "assets/tokenizer/vocabulary.txt"
_KERAS_HUB_CLASSES = ("keras_hub>BertBackbone", "keras_nlp>BertBackbone")  # the latter is older
_TORCH_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What transformers writes for frameworks other than PyTorch, also in shards.
_OTHER_FRAMEWORKS = {
    "TensorFlow": re.compile(r"^tf_model(-\d+-of-\d+)?\.h5(\.index\.json)?$"),
    "Flax": re.compile(r"^flax_model(-\d+-of-\d+)?\.msgpack(\.index\.json)?$"),
}
_FROM_OTHERS = {"TensorFlow": "from_tf", "Flax": "from_flax"}


# === What a path holds ===


@dataclasses.dataclass(frozen=True)
class LocatedCheckpoint:
    """What `locate` found.

    Attributes:
        format: "tf" (TF1-format checkpoint or TF2 object checkpoint), "hf" (transformers),
            "keras_hub", "keras" (.keras) or "keras_weights" (.weights.h5).
        path: the prefix, file or, for KerasHub, directory that holds the weights.
        description: one phrase for the log.
        config_file: the configuration beside it, or None.
        vocab_file: the vocabulary beside it, one piece a line, or None.
    """

    format: str
    path: str
    description: str
    config_file: str | None
    vocab_file: str | None


def locate(path: str | os.PathLike) -> LocatedCheckpoint:
    """Find the checkpoint that a user means: a file, a TensorFlow prefix, a directory, or a name.

    The name is that of a model which comes with the package ("tiny-wikipedia"; what lies at a path
    of the same name goes first), or of a published one, as hf://OWNER/NAME, which is fetched unless
    it is here; see `published`.

    In a directory the first of these counts: bert_model.ckpt, model.safetensors (also in shards), a
    KerasHub preset, the newest `model.ckpt-<step>` of a run, pytorch_model.bin, and a .keras or
    .weights.h5 file if there is only one.

    Raises:
        FileNotFoundError: there is no checkpoint there, or a part of it is missing.
        CorruptCheckpointError: a file is not what its name says, or a pointer of git-lfs.
        ValueError: a file of another format.
    """
    text = _on_this_machine(fetched(path))
    if os.path.isdir(text):
        return _locate_in(pathlib.Path(text))
    prefix = re.sub(r"\.(index|data-\d+-of-\d+|meta)$", "", text)
    if os.path.exists(prefix + ".index"):
        return _located("tf", prefix, "TensorFlow checkpoint")
    _refuse_data_alone(pathlib.Path(prefix))
    if not os.path.isfile(text):
        models = shipped_models()
        if text in models:
            return _locate_in(models[text])
        raise FileNotFoundError(
            f"{text}: no such file or directory; expected a model directory, a weights file, the "
            f"prefix of a TensorFlow checkpoint (as in .../{WEIGHTS_NAME}), or the name of a model "
            f"that comes with this package ({', '.join(models)})"
        )
    _refuse_other_frameworks(pathlib.Path(text))
    tensor_files.refuse_pointer(text)
    content = tensor_files.recognise(text)
    if content in ("safetensors", "torch") or (
        content == "json" and text.endswith(tensor_files.INDEX_SUFFIX)
    ):
        return _located("hf", text, "transformers weights")
    if content == "keras":
        return _located("keras", text, "Keras model")
    if content == "hdf5" and _keras_hub_class(pathlib.Path(text)) is not None:
        return _locate_in(pathlib.Path(text).parent)
    if content == "hdf5" and text.endswith(KERAS_WEIGHTS_SUFFIX):
        return _located("keras_weights", text, "Keras weights")
    if text.endswith((".safetensors", ".bin", ".pt", ".pth", KERAS_SUFFIX, KERAS_WEIGHTS_SUFFIX)):
        raise CorruptCheckpointError(f"{text}: its content is not that of such a file")
    raise ValueError(
        f"{text}: not a format that is read; expected safetensors, a torch state dict, .keras, "
        f"{KERAS_WEIGHTS_SUFFIX}, a TensorFlow checkpoint or a directory with one of them"
    )


def _on_this_machine(path: str) -> str:
    """Copy a remote checkpoint here, with what lies beside it that belongs to it."""
    if not is_remote(path):
        return path
    if is_folder(path):
        # Where the trained model is there, what its training would go on from is not needed.
        others = r"^(records|tensorboard|seed-\d+)/"
        if is_file(f"{path}/{WEIGHTS_NAME}.index"):
            others += r"|^model\.ckpt-"
        return local_copy(path, lambda name: not re.search(others, name))
    prefix = re.sub(r"\.(index|data-\d+-of-\d+|meta)$", "", path)
    names = ["*.json", "*.txt", "assets/tokenizer/*"]
    if path.endswith(tensor_files.INDEX_SUFFIX):
        names += ["*.safetensors", "*.bin"]
    if not _copy((path, f"{prefix}.*")):
        raise FileNotFoundError(f"{path}: no such file or directory")
    _copy(beside(path, name) for name in names)
    # Within a folder that a command works in nothing was copied: it is there.
    place = worked_on_place(prefix)
    is_there = place and glob.glob(f"{glob.escape(place)}*")
    return local_place(path, "folders" if is_there else "copies")


def _copy(patterns: Iterable[str]) -> int:
    """Copy the remote files that patterns name, and return how many there are."""
    count = 0
    for pattern in patterns:
        with contextlib.suppress(FileNotFoundError):
            count += len(list(map(local_copy, expand(pattern, "path"))))
    return count


def _locate_in(folder: pathlib.Path) -> LocatedCheckpoint:
    safetensors = folder / tensor_files.SAFETENSORS_NAME
    for weights in (safetensors, folder / f"{safetensors.name}{tensor_files.INDEX_SUFFIX}"):
        if (folder / f"{WEIGHTS_NAME}.index").exists():
            return _located("tf", folder / WEIGHTS_NAME, "model directory")
        if weights.exists():
            return _located("hf", weights, "transformers weights")
    preset = folder / KERAS_HUB_WEIGHTS
    if preset.exists() and (name := _keras_hub_class(preset)) is not None:
        if name not in _KERAS_HUB_CLASSES:
            raise ValueError(f"{folder}: a preset of {name}; expected {_KERAS_HUB_CLASSES[0]}")
        vocab = folder / _KERAS_HUB_VOCAB
        return _without_pointers(
            LocatedCheckpoint(
                "keras_hub",
                str(folder),
                f"KerasHub preset {original_names(str(folder))}",
                str(folder / HF_CONFIG_NAME),
                str(vocab) if vocab.exists() else None,
            ),
            [preset],
        )
    if steps := checkpoint_steps(folder):
        return _located("tf", folder / f"model.ckpt-{steps[-1]}", "newest checkpoint of a run")
    for name in _TORCH_NAMES:
        if (folder / name).exists():
            return _located("hf", folder / name, "transformers weights")
    keras_files = sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith((KERAS_SUFFIX, KERAS_WEIGHTS_SUFFIX)) and not is_temporary(path)
    )
    if len(keras_files) == 1:
        return locate(keras_files[0])
    others = [file.name for file in keras_files] + sorted(p.name for p in folder.glob("*.index"))
    if not others:
        _refuse_known_folders(folder)
    raise FileNotFoundError(
        f"{folder}: expected {WEIGHTS_NAME}.index, {safetensors.name}, a KerasHub preset or "
        "model.ckpt-<step>.index in this folder"
        + (f"; name one of {', '.join(others)}" if others else "")
    )


def is_temporary(path: pathlib.Path) -> bool:
    """Tell whether a file is what a write that was killed has left (`files.replacing`)."""
    return re.search(r"\.tmp[.-]", path.name) is not None


def _refuse_known_folders(folder: pathlib.Path) -> None:
    """Say what a folder without a checkpoint is, where that shows."""
    paths = sorted(folder.iterdir())
    for path in paths:
        _refuse_other_frameworks(path)
        if re.search(r"\.data-\d+-of-\d+$", path.name):
            _refuse_data_alone(path.with_suffix(""))
    for snapshot in sorted((folder / "snapshots").glob(f"*/{HF_CONFIG_NAME}")):
        raise FileNotFoundError(
            f"{folder}: a folder of the cache of Hugging Face, whose models are in its folder "
            f"snapshots; name {snapshot.parent}"
        )
    # sentence-transformers keeps the encoder in a folder of its own, that modules.json names.
    names = [path.name for path in paths if re.match(r"^0_[A-Z]\w*$", path.name)]
    with contextlib.suppress(OSError, ValueError):
        modules = parse_json((folder / "modules.json").read_text(encoding="utf-8"))
        modules = modules if isinstance(modules, list) else []
        names = [m["path"] for m in modules if isinstance(m, dict) and _is_name(m.get("path"))]
    for name in names:
        if (folder / name / HF_CONFIG_NAME).is_file():
            raise FileNotFoundError(
                f"{folder}: a folder of sentence-transformers, whose encoder is in the folder "
                f"{name}; name {folder / name}"
            )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _refuse_other_frameworks(path: pathlib.Path) -> None:
    for framework, names in _OTHER_FRAMEWORKS.items():
        if names.match(path.name) and path.is_file():
            raise ValueError(
                f"{path}: weights that transformers wrote for {framework}, which are not read; "
                f"get {tensor_files.SAFETENSORS_NAME} or {_TORCH_NAMES[0]} of the same model, or "
                "convert it with transformers 4, the last that reads it: from_pretrained(FOLDER, "
                f"{_FROM_OTHERS[framework]}=True).save_pretrained(NEW)"
            )


def _refuse_data_alone(prefix: pathlib.Path) -> None:
    """Tell of the data of a TensorFlow checkpoint that lie there without their index."""
    data = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*"))
    if data and not os.path.exists(f"{prefix}.index"):
        raise FileNotFoundError(
            f"{prefix}.index: no such file; {data[0].name} beside it is only a part of a "
            "TensorFlow checkpoint, and cannot be read without the index"
        )


def _without_pointers(located: LocatedCheckpoint, weights: list[pathlib.Path]) -> LocatedCheckpoint:
    """Refuse what was located if git has put a pointer where one of its files should be."""
    for path in (*weights, located.config_file, located.vocab_file):
        if path is not None and os.path.isfile(path):
            tensor_files.refuse_pointer(path)
    return located


def _keras_hub_class(weights: pathlib.Path) -> str | None:
    """Return what KerasHub class a preset's weights are of; None if they are not of a preset."""
    config = weights.parent / HF_CONFIG_NAME
    if weights.name != KERAS_HUB_WEIGHTS or not config.exists():
        return None
    name = read_json(config).get("registered_name")
    return name if isinstance(name, str) else None


def _located(kind: str, path: str | os.PathLike, description: str) -> LocatedCheckpoint:
    folder = pathlib.Path(path).parent
    # A run's folder has a config.json of another kind: the settings of the run.
    names = (HF_CONFIG_NAME, CONFIG_NAME) if kind == "hf" else (CONFIG_NAME,)
    configs = [folder / name for name in names if (folder / name).exists()]
    vocab = folder / VOCAB_NAME
    weights = [pathlib.Path(path)]
    if kind == "tf":
        name = glob.escape(weights[0].name)
        weights = [folder / f"{weights[0].name}.index", *folder.glob(f"{name}.data-*-of-*")]
    located = LocatedCheckpoint(
        format=kind,
        path=str(path),
        description=f"{description} {original_names(str(path))}",
        config_file=str(configs[0]) if configs else None,
        vocab_file=str(vocab) if vocab.exists() else None,
    )
    return _without_pointers(located, weights)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file holds something else; the message names it.
        CorruptCheckpointError: it is a pointer of git-lfs.
    """
    try:
        values = parse_json(read_text(path))
    except ValueError as error:
        tensor_files.refuse_pointer(path)
        raise ValueError(f"{os.fspath(path)}: not a JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{os.fspath(path)}: expected a JSON object")
    return values


# === Opening ===


def read_config(located: LocatedCheckpoint) -> BertConfig | None:
    """Read the configuration that lies beside weights; None where there is none."""
    if located.config_file is None:
        return None
    if located.format == "keras_hub":
        return config_of_keras_hub(
            read_json(located.config_file).get("config"), located.config_file
        )
    # "gelu" is one thing in config.json and another in bert_config.json.
    is_theirs = pathlib.Path(located.config_file).name == HF_CONFIG_NAME
    return BertConfig.from_json_file(located.config_file, style="hf" if is_theirs else None)


# Our fields -> KerasHub's, and the values of those that it may leave out.
_KERAS_HUB_FIELDS = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "dropout",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
}
_KERAS_HUB_DEFAULTS = {"dropout": 0.1, "max_sequence_length": 512, "num_segments": 2}


def config_of_keras_hub(values: Any, description: str) -> BertConfig:
    """Return the configuration of a KerasHub BertBackbone.

    Args:
        values: the backbone's own, as its `get_config` gives them.
        description: what they are of, for messages.

    Raises:
        ValueError: they are of another model.
    """
    try:
        values = {**_KERAS_HUB_DEFAULTS, **values}
        return BertConfig(**{ours: values[theirs] for ours, theirs in _KERAS_HUB_FIELDS.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{description}: not the configuration of a BertBackbone: {error!r}"
        ) from error
