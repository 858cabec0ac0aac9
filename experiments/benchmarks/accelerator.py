"""Measure pre-training steps on an accelerator: Keras' JAX backend beside transformers on torch.

    python experiments/benchmarks/accelerator.py --output_file=accelerator.json
    python experiments/benchmarks/accelerator.py --small    # on any machine, in a few minutes

For each size and length, each contender takes the same step in a process of its own: forward,
backward, clipping and update on one batch of random word pieces, in bfloat16 with float32 weights,
dropout on. TensorFlow is not needed.

- ours: `bert_pretrainer` and `AdamWeightDecay` under `jax.jit`;
- transformers: `BertForPreTraining`, `torch.compile`, attention by SDPA, autocast, fused AdamW;
- transformers_gathered: the same, with the vocabulary's logits at the masked positions alone, as
  ours has them; by itself transformers computes them everywhere.

Model FLOPs utilisation is the work that the model needs (matrix products, gradients twice the
forward pass, logits at masked positions alone, nothing for recomputation) over what the device does
in the same seconds in products of large bfloat16 matrices, measured first, in jax and in torch: the
better of the two counts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from absl import flags

from bert_tf.config import BertConfig
from bert_tf.options import option
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Contender, Figures
from experiments.benchmarks.pretraining_steps import (
    Asynchronous,
    Shapes,
    jax_train_step,
    torch_step,
)


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    model_sizes: tuple[str, ...] = option(("base", "large"), "Keys of bert_tf.SIZES.")
    lengths: tuple[int, ...] = option((128, 512), "Word pieces in a sequence.")
    vocab_size: int = option(30522, "Word pieces in the vocabulary.")
    tokens_per_batch: int = option(32768, "A batch has this over the length sequences.", minimum=1)
    predictions_fraction: float = option(0.15, "Masked positions of a sequence.")
    attention_dropout: float = option(0.1, "Dropout of attention probabilities; the paper's.")
    recompute_layers: str = option("none", "Of ours: see run_pretraining.py.")
    compile: bool = option(True, "Whether to compile the models of torch.")
    num_steps: int = option(20, "Steps in a measurement.")
    num_measurements: int = option(5, "Measurements to take the median of.")
    num_warmup_steps: int = option(5, "Steps not counted.")
    matrix_size: int = option(8192, "Rows and columns of the matrices multiplied.")
    small: bool = option(False, "Small sizes and few steps, to try the script on a CPU.")
    contenders: tuple[str, ...] | None = option(None, "Which to run; all by default.")


_SMALL: dict[str, Any] = {
    "model_sizes": ("tiny",),
    "lengths": (32,),
    "vocab_size": 997,
    "tokens_per_batch": 64,
    "num_steps": 2,
    "num_measurements": 3,
    "num_warmup_steps": 2,
    "matrix_size": 256,
}


def _sized(options: Options) -> Options:
    """Return the options with small sizes where these are asked for and no others given."""
    if not options.small:
        return options
    small = {name: value for name, value in _SMALL.items() if not flags.FLAGS[name].present}
    return dataclasses.replace(options, **small)


def _shapes(options: Options, size: str, length: int) -> Shapes:
    config = BertConfig.from_size(
        size, vocab_size=options.vocab_size, attention_probs_dropout_prob=options.attention_dropout
    )
    predictions = max(1, round(options.predictions_fraction * length))
    return Shapes(config, options.tokens_per_batch // length, length, predictions)


def flops_of_sequence(shapes: Shapes) -> float:
    """Return the floating-point operations of a training step for one sequence."""
    config, length = shapes.config, shapes.length
    width, inner = config.hidden_size, config.intermediate_size
    layer = 2 * length * (4 * width**2 + 2 * width * inner)  # projections
    layer += 2 * 2 * length**2 * width  # scores, and sums by probabilities
    head = 2 * shapes.predictions * (width**2 + width * config.vocab_size)
    return 3.0 * (config.num_hidden_layers * layer + head + 2 * width**2)


# === Contenders ===


def _ours(options: Options, shapes: Shapes) -> Asynchronous:
    """Return a step of this package's model on Keras' JAX backend."""
    import jax

    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training.optimizers import create_optimizer

    recompute = options.recompute_layers
    model = bert_pretrainer(shapes.config, recompute=recompute, dtype="mixed_bfloat16")
    optimizer = create_optimizer(1e-4, 1_000_000, 10_000)
    optimizer.build(model.trainable_variables)
    train_step = jax_train_step(model, optimizer)
    compiled = jax.jit(train_step, donate_argnums=0)
    batch = jax.device_put(shapes.batch())
    variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    # Copies, since Keras' variables hold the originals and a donated array is gone.
    state = jax.tree.map(
        jax.numpy.copy, tuple([variable.value for variable in group] for group in variables)
    )
    last: Any = None

    def step() -> None:
        nonlocal state, last
        state, last = compiled(state, batch)

    return step, lambda: float(jax.block_until_ready((state, last))[1])


def _transformers(options: Options, shapes: Shapes, gathered: bool = False) -> Asynchronous:
    return torch_step(
        shapes, mixed_precision=True, compiled=options.compile, gathered=gathered, clip_norm=1.0
    )


def _matrices_jax(options: Options) -> Asynchronous:
    """Return a product of large matrices in jax."""
    import jax

    size = options.matrix_size
    a = jax.random.normal(jax.random.key(0), (size, size), "bfloat16") / size**0.5
    product, last = jax.jit(jax.numpy.matmul), a

    def step() -> None:
        nonlocal last
        last = product(last, a)

    return step, lambda: float(jax.block_until_ready(last)[0, 0])


def _matrices_torch(options: Options) -> Asynchronous:
    """Return a product of large matrices in torch."""
    import torch

    device, size = "cuda" if torch.cuda.is_available() else "cpu", options.matrix_size
    a = torch.randn(size, size, device=device).to(torch.bfloat16) / size**0.5
    last = a

    def step() -> None:
        nonlocal last
        last = last @ a

    return step, lambda: float(last[0, 0])


CONTENDERS = {
    "ours": Contender(_ours, ("jax", "keras")),
    "transformers": Contender(_transformers, ("torch", "transformers")),
    "transformers_gathered": Contender(
        functools.partial(_transformers, gathered=True), ("torch", "transformers")
    ),
}
MATRICES = {
    "matrices_jax": Contender(_matrices_jax, ("jax",)),
    "matrices_torch": Contender(_matrices_torch, ("torch",)),
}


# === Measuring ===


def measure_steps(options: Options, step: Callable[[], None], wait: Callable[[], float]) -> Figures:
    """Measure several steps at a time: the clock is read where the device is done with them all."""

    def steps(count: int = options.num_steps) -> float:
        for _ in range(count):
            step()
        return wait()

    with harness.timed() as start:
        steps(options.num_warmup_steps)
    figures = harness.measure_calls(steps, 0, options.num_measurements)
    return {
        "seconds_per_step": figures["wall_seconds"] / options.num_steps,
        "least_seconds_per_step": figures["least_wall_seconds"] / options.num_steps,
        "start_seconds": start.wall,
        "loss": figures["loss"],
    }


def _device_of(name: str) -> Figures:
    """Return the device that a contender ran on, and its peak memory where that is known."""
    if name in ("ours", "matrices_jax"):
        import jax

        device = jax.devices()[0]
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return {"device": device.device_kind, "peak_bytes": peak, "jax": jax.__version__}
    import torch

    figures: Figures = {"device": "cpu", "peak_bytes": None, "torch": torch.__version__}
    if torch.cuda.is_available():
        figures["device"] = torch.cuda.get_device_name()
        figures["peak_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def measure(options: Options, job: str) -> Figures:
    """Measure products of matrices by their name, or "<contender>:<size>:<length>"."""
    options = _sized(options)
    name, *which = job.split(":")
    if which:
        shapes = _shapes(options, which[0], int(which[1]))
        figures = measure_steps(options, *CONTENDERS[name].prepare(options, shapes))
        figures["sequences_per_second"] = shapes.batch_size / figures["seconds_per_step"]
        flops = figures["sequences_per_second"] * flops_of_sequence(shapes)
        figures["model_flops_per_second"] = flops
    else:
        figures = measure_steps(options, *MATRICES[name].prepare(options))
        figures["flops_per_second"] = 2 * options.matrix_size**3 / figures["seconds_per_step"]
    return {**figures, **_device_of(name)}


def _start(job: str) -> Figures | None:
    return harness.try_in_process(job, flag="job", environment={"KERAS_BACKEND": "jax"})


def compare(options: Options) -> None:
    """Measure all contenders, at all sizes and lengths, and print a table.

    Raises:
        RuntimeError: none of them could run.
    """
    options = _sized(options)
    names = harness.installed(CONTENDERS, options.contenders)
    matrices = {name: _start(name) for name in harness.installed(MATRICES)}
    rates = [figures["flops_per_second"] for figures in matrices.values() if figures]
    for name, figures in matrices.items():
        if figures:
            rate = figures["flops_per_second"] / 1e12
            print(f"{name}: {rate:.4g} TFLOP/s on {figures['device']}")
    table = harness.Table(
        "contender size length batch_size sequences_per_second:.1f seconds_per_step:.4f "
        "utilisation:.1% peak_gib:.1f"
    )
    rows = []
    for size in options.model_sizes:
        for length in options.lengths:
            for name in names:
                figures = _start(f"{name}:{size}:{length}")
                if figures is None:
                    continue
                share = figures["model_flops_per_second"] / max(rates) if rates else None
                batch_size = options.tokens_per_batch // length
                where = {"size": size, "length": length, "batch_size": batch_size}
                rows.append({**where, "contender": name, "utilisation": share, **figures})
                peak = figures["peak_bytes"]
                table.row({**rows[-1], "peak_gib": peak and peak / 2**30})
    harness.write_figures(options, matrices=matrices, results=rows)
    if not rows:
        raise RuntimeError("no contender could run")


if __name__ == "__main__":
    harness.run_benchmark(Options, compare, measure, flag="job")
