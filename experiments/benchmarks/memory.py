"""Measure the peak memory of a pre-training step, with and without recomputed activations.

    python experiments/benchmarks/memory.py --batch_size=8 --max_seq_length=512

Each choice of `--recompute_layers` runs in a process of its own, whose peak resident memory is
read after a few steps; "tracing" is that of one sequence of 32 word pieces, for which the graph is
the same and the activations are little.
"""

import json
import os
import resource
import subprocess
import sys
import time

from absl import app, flags

FLAGS = flags.FLAGS

flags.DEFINE_list("recompute", ["none", "every_2", "all"], "Choices to compare.")
flags.DEFINE_integer("batch_size", 8, "Sequences in a batch.")
flags.DEFINE_integer("max_seq_length", 512, "Word pieces in a sequence.")
flags.DEFINE_integer("num_hidden_layers", 12, "Transformer layers.")
flags.DEFINE_integer("hidden_size", 256, "Width of the encoder; four times that in between.")
flags.DEFINE_bool("jit_compile", False, "XLA.")
flags.DEFINE_integer("num_steps", 3, "Steps to take; the first one traces.")
flags.DEFINE_string("choice", None, "Measure this one in this process.")

_PREDICTIONS, _VOCAB_SIZE = 20, 1000


def measure(recompute: str) -> dict:
    """Return the peak in bytes, the CPU seconds of each step and the last loss."""
    import keras
    import numpy as np

    from bert_tf.config import BertConfig
    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training.objectives import pretraining_compile_arguments
    from bert_tf.training.optimizers import create_optimizer

    keras.utils.set_random_seed(1)
    config = BertConfig(
        vocab_size=_VOCAB_SIZE,
        hidden_size=FLAGS.hidden_size,
        num_hidden_layers=FLAGS.num_hidden_layers,
        num_attention_heads=max(1, FLAGS.hidden_size // 64),
        intermediate_size=4 * FLAGS.hidden_size,
    )
    model = bert_pretrainer(config, recompute=recompute)
    losses = pretraining_compile_arguments(config)["loss"]
    optimizer = create_optimizer(1e-4, 100, 10)
    model.compile(optimizer=optimizer, loss=losses, jit_compile=FLAGS.jit_compile)
    rng, size, length = np.random.default_rng(0), FLAGS.batch_size, FLAGS.max_seq_length
    inputs = {
        "input_ids": rng.integers(0, _VOCAB_SIZE, (size, length)),
        "input_mask": np.ones((size, length), np.int64),
        "segment_ids": np.zeros((size, length), np.int64),
        "masked_lm_positions": rng.integers(0, length, (size, _PREDICTIONS)),
    }
    labels = {
        "masked_lm_logits": rng.integers(0, _VOCAB_SIZE, (size, _PREDICTIONS)),
        "next_sentence_logits": rng.integers(0, 2, (size, 1)),
    }
    inputs, labels = keras.tree.map_structure(lambda x: x.astype(np.int32), (inputs, labels))
    seconds, loss = [], float("nan")
    for _ in range(FLAGS.num_steps):
        since = time.process_time()
        loss = float(model.train_on_batch(inputs, labels, return_dict=True)["loss"])
        seconds.append(round(time.process_time() - since, 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_bytes": peak, "cpu_seconds": seconds, "loss": loss}


def in_a_process(*more: str) -> dict:
    """Measure in a fresh process, with more flags."""
    done = subprocess.run(
        [sys.executable, os.path.abspath(__file__), *sys.argv[1:], *more],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Measure one choice, or all of them in their own processes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if FLAGS.choice:
        print(json.dumps(measure(FLAGS.choice)))
        return
    print(f"{'recompute':<12}{'peak MB':>9}{'tracing MB':>12}{'CPU s/step':>12}{'loss':>12}")
    for choice in FLAGS.recompute:
        found = in_a_process(f"--choice={choice}")
        little = ("--batch_size=1", "--max_seq_length=32", "--num_steps=1")
        tracing = in_a_process(f"--choice={choice}", *little)
        print(
            f"{choice:<12}{found['peak_bytes'] / 2**20:>9.0f}{tracing['peak_bytes'] / 2**20:>12.0f}"
            f"{min(found['cpu_seconds']):>12.2f}{found['loss']:>12.6f}",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
