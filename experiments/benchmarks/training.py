"""Measure a pre-training step beside KerasHub's and transformers', on the same shapes.

    python experiments/benchmarks/training.py

Each contender runs in a process of its own: forward, backward and update on one batch of random
word pieces, in float32 or, where its name says so, in bfloat16, dropout on. CPU seconds are those
of the whole process, all threads together; on a machine with other work they are steadier than
wall time. The figures are medians over steps after warm-up, in which compilation falls; memory is
the process's peak.

- ours: `bert_pretrainer` with `AdamWeightDecay` (gradient clipping included), compiled by
  TensorFlow as a graph, by XLA, or by XLA between the matrix products (`--jit_compile=pointwise`);
- kerashub: `BertBackbone`, `MaskedLMHead` and a dense layer for NSP with Keras' Adam, likewise;
- transformers: `BertForPreTraining` with torch's AdamW. It has no gathering of masked positions.

KerasHub and transformers are only needed for their rows; a missing one is left out, said so.
"""

import dataclasses
import functools
import os
from collections.abc import Callable

from bert_tf.options import option
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Contender, Figures
from experiments.benchmarks.pretraining_steps import Shapes, keras_step, our_step, torch_step

_BFLOAT16 = "mixed_bfloat16"


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    batch_size: int = option(32, "Sequences in a batch.")
    max_seq_length: int = option(128, "Word pieces in a sequence.")
    max_predictions_per_seq: int = option(20, "Masked positions in a sequence.")
    num_hidden_layers: int = option(4, "Transformer layers.")
    hidden_size: int = option(256, "Width of the encoder; four times that in between.")
    num_attention_heads: int = option(4, "Attention heads.")
    vocab_size: int = option(30522, "Word pieces in the vocabulary.")
    dropout: float = option(0.1, "Dropout rate, of hidden states and of attention.")
    num_steps: int = option(15, "Steps to take the median of.")
    num_warmup_steps: int = option(4, "Steps not counted.")
    num_rounds: int = option(1, "Times each contender runs; the best of its medians counts.")
    accuracy: bool = option(False, "Whether ours also counts accuracies, as in real training.")
    contenders: tuple[str, ...] | None = option(None, "Which to run; all by default.")


def make_shapes(options: Options) -> Shapes:
    """Return the shapes that the options say."""
    config = harness.encoder_config(
        options,
        options.vocab_size,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        max_position_embeddings=max(512, options.max_seq_length),
    )
    return Shapes(
        config, options.batch_size, options.max_seq_length, options.max_predictions_per_seq
    )


def _ours(
    options: Options, jit_compile: bool | str, precision: str = "float32"
) -> Callable[[], float]:
    return our_step(
        make_shapes(options),
        jit_compile=jit_compile,
        accuracy=options.accuracy,
        precision=precision,
    )


def _keras_hub(
    options: Options, jit_compile: bool, precision: str = "float32"
) -> Callable[[], float]:
    import keras
    import keras_hub

    from bert_tf.weights.keras_hub import new_backbone

    keras.config.set_dtype_policy(precision)
    shapes = make_shapes(options)
    backbone = new_backbone(shapes.config)
    inputs = dict(backbone.input)
    inputs["mask_positions"] = keras.Input((None,), dtype="int32", name="mask_positions")
    encoded = backbone(backbone.input)
    outputs = {
        "masked_lm_logits": keras_hub.layers.MaskedLMHead(
            vocabulary_size=options.vocab_size,
            token_embedding=backbone.token_embedding,
            intermediate_activation="gelu",
        )(encoded["sequence_output"], mask_positions=inputs["mask_positions"]),
        "next_sentence_logits": keras.layers.Dense(2)(encoded["pooled_output"]),
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    arguments = {
        "optimizer": keras.optimizers.Adam(1e-4),
        "loss": dict.fromkeys(outputs, loss),
        "jit_compile": jit_compile,
    }
    names = {
        "token_ids": "input_ids",
        "padding_mask": "input_mask",
        "segment_ids": "segment_ids",
        "mask_positions": "masked_lm_positions",
    }
    return keras_step(keras.Model(inputs, outputs), arguments, shapes, names)


def _transformers(options: Options) -> Callable[[], float]:
    step, wait = torch_step(make_shapes(options))
    return lambda: (step(), wait())[1]


CONTENDERS = {
    "ours_graph": Contender(functools.partial(_ours, jit_compile=False)),
    "ours_xla": Contender(functools.partial(_ours, jit_compile=True)),
    "ours_pointwise": Contender(functools.partial(_ours, jit_compile="pointwise")),
    "ours_bfloat16": Contender(functools.partial(_ours, jit_compile=False, precision=_BFLOAT16)),
    "ours_bfloat16_pointwise": Contender(
        functools.partial(_ours, jit_compile="pointwise", precision=_BFLOAT16)
    ),
    "kerashub_graph": Contender(functools.partial(_keras_hub, jit_compile=False), ("keras_hub",)),
    "kerashub_xla": Contender(functools.partial(_keras_hub, jit_compile=True), ("keras_hub",)),
    "kerashub_bfloat16": Contender(
        functools.partial(_keras_hub, jit_compile=False, precision=_BFLOAT16), ("keras_hub",)
    ),
    "transformers": Contender(_transformers, ("torch", "transformers")),
}


def measure(options: Options, name: str) -> Figures:
    """Measure one contender in this process."""
    step = CONTENDERS[name].prepare(options)
    return harness.measure_calls(step, options.num_warmup_steps, options.num_steps)


def compare(options: Options) -> None:
    """Measure all contenders and print a table."""
    names = harness.installed(CONTENDERS, options.contenders)
    results: dict[str, Figures] = {}
    # Rounds in turn, so that a busy minute of the machine does not fall on one contender alone.
    for _ in range(options.num_rounds):
        for name in names:
            result = harness.try_in_process(name)
            best = results.get(name)
            if result and (best is None or result["cpu_seconds"] < best["cpu_seconds"]):
                results[name] = result
    print(
        f"batch {options.batch_size}, length {options.max_seq_length}, "
        f"{options.max_predictions_per_seq} predictions, L{options.num_hidden_layers} "
        f"H{options.hidden_size} A{options.num_attention_heads}, vocabulary {options.vocab_size}, "
        f"dropout {options.dropout}, {os.cpu_count()} CPUs"
    )
    ours = [row["cpu_seconds"] for name, row in results.items() if name.startswith("ours")]
    table = harness.Table(
        "name cpu_seconds:.3f wall_seconds:.3f cpu_over_our_best:.2f peak_mib:.0f"
    )
    for name, row in results.items():
        ratio = row["cpu_seconds"] / min(ours, default=float("nan"))
        table.row({"name": name, "cpu_over_our_best": ratio, **row})
    harness.write_figures(options, results=results)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare, measure)
