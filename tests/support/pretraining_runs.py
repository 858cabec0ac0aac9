"""Runs of run_pretraining.py as processes, on small synthetic records."""

import json
import os
import pathlib
import subprocess
import sys

from tests.support import synthetic_records as synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STEPS, SAVE_STEPS, LOG_STEPS = 46, 11, 7


def write_data(folder):
    """Write record files, vocabulary and configuration."""
    synthetic.write(folder / "train-0.tfrecord", 101, 1)
    synthetic.write(folder / "train-1.tfrecord.gz", 53, 2)
    synthetic.write(folder / "dev.tfrecord", 37, 3)
    synthetic.write(folder / "unmasked.tfrecord", 37, 4, masked=False)
    synthetic.write_vocabulary(folder / "vocab.txt")
    synthetic.small_config(num_hidden_layers=1).to_json_file(folder / "bert_config.json")


def arguments(data, output_dir, **changes):
    """Return the flags of the command."""
    values = {
        "input_file": f"{data}/train-*",
        "eval_input_file": f"{data}/dev.tfrecord",
        "bert_config_file": f"{data}/bert_config.json",
        "vocab_file": f"{data}/vocab.txt",
        "output_dir": str(output_dir),
        "max_seq_length": synthetic.LENGTH,
        "max_predictions_per_seq": synthetic.PREDICTIONS,
        "do_train": True,
        "do_eval": True,
        "num_train_steps": STEPS,
        "num_warmup_steps": 3,
        "learning_rate": 1e-3,
        "train_batch_size": 13,
        "save_checkpoints_steps": SAVE_STEPS,
        "log_steps": LOG_STEPS,
        "tensorboard": False,
        **changes,
    }
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def start(data, output_dir, *, enter=(), prelude=(), tf_config=None, cwd=None, **changes):
    """Start the command.

    Args:
        data: folder of `write_data`.
        output_dir: its output folder.
        enter: command that runs it, with arguments of its own.
        prelude: what Python runs before.
        tf_config: of one of several workers.
        cwd: the folder that it stands in; by default that of output_dir.
        **changes: flags that differ from those of `arguments`.
    """
    script = str(REPOSITORY / "experiments" / "run_pretraining.py")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **({} if tf_config is None else {"TF_CONFIG": tf_config}),
    }
    return subprocess.Popen(  # noqa: S603
        [*enter, sys.executable, *prelude, script, *arguments(data, output_dir, **changes)],
        cwd=cwd or output_dir.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """Wait for the end, which must be a good one, and return what was printed."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def log_of(folder):
    """Lines of the log without what the clock decides."""
    timed = ("sequences_per_second", "tokens_per_second", "time_seconds", "cpu_seconds")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in timed} for x in lines]
