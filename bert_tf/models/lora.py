"""LoRA: low-rank updates of the encoder's projections (arXiv 2106.09685)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from bert_tf.models.freezing import freeze
from bert_tf.models.layers import TransformerLayer, initial_values
from bert_tf.models.variables import HEADS_PATTERN, bert_layer, to_numpy, weights_by_name

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

ADAPTER = re.compile(r"/lora_kernel_([ab])$")


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
    adapters = [w.path for w in model.trainable_weights if ADAPTER.search(w.path)]
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
        names = ", ".join(targets) or "none"
        raise ValueError(f"targets: expected some of {', '.join(PROJECTIONS)}, got {names}")


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _enable(dense: keras.layers.Dense, rank: int, alpha: float | None) -> None:
    # An initializer for each layer, since one gives the same values every time. This one is uniform
    # up to 1 / sqrt(D).
    a_initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    with contextlib.ExitStack() as scopes:
        # Keras names weights that come after `build` without the scopes of their layer.
        for scope in base_kernel(dense).path.split("/")[:-1]:
            scopes.enter_context(keras.name_scope(scope))
        dense.enable_lora(rank, lora_alpha=alpha, a_initializer=a_initializer)


def base_kernel(dense: keras.layers.Dense) -> keras.Variable:
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
        if not ADAPTER.search(path)
    }
    for dense in lora_layers(model):
        kernel = base_kernel(dense)
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
