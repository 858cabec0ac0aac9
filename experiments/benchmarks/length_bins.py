r"""Measure what batches of like length, or packed rows, save in pre-training.

    python experiments/benchmarks/length_bins.py --input_file=records512/train.tfrecord \
        --vocab_file=vocab.txt --max_seq_length=512 --max_predictions_per_seq=77 --batch_size=8 \
        --length_bins=32

Training steps of one model on a whole pool of batches, as the command takes them, in turn with
batches of the same records as they come, padded to max_seq_length. With --sequences_per_row=8 the
steps are on rows of up to 8 sequences each, without --length_bins: as many rows as others have
sequences. The batches are made beforehand, and the CPU seconds of that count with the steps; they
are also told alone. CPU seconds are those of the whole process, all threads together: on a machine
with other work they are steadier than wall time. The first steps, which trace, do not count.
"""

import dataclasses
import os
from typing import Any

from bert_tf.options import option
from bert_tf.tokenization.vocabulary import load_vocab
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Figures, Spent

_NUM_WARMUP_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    input_file: str = option(None, "Training records, masked.", required=True)
    vocab_file: str = option(None, "Vocabulary of the records.", required=True)
    batch_size: int = option(32, "Sequences in a batch.", minimum=1)
    max_seq_length: int = option(128, "Word pieces in a sequence.", minimum=1)
    max_predictions_per_seq: int = option(20, "Masked positions in a sequence.", minimum=1)
    length_bins: int = option(8, "As of run_pretraining.py.", minimum=1)
    sequences_per_row: int = option(
        0,
        "Measure packed rows of so many sequences at most; 0 for batches of like length.",
        minimum=0,
    )
    num_hidden_layers: int = option(4, "Transformer layers.", minimum=1)
    hidden_size: int = option(256, "Width of the encoder; four times that in between.", minimum=1)
    num_attention_heads: int = option(4, "Attention heads.", minimum=1)
    num_steps: int = option(32, "Steps at most: those of one pool.", minimum=1, maximum=64)
    jit_compile: bool = option(False, "Whether XLA compiles the step.")


def _batches(options: Options, length_bins: int = 0, sequences_per_row: int | None = None) -> Any:
    """Return the batches of the first pool of an epoch."""
    from bert_tf.input_pipeline.pretraining import pretraining_dataset
    from bert_tf.input_pipeline.record_checks import count_records, expand_files
    from bert_tf.input_pipeline.record_order import pool_of

    records = sum(count_records(expand_files(options.input_file)))
    _, steps = pool_of(0, records, options.batch_size, options.num_steps)
    return pretraining_dataset(
        options.input_file,
        batch_size=options.batch_size,
        max_seq_length=options.max_seq_length,
        max_predictions_per_seq=options.max_predictions_per_seq,
        is_training=True,
        length_bins=length_bins,
        sequences_per_row=sequences_per_row,
        shuffle_buffer_records=options.num_steps * options.batch_size,
        max_steps=steps,
    )


def _train_step(options: Options, packed: bool) -> Any:
    from bert_tf.models.task_models import bert_pretrainer
    from bert_tf.training.objectives import PretrainingObjective
    from bert_tf.training.optimizers import create_optimizer
    from bert_tf.training.step import TrainStep

    config = harness.encoder_config(
        options,
        len(load_vocab(options.vocab_file)),
        max_position_embeddings=max(512, options.max_seq_length),
    )
    return TrainStep(
        bert_pretrainer(config, packed=packed),
        create_optimizer(1e-4, 1000, 10),
        PretrainingObjective(),
        None,
        jit_compile=options.jit_compile,
        gradient_accumulation_steps=1,
        loss_normalization="global",
    )


def _sequences_per_row(options: Options) -> float:
    """Return how many sequences a packed row holds on the average over an epoch."""
    from bert_tf.input_pipeline.record_checks import count_records, expand_files
    from bert_tf.input_pipeline.row_packing import count_rows

    rows = count_rows(
        options.input_file,
        max_seq_length=options.max_seq_length,
        max_predictions_per_seq=options.max_predictions_per_seq,
        sequences_per_row=options.sequences_per_row,
    )
    return sum(count_records(expand_files(options.input_file))) / sum(rows)


def _figures(sequences: float, batches: list[Any], made: Spent, steps: list[Spent]) -> Figures:
    """Return seconds a sequence, and what the batches are like."""
    masks = [inputs["input_mask"].numpy() for inputs, _, _ in batches]
    labels = [labels["masked_lm_logits"].numpy() for _, labels, _ in batches]
    positions = sum(mask.size for mask in masks)
    return {
        "cpu_seconds": (made.cpu + sum(step.cpu for step in steps)) / sequences,
        "wall_seconds": sum(step.wall for step in steps) / sequences,
        "data_cpu_seconds": made.cpu / sequences,
        "padding": 1 - sum(int(mask.sum()) for mask in masks) / positions,
        "mean_length": positions / sequences,
        "mean_predictions": sum(x.size for x in labels) / sequences,
        "shapes": len({(x.shape, y.shape) for x, y in zip(masks, labels, strict=True)}),
    }


def compare(options: Options) -> None:
    """Measure both in turn, step by step, and print a table."""
    import tensorflow as tf

    one, packed = tf.constant(1), options.sequences_per_row
    datasets = {"of like length": _batches(options, options.length_bins)}
    if packed:
        datasets = {"packed": _batches(options, sequences_per_row=packed)}
    datasets["padded"] = _batches(options)
    datasets = {name: dataset.cache() for name, dataset in datasets.items()}
    train_steps: dict[str, Any] = dict.fromkeys(datasets, _train_step(options, False))
    if packed:
        train_steps["packed"] = _train_step(options, True)
    all_batches: dict[str, list[Any]] = {}
    made: dict[str, Spent] = {}
    for name, dataset in datasets.items():
        with harness.timed() as made[name]:
            all_batches[name] = list(dataset)
    num_steps = len(all_batches["padded"])
    for name, dataset in datasets.items():  # XLA compiles each shape when it comes
        batches = iter(dataset)
        for _ in range(num_steps if options.jit_compile and not packed else _NUM_WARMUP_STEPS):
            train_steps[name].run(batches, one)
    taken: dict[str, list[Spent]] = {name: [] for name in datasets}
    iterators = {name: iter(dataset) for name, dataset in datasets.items()}
    for _ in range(num_steps):
        for name, batches in iterators.items():
            with harness.timed() as spent:
                train_steps[name].run(batches, one)
                float(train_steps[name].learning_rate.numpy())
            taken[name].append(spent)
    first, _ = datasets
    how = f"{packed} sequences a row at most" if packed else f"steps of {options.length_bins}"
    print(
        f"{num_steps} x {options.batch_size} of {options.max_seq_length}, "
        f"L{options.num_hidden_layers} H{options.hidden_size}, {how}, "
        f"{'XLA' if options.jit_compile else 'graph'}, {os.cpu_count()} CPUs"
    )
    table = harness.Table(
        "name cpu_seconds:.4f wall_seconds:.4f data_cpu_seconds:.5f padding:.1% mean_length:.1f "
        "mean_predictions:.1f shapes:d"
    )
    results = {}
    for name, batches in all_batches.items():
        sequences = num_steps * options.batch_size
        if name == "packed":  # not those that these rows happen to hold
            sequences *= _sequences_per_row(options)
        results[name] = _figures(sequences, batches, made[name], taken[name])
        table.row({"name": name, **results[name]})
    for clock in ("cpu", "wall"):
        ratio = results[first][f"{clock}_seconds"] / results["padded"][f"{clock}_seconds"]
        print(f"{clock} time of a sequence, {first} / padded: {ratio:.3f}")
    harness.write_figures(options, results=results)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare)
