"""Flags of training that pre-training and fine-tuning share, and what follows from them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from experiments.command_line.exit_status import InputError

_STRATEGIES = ["one_device", "mirrored", "multi_worker_mirrored", "tpu"]
_ALGORITHMS = ["nccl", "hierarchical_copy", "reduction_to_one_device", "ring", "auto"]
_OF_TPU = ("tpu_name", "tpu_zone", "gcp_project")
# Of them what a run's result depends on.
TRAJECTORY_NAMES = (
    "precision jit_compile optimizer layer_wise_decay freeze_layers freeze recompute_layers "
    "gradient_accumulation_steps loss_normalization ema_momentum"
).split()


def define_training_flags(values: flags.FlagValues) -> None:
    """Define the flags."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    switch = functools.partial(flags.DEFINE_bool, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    choice = functools.partial(flags.DEFINE_enum, flag_values=values)
    texts = functools.partial(flags.DEFINE_multi_string, flag_values=values)

    choice(
        "precision",
        "float32",
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "Computation: the last with dynamic loss scaling. Weights stay float32.",
    )
    choice("jit_compile", "auto", ["auto", "true", "false"], "XLA; auto means on a GPU only.")
    switch("deterministic", False, "Deterministic GPU kernels, slower; on CPU they are already.")
    choice("optimizer", "adamw", ["adamw", "lamb"], "BERT's Adam, or LAMB for large batches.")
    number("layer_wise_decay", 1.0, "Factor from a layer's learning rate to that of the one below.")
    integer("freeze_layers", -1, "Freeze the embeddings and so many layers; -1 for nothing.")
    texts("freeze", [], "Regular expression of weights to freeze; repeatable.")
    text(
        "recompute_layers",
        "none",
        "Layers computed again for the gradients, to save memory: none, all, every_2, or 0,1,5.",
    )
    choice(
        "distribution_strategy",
        "one_device",
        _STRATEGIES,
        "Devices to train on; multi_worker_mirrored takes the cluster from TF_CONFIG.",
    )
    choice(
        "all_reduce_alg",
        None,
        _ALGORITHMS,
        "How gradients are summed: the first three for mirrored; ring, nccl and auto for "
        "multi_worker_mirrored.",
    )
    integer(
        "num_replicas",
        None,
        "GPUs of mirrored, all by default; without a GPU, logical devices made of the CPU.",
    )
    integer(
        "gradient_accumulation_steps",
        1,
        "Parts of a training batch that are computed one after another, to need less memory.",
    )
    choice(
        "loss_normalization",
        "global",
        ["global", "per_replica"],
        "Whether losses are means over the whole batch or, as in the original, over each "
        "replica's part.",
    )
    number(
        "ema_momentum",
        0.0,
        "Evaluate and keep averages of the weights that decay by this factor a step; 0 for none.",
    )
    switch("use_tpu", False, "Not supported; see distribution_strategy.")
    integer("num_tpu_cores", 8, "Accepted for old commands; without effect.")
    for name in _OF_TPU:
        text(name, None, "Of distribution_strategy tpu.")
    text("master", None, "Not supported.")


def check_training_flags(values: flags.FlagValues) -> None:
    """Refuse what no run could have.

    Raises:
        InputError: one line names the flag.
    """
    of_tpu = any(getattr(values, name) for name in _OF_TPU)
    if values.use_tpu or values.master or (of_tpu and values.distribution_strategy != "tpu"):
        raise InputError(
            "use_tpu, tpu_name, tpu_zone, gcp_project, master: TensorFlow masters are not "
            "supported, and TPUs with --distribution_strategy=tpu in place of --use_tpu; drop "
            "these flags to train on this machine's GPU or CPU"
        )
    steps = values.gradient_accumulation_steps
    if steps < 1:
        raise InputError(f"gradient_accumulation_steps: expected at least 1, got {steps}")
    if not 0 <= values.ema_momentum < 1:
        raise InputError(f"ema_momentum: expected 0 to below 1, got {values.ema_momentum}")
    if not 0 < values.layer_wise_decay <= 1:
        raise InputError(
            f"layer_wise_decay: expected above 0, at most 1, got {values.layer_wise_decay}"
        )


def strategy_of(values: flags.FlagValues) -> Any:
    """Make the strategy that the flags name, before anything else of TensorFlow has run.

    Returns:
        `tf.distribute.Strategy`, or None for one device.

    Raises:
        ValueError: the flags do not fit each other or this machine, or TF_CONFIG is wrong.
    """
    from bert_tf.training import distribution

    name = values.distribution_strategy
    of_tpu = {}
    if name == "tpu":
        of_tpu = {"tpu": values.tpu_name, "tpu_zone": values.tpu_zone}
        of_tpu["gcp_project"] = values.gcp_project
    return distribution.create_strategy(
        name, all_reduce_alg=values.all_reduce_alg, num_replicas=values.num_replicas, **of_tpu
    )


def check_batch_sizes(values: flags.FlagValues, strategy: Any, names: Sequence[str] = ()) -> None:
    """Refuse batches that the replicas cannot share evenly.

    Args:
        values: with train_batch_size and the flags of this module.
        strategy: of `strategy_of`.
        names: of other flags that hold sizes of batches that the replicas share.

    Raises:
        ValueError: one line names the flag.
    """
    from bert_tf.training.distribution import check_batch_size, num_replicas_of

    replicas = num_replicas_of(strategy)
    check_batch_size(
        "train_batch_size", values.train_batch_size, replicas, values.gradient_accumulation_steps
    )
    for name in names:
        check_batch_size(name, getattr(values, name), replicas)


def trainer_arguments(values: flags.FlagValues) -> dict[str, Any]:
    """Return what `training.Trainer` takes of these flags, beside the strategy."""
    names = ("gradient_accumulation_steps", "loss_normalization")
    return {name: getattr(values, name) for name in names}


def freeze_weights(values: flags.FlagValues, model: Any, num_layers: int) -> list[str]:
    """Keep the weights that the flags name from learning, before the optimizer is made.

    Args:
        values: the flags.
        model: whose weights; `keras.Model`.
        num_layers: layers of its encoder.

    Returns:
        The paths of what is frozen now and was not before.

    Raises:
        ValueError: a pattern is wrong or finds nothing, or nothing is left to learn.
    """
    from bert_tf.models.freezing import freeze, frozen_layers

    patterns = list(values.freeze)
    if values.freeze_layers >= 0:
        patterns += frozen_layers(values.freeze_layers, num_layers)
    return freeze(model, patterns) if patterns else []


def make_optimizer(
    values: flags.FlagValues,
    num_layers: int,
    num_train_steps: int,
    num_warmup_steps: int,
    **arguments: Any,
) -> Any:
    """Make the optimizer that the flags name.

    Args:
        values: with learning_rate and the flags of this module.
        num_layers: layers of the encoder.
        num_train_steps: steps after which the rate is 0.
        num_warmup_steps: steps of linear warm-up.
        **arguments: others of `optimization.create_optimizer`.

    Returns:
        `keras.optimizers.Optimizer`; under mixed_float16 with dynamic loss scaling.
    """
    import keras

    from bert_tf.training.optimizers import create_optimizer, layer_wise_rules

    if values.ema_momentum:
        arguments |= {"use_ema": True, "ema_momentum": values.ema_momentum}
    if values.layer_wise_decay != 1:
        arguments["learning_rate_rules"] = layer_wise_rules(num_layers, values.layer_wise_decay)
    optimizer = create_optimizer(
        values.learning_rate,
        num_train_steps,
        num_warmup_steps,
        optimizer=values.optimizer,
        **arguments,
    )
    if values.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def describe_devices(strategy: Any) -> str:
    """Return one phrase that says what the run uses."""
    import tensorflow as tf

    if strategy is not None:
        return f"{strategy.num_replicas_in_sync} replicas, {type(strategy).__name__}"
    return "1 GPU" if tf.config.list_physical_devices("GPU") else "CPU"


@contextlib.contextmanager
def chief_first(values: flags.FlagValues) -> Iterator[None]:
    """Let the other hosts wait until the chief has been through a block, and left its files."""
    if values.distribution_strategy != "multi_worker_mirrored":
        yield
        return
    from bert_tf.training.distribution import is_chief, value_of_chief

    strategy = strategy_of(values)
    if not is_chief(strategy):
        value_of_chief(strategy, 0)
    yield
    if is_chief(strategy):
        value_of_chief(strategy, 0)
