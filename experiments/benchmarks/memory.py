"""Measure the peak memory of a pre-training step, with and without recomputed activations.

    python experiments/benchmarks/memory.py --batch_size=8 --max_seq_length=512

Each choice of `--recompute_layers` runs in a process of its own, whose peak resident memory is
read after a few steps; "tracing" is that of one sequence of 32 word pieces, for which the graph is
the same and the activations are little.
"""

import dataclasses

from bert_tf.options import option
from experiments.benchmarks import harness, training
from experiments.benchmarks.harness import Figures
from experiments.benchmarks.pretraining_steps import our_step


@dataclasses.dataclass(frozen=True)
class Options(training.Options):
    """Options of the benchmark: those of training.py with other defaults, and what to compare."""

    recompute: tuple[str, ...] = option(("none", "every_2", "all"), "Choices to compare.")
    jit_compile: bool = option(False, "XLA.")


DEFAULTS = {
    "batch_size": 8,
    "max_seq_length": 512,
    "num_hidden_layers": 12,
    "vocab_size": 1000,
    "num_steps": 3,
    "num_warmup_steps": 0,  # the first step traces, and the least seconds count
}


def measure(options: Options, recompute: str) -> Figures:
    """Measure one choice in this process."""
    import keras

    keras.utils.set_random_seed(1)
    heads = max(1, options.hidden_size // 64)
    shapes = training.make_shapes(dataclasses.replace(options, num_attention_heads=heads))
    step = our_step(shapes, jit_compile=options.jit_compile, recompute=recompute)
    return harness.measure_calls(step, options.num_warmup_steps, options.num_steps)


def compare(options: Options) -> None:
    """Measure all choices and print a table."""
    table = harness.Table("name peak_mib:.0f tracing_mib:.0f least_cpu_seconds:.2f loss:.6f")
    little = ("--batch_size=1", "--max_seq_length=32", "--num_steps=1")
    for choice in options.recompute:
        figures = harness.in_process(choice, flag="choice")
        tracing = harness.in_process(choice, *little, flag="choice")
        table.row({"name": choice, "tracing_mib": tracing["peak_mib"], **figures})


if __name__ == "__main__":
    harness.run_benchmark(Options, compare, measure, flag="choice", **DEFAULTS)
