"""Models to the formats of every system that has BERT.

Weights are written first, under a temporary name. Once they are whole, older ones are removed, the
files beside them written, and the weights get their name: what is recognised as a checkpoint is a
whole one, and a write that fails leaves the older one as it was.
"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from bert_tf.config import BertConfig
from bert_tf.files import local_path, read_text_or_none, replacing, write_json, write_text
from bert_tf.models.layers import Dropout
from bert_tf.models.variables import bert_layer, config_of, to_numpy, weights_by_name
from bert_tf.tokenization.vocabulary import VOCAB_NAME
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights import locate, tensor_files, tokenizers
from bert_tf.weights.layouts import HF, HF_ARCHITECTURES, HF_PROBLEM_TYPES, POOLER, TF1
from bert_tf.weights.model_weights import (
    import_tensor_bundle,
    kind_of,
    refuse_quantized,
    weights_to_write,
)

_log = logging.getLogger(__name__)


def save_tf1(prefix: str | os.PathLike, model: keras.Model) -> None:
    """Write the weights of a model as a TF1-format checkpoint under the original's names.

    Args:
        prefix: path without `.index`; its folder is made where it is missing.
        model: any model whose variable paths are the names to write.

    Raises:
        OSError: the files cannot be written.
        ValueError: the prefix is a folder, or the model is quantized.
    """
    if not os.path.basename(os.fspath(prefix)):
        raise ValueError(f"prefix: expected a name as in .../{locate.WEIGHTS_NAME}, got {prefix}")
    weights = weights_by_name(model)
    refuse_quantized(weights)
    _write_tf1(prefix, weights)


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
    tokenizer: FullTokenizer | str | os.PathLike | None = None,
    labels: Sequence[str] | None = None,
    step: int | None = None,
) -> None:
    """Write a model directory: bert_config.json, bert_model.ckpt.*, vocab.txt, labels.txt.

    The pooler of an encoder without pooled output is left out, as nothing has trained it.

    Args:
        directory: made where it is missing.
        model: a model of this package.
        tokenizer: its tokenizer, written as vocab.txt; or the path of a vocabulary, to be copied.
        labels: names of a classifier's labels; without them labels.txt is removed.
        step: training steps that the weights have seen, written as `global_step`.

    Raises:
        OSError: a file cannot be written.
        ValueError: the labels are not as many as the model has, or it has layers of another kind.
    """
    folder, config = local_path(directory), config_of(model)
    vocab_file = None
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer, vocab_file = None, tokenizer
    _check_labels(model, labels)
    weights = weights_to_write(model)
    if kind_of(model)[0] == "encoder" and not bert_layer(model).train_pooler:
        weights = {n: w for n, w in weights.items() if n not in POOLER}
    prefix, temporary = folder / locate.WEIGHTS_NAME, folder / f"{locate.WEIGHTS_NAME}.new"
    _write_tf1(temporary, weights, step)
    prefix.with_name(f"{locate.WEIGHTS_NAME}.index").unlink(missing_ok=True)
    save_config_and_vocabulary(folder, config, vocab_file, labels)
    tokenizers.write_vocabulary(tokenizer, folder / VOCAB_NAME)
    import_tensor_bundle(prefix).rename_tensors(temporary, prefix)


def save_config_and_vocabulary(
    directory: str | os.PathLike,
    config: BertConfig,
    vocab_file: str | os.PathLike | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write the files of a model directory other than the weights; see `save_model_directory`."""
    folder = local_path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / locate.CONFIG_NAME, config.to_json_string())
    if labels is None:
        (folder / locate.LABELS_NAME).unlink(missing_ok=True)  # of a model that was here before
    else:
        write_text(folder / locate.LABELS_NAME, "".join(f"{label}\n" for label in labels))
    tokenizers.copy_vocabulary(vocab_file, folder / VOCAB_NAME)
    if vocab_file is not None:
        tokenizers.remove_fast_tokenizer(folder)


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


def _check_problem_type(problem_type: str, kind: str, num_labels: int | None) -> None:
    if problem_type not in HF_PROBLEM_TYPES.values():
        raise ValueError(
            f"problem_type: expected one of {', '.join(HF_PROBLEM_TYPES.values())}, got "
            f"{problem_type!r}"
        )
    if kind != "classification":
        raise ValueError(f"problem_type: is of a classifier, got a model with a {kind} head")
    if (problem_type == "regression") > (num_labels == 1):
        raise ValueError(f"problem_type: regression takes one output, the model has {num_labels}")


def save_hf(
    directory: str | os.PathLike,
    model: keras.Model,
    tokenizer: FullTokenizer | None = None,
    labels: Sequence[str] | None = None,
    problem_type: str | None = None,
    dtype: str = "float32",
) -> tuple[str, ...]:
    """Write a directory that transformers' `from_pretrained` reads.

    It holds config.json and model.safetensors, and with a tokenizer vocab.txt, tokenizer.json,
    tokenizer_config.json and special_tokens_map.json.

    Args:
        directory: made where it is missing.
        model: a model of this package.
        tokenizer: its tokenizer.
        labels: names of a classifier's labels.
        problem_type: what transformers makes of a classifier's logits: a value of
            HF_PROBLEM_TYPES; None (default) leaves it to their number.
        dtype: what the file holds the weights in: "float32", or "float16" for half the size.

    Returns:
        Names of weights that transformers' class has no place for, and that were not written.

    Raises:
        OSError: a file cannot be written.
        ValueError: the labels are not as many as the model has, the problem_type is not one of the
            model, or a weight is too large for the dtype.
    """
    folder = local_path(directory)
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype: expected float32 or float16, got {dtype!r}")
    config, (kind, num_labels) = config_of(model), kind_of(model)
    _check_labels(model, labels)
    if kind == "pretraining" and not config.next_sentence_prediction:
        kind = "masked_lm"
    if kind == "classification" and config.window_pooling is not None:
        _log.warning(
            "%s: transformers' %s reads one window of a text, and pools no others",
            folder,
            HF_ARCHITECTURES[kind][0],
        )
    architecture, has_pooler = HF_ARCHITECTURES[kind]
    if kind == "encoder":
        has_pooler = bert_layer(model).train_pooler
    values: dict[str, Any] = {"architectures": [architecture], **config.to_hf_dict()}
    if num_labels is not None:
        names = labels or [f"LABEL_{i}" for i in range(num_labels)]
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    if problem_type is not None:
        _check_problem_type(problem_type, kind, num_labels)
        values["problem_type"] = problem_type
    rates = [layer.rate for layer in model.layers if isinstance(layer, Dropout)]
    if rates and rates[0] != config.hidden_dropout_prob:
        values["classifier_dropout"] = rates[0]
    layout, skipped, tensors = HF, [], {}
    for path, weight in weights_to_write(model).items():
        if path in POOLER and not has_pooler:
            skipped.append(path)
            continue
        name = layout.theirs(path)
        # A bare encoder's names begin at the encoder.
        name = str(name).removeprefix("bert.") if kind == "encoder" else str(name)
        tensors[name] = _rounded(name, layout.to_theirs(path, to_numpy(weight), config), dtype)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / tensor_files.SAFETENSORS_NAME
    with replacing(target) as temporary:
        tensor_files.write_safetensors(temporary, tensors)
        target.unlink(missing_ok=True)
        write_json(folder / locate.HF_CONFIG_NAME, values)
        tokenizers.write_hf_tokenizer(folder, config, tokenizer)
    return tuple(skipped)


def _rounded(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array in the dtype of a file; refuse one that it cannot hold."""
    if dtype == "float32":
        return array.astype(dtype, copy=False)
    largest = float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))
    if largest > float(np.finfo(dtype).max):
        raise ValueError(f"dtype: {name} has the value {largest:g}, too large for {dtype}")
    return array.astype(dtype, copy=False)


def save_keras(
    path: str | os.PathLike,
    model: keras.Model,
    tokenizer: FullTokenizer | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a `.keras` or `.weights.h5` file, and beside it the files of a model directory.

    `keras.models.load_model` reads the former once `bert_tf.models` is imported.

    Args:
        path: ends in .keras or .weights.h5; its folder is made where it is missing.
        model: a model of this package.
        tokenizer: its tokenizer; its vocabulary is written as vocab.txt.
        labels: names of a classifier's labels, written as labels.txt.

    Raises:
        OSError: a file cannot be written.
        ValueError: another suffix, or the labels are not as many as the model has.
    """
    target = local_path(path)
    suffixes = (locate.KERAS_SUFFIX, locate.KERAS_WEIGHTS_SUFFIX)
    suffix = next((suffix for suffix in suffixes if target.name.endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{target}: expected a name ending in {' or '.join(suffixes)}")
    _check_labels(model, labels)
    config = config_of(model)
    _check_neighbours(target, config, labels)
    with replacing(target, suffix) as temporary:
        if suffix == locate.KERAS_SUFFIX:
            model.save(temporary)
        else:
            model.save_weights(temporary)
        target.unlink(missing_ok=True)
        save_config_and_vocabulary(target.parent, config, None, labels)
        tokenizers.write_vocabulary(tokenizer, target.parent / VOCAB_NAME)


def _check_neighbours(
    target: pathlib.Path, config: BertConfig, labels: Sequence[str] | None
) -> None:
    """Refuse a folder whose bert_config.json and labels.txt describe other weights."""
    folder, own = target.parent, target.name
    lines = "".join(f"{label}\n" for label in labels) if labels else None
    if (
        read_text_or_none(folder / locate.CONFIG_NAME),
        read_text_or_none(folder / locate.LABELS_NAME),
    ) in (
        (None, None),
        (config.to_json_string(), lines),
    ):
        return
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.name.endswith((locate.KERAS_SUFFIX, locate.KERAS_WEIGHTS_SUFFIX, ".index"))
        and path.name != own
        and not locate.is_temporary(path)
    )
    if others:
        raise ValueError(
            f"path: {folder} holds {others[0]}, whose {locate.CONFIG_NAME} and "
            f"{locate.LABELS_NAME} would be replaced; name a file in another folder"
        )
