r"""Fine-tunes the same task here and in transformers, on the same batches, and compares.

    python experiments/benchmarks/transformers_finetuning.py --task_name=MRPC \
        --data_dir=$GLUE_DIR/MRPC --model_dir=uncased_L-12_H-768_A-12 \
        --output_dir=runs/compare --num_train_steps=20

Both begin with the same weights, the head included, and see the same batches, learning rates,
weight decay, clipping and (bias-corrected) Adam. Without dropout, the default, the losses of each
step should agree to rounding. --dropout with --seeds compares scores on the dev set instead, since
masks differ: each system has its own random numbers. Needs torch and transformers.

For classification and regression, of GLUE and of tables of one's own, and for tagging words
(--task_name=ner). Writes compare.json and prints a table with the processor time of each system.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from bert_tf.files import write_json
from bert_tf.options import define, option, read
from data_prep.finetuning.options import TaggedOptions
from experiments.command_line.exit_status import InputError, exit_on_error
from experiments.finetuning import tagging
from experiments.finetuning.classification import prepare
from experiments.finetuning.flow import check_options
from experiments.finetuning.initial_model import StartingPoint, starting_point
from experiments.finetuning.options import ClassifierOptions
from experiments.finetuning.splits import Data, figures_of
from experiments.finetuning.tagging import TaggedSplit


@dataclasses.dataclass(frozen=True)
class CompareOptions(ClassifierOptions):
    """Options of the script: those of run_classifier.py, and whether to drop out."""

    tagged: TaggedOptions = TaggedOptions()
    dropout: bool = option(False, "Train with dropout, and compare dev scores.")


@dataclasses.dataclass
class Trained:
    """What training in one system gave.

    Attributes:
        losses: of each step.
        logits: on the dev set, [N, K] or, of each token, [N, L, K], in the order of the file.
        cpu_seconds: processor time of the steps.
        seconds: wall time of the steps.
    """

    losses: list[float]
    logits: np.ndarray
    cpu_seconds: float
    seconds: float


def _timed(step: Callable[[Any], float], batches: list[Any]) -> tuple[list[float], float, float]:
    """Take the steps, and time all but the first two, which trace, compile and warm up."""
    losses = [step(batch) for batch in batches[:2]]
    cpu, wall = time.process_time(), time.perf_counter()
    losses += [step(batch) for batch in batches[2:]]
    return losses, time.process_time() - cpu, time.perf_counter() - wall


def train_here(model: Any, kind: str, optimizer: Any, batches: list[Any], dev: Any) -> Trained:
    """Train a model of this package, step by step."""
    import tensorflow as tf

    from bert_tf.training.objectives import FineTuningObjective

    objective = FineTuningObjective(kind)
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def take(inputs, labels, weights):
        with tf.GradientTape() as tape:
            loss, _ = objective(model(inputs, training=True), labels, weights)
        optimizer.apply(tape.gradient(loss, model.trainable_variables))
        return loss

    losses, cpu, wall = _timed(lambda batch: float(take(*batch)), batches)
    return Trained(losses, dev.predict(model, batch_size=32)["logits"], cpu, wall)


def train_there(
    folder: str, kind: str, rates: list[float], options: CompareOptions, batches: Any, dev: Any
) -> Trained:
    """Train the model of a directory of transformers, with torch's AdamW."""
    import torch
    import transformers

    torch.manual_seed(options.seeds[0])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    architecture = (transformers.AutoConfig.from_pretrained(folder).architectures or [""])[0]
    model = getattr(transformers, architecture).from_pretrained(folder)
    plain = ("LayerNorm", "bias")
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": options.weight_decay_rate},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter_name, parameter in model.named_parameters():
        groups[any(part in parameter_name for part in plain)]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-6)

    def forward(inputs):
        names = {"input_ids": "input_ids", "input_mask": "attention_mask"}
        given = {names[n]: torch.tensor(inputs[n].numpy()).long() for n in names}
        segments = torch.tensor(inputs["segment_ids"].numpy()).long()
        return model(**given, token_type_ids=segments).logits

    def loss_of(logits, labels, weights):
        labels, weights = torch.tensor(labels.numpy()), torch.tensor(weights.numpy())
        if kind == "regression":
            each = (logits[:, 0] - labels) ** 2
        else:
            each = torch.nn.functional.cross_entropy(
                logits.flatten(end_dim=-2), labels.long().flatten(), reduction="none"
            )
        return (each * weights.flatten()).sum() / weights.sum()

    step_rates = iter(rates)

    def take(batch) -> float:
        inputs, labels, weights = batch
        rate = next(step_rates)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = loss_of(forward(inputs), labels, weights)
        loss.backward()
        if options.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        return float(loss.detach())

    model.train()
    losses, cpu, wall = _timed(take, batches)
    model.eval()
    order = dev.order.evaluation_order(32)
    found = None
    with torch.no_grad():
        dataset = dev.evaluation_dataset(batch_size=32)
        for numbers, (inputs, _, _) in zip(order, dataset, strict=True):
            logits, real = forward(inputs).numpy(), numbers >= 0
            if found is None:
                per_token = (dev.max_seq_length,) if logits.ndim == 3 else ()
                found = np.zeros((len(dev), *per_token, logits.shape[-1]), logits.dtype)
            if logits.ndim == 3:
                found[numbers[real], : logits.shape[1]] = logits[real]
            else:
                found[numbers[real]] = logits[real]
    assert found is not None  # noqa: S101
    return Trained(losses, found, cpu, wall)


def dev_set(
    data: Data, options: CompareOptions, start: StartingPoint
) -> tuple[Any, Callable[[np.ndarray], dict[str, float]]]:
    """Return the records of the dev set, and what gives the figures of logits on it."""
    if data.task.kind == "token_classification":
        split = TaggedSplit(data, "dev", options, options.tagged, start)

        def figures(logits: np.ndarray) -> dict[str, float]:
            split.read(logits.argmax(axis=-1))
            return tagging.figures_of(split.scores())

        return split.records, figures
    dev = data.records(data.splits("dev")[0])
    return dev, functools.partial(figures_of, data.task, labels=np.asarray(dev.labels()))


def compare(options: CompareOptions) -> None:
    """Train in both systems, for each seed, and print and write what came out.

    Raises:
        InputError, ValueError, OSError: bad flags, data or model.
    """
    import keras

    from bert_tf.training.finetuning import make_model
    from bert_tf.training.optimizers import WarmupLinearDecay, create_optimizer
    from bert_tf.weights.load import load_checkpoint
    from bert_tf.weights.save import save_hf

    options = dataclasses.replace(options, do_train=True, do_eval=True)
    check_options(options)
    folder = pathlib.Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    start = starting_point(options)
    if not options.dropout:
        config = dataclasses.replace(
            start.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        start = dataclasses.replace(start, config=config)
    data = prepare(options, start, options.tagged)
    task, kinds = data.task, ("classification", "regression", "token_classification")
    if task.kind not in kinds:
        raise InputError(f"{task.name}: is {task.kind}; expected one of {', '.join(kinds)}")
    train = data.records("train")
    dev, figures = dev_set(data, options, start)
    steps = options.num_train_steps or int(
        data.prepared["train"].num_records / options.train_batch_size * options.num_train_epochs
    )
    warmup_steps = int(steps * options.warmup_proportion)
    schedule = WarmupLinearDecay(options.learning_rate, steps, warmup_steps)
    rates = [float(schedule(step)) for step in range(steps)]
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        keras.utils.set_random_seed(seed)
        arguments = {} if options.dropout else {"dropout_rate": 0.0}
        count = len(task.labels) if task.labels else None
        model = make_model(task.kind, start.config, count, **arguments)
        load_checkpoint(model, start.checkpoint, heads=False)
        save_hf(folder / "initial", model)
        optimizer = create_optimizer(
            options.learning_rate,
            steps,
            warmup_steps,
            weight_decay_rate=options.weight_decay_rate,
            clip_norm=options.clip_norm or None,
            bias_correction=options.bias_correction,
        )
        batches = list(
            train.training_dataset(
                batch_size=options.train_batch_size,
                seed=seed,
                num_steps=steps,
                group_by_length=options.group_by_length,
                pad_to_max=options.pad_to_max_seq_length,
            )
        )
        ours = train_here(model, task.kind, optimizer, batches, dev)
        theirs = train_there(str(folder / "initial"), task.kind, rates, options, batches, dev)
        differences = np.abs(np.subtract(ours.losses, theirs.losses))
        rows.append(
            {
                "seed": seed,
                "steps": steps,
                "largest_difference_of_20_losses": float(differences[:20].max()),
                "largest_difference_of_losses": float(differences.max()),
                "ours": {**figures(ours.logits), **_costs(ours)},
                "theirs": {**figures(theirs.logits), **_costs(theirs)},
                "our_losses": ours.losses,
                "their_losses": theirs.losses,
            }
        )
        write_json(folder / "compare.json", rows)
        _print(rows[-1])
    if len(rows) > 1:
        print(f"{task.name}, over {len(rows)} seeds:")
        for name in rows[0]["ours"]:
            cells = []
            for who in ("ours", "theirs"):
                found = [row[who][name] for row in rows]
                cells.append(f"{statistics.fmean(found):.4f} ± {statistics.stdev(found):.4f}")
            print(f"  {name:<22} ours {cells[0]}   transformers {cells[1]}")


def _costs(trained: Trained) -> dict[str, float]:
    return {"cpu_seconds": trained.cpu_seconds, "seconds": trained.seconds}


def _print(row: dict[str, Any]) -> None:
    print(
        f"seed {row['seed']}: {row['steps']} steps, losses differ by at most "
        f"{row['largest_difference_of_20_losses']:.2e} in the first 20 and "
        f"{row['largest_difference_of_losses']:.2e} in all"
    )
    for name, value in row["ours"].items():
        print(f"  {name:<22} ours {value:.4f}   transformers {row['theirs'][name]:.4f}")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return exit_on_error(
        "transformers_finetuning", lambda: compare(read(CompareOptions, flags.FLAGS))
    )


if __name__ == "__main__":
    define(CompareOptions, flags.FLAGS, bias_correction=True)
    app.run(main)
