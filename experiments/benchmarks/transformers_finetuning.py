r"""Fine-tune the same task here and in transformers, on the same batches, and compare.

    python experiments/benchmarks/transformers_finetuning.py --task_name=MRPC \
        --data_dir=$GLUE_DIR/MRPC --model_dir=uncased_L-12_H-768_A-12 \
        --output_dir=runs/compare --num_train_steps=20

Both begin with the same weights, the head included, and see the same batches, learning rates,
weight decay, clipping and (bias-corrected) Adam. Without dropout, the default, the losses of each
step should agree to rounding. --dropout with --seeds compares scores on the dev set instead, since
masks differ: each system has its own random numbers. --their_batches=random gives transformers
batches as most of its users have them, and --precision and --their_precision say what each computes
in: then costs and scores are compared too. Needs torch and transformers.

For classification and regression, of GLUE and of tables of one's own, and for tagging words
(--task_name=ner). Writes compare.json and prints a table with the processor time of each system.
"""

import dataclasses
import functools
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from bert_tf.files import write_json
from bert_tf.options import option
from bert_tf.tasks.kinds import get_kind
from data_prep.finetuning.options import TaggedOptions
from experiments.benchmarks import harness
from experiments.command_line.exit_status import InputError
from experiments.finetuning import tagging
from experiments.finetuning.classification import prepare
from experiments.finetuning.flow import check_options
from experiments.finetuning.initial_model import InitialModel, initial_model
from experiments.finetuning.options import ClassifierOptions
from experiments.finetuning.splits import Data, figures_of
from experiments.finetuning.tagging import TaggedSplit


@dataclasses.dataclass(frozen=True)
class CompareOptions(ClassifierOptions):
    """Options of the script: those of run_classifier.py, and whether to drop out."""

    tagged: TaggedOptions = TaggedOptions()
    dropout: bool = option(False, "Train with dropout, and compare dev scores.")
    their_batches: str = option(
        "same",
        "What transformers is given: the same batches as ours, or random ones, each padded to its "
        "longest, as its users' are by default.",
        choices=("same", "random"),
    )
    their_precision: str = option(
        "float32", "What torch computes in; bfloat16 by autocast.", choices=("float32", "bfloat16")
    )

    @property
    def has_equal_losses(self) -> bool:
        """Whether the losses of both should agree to rounding."""
        precisions = {self.training.precision, self.their_precision}
        return not self.dropout and self.their_batches == "same" and precisions == {"float32"}


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


def _timed(step: Callable[[Any], float], batches: list[Any]) -> tuple[list[float], harness.Spent]:
    """Take the steps, and time all but the first two, which trace, compile and warm up."""
    losses = [step(batch) for batch in batches[:2]]
    with harness.timed() as spent:
        losses += [step(batch) for batch in batches[2:]]
    return losses, spent


def train_here(
    model: Any, kind: str, optimizer: Any, batches: list[Any], dev: Any, *, fuses: bool = False
) -> Trained:
    """Train a model of this package, step by step; `fuses` as of --jit_compile=pointwise."""
    import tensorflow as tf

    from bert_tf.models.fusion import fusing
    from bert_tf.training.objectives import FineTuningObjective

    objective = FineTuningObjective(kind)
    optimizer.build(model.trainable_variables)

    @tf.function(reduce_retracing=True)
    def take(inputs, labels, weights):
        with fusing(fuses), tf.GradientTape() as tape:
            loss, _ = objective(model(inputs, training=True), labels, weights)
        optimizer.apply(tape.gradient(loss, model.trainable_variables))
        return loss

    losses, spent = _timed(lambda batch: float(take(*batch)), batches)
    logits = dev.predict(model, batch_size=32)["logits"]
    return Trained(losses, logits, spent.cpu, spent.wall)


def _torch_optimizer(model: Any, weight_decay_rate: float) -> Any:
    """Return AdamW for a model of torch; its rate is set at each step."""
    import torch

    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        is_plain = any(part in name for part in ("LayerNorm", "bias"))
        (plain if is_plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay_rate},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-6)


def _torch_logits(model: Any, inputs: Any, precision: str = "float32") -> Any:
    import torch

    tensors = {name: torch.tensor(value.numpy()).long() for name, value in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(
            input_ids=tensors["input_ids"],
            attention_mask=tensors["input_mask"],
            token_type_ids=tensors["segment_ids"],
        ).logits
    return logits.float()


def _torch_loss(kind: str, logits: Any, labels: Any, weights: Any) -> Any:
    import torch

    labels, weights = torch.tensor(labels.numpy()), torch.tensor(weights.numpy())
    if get_kind(kind).loss == "regression":
        losses = (logits[:, 0] - labels) ** 2
    else:
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(end_dim=-2), labels.long().flatten(), reduction="none"
        )
    return (losses * weights.flatten()).sum() / weights.sum()


def _torch_predictions(model: Any, dev: Any) -> np.ndarray:
    """Return the logits on the dev set, in the order of the file."""
    import torch

    predictions = None
    with torch.no_grad():
        dataset = dev.evaluation_dataset(
            batch_size=32, group_by_length=True, pad_to_max=False, fill_last_batch=True
        )
        for numbers, (inputs, _, _) in zip(dev.order.evaluation_order(32), dataset, strict=True):
            logits, real = _torch_logits(model, inputs).numpy(), numbers >= 0
            if predictions is None:
                per_token = (dev.max_seq_length,) if logits.ndim == 3 else ()
                predictions = np.zeros((len(dev), *per_token, logits.shape[-1]), logits.dtype)
            if logits.ndim == 3:
                predictions[numbers[real], : logits.shape[1]] = logits[real]
            else:
                predictions[numbers[real]] = logits[real]
    if predictions is None:
        raise InputError("dev: has no records")
    return predictions


def train_there(
    folder: str, kind: str, rates: list[float], options: CompareOptions, batches: Any, dev: Any
) -> Trained:
    """Train the model of a directory of transformers, with torch's AdamW."""
    import torch
    import transformers

    torch.manual_seed(options.seeds[0])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    architecture = (theirs.architectures or [""])[0]
    model = getattr(transformers, architecture).from_pretrained(folder, local_files_only=True)
    optimizer = _torch_optimizer(model, options.weight_decay_rate)
    step_rates = iter(rates)

    def take(batch) -> float:
        inputs, labels, weights = batch
        rate = next(step_rates)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = _torch_loss(
            kind, _torch_logits(model, inputs, options.their_precision), labels, weights
        )
        loss.backward()
        if options.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        return float(loss.detach())

    model.train()
    losses, spent = _timed(take, batches)
    model.eval()
    return Trained(losses, _torch_predictions(model, dev), spent.cpu, spent.wall)


def dev_set(
    data: Data, options: CompareOptions, start: InitialModel
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


def _prepared(options: CompareOptions) -> tuple[InitialModel, Data]:
    """Return the initial model, without dropout unless it is asked for, and the data."""
    start = initial_model(options)
    if not options.dropout:
        config = dataclasses.replace(
            start.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        start = dataclasses.replace(start, config=config)
    data = prepare(options, start, options.tagged)
    kinds = ("classification", "regression", "token_classification")
    if data.task.kind not in kinds:
        raise InputError(
            f"{data.task.name}: is {data.task.kind}; expected one of {', '.join(kinds)}"
        )
    return start, data


def compare(options: CompareOptions) -> None:
    """Train in both systems, for each seed, and print and write what came out.

    Raises:
        InputError, ValueError, OSError: bad flags, data or model.
    """
    options = dataclasses.replace(options, do_train=True, do_eval=True)
    check_options(options)
    folder = pathlib.Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    start, data = _prepared(options)
    dev, figures = dev_set(data, options, start)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        ours, theirs = _train_both(options, start, data, dev, seed)
        differences = np.abs(np.subtract(ours.losses, theirs.losses))
        rows.append(
            {
                "seed": seed,
                "steps": len(ours.losses),
                "has_equal_losses": options.has_equal_losses,
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
        print(f"{data.task.name}, over {len(rows)} seeds:")
        for name in rows[0]["ours"]:
            cells = []
            for who in ("ours", "theirs"):
                values = [row[who][name] for row in rows]
                cells.append(f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}")
            print(f"  {name:<22} ours {cells[0]}   transformers {cells[1]}")


def _train_both(
    options: CompareOptions, start: InitialModel, data: Data, dev: Any, seed: int
) -> tuple[Trained, Trained]:
    """Train the same initial weights on the same batches, here and in transformers."""
    import keras

    from bert_tf.training.finetuning import make_model
    from bert_tf.training.optimizers import WarmupLinearDecay, create_optimizer
    from bert_tf.training.trainer import set_precision
    from bert_tf.weights.load import load_checkpoint
    from bert_tf.weights.save import save_hf

    set_precision(options.training.precision)
    keras.utils.set_random_seed(seed)
    task, initial = data.task, pathlib.Path(options.output_dir) / "initial"
    arguments = {} if options.dropout else {"dropout_rate": 0.0}
    count = len(task.labels) if task.labels else None
    model = make_model(task.kind, start.config, count, **arguments)
    load_checkpoint(model, start.checkpoint, heads=False)
    save_hf(initial, model)
    steps = options.num_train_steps or int(
        data.prepared["train"].num_records / options.train_batch_size * options.num_train_epochs
    )
    warmup_steps = int(steps * options.warmup_proportion)
    optimizer = create_optimizer(
        options.learning_rate,
        steps,
        warmup_steps,
        weight_decay_rate=options.weight_decay_rate,
        clip_norm=options.clip_norm or None,
        bias_correction=options.bias_correction,
    )
    schedule = WarmupLinearDecay(options.learning_rate, steps, warmup_steps)
    rates = [float(schedule(step)) for step in range(steps)]
    drawn = functools.partial(
        data.records("train").training_dataset,
        batch_size=options.train_batch_size,
        seed=seed,
        num_steps=steps,
        with_weights=True,
    )
    batches = list(
        drawn(
            group_by_length=options.group_by_length,
            pad_to_max=options.pad_to_max_seq_length,
        )
    )
    fuses = options.training.jit_compile == "pointwise"
    ours = train_here(model, task.kind, optimizer, batches, dev, fuses=fuses)
    if options.their_batches == "random":
        batches = list(drawn(group_by_length=False))
    return ours, train_there(str(initial), task.kind, rates, options, batches, dev)


def _costs(trained: Trained) -> dict[str, float]:
    return {"cpu_seconds": trained.cpu_seconds, "seconds": trained.seconds}


def _print(row: dict[str, Any]) -> None:
    print(f"seed {row['seed']}: {row['steps']} steps", end="")
    if row["has_equal_losses"]:
        print(
            f", losses differ by at most {row['largest_difference_of_20_losses']:.2e} in the first "
            f"20 and {row['largest_difference_of_losses']:.2e} in all",
            end="",
        )
    print()
    for name, value in row["ours"].items():
        print(f"  {name:<22} ours {value:.4f}   transformers {row['theirs'][name]:.4f}")
    sys.stdout.flush()


if __name__ == "__main__":
    harness.run_benchmark(CompareOptions, compare, bias_correction=True)
