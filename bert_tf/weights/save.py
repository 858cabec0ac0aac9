"""Models to the formats of every system that has BERT.

Weights are written first, under a temporary name. Once they are whole, older ones are removed, the
files beside them written, and the weights get their name: what is recognised as a checkpoint is a
whole one, and a write that fails leaves the older one as it was.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from bert_tf.config import BertConfig
from bert_tf.models.layers import Dropout
from bert_tf.tokenization.wordpiece import SPECIAL_TOKENS, FullTokenizer
from bert_tf.weights import tensor_files
from bert_tf.weights.checkpoint import (
    CONFIG_NAME,
    HF_CONFIG_NAME,
    KERAS_HUB_WEIGHTS,
    KERAS_SUFFIX,
    KERAS_WEIGHTS_SUFFIX,
    LABELS_NAME,
    VOCAB_NAME,
    WEIGHTS_NAME,
    bert_layer,
    config_of,
    import_tensor_bundle,
    kind_of,
    to_numpy,
    weights_by_name,
)
from bert_tf.weights.layouts import (
    HEADS_PATTERN,
    HF,
    HF_ARCHITECTURES,
    KERAS_HUB,
    POOLER,
    TF1,
    abbreviate,
)

_log = logging.getLogger(__name__)

_HF_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def save_tf1(model: keras.Model, prefix: str | os.PathLike) -> None:
    """Write the weights of a model as a TF1-format checkpoint under the original's names.

    Args:
        model: any model whose variable paths are the names to write.
        prefix: path without `.index`; its folder is made where it is missing.

    Raises:
        OSError: the files cannot be written.
        ValueError: the prefix is a folder.
    """
    if not os.path.basename(os.fspath(prefix)):
        raise ValueError(f"prefix: expected a name as in .../{WEIGHTS_NAME}, got {prefix}")
    _write_tf1(prefix, weights_by_name(model))


def _write_tf1(
    prefix: str | os.PathLike, weights: dict[str, keras.Variable], step: int | None = None
) -> None:
    theirs = TF1.theirs
    tensors: dict[str, Any] = {str(theirs(path)): weight for path, weight in weights.items()}
    if step is not None:
        tensors["global_step"] = np.int64(step)
    import_tensor_bundle(prefix).write_tensors(prefix, tensors)


def save_model_directory(
    directory: str | os.PathLike,
    model: keras.Model,
    vocab_file: str | os.PathLike | None = None,
    labels: Sequence[str] | None = None,
    tokenizer: FullTokenizer | None = None,
    step: int | None = None,
) -> None:
    """Write a model directory: bert_config.json, bert_model.ckpt.*, vocab.txt, labels.txt.

    The pooler of an encoder without pooled output is left out, as nothing has trained it.

    Args:
        directory: made where it is missing.
        model: a model of this package; its weights are written under the original's names.
        vocab_file: copied as vocab.txt, where given.
        labels: names of a classifier's labels; without them labels.txt is removed.
        tokenizer: in place of vocab_file; its vocabulary is written.
        step: training steps that the weights have seen, written as `global_step` where known.

    Raises:
        OSError: a file cannot be written.
        ValueError: the labels are not as many as the model has, or it has layers of another kind.
    """
    folder, config = pathlib.Path(directory), config_of(model)
    _check_labels(model, labels)
    weights = _weights_to_write(model)
    if kind_of(model)[0] == "encoder" and not bert_layer(model).train_pooler:
        weights = {n: w for n, w in weights.items() if n not in POOLER}
    prefix, temporary = folder / WEIGHTS_NAME, folder / f"{WEIGHTS_NAME}.new"
    _write_tf1(temporary, weights, step)
    prefix.with_name(f"{WEIGHTS_NAME}.index").unlink(missing_ok=True)
    save_config_and_vocabulary(folder, config, vocab_file, labels)
    write_vocabulary(tokenizer, folder / VOCAB_NAME)
    import_tensor_bundle(prefix).rename_tensors(temporary, prefix)


def _weights_to_write(model: keras.Model) -> dict[str, keras.Variable]:
    """Return the weights of a model by name; ValueError if some are of the user's own layers."""
    weights = weights_by_name(model)
    others = [n for n in weights if not re.search(rf"^bert/|{HEADS_PATTERN}", n)]
    if others:
        raise ValueError(
            "model: has weights that are not of BERT or of a head of this package, for which other "
            f"systems have no place: {abbreviate(others)}; model.save keeps them"
        )
    return weights


def _take_place(
    temporary: pathlib.Path, target: pathlib.Path, write_beside: Callable[[], None]
) -> None:
    """Give written weights their name, and change the files beside them while there are none."""
    target.unlink(missing_ok=True)
    write_beside()
    os.replace(temporary, target)


def save_config_and_vocabulary(
    directory: str | os.PathLike,
    config: BertConfig,
    vocab_file: str | os.PathLike | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write the files of a model directory other than the weights; see `save_model_directory`."""
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _write_text(folder / CONFIG_NAME, config.to_json_string())
    if labels is None:
        (folder / LABELS_NAME).unlink(missing_ok=True)  # of a model that was here before
    else:
        _write_text(folder / LABELS_NAME, "".join(f"{label}\n" for label in labels))
    _copy_vocabulary(vocab_file, folder / VOCAB_NAME)
    if vocab_file is not None:
        _remove_fast_tokenizer(folder)


def _check_labels(model: keras.Model, labels: Sequence[str] | None) -> None:
    kind, count = kind_of(model)
    if labels is None:
        return
    if count != len(labels):
        raise ValueError(f"labels: the {kind} head has {count} of them, got {len(labels)}")
    if len(set(labels)) != len(labels):
        raise ValueError(f"labels: expected different names, got {', '.join(labels)}")
    wrong = [label for label in labels if not label or label.splitlines() != [label]]
    if wrong:
        raise ValueError(f"labels: expected names of one line each, got {wrong[0]!r}")


def _write_text(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _text(path: pathlib.Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _copy_vocabulary(vocab_file: str | os.PathLike | None, target: pathlib.Path) -> None:
    if vocab_file is None or (target.exists() and target.samefile(vocab_file)):
        return
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.copyfile(vocab_file, temporary)
    os.replace(temporary, target)


def write_vocabulary(tokenizer: FullTokenizer | None, target: pathlib.Path) -> None:
    """Write a tokenizer's vocabulary; byte by byte where it was read from a file."""
    if tokenizer is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_fast_tokenizer(target.parent)
    if tokenizer.vocab_file:
        _copy_vocabulary(tokenizer.vocab_file, target)
    else:
        pieces = _pieces(tokenizer)
        _write_text(target, "".join(f"{piece}\n" for piece in pieces))


def _pieces(tokenizer: FullTokenizer) -> list[str]:
    """Return a piece for each id: what came twice in a file has left an id without one."""
    highest = max(tokenizer.vocab.values())
    return [tokenizer.inv_vocab.get(i, f"[unused_id_{i}]") for i in range(highest + 1)]


def _remove_fast_tokenizer(folder: pathlib.Path) -> None:
    """Remove the files of a tokenizer that was in a folder before another vocabulary."""
    for name in _HF_TOKENIZER_NAMES:
        (folder / name).unlink(missing_ok=True)


def save_hf(
    directory: str | os.PathLike,
    model: keras.Model,
    tokenizer: FullTokenizer | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Write a directory that transformers' `from_pretrained` reads.

    It holds config.json and model.safetensors, and with a tokenizer vocab.txt, tokenizer.json,
    tokenizer_config.json and special_tokens_map.json.

    Args:
        directory: made where it is missing.
        model: a model of this package.
        tokenizer: its tokenizer.
        labels: names of a classifier's labels.

    Returns:
        Names of weights that transformers' class has no place for, and that were not written.

    Raises:
        OSError: a file cannot be written.
        ValueError: the labels are not as many as the model has.
    """
    folder = pathlib.Path(directory)
    config, (kind, num_labels) = config_of(model), kind_of(model)
    _check_labels(model, labels)
    if kind == "pretraining" and not config.next_sentence_prediction:
        kind = "masked_lm"
    architecture, has_pooler = HF_ARCHITECTURES[kind]
    if kind == "encoder":
        has_pooler = bert_layer(model).train_pooler
    values: dict[str, Any] = {"architectures": [architecture], **config.to_hf_dict()}
    if num_labels is not None:
        names = labels or [f"LABEL_{i}" for i in range(num_labels)]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    rates = [layer.rate for layer in model.layers if isinstance(layer, Dropout)]
    if rates and rates[0] != config.hidden_dropout_prob:
        values["classifier_dropout"] = rates[0]
    layout, skipped, tensors = HF, [], {}
    for path, weight in _weights_to_write(model).items():
        if path in POOLER and not has_pooler:
            skipped.append(path)
            continue
        name = layout.theirs(path)
        # A bare encoder's names begin at the encoder.
        name = str(name).removeprefix("bert.") if kind == "encoder" else str(name)
        tensors[name] = layout.to_theirs(path, to_numpy(weight), config)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / tensor_files.SAFETENSORS_NAME
    temporary = folder / f"{target.name}.new"
    tensor_files.write_safetensors(temporary, tensors)

    def write_beside() -> None:
        _write_text(folder / HF_CONFIG_NAME, json.dumps(values, indent=2, sort_keys=True) + "\n")
        _write_hf_tokenizer(folder, config, tokenizer)

    _take_place(temporary, target, write_beside)
    return tuple(skipped)


def _write_hf_tokenizer(
    folder: pathlib.Path, config: BertConfig, tokenizer: FullTokenizer | None
) -> None:
    if tokenizer is None:
        return
    import tokenizers

    write_vocabulary(tokenizer, folder / VOCAB_NAME)
    fast = tokenizers.BertWordPieceTokenizer(
        dict(tokenizer.vocab), lowercase=tokenizer.do_lower_case
    )
    _write_text(folder / "tokenizer.json", fast.to_str(pretty=True))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
    settings = {
        **names,
        "do_lower_case": tokenizer.do_lower_case,
        "model_max_length": config.max_position_embeddings,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
    }
    for file, values in (("special_tokens_map.json", names), ("tokenizer_config.json", settings)):
        _write_text(folder / file, json.dumps(values, indent=2, sort_keys=True) + "\n")


def save_keras(
    path: str | os.PathLike,
    model: keras.Model,
    tokenizer: FullTokenizer | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a `.keras` or `.weights.h5` file, and beside it the files of a model directory.

    `keras.models.load_model` reads the former once `bert_tf.heads` is imported.

    Args:
        path: ends in .keras or .weights.h5; its folder is made where it is missing.
        model: a model of this package.
        tokenizer: its tokenizer; its vocabulary is written as vocab.txt.
        labels: names of a classifier's labels, written as labels.txt.

    Raises:
        OSError: a file cannot be written.
        ValueError: another suffix, or the labels are not as many as the model has.
    """
    target = pathlib.Path(path)
    suffixes = (KERAS_SUFFIX, KERAS_WEIGHTS_SUFFIX)
    suffix = next((suffix for suffix in suffixes if target.name.endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{target}: expected a name ending in {' or '.join(suffixes)}")
    _check_labels(model, labels)
    config = config_of(model)
    _check_neighbours(target, config, labels)

    def write_beside() -> None:
        save_config_and_vocabulary(target.parent, config, None, labels)
        write_vocabulary(tokenizer, target.parent / VOCAB_NAME)

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name.removesuffix(suffix)}.tmp{suffix}")
    try:
        if suffix == KERAS_SUFFIX:
            model.save(temporary)
        else:
            model.save_weights(temporary)
        _take_place(temporary, target, write_beside)
    finally:
        temporary.unlink(missing_ok=True)


def _check_neighbours(
    target: pathlib.Path, config: BertConfig, labels: Sequence[str] | None
) -> None:
    """Refuse a folder whose bert_config.json and labels.txt describe other weights."""
    folder, own = target.parent, target.name
    lines = "".join(f"{label}\n" for label in labels) if labels else None
    if (_text(folder / CONFIG_NAME), _text(folder / LABELS_NAME)) in (
        (None, None),
        (config.to_json_string(), lines),
    ):
        return
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.name.endswith((KERAS_SUFFIX, KERAS_WEIGHTS_SUFFIX, ".index"))
        and path.name != own
        and ".tmp." not in path.name
    )
    if others:
        raise ValueError(
            f"path: {folder} holds {others[0]}, whose {CONFIG_NAME} and {LABELS_NAME} would be "
            "replaced; name a file in another folder"
        )


# --- KerasHub -------------------------------------------------------------------------------------


def check_keras_hub(config: BertConfig) -> None:
    """Raise ValueError if KerasHub's encoder does not compute what one of `config` does."""
    fixed = {"hidden_act": "gelu_tanh", "layer_norm_eps": 1e-12, "left_to_right": False}
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}: KerasHub's BertBackbone always has {value!r}, this model has "
                f"{getattr(config, name)!r}; load it with {name}={value!r} to convert it all the "
                "same, which changes its outputs"
            )


def to_keras_hub(model: keras.Model) -> Any:
    """Make a KerasHub BertBackbone of the encoder of a model.

    Args:
        model: a model of this package. Its heads have no place there, and of its two dropout rates
            only `hidden_dropout_prob`.

    Returns:
        `keras_hub.models.BertBackbone`, float32.

    Raises:
        ValueError: KerasHub's encoder does not compute what this one computes.
    """
    config = config_of(model)
    check_keras_hub(config)
    if not bert_layer(model).train_pooler:
        _log.warning("nothing has trained the pooler of this model: KerasHub's has its values")
    if config.attention_probs_dropout_prob != config.hidden_dropout_prob:
        _log.warning(
            "KerasHub has one rate of dropout: %s is kept, attention_probs_dropout_prob %s is not",
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
        )
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        hidden_dim=config.hidden_size,
        intermediate_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        max_sequence_length=config.max_position_embeddings,
        num_segments=config.type_vocab_size,
        dtype="float32",
    )
    layout, targets = KERAS_HUB, weights_by_name(backbone)
    for path, weight in _weights_to_write(model).items():
        name = layout.theirs(path)
        if name is not None:
            array = layout.to_theirs(path, to_numpy(weight), config)
            targets.pop(name).assign(array)
    if targets:
        raise ValueError(f"KerasHub's BertBackbone has weights of no counterpart: {list(targets)}")
    return backbone


def save_keras_hub(
    directory: str | os.PathLike, model: keras.Model, tokenizer: FullTokenizer | None = None
) -> tuple[str, ...]:
    """Write a preset that `keras_hub.models.BertBackbone.from_preset` reads.

    Args:
        directory: made where it is missing.
        model: a model of this package.
        tokenizer: its tokenizer, written as KerasHub's BertTokenizer.

    Returns:
        Names of weights, those of heads, that were not written.

    Raises:
        OSError: a file cannot be written.
        ValueError: see `to_keras_hub`.
    """
    backbone = to_keras_hub(model)
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp") as temporary:
        if tokenizer is not None:
            import keras_hub

            keras_hub.models.BertTokenizer(
                vocabulary=_pieces(tokenizer),
                lowercase=tokenizer.do_lower_case,
                strip_accents=tokenizer.do_lower_case,  # the original does both or neither
            ).save_to_preset(temporary)
        backbone.save_to_preset(temporary)
        written = [path for path in pathlib.Path(temporary).rglob("*") if path.is_file()]
        (folder / KERAS_HUB_WEIGHTS).unlink(missing_ok=True)
        for path in sorted(written, key=lambda path: path.name == KERAS_HUB_WEIGHTS):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    return tuple(n for n in weights_by_name(model) if KERAS_HUB.theirs(n) is None)
