"""Compile pre-training steps for a mesh of devices that need not be there; print what each needs.

    python experiments/benchmarks/device_memory.py --mesh=2,4
    python experiments/benchmarks/device_memory.py --mesh=2,4 --topology=v5e:2x4    # a TPU's

Heads and intermediate units are split over the second axis of the mesh, as `layout_map` says, the
batch over the first. Model, optimizer and batch are shapes alone: nothing is allocated. The
compiler is that of JAX's CPU backend, for as many parts of this machine, or with --topology the
TPU's own (`pip install libtpu`, of the version that the extra "tpu" of jax asks for). Keras' JAX
backend; no TensorFlow.

Memory is the compiler's figure for each device: the state (weights, moments of Adam) with the
batch, and what it needs beside them in a step, its code included. TFLOP and collectives, too, are
of one device's program.
"""

import dataclasses
import math
import re
import time
from typing import Any

from bert_tf.config import BertConfig
from bert_tf.options import option
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Figures
from experiments.benchmarks.pretraining_steps import Shapes, jax_train_step

AXES = ("data", "model")
HOST = "host"
_COLLECTIVE = re.compile(
    r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    model_sizes: tuple[str, ...] = option(("large",), "Keys of bert_tf.SIZES.")
    lengths: tuple[int, ...] = option((512,), "Word pieces in a sequence.")
    batch_size: int = option(64, "Sequences in a batch, or packed rows, of all devices together.")
    sequences_per_row: int = option(1, "Of packed rows; 1 for rows of one sequence.", minimum=1)
    mesh: tuple[int, ...] = option((8, 1), "Devices along the batch, and along heads and units.")
    topology: str = option(HOST, "Of a TPU, as v5e:2x4; or host, for parts of this machine.")
    dtype: str = option("mixed_bfloat16", "Keras' policy.")
    recompute_layers: str = option("none", "See run_pretraining.py.")
    vocab_size: int = option(30522, "Word pieces in the vocabulary.")
    predictions_fraction: float = option(0.15, "Masked positions of a sequence.")


def shapes_of(options: Options, size: str, length: int) -> Shapes:
    """Return the shapes of a model and its batch."""
    config = BertConfig.from_size(size, vocab_size=options.vocab_size)
    predictions = max(1, round(options.predictions_fraction * length))
    return Shapes(config, options.batch_size, length, predictions, options.sequences_per_row)


def trace_step(options: Options, shapes: Shapes) -> Any:
    """Trace a step for a mesh, of shapes alone.

    Returns:
        `jax.stages.Traced` of a function of (state, batch), whose state is donated.

    Raises:
        ValueError: the mesh does not fit the devices or the model.
    """
    import jax
    import keras
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from bert_tf.models.device_layout import layout_map
    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training.optimizers import create_optimizer

    optimizer = create_optimizer(1e-4, 1_000_000, 10_000)
    with keras.StatelessScope(initialize_variables=False):  # no variable gets a value
        model = bert_pretrainer(
            shapes.config,
            packed=shapes.sequences > 1,
            dtype=options.dtype,
            recompute=options.recompute_layers,
        )
        optimizer.build(model.trainable_variables)
    names = [f"device:{index}" for index in range(math.prod(options.mesh))]
    layouts = layout_map(shapes.config, keras.distribution.DeviceMesh(options.mesh, AXES, names))
    devices = np.array(devices_of(options.topology, len(names))).reshape(options.mesh)
    mesh = jax.sharding.Mesh(devices, AXES)

    def abstract(shape, dtype, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    # Moments are split as their variables are, in whose names "/" has become "_".
    axes = {variable.path: layouts[variable.path] for variable in model.variables}
    for path, layout in list(axes.items()):
        moment = f"{optimizer.name}/{path.replace('/', '_')}"
        axes |= {f"{moment}_{slot}": layout for slot in optimizer.slot_names}

    def values(variables):
        found = [(variable, axes.get(variable.path)) for variable in variables]
        return [abstract(v.shape, v.dtype, *(layout.axes if layout else ())) for v, layout in found]

    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    state = tuple(values(group) for group in groups)
    small = dataclasses.replace(shapes, batch_size=1).batch()
    batch = {
        name: abstract((shapes.batch_size, *value.shape[1:]), value.dtype, AXES[0])
        for name, value in small.items()
    }
    shardings = (jax.tree.map(lambda x: x.sharding, state), NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(jax_train_step(model, optimizer), donate_argnums=0, out_shardings=shardings)
    return step.trace(state, batch)


def devices_of(topology: str, count: int) -> list[Any]:
    """Return the devices to compile for, which for a TPU's topology need not be there.

    Raises:
        ValueError: there are fewer or more than `count`.
    """
    import jax
    from jax.experimental import topologies

    if topology == HOST:
        devices = jax.devices()
    else:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    if len(devices) != count:
        raise ValueError(f"mesh: has {count} devices, {topology} {len(devices)}")
    return devices


def memory_of(compiled: Any) -> Figures:
    """Return what a compiled step takes of each device, in GiB.

    Args:
        compiled: `jax.stages.Compiled`.
    """
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    step = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return {"state_gib": kept / 2**30, "step_gib": step / 2**30, "gib": (kept + step) / 2**30}


def measure(options: Options, job: str) -> Figures:
    """Compile "<size>:<length>"."""
    size, length = job.split(":")
    start = time.process_time()
    compiled = trace_step(options, shapes_of(options, size, int(length))).lower().compile()
    return {
        **memory_of(compiled),
        "tflop": compiled.cost_analysis()["flops"] / 1e12,
        "collectives": len(_COLLECTIVE.findall(compiled.as_text())),
        "compile_cpu_seconds": time.process_time() - start,
    }


def compare(options: Options) -> None:
    """Compile all and print a table.

    Raises:
        ValueError: the mesh has not two axes.
        RuntimeError: no step could be compiled.
    """
    if len(options.mesh) != len(AXES):
        raise ValueError(f"mesh: expected two numbers, got {','.join(map(str, options.mesh))}")
    environment = {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={math.prod(options.mesh)}",
        "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU whose metadata could be asked for
    }
    table = harness.Table(
        "size length state_gib:.2f step_gib:.2f gib:.2f tflop:.2f collectives "
        "compile_cpu_seconds:.0f"
    )
    rows = []
    for size in options.model_sizes:
        for length in options.lengths:
            figures = harness.try_in_process(
                f"{size}:{length}", flag="job", environment=environment
            )
            if figures:
                rows.append({"size": size, "length": length, **figures})
                table.row(rows[-1])
    if not rows:
        raise RuntimeError("nothing could be compiled; see above")
    harness.write_figures(options, results=rows)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare, measure, flag="job")
