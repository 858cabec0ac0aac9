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

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from bert_tf.config import BertConfig

FLAGS = flags.FLAGS

flags.DEFINE_list("model_sizes", ["base", "large"], "Keys of bert_tf.SIZES.")
flags.DEFINE_list("lengths", ["128", "512"], "Word pieces in a sequence.")
flags.DEFINE_integer("vocab_size", 30522, "Word pieces in the vocabulary.")
flags.DEFINE_integer("tokens_per_batch", 32768, "A batch has this many over the length sequences.")
flags.DEFINE_float("predictions_fraction", 0.15, "Masked positions of a sequence.")
flags.DEFINE_float("attention_dropout", 0.1, "Dropout of attention probabilities; the paper's.")
flags.DEFINE_string("recompute_layers", "none", "Of ours: see run_pretraining.py.")
flags.DEFINE_bool("compile", True, "Whether to compile the models of torch.")
flags.DEFINE_integer("num_steps", 20, "Steps in a measurement.")
flags.DEFINE_integer("num_measurements", 5, "Measurements to take the median of.")
flags.DEFINE_integer("num_warmup_steps", 5, "Steps not counted.")
flags.DEFINE_integer("matrix_size", 8192, "Rows and columns of the matrices multiplied.")
flags.DEFINE_bool("small", False, "Small sizes and few steps, to try the script on a CPU.")
flags.DEFINE_list("contenders", None, "Which to run; all by default.")
flags.DEFINE_string("output_file", None, "Where to write the figures as JSON; nowhere by default.")
flags.DEFINE_string("job", None, "Run this one in this process and print its figures.")

_SMALL = {
    "model_sizes": ["tiny"],
    "lengths": ["32"],
    "vocab_size": 997,
    "tokens_per_batch": 64,
    "num_steps": 2,
    "num_measurements": 3,
    "num_warmup_steps": 2,
    "matrix_size": 256,
}


def make_config(size: str) -> BertConfig:
    """Return the configuration of a size, with the dropout that the flags say."""
    config = BertConfig.from_size(size, vocab_size=FLAGS.vocab_size).to_dict()
    return BertConfig.from_dict({**config, "attention_probs_dropout_prob": FLAGS.attention_dropout})


def make_batch(length: int) -> dict[str, np.ndarray]:
    """Return a batch of full sequences of random word pieces, int32."""
    rng = np.random.default_rng(0)
    size, predictions = FLAGS.tokens_per_batch // length, num_predictions(length)
    positions = [rng.permutation(length)[:predictions] for _ in range(size)]
    batch = {
        "input_ids": rng.integers(0, FLAGS.vocab_size, (size, length)),
        "input_mask": np.ones((size, length)),
        "segment_ids": np.broadcast_to(np.arange(length) >= length // 2, (size, length)),
        "masked_lm_positions": np.sort(np.stack(positions)),
        "masked_lm_ids": rng.integers(0, FLAGS.vocab_size, (size, predictions)),
        "next_sentence_labels": rng.integers(0, 2, (size, 1)),
    }
    return {name: value.astype(np.int32) for name, value in batch.items()}


def num_predictions(length: int) -> int:
    """Return the number of masked positions of a sequence."""
    return max(1, round(FLAGS.predictions_fraction * length))


def flops_of_sequence(config: BertConfig, length: int) -> float:
    """Return the floating-point operations of a training step for one sequence."""
    width, inner = config.hidden_size, config.intermediate_size
    layer = 2 * length * (4 * width**2 + 2 * width * inner)  # projections
    layer += 2 * 2 * length**2 * width  # scores, and sums by probabilities
    head = 2 * num_predictions(length) * (width**2 + width * config.vocab_size)
    return 3.0 * (config.num_hidden_layers * layer + head + 2 * width**2)


# === Contenders ===

# A contender makes (step, wait): `step` begins a training step, `wait` returns the last loss once
# all that was begun is done.
Contender = tuple[Callable[[], None], Callable[[], float]]


def ours(size: str, length: int) -> Contender:
    """Return this package's model on Keras' JAX backend."""
    import jax
    from keras import ops

    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training import losses
    from bert_tf.training.optimizers import create_optimizer

    config = make_config(size)
    model = bert_pretrainer(config, recompute=FLAGS.recompute_layers, dtype="mixed_bfloat16")
    optimizer = create_optimizer(1e-4, 1_000_000, 10_000)
    optimizer.build(model.trainable_variables)

    def loss_of(trainable, others, batch):
        inputs = {name: batch[name] for name in model.input}
        outputs, others = model.stateless_call(trainable, others, inputs, training=True)
        weights = ops.ones_like(batch["masked_lm_ids"], dtype="float32")
        mlm = losses.masked_lm_loss(outputs["masked_lm_logits"], batch["masked_lm_ids"], weights)
        labels = batch["next_sentence_labels"][:, 0]
        nsp = losses.next_sentence_loss(
            outputs["next_sentence_logits"], labels, ops.ones_like(labels, dtype="float32")
        )
        return mlm[0] / mlm[1] + nsp[0] / nsp[1], others

    def train_step(state, batch):
        trainable, others, slots = state
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            trainable, others, batch
        )
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, others, slots), loss

    compiled = jax.jit(train_step, donate_argnums=0)
    batch = jax.device_put(make_batch(length))
    # Copies, since Keras' variables hold the originals and a donated array is gone.
    state = jax.tree.map(
        jax.numpy.copy,
        tuple(
            [variable.value for variable in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                optimizer.variables,
            )
        ),
    )
    last: Any = None

    def step() -> None:
        nonlocal state, last
        state, last = compiled(state, batch)

    return step, lambda: float(jax.block_until_ready((state, last))[1])


def transformers(size: str, length: int, gathered: bool = False) -> Contender:
    """BertForPreTraining of transformers on torch."""
    import torch
    import transformers as hf

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config = make_config(size)
    model = hf.BertForPreTraining._from_config(
        hf.BertConfig(
            **{
                name: getattr(config, name)
                for name in (
                    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
                    *("intermediate_size", "hidden_dropout_prob", "attention_probs_dropout_prob"),
                    "max_position_embeddings",
                )
            }
        ),
        attn_implementation="sdpa",
    )
    torch.nn.Module.to(model, device)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01, fused=device == "cuda"
    )
    arrays = make_batch(length)
    batch = {name: torch.tensor(x, dtype=torch.long, device=device) for name, x in arrays.items()}
    everywhere = torch.full_like(batch["input_ids"], -100)
    everywhere.scatter_(1, batch["masked_lm_positions"], batch["masked_lm_ids"])
    cross_entropy = torch.nn.functional.cross_entropy
    next_sentence = batch["next_sentence_labels"][:, 0]

    def loss_of() -> Any:
        inputs = (batch["input_ids"], batch["input_mask"], batch["segment_ids"])
        if not gathered:
            return model(*inputs, labels=everywhere, next_sentence_label=next_sentence).loss
        sequence, pooled = model.bert(*inputs, return_dict=False)[:2]
        places = batch["masked_lm_positions"][..., None].expand(-1, -1, sequence.shape[-1])
        logits, relation = model.cls(sequence.gather(1, places), pooled)
        mlm = cross_entropy(logits.flatten(0, 1).float(), batch["masked_lm_ids"].flatten())
        return mlm + cross_entropy(relation.float(), next_sentence)

    loss_function = torch.compile(loss_of) if FLAGS.compile else loss_of
    last: Any = None

    def step() -> None:
        nonlocal last
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            last = loss_function()
        last.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def wait() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return float(last)

    return step, wait


CONTENDERS: dict[str, Callable[[str, int], Contender]] = {
    "ours": ours,
    "transformers": transformers,
    "transformers_gathered": lambda size, length: transformers(size, length, gathered=True),
}
REQUIRED_PACKAGES = {
    "ours": ("jax", "keras"),
    "transformers": ("torch", "transformers"),
    "transformers_gathered": ("torch", "transformers"),
    "matrices_jax": ("jax",),
    "matrices_torch": ("torch",),
}


# === Measuring ===


def measure(step: Callable[[], None], wait: Callable[[], float]) -> dict[str, float]:
    """Return the median of the seconds of a step, their least, those of the start, and the loss."""
    since = time.perf_counter()
    for _ in range(FLAGS.num_warmup_steps):
        step()
    wait()
    start_seconds = time.perf_counter() - since
    seconds, loss = [], float("nan")
    for _ in range(FLAGS.num_measurements):
        since = time.perf_counter()
        for _ in range(FLAGS.num_steps):
            step()
        loss = wait()
        seconds.append((time.perf_counter() - since) / FLAGS.num_steps)
    return {
        "seconds_per_step": statistics.median(seconds),
        "least_seconds_per_step": min(seconds),
        "start_seconds": start_seconds,
        "loss": loss,
    }


def matrices_jax() -> Contender:
    """Products of large matrices in jax."""
    import jax

    size = FLAGS.matrix_size
    a = jax.random.normal(jax.random.key(0), (size, size), "bfloat16") / size**0.5
    product, last = jax.jit(jax.numpy.matmul), a

    def step() -> None:
        nonlocal last
        last = product(last, a)

    return step, lambda: float(jax.block_until_ready(last)[0, 0])


def matrices_torch() -> Contender:
    """Products of large matrices in torch."""
    import torch

    device, size = "cuda" if torch.cuda.is_available() else "cpu", FLAGS.matrix_size
    a = torch.randn(size, size, device=device).to(torch.bfloat16) / size**0.5
    last = a

    def step() -> None:
        nonlocal last
        last = last @ a

    return step, lambda: float(last[0, 0])


def device_of(name: str) -> dict[str, Any]:
    """Return the device that a contender ran on, and its peak memory where that is known."""
    if name in ("ours", "matrices_jax"):
        import jax

        device = jax.devices()[0]
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return {"device": device.device_kind, "peak_bytes": peak, "jax": jax.__version__}
    import torch

    found: dict[str, Any] = {"device": "cpu", "peak_bytes": None, "torch": torch.__version__}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def run_job(job: str) -> dict[str, Any]:
    """Measure "matrices_jax", "matrices_torch", or "<contender>:<size>:<length>"."""
    name, *which = job.split(":")
    if which:
        size, length = which[0], int(which[1])
        found = measure(*CONTENDERS[name](size, length))
        sequences = FLAGS.tokens_per_batch // length / found["seconds_per_step"]
        found["sequences_per_second"] = sequences
        found["model_flops_per_second"] = sequences * flops_of_sequence(make_config(size), length)
    else:
        found = measure(*{"matrices_jax": matrices_jax, "matrices_torch": matrices_torch}[name]())
        found["flops_per_second"] = 2 * FLAGS.matrix_size**3 / found["seconds_per_step"]
    return {**found, **device_of(name)}


def start_job(job: str) -> dict[str, Any] | None:
    """Run a job in a fresh process; None, and a line that says why, if it fails."""
    needed = REQUIRED_PACKAGES[job.split(":")[0]]
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        print(f"{job}: left out, not installed: {', '.join(missing)}", flush=True)
        return None
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, os.path.abspath(__file__), *sys.argv[1:], f"--job={job}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode:
        print(f"{job}: failed\n{done.stderr[-2000:]}", flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| size | length | batch | contender | sequences/s | ms/step | utilisation | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f}"
        share = "" if row["utilisation"] is None else f"{row['utilisation']:.1%}"
        lines.append(
            f"| {row['size']} | {row['length']} | {row['batch_size']} | {row['contender']} | "
            f"{row['sequences_per_second']:.1f} | {1000 * row['seconds_per_step']:.1f} | {share} | "
            f"{peak} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure one job, or all of them in their own processes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if FLAGS.small:
        for name, value in _SMALL.items():
            if not FLAGS[name].present:
                FLAGS[name].value = value
    if FLAGS.job:
        print(json.dumps(run_job(FLAGS.job)))
        return 0
    names = FLAGS.contenders or list(CONTENDERS)
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        raise app.UsageError(f"unknown contenders {unknown}; known are {list(CONTENDERS)}")
    matrices = {name: start_job(name) for name in ("matrices_jax", "matrices_torch")}
    rates = [found["flops_per_second"] for found in matrices.values() if found]
    for name, found in matrices.items():
        if found:
            print(f"{name}: {found['flops_per_second'] / 1e12:.4g} TFLOP/s on {found['device']}")
    rows = []
    for size in FLAGS.model_sizes:
        for length in map(int, FLAGS.lengths):
            for name in names:
                found = start_job(f"{name}:{size}:{length}")
                if found is None:
                    continue
                share = found["model_flops_per_second"] / max(rates) if rates else None
                batch_size = FLAGS.tokens_per_batch // length
                where = {"size": size, "length": length, "batch_size": batch_size}
                rows.append({**where, "contender": name, "utilisation": share, **found})
                print(format_table(rows[-1:]).splitlines()[-1], flush=True)
    print(format_table(rows))
    if FLAGS.output_file:
        report = {"flags": FLAGS.flag_values_dict(), "matrices": matrices, "results": rows}
        with open(FLAGS.output_file, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)
    return 0 if rows else 1


if __name__ == "__main__":
    app.run(main)
