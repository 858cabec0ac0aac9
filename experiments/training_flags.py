"""Flags of training on several devices and hosts, which pre-training and fine-tuning share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

_STRATEGIES = ["one_device", "mirrored", "multi_worker_mirrored", "tpu"]
_ALGORITHMS = ["nccl", "hierarchical_copy", "reduction_to_one_device", "ring", "auto"]
NAMES = (
    *("distribution_strategy", "all_reduce_alg", "num_replicas", "gradient_accumulation_steps"),
    *("loss_normalization", "ema_momentum"),
)


def define_device_flags(values: flags.FlagValues) -> None:
    """Define the flags of NAMES."""
    flags.DEFINE_enum(
        "distribution_strategy",
        "one_device",
        _STRATEGIES,
        "Devices to train on; multi_worker_mirrored takes the cluster from TF_CONFIG.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "all_reduce_alg",
        None,
        _ALGORITHMS,
        "How gradients are summed: the first three for mirrored; ring, nccl and auto for "
        "multi_worker_mirrored.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_replicas",
        None,
        "GPUs of mirrored, all by default; without a GPU, logical devices made of the CPU.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "gradient_accumulation_steps",
        1,
        "Parts of a training batch that are computed one after another, to need less memory.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "loss_normalization",
        "global",
        ["global", "per_replica"],
        "Whether losses are means over the whole batch or, as in the original, over each "
        "replica's part.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "ema_momentum",
        0.0,
        "Evaluate and keep averages of the weights that decay by this factor a step; 0 for none.",
        flag_values=values,
    )


def check_device_flags(values: flags.FlagValues) -> None:
    """Refuse what no run could have.

    Raises:
        ValueError: one line names the flag.
    """
    steps = values.gradient_accumulation_steps
    if steps < 1:
        raise ValueError(f"gradient_accumulation_steps: expected at least 1, got {steps}")
    if not 0 <= values.ema_momentum < 1:
        raise ValueError(f"ema_momentum: expected 0 to below 1, got {values.ema_momentum}")


def strategy_of(values: flags.FlagValues) -> Any:
    """Make the strategy that the flags name, before anything else of TensorFlow has run.

    Returns:
        `tf.distribute.Strategy`, or None for one device.

    Raises:
        ValueError: the flags do not fit each other or this machine, or TF_CONFIG is wrong.
    """
    from bert_tf import distribution

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
        values: with train_batch_size and the flags of NAMES.
        strategy: of `strategy_of`.
        names: of other flags that hold sizes of batches that the replicas share.

    Raises:
        ValueError: one line names the flag.
    """
    from bert_tf.distribution import check_batch_size, num_replicas_of

    replicas = num_replicas_of(strategy)
    check_batch_size(
        "train_batch_size", values.train_batch_size, replicas, values.gradient_accumulation_steps
    )
    for name in names:
        check_batch_size(name, values[name].value, replicas)


def trainer_arguments(values: flags.FlagValues) -> dict[str, Any]:
    """Return what `training.Trainer` takes of these flags, beside the strategy."""
    names = ("gradient_accumulation_steps", "loss_normalization")
    return {name: values[name].value for name in names}


def optimizer_arguments(values: flags.FlagValues) -> dict[str, Any]:
    """Return what the optimizer takes of these flags."""
    momentum = values.ema_momentum
    return {"use_ema": True, "ema_momentum": momentum} if momentum else {}


def describe_devices(strategy: Any) -> str:
    """Return one phrase that says what the run uses."""
    import tensorflow as tf

    if strategy is not None:
        return f"{strategy.num_replicas_in_sync} replicas, {type(strategy).__name__}"
    return "1 GPU" if tf.config.list_physical_devices("GPU") else "CPU"
