"""Low-rank adaptation (LoRA): few new weights learn, and are merged into the old ones afterwards.

A dense layer of kernel W [D, E] computes with W + alpha / rank * A B: A [D, rank] and B [rank, E]
learn and W stays. The mathematics are Keras' `Dense.enable_lora`; here are the files.

Reference: arXiv 2106.09685.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from bert_tf.files import local_path, write_json
from bert_tf.models.lora import ADAPTER, PROJECTIONS, add_lora, base_kernel, lora_layers
from bert_tf.models.variables import abbreviate, bert_layer, to_numpy
from bert_tf.weights.layouts import HF
from bert_tf.weights.locate import read_json
from bert_tf.weights.tensor_files import open_tensors, write_safetensors

ADAPTER_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
# What files of peft call the kinds of models, by a module of their heads.
_PEFT_TASKS = {"classifier": "SEQ_CLS", "qa_outputs": "QUESTION_ANS"}


# === Files ===


def save_adapters(directory: str | pathlib.Path, model: keras.Model) -> None:
    """Write the adapters, and what else has learned, without the rest of the model.

    The two files, adapter_model.safetensors and adapter_config.json, are laid out as those of
    peft, which can load them onto the same model in transformers.

    Args:
        directory: made where it is missing.
        model: one with adapters.

    Raises:
        ValueError: it has none.
        OSError: a file cannot be written.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("model: expected one with LoRA adapters; see add_lora")
    folder = local_path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {w.path: w for w in model.weights if w.trainable or ADAPTER.search(w.path)}
    names = {path: _peft_name(path) for path in weights}
    write_safetensors(
        folder / ADAPTER_NAME,
        {names[path]: _to_peft(path, to_numpy(weight)) for path, weight in weights.items()},
    )
    others = [names[path] for path in weights if not ADAPTER.search(path)]
    modules = sorted({n.removeprefix(_PEFT_PREFIX).rpartition(".")[0] for n in others})
    task = next((_PEFT_TASKS[m] for m in modules if m in _PEFT_TASKS), "FEATURE_EXTRACTION")
    if any(path.startswith("token_classification/") for path in weights):
        task = "TOKEN_CLS"
    scopes = {re.sub(r"^bert/encoder/layer_\d+/", "", base_kernel(d).path) for d in layers}
    endings = sorted(scope.removesuffix("/kernel").replace("/", r"\.") for scope in scopes)
    config = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": layers[0].lora_rank,
        "lora_alpha": layers[0].lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": rf".*\.layer\.\d+\.({'|'.join(endings)})",
        "modules_to_save": modules or None,
    }
    write_json(folder / ADAPTER_CONFIG_NAME, config)


def load_adapters(directory: str | pathlib.Path, model: keras.Model) -> None:
    """Load what `save_adapters` wrote, or peft for a model of the same kind.

    Args:
        directory: with both files.
        model: the model that they were trained on, with its weights. It is given adapters unless it
            has them, then of the same rank and targets.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the adapters do not fit the model, or are of a kind of LoRA that is not here.
    """
    folder = pathlib.Path(directory)
    config = read_json(folder / ADAPTER_CONFIG_NAME)
    _check_config(folder / ADAPTER_CONFIG_NAME, config)
    source = open_tensors(folder / ADAPTER_NAME)
    if not lora_layers(model):
        targets = [
            target
            for target, projection in PROJECTIONS.items()
            for layer in bert_layer(model).encoder.transformer_layers[:1]
            if _peft_name(base_kernel(projection(layer)).path.removesuffix("kernel") + _A)
            in source.shapes
        ]
        if not targets:
            raise ValueError(f"{folder}: no adapter there is of a dense layer of this model")
        # Before layers of that rank are made: a wrong one may take more memory than there is.
        if not any(config["r"] in shape for shape in source.shapes.values()):
            raise ValueError(f"{folder}: no adapter there has the rank {config['r']} of its file")
        add_lora(model, config["r"], config["lora_alpha"], targets)
    weights = {_peft_name(w.path): w for w in model.weights}
    expected = {_peft_name(w.path) for w in model.weights if ADAPTER.search(w.path)}
    wrong = [
        *sorted(expected - set(source.shapes)),
        *sorted(set(source.shapes) - set(weights)),
        *(
            f"{name} {source.shapes[name]}"
            for name in sorted(set(source.shapes) & set(weights))
            if source.shapes[name] != _peft_shape(weights[name])
        ),
    ]
    scales = {dense.lora_alpha / dense.lora_rank for dense in lora_layers(model)}
    if wrong or scales != {config["lora_alpha"] / config["r"]}:
        raise ValueError(
            f"{folder}: the adapters are not of this model, rank and alpha"
            + (f"; they differ in {abbreviate(wrong)}" if wrong else "")
        )
    for name, array in source.read(list(source.shapes)):
        weight = weights[name]
        weight.assign(_to_peft(weight.path, np.asarray(array, np.float32)))  # its own inverse


def _check_config(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Refuse what would be computed otherwise than here."""
    kinds = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False}
    others = {"fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}}
    for name, expected in {**kinds, **others}.items():
        if config.get(name, expected) != expected:
            raise ValueError(f"{path}: {name}: expected {expected!r}, got {config[name]!r}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    most = sys.float_info.max
    is_rank = type(rank) is int and 0 < rank <= most
    is_bool = isinstance(alpha, bool)
    if not is_rank or is_bool or not isinstance(alpha, int | float) or not 0 < alpha <= most:
        raise ValueError(
            f"{path}: r, lora_alpha: expected an integer and a number above 0, got {rank!r} and "
            f"{alpha!r}"
        )


_A = "lora_kernel_a"


def _peft_name(path: str) -> str:
    adapter = ADAPTER.search(path)
    if adapter:
        scope = str(HF.theirs(path[: adapter.start()] + "/kernel")).removesuffix(".weight")
        return f"{_PEFT_PREFIX}{scope}.lora_{adapter[1].upper()}.weight"
    return f"{_PEFT_PREFIX}{HF.theirs(path)}"


def _to_peft(path: str, array: np.ndarray) -> np.ndarray:
    transposed = ADAPTER.search(path) or HF.transposed(path)
    return np.ascontiguousarray(array.T) if transposed else array


def _peft_shape(weight: keras.Variable) -> tuple[int, ...]:
    shape = tuple(weight.shape)
    return shape[::-1] if ADAPTER.search(weight.path) or HF.transposed(weight.path) else shape
