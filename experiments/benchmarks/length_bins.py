r"""Measure what batches of like length, or packed rows, save in pre-training.

    python experiments/benchmarks/length_bins.py --input_file=records512/train.tfrecord \
        --vocab_file=vocab.txt --max_seq_length=512 --max_predictions_per_seq=77 --batch_size=8 \
        --length_bins=32

Training steps of one model on a whole pool of batches, as the command takes them, in turn with
batches of the same records as they come, padded to max_seq_length. With --sequences_per_row=8 the
steps are on rows of up to 8 sequences each, without --length_bins: as many rows as others have
sequences. With --batch_tokens=4096 batches of so many tokens come in turn with both: some of each
width, which count by how many of it an epoch has. The batches are made beforehand, and the CPU
seconds of that count with the steps; they are also told alone. CPU seconds are those of the whole
process, all threads together: on a machine with other work they are steadier than wall time. The
first steps, which trace, do not count.
"""

import dataclasses
import os
from typing import Any

from bert_tf.options import option
from bert_tf.tokenization.vocabulary import load_vocab
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Figures, Spent

_NUM_WARMUP_STEPS = 2
_LEAST_OF_WIDTH = 2  # batches of so many tokens that are timed of each width


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
    batch_tokens: int = option(
        0, "Measure batches of so many tokens too, as train_batch_tokens; 0 not to.", minimum=0
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


def _of_tokens(options: Options, train_step: Any) -> "TimedBatches":
    """Return batches of each width of an epoch, which count for all of it."""
    from bert_tf.input_pipeline.pretraining import pretraining_dataset
    from bert_tf.input_pipeline.token_batches import TokenBatches, count_lengths

    length, limit = options.max_seq_length, options.max_predictions_per_seq
    with harness.timed() as made:
        counts = count_lengths(
            options.input_file, max_seq_length=length, max_predictions_per_seq=limit
        )
        epoch = TokenBatches(counts, options.length_bins, options.batch_tokens)
        dataset = pretraining_dataset(
            options.input_file,
            batch_tokens=options.batch_tokens,
            max_seq_length=length,
            max_predictions_per_seq=limit,
            is_training=True,
            length_bins=options.length_bins,
            length_counts=counts,
            max_steps=epoch.num_batches,
        )
        batches = list(dataset)
    of_width: dict[int, list[Any]] = {}
    for batch in batches:
        of_width.setdefault(batch[0]["input_ids"].shape[1], []).append(batch)
    taken, weights = [], []
    for some in of_width.values():
        count = round(options.num_steps * len(some) / len(batches))
        chosen = some[: max(count, _LEAST_OF_WIDTH)]
        taken += chosen
        weights += [len(some) / len(chosen)] * len(chosen)
    # Those at the end of an epoch may not be full.
    masks = [inputs["input_mask"].numpy() for inputs, _, _ in batches]
    held = sum(int(x.any(axis=1).sum()) for x in masks), sum(int(x.sum()) for x in masks)
    return TimedBatches(taken, weights, made, train_step, held=held)


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


@dataclasses.dataclass
class TimedBatches:
    """Batches, and what they took.

    Attributes:
        batches: in the order of the steps.
        weights: for how many batches each counts.
        made: the making of all that they count for.
        train_step: what takes them.
        sequences_per_row: of packed rows.
        held: sequences and tokens of all that they count for; None for those of the batches.
        steps: what each step took.
    """

    batches: list[Any]
    weights: list[float]
    made: Spent
    train_step: Any
    sequences_per_row: float = 1.0
    held: tuple[int, int] | None = None
    steps: list[Spent] = dataclasses.field(default_factory=list)

    def _sum(self, values: Any) -> float:
        return sum(weight * x for weight, x in zip(self.weights, values, strict=True))

    def figures(self) -> Figures:
        """Return seconds a sequence and a token, and what the batches are like."""
        masks = [inputs["input_mask"].numpy() for inputs, _, _ in self.batches]
        labels = [labels["masked_lm_logits"].numpy() for _, labels, _ in self.batches]
        positions = self._sum(mask.size for mask in masks)
        tokens = self._sum(int(mask.sum()) for mask in masks)
        sequences = self._sum(len(mask) for mask in masks) * self.sequences_per_row
        if self.held is not None:
            sequences, tokens = self.held
        cpu = self.made.cpu + self._sum(step.cpu for step in self.steps)
        return {
            "cpu_seconds": cpu / sequences,
            "wall_seconds": self._sum(step.wall for step in self.steps) / sequences,
            "data_cpu_seconds": self.made.cpu / sequences,
            "padding": 1 - tokens / positions,
            "mean_length": positions / sequences,
            "mean_predictions": self._sum(x.size for x in labels) / sequences,
            "shapes": len({(x.shape, y.shape) for x, y in zip(masks, labels, strict=True)}),
            "token_cpu_seconds": cpu / tokens,
            "batch_sequences": sequences / sum(self.weights),
        }


def _contenders(options: Options) -> dict[str, TimedBatches]:
    """Make the batches of each contender; the last is padded."""
    packed = options.sequences_per_row
    step = _train_step(options, False)
    found: dict[str, TimedBatches] = {}
    if options.batch_tokens:
        found["of like tokens"] = _of_tokens(options, step)
    name = "packed" if packed else "of like length"
    datasets = {name: _batches(options, 0 if packed else options.length_bins, packed or None)}
    datasets["padded"] = _batches(options)
    for name, dataset in datasets.items():
        with harness.timed() as made:
            batches = list(dataset)
        found[name] = TimedBatches(batches, [1.0] * len(batches), made, step)
    if packed:  # sequences not as these rows happen to hold them
        found["packed"].train_step = _train_step(options, True)
        found["packed"].sequences_per_row = _sequences_per_row(options)
    return found


def _take_steps(options: Options, contenders: dict[str, TimedBatches]) -> None:
    """Take the steps of all in turn, after some that do not count."""
    import tensorflow as tf

    one = tf.constant(1)
    datasets = {name: _dataset_of(x.batches) for name, x in contenders.items()}
    for name, x in contenders.items():  # XLA compiles each shape when it comes
        batches = iter(datasets[name])
        compiles = options.jit_compile and name != "packed"
        for _ in range(len(x.batches) if compiles else _NUM_WARMUP_STEPS):
            x.train_step.run(batches, one)
    iterators = {name: iter(dataset) for name, dataset in datasets.items()}
    for number in range(max(len(x.batches) for x in contenders.values())):
        for name, x in contenders.items():
            if number >= len(x.batches):
                continue
            with harness.timed() as spent:
                x.train_step.run(iterators[name], one)
                float(x.train_step.learning_rate.numpy())
            x.steps.append(spent)


def _dataset_of(batches: list[Any]) -> Any:
    """Return a dataset of batches that are in memory, of any lengths."""
    import tensorflow as tf

    def any_shape(tensor: Any) -> Any:
        return tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)

    signature = tf.nest.map_structure(any_shape, batches[0])
    dataset = tf.data.Dataset.from_generator(lambda: batches, output_signature=signature).cache()
    for _ in dataset:  # lest a step waits for Python
        pass
    return dataset


def compare(options: Options) -> None:
    """Measure all in turn, step by step, and print a table."""
    contenders = _contenders(options)
    _take_steps(options, contenders)
    packed = options.sequences_per_row
    how = f"{packed} sequences a row at most" if packed else f"steps of {options.length_bins}"
    how += f", {options.batch_tokens} tokens" if options.batch_tokens else ""
    print(
        f"{len(contenders['padded'].batches)} x {options.batch_size} of {options.max_seq_length}, "
        f"L{options.num_hidden_layers} H{options.hidden_size}, {how}, "
        f"{'XLA' if options.jit_compile else 'graph'}, {os.cpu_count()} CPUs"
    )
    table = harness.Table(
        "name cpu_seconds:.4f wall_seconds:.4f data_cpu_seconds:.5f padding:.1% mean_length:.1f "
        "mean_predictions:.1f shapes:d token_cpu_seconds:.7f batch_sequences:.1f"
    )
    results = {}
    for name, contender in contenders.items():
        results[name] = contender.figures()
        table.row({"name": name, **results[name]})
    for name in list(results)[:-1]:
        for what, key in (
            ("cpu time of a sequence", "cpu_seconds"),
            ("wall time of a sequence", "wall_seconds"),
            ("cpu time of a token", "token_cpu_seconds"),
        ):
            ratio = results[name][key] / results["padded"][key]
            print(f"{what}, {name} / padded: {ratio:.3f}")
    harness.write_figures(options, results=results)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare)
