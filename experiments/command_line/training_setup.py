"""What follows from the options of training: devices, frozen weights, the optimizer."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from bert_tf.files import read_json
from bert_tf.models.freezing import freeze, frozen_layers
from bert_tf.training import distribution
from bert_tf.training.log import RUN_CONFIG_NAME
from bert_tf.training.optimizers import create_optimizer, layer_wise_rules
from bert_tf.training.precision import choose_precision, this_processor
from data_prep.processes.folder_lock import lock_folder
from experiments.command_line.exit_status import InputError
from experiments.command_line.training_options import TrainingOptions


def strategy_of(options: TrainingOptions) -> tf.distribute.Strategy | None:
    """Make the strategy that the options name, before anything else of TensorFlow has run.

    Returns:
        None for one device.

    Raises:
        ValueError: the options do not fit each other or this machine, or TF_CONFIG is wrong.
    """
    name = options.distribution_strategy
    of_tpu = {}
    if name == "tpu":
        of_tpu = {"tpu": options.tpu_name, "tpu_zone": options.tpu_zone}
        of_tpu["gcp_project"] = options.gcp_project
    return distribution.create_strategy(
        name, all_reduce_alg=options.all_reduce_alg, num_replicas=options.num_replicas, **of_tpu
    )


def with_precision(
    options: TrainingOptions, folder: pathlib.Path, *, one_shape: bool
) -> TrainingOptions:
    """Put in place of the precision "auto" that which suits, and say which and why.

    Args:
        options: of the command.
        folder: of the run, which goes on with what it began with.
        one_shape: see `choose_precision`.

    Returns:
        The options, with a precision that models have.
    """
    if options.precision != "auto":
        return options
    path = folder / RUN_CONFIG_NAME
    begun = read_json(path) if path.exists() else {}
    begun = begun.get("flags", begun)  # of fine-tuning they lie at the top
    on_gpu = tf.config.list_physical_devices("GPU")
    on_one_cpu = options.distribution_strategy == "one_device" and not on_gpu
    if "precision" in begun:
        chosen = {"precision": begun["precision"], "jit_compile": options.jit_compile}
        was = begun.get("jit_compile", "auto")
        # pointwise is for one CPU, and a run may go on elsewhere.
        if options.jit_compile == "auto" and (was != "pointwise" or on_one_cpu):
            chosen["jit_compile"] = was
        reason = f"so the run in {folder} began"
    else:
        precision, jit_compile, reason = choose_precision(
            this_processor(),
            jit_compile=options.jit_compile,
            on_one_cpu=on_one_cpu,
            one_shape=one_shape,
        )
        chosen = {"precision": precision, "jit_compile": jit_compile}
    print(f"--precision=auto: {' '.join(f'--{n}={x}' for n, x in chosen.items())}: {reason}")
    return dataclasses.replace(options, **chosen)


def check_batch_sizes(
    options: TrainingOptions,
    strategy: tf.distribute.Strategy | None,
    train_batch_size: int,
    **others: int,
) -> None:
    """Refuse batches that the replicas cannot share evenly.

    Args:
        options: with the number of parts that a training batch is computed in.
        strategy: of `strategy_of`.
        train_batch_size: examples of a training batch.
        **others: option -> size of other batches that the replicas share.

    Raises:
        ValueError: one line names the option.
    """
    replicas = distribution.num_replicas_of(strategy)
    distribution.check_batch_size(
        "train_batch_size", train_batch_size, replicas, options.gradient_accumulation_steps
    )
    for name, size in others.items():
        distribution.check_batch_size(name, size, replicas)


def trainer_arguments(options: TrainingOptions) -> dict[str, Any]:
    """Return what `TrainerOptions` takes of these options."""
    names = "jit_compile gradient_accumulation_steps loss_normalization profile_steps".split()
    return {name: getattr(options, name) for name in names}


def freeze_weights(options: TrainingOptions, model: keras.Model, num_layers: int) -> list[str]:
    """Keep the weights that the options name from learning, before the optimizer is made.

    Args:
        options: which weights.
        model: whose weights.
        num_layers: layers of its encoder.

    Returns:
        The paths of what is frozen now and was not before.

    Raises:
        ValueError: a pattern is wrong or finds nothing, or nothing is left to learn.
    """
    patterns = list(options.freeze)
    if options.freeze_layers >= 0:
        patterns += frozen_layers(options.freeze_layers, num_layers)
    return freeze(model, patterns) if patterns else []


def make_optimizer(
    options: TrainingOptions,
    num_layers: int,
    learning_rate: float,
    num_train_steps: int,
    num_warmup_steps: int,
    **arguments: Any,
) -> keras.optimizers.Optimizer:
    """Make the optimizer that the options name.

    Args:
        options: which optimizer, its rates by layer and its averages.
        num_layers: layers of the encoder.
        learning_rate: peak learning rate.
        num_train_steps: steps after which the rate is 0.
        num_warmup_steps: steps of linear warm-up.
        **arguments: others of `optimizers.create_optimizer`.

    Returns:
        The optimizer; under mixed_float16 with dynamic loss scaling.
    """
    if options.ema_momentum:
        arguments |= {"use_ema": True, "ema_momentum": options.ema_momentum}
    if options.layer_wise_decay != 1:
        arguments["learning_rate_rules"] = layer_wise_rules(num_layers, options.layer_wise_decay)
    optimizer = create_optimizer(
        learning_rate, num_train_steps, num_warmup_steps, optimizer=options.optimizer, **arguments
    )
    if options.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def describe_devices(strategy: tf.distribute.Strategy | None) -> str:
    """Return one phrase that says what the run uses."""
    if strategy is not None:
        return f"{strategy.num_replicas_in_sync} replicas, {type(strategy).__name__}"
    return "1 GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def locked(folder: pathlib.Path) -> contextlib.AbstractContextManager[object]:
    """Keep another training out of an output folder, as long as this process is there.

    Raises:
        InputError: one is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(folder)
    except (NotImplementedError, OSError) as error:  # file systems without locks
        logging.warning("%s cannot be locked against a second training: %s", folder, error)
        return contextlib.nullcontext()
    if lock is None:
        raise InputError(
            f"output_dir: another process trains in {folder}; wait for its end, or use another "
            "folder"
        )
    return lock


@contextlib.contextmanager
def chief_first(options: TrainingOptions) -> Iterator[None]:
    """Let the other hosts wait until the chief has been through a block, and left its files."""
    if options.distribution_strategy != "multi_worker_mirrored":
        yield
        return
    strategy = strategy_of(options)
    if not distribution.is_chief(strategy):
        distribution.value_of_chief(strategy, 0)
    yield
    if distribution.is_chief(strategy):
        distribution.value_of_chief(strategy, 0)
