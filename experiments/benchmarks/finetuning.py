"""Measure what grouping records by length saves in fine-tuning.

    python experiments/benchmarks/finetuning.py --data_dir=glue/SST-2 --vocab_file=vocab.txt

Training steps of a classifier of the size of all-MiniLM-L6 with random weights, on batches drawn
evenly over one epoch, once with records of like length together and once with all padded to
max_seq_length. Each contender runs in a process of its own. CPU seconds are those of the whole
process, all threads together, input pipeline included; on a machine with other work they are
steadier than wall time. Without --data_dir the lengths are drawn as those of SST-2 are spread.
"""

import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from bert_tf.options import option
from bert_tf.records.encoding import encode_framed_examples
from bert_tf.records.files import RecordWriter
from bert_tf.records.schema import classification_features
from bert_tf.tasks.table import get_task
from data_prep.finetuning.kinds import FeatureSettings
from data_prep.finetuning.prepare import TokenizerSettings, prepare
from data_prep.finetuning.sources import folder_source
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Figures


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    data_dir: str | None = option(None, "Folder of a GLUE task; made-up records by default.")
    task_name: str = option("sst-2", "The task of the folder.")
    vocab_file: str | None = option(None, "Vocabulary, for --data_dir.")
    cache_dir: str | None = option(None, "Where to keep records; a temporary folder by default.")
    batch_size: int = option(32, "Sequences in a batch.")
    max_seq_length: int = option(128, "Word pieces in a sequence.")
    num_hidden_layers: int = option(6, "Transformer layers.")
    hidden_size: int = option(384, "Width of the encoder; four times that in between.")
    num_attention_heads: int = option(12, "Attention heads.")
    num_batches: int = option(40, "Batches to measure, evenly over the epoch.")
    num_warmup_steps: int = option(3, "Steps not counted.")
    num_records: int = option(67349, "Made-up records.")


CONTENDERS = ("grouped", "padded_to_max")
_VOCAB_SIZE = 30522


def prepare_records(options: Options, folder: str) -> tuple[str, str]:
    """Make the records and return their path and that of their lengths."""
    if options.data_dir:
        task = get_task(options.task_name)
        prepared = prepare(
            folder_source(task, options.data_dir, "train"),
            FeatureSettings(task, options.max_seq_length),
            TokenizerSettings(str(options.vocab_file)),
            folder,
        )
        return prepared.record_file, prepared.lengths_file
    rng = np.random.default_rng(0)
    # As of SST-2, whose texts have 13 word pieces in the mean and half as many in the median.
    lengths = np.clip(2 + rng.lognormal(2.15, 0.8, options.num_records), 3, 66)
    lengths = np.minimum(lengths.astype(np.int32), options.max_seq_length)
    path, lengths_path = os.path.join(folder, "x.tfrecord"), os.path.join(folder, "x.npy")
    np.save(lengths_path, lengths)
    schema = classification_features(options.max_seq_length)
    with RecordWriter(path) as writer:
        for begin in range(0, len(lengths), 1024):
            mask = np.arange(options.max_seq_length) < lengths[begin : begin + 1024, None]
            arrays = {
                "input_ids": rng.integers(999, _VOCAB_SIZE, mask.shape) * mask,
                "input_mask": mask,
                "segment_ids": 0 * mask,
                "label_ids": rng.integers(0, 2, (len(mask), 1)),
                "is_real_example": np.ones((len(mask), 1), bool),
            }
            writer.write_framed(encode_framed_examples(schema, arrays))
    return path, lengths_path


def _training_step(options: Options) -> Callable[[Any], Any]:
    """Return a step that trains a model on a batch and returns the number of its real pieces."""
    import tensorflow as tf

    from bert_tf.training.finetuning import make_model
    from bert_tf.training.objectives import FineTuningObjective
    from bert_tf.training.optimizers import create_optimizer

    config = harness.encoder_config(options, _VOCAB_SIZE)
    model = make_model("classification", config, num_labels=2)
    optimizer = create_optimizer(2e-5, 1000, 100)
    optimizer.build(model.trainable_variables)
    objective = FineTuningObjective("classification")

    def step(batch):
        inputs, labels, weights = batch
        with tf.GradientTape() as tape:
            loss, _ = objective(model(inputs, training=True), labels, weights)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], model.trainable_variables)
        return tf.reduce_sum(inputs["input_mask"])

    return step


def measure(options: Options, name: str) -> Figures:
    """Measure one contender in this process."""
    import tensorflow as tf

    from bert_tf.input_pipeline.finetuning import TaskRecords

    if options.cache_dir is None:
        raise ValueError("--contender needs --cache_dir")
    record_file, lengths_file = prepare_records(options, options.cache_dir)
    tasks = TaskRecords(
        record_file,
        "classification",
        classification_features(options.max_seq_length),
        lengths=np.load(lengths_file),
        vocab_size=_VOCAB_SIZE,
    )
    grouped = name == "grouped"

    def batches(start):
        return tasks.training_dataset(
            batch_size=options.batch_size,
            start_step=start,
            num_steps=1,
            group_by_length=grouped,
            pad_to_max=not grouped,
            with_weights=True,
        )

    step = tf.function(_training_step(options), input_signature=[batches(0).element_spec])
    for start in range(options.num_warmup_steps):
        for batch in batches(start):
            step(batch)
    steps = len(tasks) // options.batch_size
    starts = np.linspace(0, steps - 1, options.num_batches).astype(int)
    times, tokens, positions = [], 0, 0
    for start in starts:
        dataset = batches(int(start))
        with harness.timed() as spent:
            for batch in dataset:
                tokens += int(step(batch))
                positions += int(tf.size(batch[0]["input_ids"]))
        times.append(spent)
    cpu_seconds = statistics.fmean(spent.cpu for spent in times)
    return {
        "cpu_seconds": cpu_seconds,
        "wall_seconds": statistics.fmean(spent.wall for spent in times),
        "cpu_seconds_per_epoch": cpu_seconds * steps,
        "real_tokens": tokens / positions,
        "mean_length": positions / len(starts) / options.batch_size,
    }


def compare(options: Options) -> None:
    """Measure both and print a table."""
    if options.data_dir and not options.vocab_file:
        raise ValueError("--data_dir needs --vocab_file")
    table = harness.Table("name cpu_seconds:.3f wall_seconds:.3f mean_length:.1f real_tokens:.1%")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in CONTENDERS:
            cache_dir = options.cache_dir or temporary
            results[name] = harness.in_process(name, f"--cache_dir={cache_dir}")
            table.row({"name": name, **results[name]})
    grouped, padded = (results[name] for name in CONTENDERS)
    for clock in ("cpu", "wall"):
        ratio = grouped[f"{clock}_seconds"] / padded[f"{clock}_seconds"]
        print(f"{clock} time of grouped / padded: {ratio:.3f}")
    harness.write_figures(options, results=results)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare, measure)
