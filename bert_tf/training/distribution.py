"""Several devices and hosts: strategies by name, and global batches cut for their replicas.

A step trains on one global batch, whatever the number of replicas. Each host reads the whole
stream of global batches and keeps the rows of its own replicas, so a run can go on with another
number of them and meets the same batches.

Shapes: B global batch, R replicas in all, S replicas of this host, N accumulation steps.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from bert_tf.training.options import LOSS_NORMALIZATIONS

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")
MIRRORED_ALGORITHMS = ("nccl", "hierarchical_copy", "reduction_to_one_device")
MULTI_WORKER_ALGORITHMS = ("auto", "ring", "nccl")


def create_strategy(
    name: str,
    *,
    all_reduce_alg: str | None = None,
    num_replicas: int | None = None,
    tpu: str | None = None,
    tpu_zone: str | None = None,
    gcp_project: str | None = None,
) -> tf.distribute.Strategy | None:
    """Make a strategy. Call it before anything else of TensorFlow has run.

    Args:
        name: of STRATEGIES; TF_CONFIG names the machines of "multi_worker_mirrored".
        all_reduce_alg: how gradients are summed: of MIRRORED_ALGORITHMS, or MULTI_WORKER_ALGORITHMS
            for several machines. None: nccl on GPUs, reduction_to_one_device on CPU, or auto.
        num_replicas: GPUs of mirrored, or without one the logical devices to divide the CPU into.
            None for all GPUs.
        tpu: name or address of the TPU; None for the one of this machine.
        tpu_zone: where it is.
        gcp_project: whose it is.

    Returns:
        A strategy; None for one_device. The same arguments give the same object.

    Raises:
        ValueError: an argument does not fit the strategy or this machine, or TF_CONFIG is wrong.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"distribution_strategy: expected one of {', '.join(STRATEGIES)}, got {name!r}"
        )
    _check_algorithm(name, all_reduce_alg)
    if (
        num_replicas is not None
        and name != "mirrored"
        and (name, num_replicas) != ("one_device", 1)
    ):
        raise ValueError(
            f"num_replicas: is for distribution_strategy mirrored, got {num_replicas} for {name}"
        )
    if name == "mirrored":
        return _mirrored(_mirrored_devices(num_replicas), all_reduce_alg)
    if name == "multi_worker_mirrored":
        _check_tf_config()
        return _multi_worker(all_reduce_alg or "auto")
    if name == "tpu":
        return _tpu(tpu, tpu_zone, gcp_project)
    return None


def _check_algorithm(name: str, algorithm: str | None) -> None:
    known = {"mirrored": MIRRORED_ALGORITHMS, "multi_worker_mirrored": MULTI_WORKER_ALGORITHMS}
    if algorithm is not None and algorithm not in known.get(name, ()):
        expected = f"one of {', '.join(known[name])}" if name in known else "none"
        raise ValueError(
            f"all_reduce_alg: expected {expected} for distribution_strategy {name}, "
            f"got {algorithm!r}"
        )


def _mirrored_devices(count: int | None) -> tuple[str, ...]:
    gpus = tf.config.list_physical_devices("GPU")
    if count is not None and count < 1:
        raise ValueError(f"num_replicas: expected at least 1, got {count}")
    if gpus:
        count = len(gpus) if count is None else count
        if count > len(gpus):
            raise ValueError(f"num_replicas: this machine has {len(gpus)} GPUs, got {count}")
        return tuple(f"GPU:{i}" for i in range(count))
    if count is None:
        raise ValueError(
            "num_replicas: this machine has no GPU; give the number of logical devices to divide "
            "its CPU into"
        )
    cpu = tf.config.list_physical_devices("CPU")[0]
    present = len(tf.config.get_logical_device_configuration(cpu) or [None])
    if present < count:
        try:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * count
            )
        except RuntimeError as error:
            raise ValueError(
                f"num_replicas: TensorFlow has started with {present} CPU devices in this "
                f"process, too late for {count}"
            ) from error
    return tuple(f"CPU:{i}" for i in range(count))


@functools.cache  # TensorFlow cannot have two mirrored strategies in a process
def _mirrored(devices: tuple[str, ...], algorithm: str | None) -> tf.distribute.Strategy:
    on_gpu = devices[0].startswith("GPU")
    if algorithm is None:
        algorithm = "nccl" if on_gpu else "reduction_to_one_device"
    if algorithm == "nccl" and not on_gpu:
        raise ValueError("all_reduce_alg: nccl needs GPUs, and this machine has none")
    operations = {
        "nccl": tf.distribute.NcclAllReduce,
        "hierarchical_copy": tf.distribute.HierarchicalCopyAllReduce,
        "reduction_to_one_device": tf.distribute.ReductionToOneDevice,
    }[algorithm]()
    return tf.distribute.MirroredStrategy(list(devices), cross_device_ops=operations)


def _check_tf_config() -> None:
    example = (
        '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", '
        '"index": 0}}'
    )
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise ValueError(
            "TF_CONFIG: multi_worker_mirrored needs this environment variable on each worker, "
            f"as {example}"
        )
    try:
        config = json.loads(text)
        task = config["task"]
        addresses = config["cluster"][task["type"]]
        fits = 0 <= task["index"] < len(addresses)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"TF_CONFIG: expected as {example}, got {text!r}") from error
    if not fits:
        raise ValueError(
            f"TF_CONFIG: task index {task['index']} is not one of the {len(addresses)} addresses "
            f"of {task['type']}"
        )


@functools.cache
def _multi_worker(algorithm: str) -> tf.distribute.Strategy:
    implementation = tf.distribute.experimental.CommunicationImplementation[algorithm.upper()]
    return tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(
            implementation=implementation
        )
    )


@functools.cache
def _tpu(tpu: str | None, zone: str | None, project: str | None) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
        tpu=tpu or "local", zone=zone, project=project
    )
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


def num_replicas_of(strategy: tf.distribute.Strategy | None) -> int:
    """Return R, the number of replicas of all hosts; 1 without a strategy."""
    return 1 if strategy is None else strategy.num_replicas_in_sync


def is_chief(strategy: tf.distribute.Strategy | None) -> bool:
    """Return whether this process is the one that writes checkpoints and logs."""
    resolver = None if strategy is None else strategy.cluster_resolver
    if resolver is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    cluster = resolver.cluster_spec().as_dict()
    kind = resolver.task_type
    return kind == "chief" or (kind == "worker" and "chief" not in cluster and not resolver.task_id)


def value_of_chief(strategy: tf.distribute.Strategy | None, value: int) -> int:
    """Return what the chief gives for `value`; every worker must call this, and waits for it."""
    if strategy is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return value
    replicas_of_chief = strategy.num_replicas_in_sync // _num_workers(strategy)
    total = _sum_over_workers(strategy)(tf.constant(value if is_chief(strategy) else 0, tf.int64))
    return int(total.numpy()) // replicas_of_chief


def any_worker(strategy: tf.distribute.Strategy | None, value: bool) -> bool:
    """Return whether any worker gives True; every worker must call this, and waits for all."""
    if strategy is None or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return value
    return bool(_sum_over_workers(strategy)(tf.constant(value, tf.int64)).numpy())


@functools.cache
def _sum_over_workers(strategy: tf.distribute.Strategy) -> Any:
    """Return the function that sums an int64 scalar over all replicas."""

    @tf.function
    def total(value: Any) -> Any:
        def gather():
            context = tf.distribute.get_replica_context()
            assert context is not None  # noqa: S101
            # A copy made here lies on the replica's device, which the sum has to know.
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        return strategy.experimental_local_results(strategy.run(gather))[0]

    return total


def _num_workers(strategy: tf.distribute.Strategy) -> int:
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))


def check_batch_size(name: str, batch_size: int, replicas: int, accumulation_steps: int = 1) -> int:
    """Return the rows of a batch that one replica computes at a time.

    Args:
        name: of the argument or flag, for the message.
        batch_size: B, the global batch.
        replicas: R.
        accumulation_steps: N.

    Raises:
        ValueError: B is not a multiple of R * N.
    """
    rows, rest = divmod(batch_size, replicas * accumulation_steps)
    if rest or not rows:
        raise ValueError(
            f"{name}: {batch_size} is not a multiple of {replicas} replicas x {accumulation_steps} "
            "accumulation steps, so the global batch cannot be divided evenly"
        )
    return rows


def split_batches(
    dataset: tf.data.Dataset,
    *,
    batch_size: int | None,
    loss_weights: Callable[[Any, Any], Mapping[str, Any]],
    context: tf.distribute.InputContext | None = None,
    accumulation_steps: int = 1,
    loss_normalization: str = "global",
) -> tf.data.Dataset:
    """Cut global batches into what this host's replicas compute.

    Replica r has the rows r * B / R to (r + 1) * B / R, and its micro-batch n the n-th of N equal
    parts of them.

    Args:
        dataset: (inputs, labels, weights), each tensor [B, ...].
        batch_size: B; None where it differs from batch to batch, but is a multiple of R * N.
        loss_weights: (labels, weights) -> name -> float32 scalar: what losses are divided by.
        context: which host this is; None for the only replica there is.
        accumulation_steps: N.
        loss_normalization: "global" or "per_replica": over which rows `loss_weights` is taken.

    Returns:
        Dataset with an element for each replica of this host in turn: ((inputs, labels, weights),
        loss weights), each tensor of the first [N, B / R / N, ...].

    Raises:
        ValueError: B is not a multiple of R * N, or loss_normalization is not known.
    """
    if loss_normalization not in LOSS_NORMALIZATIONS:
        raise ValueError(
            f"loss_normalization: expected one of {', '.join(LOSS_NORMALIZATIONS)}, "
            f"got {loss_normalization!r}"
        )
    replicas = context.num_replicas_in_sync if context else 1
    ours = replicas // context.num_input_pipelines if context else 1
    first = ours * context.input_pipeline_id if context else 0
    rows = None
    if batch_size is not None:
        rows = check_batch_size("batch_size", batch_size, replicas, accumulation_steps)

    def of_replica(tensor: Any) -> Any:
        if rows is not None:
            return rows * accumulation_steps
        count: Any = tf.shape(tensor)[0]
        message = f"a batch is not a multiple of {replicas} replicas x {accumulation_steps} parts"
        with tf.control_dependencies(
            [tf.debugging.assert_equal(count % (replicas * accumulation_steps), 0, message)]
        ):
            return count // replicas

    def cut(tensor: Any) -> Any:
        tensor = tf.ensure_shape(tensor, [batch_size, *tensor.shape[1:]])
        share = of_replica(tensor)
        mine = tensor[first * share : (first + ours) * share]
        parts = [ours, accumulation_steps, -1 if rows is None else rows]
        mine = tf.reshape(mine, tf.concat([parts, tf.shape(mine)[1:]], 0))
        return tf.ensure_shape(mine, [*parts[:2], rows, *tensor.shape[1:]])

    def rows_of(replica: int, tensor: Any) -> Any:
        share = of_replica(tensor)
        return tensor[replica * share : (replica + 1) * share]

    def split(inputs: Any, labels: Any, weights: Any) -> Any:
        if loss_normalization == "global":
            whole = [loss_weights(labels, weights)] * ours
        else:
            whole = [
                loss_weights(
                    *tf.nest.map_structure(functools.partial(rows_of, first + i), (labels, weights))
                )
                for i in range(ours)
            ]
        whole = tf.nest.map_structure(lambda *x: tf.stack(x), *map(dict, whole))
        return tf.nest.map_structure(cut, (inputs, labels, weights)), whole

    cardinality = dataset.cardinality()
    dataset = dataset.map(split, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.unbatch()
    if cardinality == tf.data.INFINITE_CARDINALITY:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(cardinality))
    return dataset.prefetch(2 * ours)


def distribute_batches(
    strategy: tf.distribute.Strategy | None,
    make_dataset: Callable[[], tf.data.Dataset],
    **arguments: Any,
) -> Any:
    """Give each replica its part of the global batches.

    Args:
        strategy: of whose replicas; None for one.
        make_dataset: () -> global batches, the same on each host.
        **arguments: of `split_batches`.

    Returns:
        A dataset, distributed where there is a strategy; see `split_batches` for its elements.
    """
    if strategy is None:
        return split_batches(make_dataset(), **arguments)
    return strategy.distribute_datasets_from_function(
        lambda context: split_batches(make_dataset(), context=context, **arguments)
    )
