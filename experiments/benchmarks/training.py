"""Measure a pre-training step beside KerasHub's and transformers', on the same shapes.

    python experiments/benchmarks/training.py

Each contender runs in a process of its own: forward, backward and update on one batch of random
word pieces, in float32, dropout on. CPU seconds are those of the whole process, all threads
together; on a machine with other work they are steadier than wall time. The figures are medians
over steps after warm-up, in which compilation falls.

- ours: `bert_pretrainer` with `AdamWeightDecay` (gradient clipping included), compiled by
  TensorFlow as a graph or by XLA;
- kerashub: `BertBackbone`, `MaskedLMHead` and a dense layer for NSP with Keras' Adam, likewise;
- transformers: `BertForPreTraining` with torch's AdamW. It has no gathering of masked positions.

KerasHub and transformers are only needed for their rows; a missing one is left out, said so.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS

flags.DEFINE_integer("batch_size", 32, "Sequences in a batch.")
flags.DEFINE_integer("max_seq_length", 128, "Word pieces in a sequence.")
flags.DEFINE_integer("max_predictions_per_seq", 20, "Masked positions in a sequence.")
flags.DEFINE_integer("num_hidden_layers", 4, "Transformer layers.")
flags.DEFINE_integer("hidden_size", 256, "Width of the encoder; four times that in between.")
flags.DEFINE_integer("num_attention_heads", 4, "Attention heads.")
flags.DEFINE_integer("vocab_size", 30522, "Word pieces in the vocabulary.")
flags.DEFINE_float("dropout", 0.1, "Dropout rate, of hidden states and of attention.")
flags.DEFINE_integer("num_steps", 15, "Steps to take the median of.")
flags.DEFINE_integer("num_warmup_steps", 4, "Steps not counted.")
flags.DEFINE_integer("num_rounds", 1, "Times each contender runs; the best of its medians counts.")
flags.DEFINE_bool("accuracy", False, "Whether ours also counts accuracies, as in real training.")
flags.DEFINE_list("contenders", None, "Which to run; all by default.")
flags.DEFINE_string("contender", None, "Run this one in this process and print its figures.")
flags.DEFINE_string("output_file", None, "Where to write the figures as JSON; nowhere by default.")


def make_batch() -> tuple[dict, dict, dict]:
    """Make inputs, labels and sample weights under this package's names; the same each time."""
    rng = np.random.default_rng(0)
    size, length = FLAGS.batch_size, FLAGS.max_seq_length
    predictions = FLAGS.max_predictions_per_seq
    ids = rng.integers(0, FLAGS.vocab_size, (size, length))
    positions = [
        np.sort(rng.choice(np.arange(1, length), predictions, replace=False)) for _ in range(size)
    ]
    inputs = {
        "input_ids": ids,
        "input_mask": np.ones_like(ids),
        "segment_ids": np.broadcast_to(np.arange(length) >= length // 2, ids.shape),
        "masked_lm_positions": np.stack(positions),
    }
    labels = {
        "masked_lm_logits": rng.integers(0, FLAGS.vocab_size, (size, predictions)),
        "next_sentence_logits": rng.integers(0, 2, (size, 1)),
    }
    weights = {
        "masked_lm_logits": np.ones((size, predictions), np.float32),
        "next_sentence_logits": np.ones((size, 1), np.float32),
    }
    inputs = {name: value.astype(np.int32) for name, value in inputs.items()}
    labels = {name: value.astype(np.int32) for name, value in labels.items()}
    return inputs, labels, weights


def ours(jit_compile: bool) -> Callable[[], float]:
    """Return a function that takes one training step of this package and returns the loss."""
    from bert_tf.config import BertConfig
    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training.objectives import pretraining_compile_arguments
    from bert_tf.training.optimizers import create_optimizer

    config = BertConfig(
        vocab_size=FLAGS.vocab_size,
        hidden_size=FLAGS.hidden_size,
        num_hidden_layers=FLAGS.num_hidden_layers,
        num_attention_heads=FLAGS.num_attention_heads,
        intermediate_size=4 * FLAGS.hidden_size,
        hidden_dropout_prob=FLAGS.dropout,
        attention_probs_dropout_prob=FLAGS.dropout,
        max_position_embeddings=max(512, FLAGS.max_seq_length),
    )
    model = bert_pretrainer(config)
    arguments = pretraining_compile_arguments(config)
    if not FLAGS.accuracy:
        del arguments["weighted_metrics"]
    model.compile(optimizer=create_optimizer(1e-4, 1000, 10), jit_compile=jit_compile, **arguments)
    inputs, labels, weights = _as_tensors(make_batch())
    return lambda: float(model.train_on_batch(inputs, labels, weights, return_dict=True)["loss"])


def kerashub(jit_compile: bool) -> Callable[[], float]:
    """Return the same for KerasHub."""
    import keras
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=FLAGS.vocab_size,
        num_layers=FLAGS.num_hidden_layers,
        num_heads=FLAGS.num_attention_heads,
        hidden_dim=FLAGS.hidden_size,
        intermediate_dim=4 * FLAGS.hidden_size,
        dropout=FLAGS.dropout,
        max_sequence_length=max(512, FLAGS.max_seq_length),
        num_segments=2,
    )
    inputs = dict(backbone.input)
    inputs["mask_positions"] = keras.Input((None,), dtype="int32", name="mask_positions")
    encoded = backbone(backbone.input)
    outputs = {
        "masked_lm_logits": keras_hub.layers.MaskedLMHead(
            vocabulary_size=FLAGS.vocab_size,
            token_embedding=backbone.token_embedding,
            intermediate_activation="gelu",
        )(encoded["sequence_output"], mask_positions=inputs["mask_positions"]),
        "next_sentence_logits": keras.layers.Dense(2)(encoded["pooled_output"]),
    }
    model = keras.Model(inputs, outputs)
    loss = {name: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for name in outputs}
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss, jit_compile=jit_compile)
    inputs, labels, weights = make_batch()
    inputs = {
        "token_ids": inputs["input_ids"],
        "padding_mask": inputs["input_mask"],
        "segment_ids": inputs["segment_ids"],
        "mask_positions": inputs["masked_lm_positions"],
    }
    inputs, labels, weights = _as_tensors((inputs, labels, weights))
    return lambda: float(model.train_on_batch(inputs, labels, weights, return_dict=True)["loss"])


def transformers() -> Callable[[], float]:
    """Return the same for transformers on torch."""
    import torch
    import transformers as hf

    model = hf.BertForPreTraining(
        hf.BertConfig(
            vocab_size=FLAGS.vocab_size,
            hidden_size=FLAGS.hidden_size,
            num_hidden_layers=FLAGS.num_hidden_layers,
            num_attention_heads=FLAGS.num_attention_heads,
            intermediate_size=4 * FLAGS.hidden_size,
            hidden_dropout_prob=FLAGS.dropout,
            attention_probs_dropout_prob=FLAGS.dropout,
            max_position_embeddings=max(512, FLAGS.max_seq_length),
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs, labels, _ = make_batch()
    token_labels = np.full_like(inputs["input_ids"], -100)
    np.put_along_axis(
        token_labels, inputs["masked_lm_positions"], labels["masked_lm_logits"], axis=1
    )
    batch = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["input_mask"],
        "token_type_ids": inputs["segment_ids"],
        "labels": token_labels,
        "next_sentence_label": labels["next_sentence_logits"][:, 0],
    }
    batch = {name: torch.tensor(value, dtype=torch.long) for name, value in batch.items()}

    def step() -> float:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


CONTENDERS: dict[str, Callable[[], Callable[[], float]]] = {
    "ours_graph": lambda: ours(jit_compile=False),
    "ours_xla": lambda: ours(jit_compile=True),
    "kerashub_graph": lambda: kerashub(jit_compile=False),
    "kerashub_xla": lambda: kerashub(jit_compile=True),
    "transformers": transformers,
}
# What a contender needs besides this package.
REQUIRED_PACKAGES = {
    "kerashub_graph": ("keras_hub",),
    "kerashub_xla": ("keras_hub",),
    "transformers": ("torch", "transformers"),
}


def _as_tensors(batch):
    """Convert the arrays once, so that no contender pays for it."""
    import keras

    return keras.tree.map_structure(keras.ops.convert_to_tensor, batch)


def measure(step: Callable[[], float]) -> dict[str, float]:
    """Time a step function; return median CPU and wall seconds, and the last loss."""
    for _ in range(FLAGS.num_warmup_steps):
        step()
    cpu_seconds, wall_seconds, loss = [], [], float("nan")
    for _ in range(FLAGS.num_steps):
        cpu, wall = time.process_time(), time.perf_counter()
        loss = step()
        cpu_seconds.append(time.process_time() - cpu)
        wall_seconds.append(time.perf_counter() - wall)
    return {
        "cpu_seconds": statistics.median(cpu_seconds),
        "wall_seconds": statistics.median(wall_seconds),
        "loss": loss,
    }


def run_contender(name: str) -> dict[str, float] | None:
    """Measure one contender in a fresh process; None, and a line that says why, if it fails."""
    missing = [p for p in REQUIRED_PACKAGES.get(name, ()) if importlib.util.find_spec(p) is None]
    if missing:
        print(f"{name}: left out, not installed: {', '.join(missing)}")
        return None
    result = subprocess.run(
        [sys.executable, os.path.abspath(__file__), *sys.argv[1:], f"--contender={name}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    if result.returncode:
        print(f"{name}: failed\n{result.stderr[-2000:]}")
        return None
    return json.loads(result.stdout.splitlines()[-1])


def format_table(results: dict[str, dict[str, float]]) -> str:
    """Return the figures as a table, with each CPU time relative to the best of ours."""
    ours_best = min(
        (r["cpu_seconds"] for name, r in results.items() if name.startswith("ours")),
        default=float("nan"),
    )
    lines = [f"{'':<16}{'CPU s/step':>12}{'wall s/step':>13}{'CPU / our best':>16}"]
    for name, result in results.items():
        ratio = result["cpu_seconds"] / ours_best
        lines.append(
            f"{name:<16}{result['cpu_seconds']:>12.3f}{result['wall_seconds']:>13.3f}{ratio:>16.2f}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measure one contender, or all of them in their own processes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if FLAGS.contender:
        print(json.dumps(measure(CONTENDERS[FLAGS.contender]())))
        return
    names = FLAGS.contenders or list(CONTENDERS)
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        raise app.UsageError(f"unknown contenders {unknown}; known are {list(CONTENDERS)}")
    results: dict[str, dict[str, float]] = {}
    # Rounds in turn, so that a busy minute of the machine does not fall on one contender alone.
    for _ in range(FLAGS.num_rounds):
        for name in names:
            result = run_contender(name)
            best = results.get(name)
            if result and (best is None or result["cpu_seconds"] < best["cpu_seconds"]):
                results[name] = result
    print(
        f"batch {FLAGS.batch_size}, length {FLAGS.max_seq_length}, "
        f"{FLAGS.max_predictions_per_seq} predictions, L{FLAGS.num_hidden_layers} "
        f"H{FLAGS.hidden_size} A{FLAGS.num_attention_heads}, vocabulary {FLAGS.vocab_size}, "
        f"dropout {FLAGS.dropout}, {os.cpu_count()} CPUs"
    )
    print(format_table(results))
    if FLAGS.output_file:
        with open(FLAGS.output_file, "w", encoding="utf-8") as file:
            json.dump({"flags": FLAGS.flag_values_dict(), "results": results}, file, indent=2)


if __name__ == "__main__":
    app.run(main)
