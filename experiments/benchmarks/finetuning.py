"""Measure what grouping records by length saves in fine-tuning.

    python experiments/benchmarks/finetuning.py --data_dir=glue/SST-2 --vocab_file=vocab.txt

Training steps of a classifier of the size of all-MiniLM-L6 with random weights, on batches drawn
evenly over one epoch, once with records of like length together and once with all padded to
max_seq_length. Each contender runs in a process of its own. CPU seconds are those of the whole
process, all threads together, input pipeline included; on a machine with other work they are
steadier than wall time. Without --data_dir the lengths are drawn as those of SST-2 are spread.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from bert_tf.records.encoding import encode_framed_examples
from bert_tf.records.files import RecordWriter
from bert_tf.records.schema import classification_features
from bert_tf.tasks.table import get_task

FLAGS = flags.FLAGS

flags.DEFINE_string("data_dir", None, "Folder of a GLUE task; made-up records by default.")
flags.DEFINE_string("task_name", "sst-2", "The task of the folder.")
flags.DEFINE_string("vocab_file", None, "Vocabulary, for --data_dir.")
flags.DEFINE_string("cache_dir", None, "Where to keep records; a temporary folder by default.")
flags.DEFINE_integer("batch_size", 32, "Sequences in a batch.")
flags.DEFINE_integer("max_seq_length", 128, "Word pieces in a sequence.")
flags.DEFINE_integer("num_hidden_layers", 6, "Transformer layers.")
flags.DEFINE_integer("hidden_size", 384, "Width of the encoder; four times that in between.")
flags.DEFINE_integer("num_attention_heads", 12, "Attention heads.")
flags.DEFINE_integer("num_batches", 40, "Batches to measure, evenly over the epoch.")
flags.DEFINE_integer("num_warmup_steps", 3, "Steps not counted.")
flags.DEFINE_integer("num_records", 67349, "Made-up records.")
flags.DEFINE_string("contender", None, "Run this one in this process and print its figures.")
flags.DEFINE_string("output_file", None, "Where to write the figures as JSON; nowhere by default.")

CONTENDERS = ("grouped", "padded_to_max")
_VOCAB_SIZE = 30522


def prepare_records(folder: str) -> tuple[str, str]:
    """Make the records and return their path and that of their lengths."""
    if FLAGS.data_dir:
        from data_prep.finetuning.prepare import TokenizerSettings, prepare
        from data_prep.finetuning.sources import folder_source

        task = get_task(FLAGS.task_name)
        made = prepare(
            task,
            folder_source(task, FLAGS.data_dir, "train"),
            TokenizerSettings(FLAGS.vocab_file),
            FLAGS.max_seq_length,
            folder,
        )
        return made.record_file, made.lengths_file
    rng = np.random.default_rng(0)
    # As of SST-2, whose texts have 13 word pieces in the mean and half as many in the median.
    lengths = np.clip(2 + rng.lognormal(2.15, 0.8, FLAGS.num_records), 3, 66)
    lengths = np.minimum(lengths.astype(np.int32), FLAGS.max_seq_length)
    path, lengths_path = os.path.join(folder, "x.tfrecord"), os.path.join(folder, "x.npy")
    np.save(lengths_path, lengths)
    schema = classification_features(FLAGS.max_seq_length)
    with RecordWriter(path) as writer:
        for begin in range(0, len(lengths), 1024):
            mask = np.arange(FLAGS.max_seq_length) < lengths[begin : begin + 1024, None]
            arrays = {
                "input_ids": rng.integers(999, _VOCAB_SIZE, mask.shape) * mask,
                "input_mask": mask,
                "segment_ids": 0 * mask,
                "label_ids": rng.integers(0, 2, (len(mask), 1)),
                "is_real_example": np.ones((len(mask), 1), bool),
            }
            writer.write_framed(encode_framed_examples(schema, arrays))
    return path, lengths_path


def measure(name: str, record_file: str, lengths_file: str) -> dict[str, float]:
    """Time one contender's steps."""
    import tensorflow as tf

    from bert_tf.config import BertConfig
    from bert_tf.input_pipeline.finetuning import TaskRecords
    from bert_tf.training.finetuning import make_model
    from bert_tf.training.objectives import FineTuningObjective
    from bert_tf.training.optimizers import create_optimizer

    tasks = TaskRecords(
        record_file,
        "classification",
        classification_features(FLAGS.max_seq_length),
        lengths=np.load(lengths_file),
        vocab_size=_VOCAB_SIZE,
    )
    model = make_model(
        "classification",
        BertConfig(
            vocab_size=_VOCAB_SIZE,
            hidden_size=FLAGS.hidden_size,
            num_hidden_layers=FLAGS.num_hidden_layers,
            num_attention_heads=FLAGS.num_attention_heads,
            intermediate_size=4 * FLAGS.hidden_size,
        ),
        num_labels=2,
    )
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

    grouped = name == "grouped"

    def batches(start):
        return tasks.training_dataset(
            batch_size=FLAGS.batch_size,
            start_step=start,
            num_steps=1,
            group_by_length=grouped,
            pad_to_max=not grouped,
        )

    step = tf.function(step, input_signature=[batches(0).element_spec])
    for start in range(FLAGS.num_warmup_steps):
        for batch in batches(start):
            step(batch)
    steps = len(tasks) // FLAGS.batch_size
    starts = np.linspace(0, steps - 1, FLAGS.num_batches).astype(int)
    cpu_seconds = wall_seconds = tokens = positions = 0.0
    for start in starts:
        dataset = batches(int(start))
        cpu, wall = time.process_time(), time.perf_counter()
        for batch in dataset:
            tokens += int(step(batch))
            positions += int(tf.size(batch[0]["input_ids"]))
        cpu_seconds += time.process_time() - cpu
        wall_seconds += time.perf_counter() - wall
    return {
        "cpu_seconds": cpu_seconds / len(starts),
        "wall_seconds": wall_seconds / len(starts),
        "cpu_seconds_per_epoch": cpu_seconds / len(starts) * steps,
        "real_tokens": tokens / positions,
        "mean_length": positions / len(starts) / FLAGS.batch_size,
    }


def run_contender(name: str, folder: str) -> dict[str, float]:
    """Measure one contender in a fresh process."""
    result = subprocess.run(
        [
            *(sys.executable, os.path.abspath(__file__), *sys.argv[1:]),
            *(f"--contender={name}", f"--cache_dir={folder}"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Measure one contender, or both in their own processes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if FLAGS.data_dir and not FLAGS.vocab_file:
        raise app.UsageError("--data_dir needs --vocab_file")
    if FLAGS.contender:
        paths = prepare_records(FLAGS.cache_dir)
        print(json.dumps(measure(FLAGS.contender, *paths)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = FLAGS.cache_dir or temporary
        results = {name: run_contender(name, folder) for name in CONTENDERS}
    print(f"{'':<16}{'CPU s/step':>12}{'wall s/step':>13}{'length':>9}{'real tokens':>13}")
    for name, result in results.items():
        print(
            f"{name:<16}{result['cpu_seconds']:>12.3f}{result['wall_seconds']:>13.3f}"
            f"{result['mean_length']:>9.1f}{result['real_tokens']:>13.1%}"
        )
    grouped, padded = (results[name] for name in CONTENDERS)
    for what in ("cpu", "wall"):
        ratio = grouped[f"{what}_seconds"] / padded[f"{what}_seconds"]
        print(f"{what} time of grouped / padded: {ratio:.3f}")
    if FLAGS.output_file:
        with open(FLAGS.output_file, "w", encoding="utf-8") as file:
            json.dump({"flags": FLAGS.flag_values_dict(), "results": results}, file, indent=2)


if __name__ == "__main__":
    app.run(main)
