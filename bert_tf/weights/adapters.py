"""Low-rank adaptation (LoRA): few new weights learn, and are merged into the old ones afterwards.

A dense layer of kernel W [D, E] then computes with W + alpha / rank * A B, where A [D, rank] and
B [rank, E] learn and W stays. Keras' own `Dense.enable_lora` does the mathematics; here is which
layers have it, what else learns, and how the adapters go to files and into the weights.

Reference: arXiv 2106.09685.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from bert_tf.models.layers import TransformerLayer, initial_values
from bert_tf.training.objectives import freeze
from bert_tf.weights.checkpoint import bert_layer, to_numpy, weights_by_name
from bert_tf.weights.layouts import HEADS_PATTERN, HF, abbreviate
from bert_tf.weights.tensor_files import open_tensors, write_safetensors

# The dense layers of a transformer layer that can be adapted.
PROJECTIONS: Mapping[str, Callable[[TransformerLayer], keras.layers.Dense]] = {
    "query": lambda layer: layer.attention.self_attention.query,
    "key": lambda layer: layer.attention.self_attention.key,
    "value": lambda layer: layer.attention.self_attention.value,
    "attention_output": lambda layer: layer.attention.residual_output.dense,
    "intermediate": lambda layer: layer.intermediate.dense,
    "output": lambda layer: layer.residual_output.dense,
}
# The paper's choice for GLUE.
DEFAULT_TARGETS = ("query", "value")

ADAPTER_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"

_ADAPTER = re.compile(r"/lora_kernel_([ab])$")
_PEFT_PREFIX = "base_model.model."
# What files of peft call the kinds of models, by a module of their heads.
_PEFT_TASKS = {"classifier": "SEQ_CLS", "qa_outputs": "QUESTION_ANS"}


def add_lora(
    model: keras.Model,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = DEFAULT_TARGETS,
    *,
    also_train: Sequence[str] = (HEADS_PATTERN,),
) -> list[str]:
    """Give a model adapters, and keep all else but its head from learning.

    Call it once the weights are loaded and before the optimizer is made. The outputs do not change:
    B begins with zeros, and A as in the authors' code and in peft.

    Args:
        model: a model of this package; it is changed.
        rank: of the adapters, at least 1.
        alpha: their scale is alpha / rank; None (default) for rank, so 1.
        targets: keys of PROJECTIONS; the dense layers, in every transformer layer, that get them.
        also_train: regular expressions, searched for in `variable.path`, of weights that go on
            learning; by default the head's.

    Returns:
        The paths of the adapters' weights.

    Raises:
        ValueError: an argument is wrong, or the model has adapters already.
    """
    check_arguments(rank, alpha, targets)
    if lora_layers(model):
        raise ValueError("model: has LoRA adapters already; merge_lora makes a model without them")
    kept = [w.path for w in model.trainable_weights if _matches(w.path, also_train)]
    for layer in bert_layer(model).encoder.transformer_layers:
        for target in dict.fromkeys(targets):
            _enable(PROJECTIONS[target](layer), rank, alpha)
    adapters = [w.path for w in model.trainable_weights if _ADAPTER.search(w.path)]
    learning = {*kept, *adapters}
    freeze(model, [f"^{re.escape(w.path)}$" for w in model.weights if w.path not in learning])
    return adapters


def check_arguments(rank: int, alpha: float | None, targets: Sequence[str]) -> None:
    """Refuse, with a ValueError, what `add_lora` cannot take; needs no model."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank: expected a whole number of at least 1, got {rank!r}")
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha: expected a positive number, got {alpha!r}")
    if not targets or not set(targets) <= set(PROJECTIONS):
        given = ", ".join(targets) or "none"
        raise ValueError(f"targets: expected some of {', '.join(PROJECTIONS)}, got {given}")


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _enable(dense: keras.layers.Dense, rank: int, alpha: float | None) -> None:
    # An initializer for each layer, since one gives the same values every time. This one is uniform
    # up to 1 / sqrt(D).
    a_initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    with contextlib.ExitStack() as scopes:
        # Keras names weights that come after `build` without the scopes of their layer.
        for scope in _base_kernel(dense).path.split("/")[:-1]:
            scopes.enter_context(keras.name_scope(scope))
        dense.enable_lora(rank, lora_alpha=alpha, a_initializer=a_initializer)


def _base_kernel(dense: keras.layers.Dense) -> keras.Variable:
    """Return the kernel without the adapter; `dense.kernel` has it added."""
    return next(weight for weight in dense.weights if weight.name == "kernel")


def lora_layers(model: keras.Model) -> list[keras.layers.Dense]:
    """Return the dense layers of a model that have adapters, in the encoder's order."""
    return [
        dense
        for layer in bert_layer(model).encoder.transformer_layers
        for projection in PROJECTIONS.values()
        if (dense := projection(layer)).lora_enabled
    ]


def merged_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the weights that a model has with its adapters merged, by path."""
    weights = {
        path: to_numpy(weight)
        for path, weight in weights_by_name(model).items()
        if not _ADAPTER.search(path)
    }
    for dense in lora_layers(model):
        kernel = _base_kernel(dense)
        product = to_numpy(dense.lora_kernel_a) @ to_numpy(dense.lora_kernel_b)
        merged = weights[kernel.path] + (dense.lora_alpha / dense.lora_rank) * product
        weights[kernel.path] = merged.astype(weights[kernel.path].dtype)
    return weights


def merge_lora(model: keras.Model) -> keras.Model:
    """Return the model without adapters that gives the same outputs; all its weights can learn.

    Args:
        model: as `add_lora` left it and training changed it; stays as it is. One without adapters
            gives its copy.

    Raises:
        ValueError: it is not a model of this package.
    """
    weights = merged_weights(model)
    with initial_values(keras.initializers.Zeros()):
        merged = keras.models.clone_model(model)
    for path, weight in weights_by_name(merged).items():
        weight.assign(weights[path])
    return merged


# --- files ----------------------------------------------------------------------------------------


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
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {w.path: w for w in model.weights if w.trainable or _ADAPTER.search(w.path)}
    names = {path: _peft_name(path) for path in weights}
    write_safetensors(
        folder / ADAPTER_NAME,
        {names[path]: _to_peft(path, to_numpy(weight)) for path, weight in weights.items()},
    )
    others = [names[path] for path in weights if not _ADAPTER.search(path)]
    modules = sorted({n.removeprefix(_PEFT_PREFIX).rpartition(".")[0] for n in others})
    task = next((_PEFT_TASKS[m] for m in modules if m in _PEFT_TASKS), "FEATURE_EXTRACTION")
    if any(path.startswith("token_classification/") for path in weights):
        task = "TOKEN_CLS"
    scopes = {re.sub(r"^bert/encoder/layer_\d+/", "", _base_kernel(d).path) for d in layers}
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
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / ADAPTER_CONFIG_NAME).write_text(text, encoding="utf-8")


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
    config = json.loads((folder / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
    _check_config(folder / ADAPTER_CONFIG_NAME, config)
    source = open_tensors(folder / ADAPTER_NAME)
    if not lora_layers(model):
        targets = [
            target
            for target, projection in PROJECTIONS.items()
            for layer in bert_layer(model).encoder.transformer_layers[:1]
            if _peft_name(_base_kernel(projection(layer)).path.removesuffix("kernel") + _A)
            in source.shapes
        ]
        if not targets:
            raise ValueError(f"{folder}: no adapter there is of a dense layer of this model")
        add_lora(model, config["r"], config["lora_alpha"], targets)
    weights = {_peft_name(w.path): w for w in model.weights}
    expected = {_peft_name(w.path) for w in model.weights if _ADAPTER.search(w.path)}
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


_A = "lora_kernel_a"


def _peft_name(path: str) -> str:
    adapter = _ADAPTER.search(path)
    if adapter:
        scope = str(HF.theirs(path[: adapter.start()] + "/kernel")).removesuffix(".weight")
        return f"{_PEFT_PREFIX}{scope}.lora_{adapter[1].upper()}.weight"
    return f"{_PEFT_PREFIX}{HF.theirs(path)}"


def _to_peft(path: str, array: np.ndarray) -> np.ndarray:
    transposed = _ADAPTER.search(path) or HF.transposed(path)
    return np.ascontiguousarray(array.T) if transposed else array


def _peft_shape(weight: keras.Variable) -> tuple[int, ...]:
    shape = tuple(weight.shape)
    return shape[::-1] if _ADAPTER.search(weight.path) or HF.transposed(weight.path) else shape
