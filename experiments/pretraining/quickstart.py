"""The steps of the quickstart: each a command, and what they come to."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from bert_tf.files import read_json
from bert_tf.options import option

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class QuickstartOptions:
    """What quickstart.py is asked for.

    Learned in minutes: short sequences, and a small vocabulary, make steps cheap. A rate of 1e-3
    gets BERT-Tiny past the loss of a unigram model within 300 steps; at 2e-3 and above it stays
    there.
    """

    output_dir: str = option("quickstart", "Folder for everything that is written.")
    vocab_size: int = option(4000, "Pieces of the vocabulary.")
    max_seq_length: int = option(64, "Tokens in a sequence.")
    dupe_factor: int = option(6, "Times that the text is masked, each time otherwise.")
    train_batch_size: int = option(32, "Sequences in a training batch.")
    num_train_steps: int = option(2000, "Steps of pre-training.")
    learning_rate: float = option(1e-3, "Peak learning rate.")


MASKED_LM_PROB = 0.15

SENTENCES = (
    "Return true if the string is empty, [MASK] otherwise.",
    "Return the number of items in the [MASK].",
    "If the file does not [MASK], an error is raised.",
    "This [MASK] is called when the connection is closed.",
)
# What a run leaves in its folder; a new run begins by removing it.
_PARTS = ("text", "vocab.txt", "records", "model", "fill_mask")


class StepFailed(RuntimeError):
    """A command ended with an error, which it has printed."""


def run_step(title: str, script: str, **arguments: Any) -> float:
    """Print a command as a user would type it, run it in the repository, and time it.

    Args:
        title: what it does.
        script: path from the repository's root.
        **arguments: its flags; a list gives the flag several times.

    Returns:
        Seconds that it took.

    Raises:
        StepFailed: it ended with an error.
    """
    flags = []
    for name, value in arguments.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool):
                flags.append(f"--{name}" if one else f"--no{name}")
            else:
                flags.append(f"--{name}={one}")
    shown = " \\\n    ".join([f"python {script}", *(shlex.quote(flag) for flag in flags)])
    print(f"\n== {title}\n\n  {shown}\n", flush=True)
    # Without a GPU, TensorFlow logs as an error that it found none.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    start = time.monotonic()
    status = subprocess.call([sys.executable, script, *flags], cwd=REPOSITORY, env=environment)
    if status:
        raise StepFailed(f"{script} ended with status {status}")
    return time.monotonic() - start


def baselines(metrics_file: pathlib.Path) -> dict[str, float]:
    """Return the losses that run_pretraining wrote for comparison: uniform_loss, unigram_loss."""
    for line in metrics_file.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if values.get("kind") == "baseline":
            return values
    raise ValueError(f"{metrics_file}: no line of kind 'baseline'")


def summary_lines(out: pathlib.Path, seconds: Mapping[str, float]) -> list[str]:
    """Return the table at the end, from the files that the steps wrote."""
    model = out / "model"
    base = baselines(model / "metrics.jsonl")
    result = read_json(model / "eval_results.json")
    loss, unigram = result["masked_lm_loss"], base["unigram_loss"]
    rows = [
        ("held-out documents", "", ""),
        ("  MLM loss", f"{loss:.3f}", f"perplexity {math.exp(loss):,.0f}"),
        ("    of a unigram model", f"{unigram:.3f}", f"perplexity {math.exp(unigram):,.0f}"),
        (
            "    of a uniform guess",
            f"{base['uniform_loss']:.3f}",
            f"perplexity {math.exp(base['uniform_loss']):,.0f}",
        ),
        ("    below the unigram model by", f"{unigram - loss:.3f}", "nats"),
        ("  MLM accuracy", f"{result['masked_lm_accuracy']:.1%}", ""),
        ("  NSP accuracy", f"{result['next_sentence_accuracy']:.1%}", ""),
    ]
    lines = [f"{name:<32}{value:>8}  {note}".rstrip() for name, value, note in rows]
    lines += ["", f"{'seconds':<32}{sum(seconds.values()):>8.0f}"]
    lines += [f"  {name:<30}{value:>8.0f}" for name, value in seconds.items()]
    lines += ["", "written"]
    for part, what in (
        ("text/train.txt", "text, one sentence a line"),
        ("vocab.txt", "vocabulary"),
        ("records/train.tfrecord", "training records"),
        ("model/bert_model.ckpt.index", "weights, as TF1 checkpoint"),
        ("model/metrics.jsonl", "losses of training"),
        ("model/curves.png", "learning curves"),
        ("fill_mask/1/saved_model.pb", "SavedModel, strings in"),
    ):
        path = out / part
        if path.exists():
            lines.append(f"  {path}  ({what})")
    return lines


def prepare_data(out: pathlib.Path, options: QuickstartOptions) -> dict[str, float]:
    """Make text, vocabulary and records; return the seconds that each took."""
    seconds = {}
    seconds["text"] = run_step(
        "text: the documentation of Python, one sentence a line",
        "data_prep/python_docs.py",
        output_file=out / "text/train.txt",
        heldout_output_file=out / "text/heldout.txt",
    )
    seconds["vocabulary"] = run_step(
        f"vocabulary: {options.vocab_size:,} word pieces",
        "data_prep/learn_vocab.py",
        input_file=out / "text/train.txt",
        output_file=out / "vocab.txt",
        vocab_size=options.vocab_size,
        num_unused=0,
    )
    start = time.monotonic()
    for split, dupe_factor in (("train", options.dupe_factor), ("heldout", 2)):
        run_step(
            f"records of the {split} text: pairs of segments, masked",
            "data_prep/create_pretraining_data.py",
            input_file=out / f"text/{split}.txt",
            output_file=out / f"records/{split}.tfrecord",
            vocab_file=out / "vocab.txt",
            max_seq_length=options.max_seq_length,
            max_predictions_per_seq=_predictions(options),
            dupe_factor=dupe_factor,
        )
    seconds["records"] = time.monotonic() - start
    return seconds


def train_and_try(out: pathlib.Path, options: QuickstartOptions) -> dict[str, float]:
    """Pre-train, export and fill in sentences; return the seconds that each took."""
    seconds = {}
    steps = options.num_train_steps
    seconds["pre-training"] = run_step(
        "pre-training of a BERT-Tiny (2 layers of 128 units), and evaluation on held-out documents",
        "experiments/run_pretraining.py",
        input_file=out / "records/train.tfrecord",
        eval_input_file=out / "records/heldout.tfrecord",
        vocab_file=out / "vocab.txt",
        model_size="tiny",
        max_seq_length=options.max_seq_length,
        max_predictions_per_seq=_predictions(options),
        do_train=True,
        do_eval=True,
        train_batch_size=options.train_batch_size,
        eval_batch_size=64,
        max_eval_steps=0,
        eval_every_steps=max(1, steps // 5),
        learning_rate=options.learning_rate,
        num_train_steps=steps,
        num_warmup_steps=steps // 10,
        log_steps=50,
        output_dir=out / "model",
    )
    seconds["export"] = run_step(
        "export: a SavedModel that takes plain strings",
        "experiments/export_model.py",
        model_dir=out / "model",
        saved_model=out / "fill_mask",
        max_seq_length=options.max_seq_length,
    )
    seconds["fill in"] = run_step(
        "masked sentences, filled in by the SavedModel in a new process",
        "experiments/fill_mask.py",
        saved_model=out / "fill_mask",
        text=list(SENTENCES),
    )
    return seconds


def _predictions(options: QuickstartOptions) -> int:
    return math.ceil(options.max_seq_length * MASKED_LM_PROB)


def run(options: QuickstartOptions) -> None:
    """Run all steps, and print what they came to.

    Raises:
        StepFailed: a step ended with an error.
        ValueError, OSError: the folder cannot be written, or what a step wrote cannot be read.
    """
    # As typed where that is what the commands see; they run in the repository's root.
    out = pathlib.Path(options.output_dir)
    if not out.is_absolute() and pathlib.Path.cwd() != REPOSITORY:
        out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        path = out / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    seconds = {**prepare_data(out, options), **train_and_try(out, options)}
    print("\n== result\n")
    print("\n".join(summary_lines(out, seconds)))
    print(
        "\nA BERT-Tiny after minutes knows which words are frequent, and little more: to copy the "
        "tenth of the\npredicted pieces that masking leaves as they are would gain as much. The "
        "same commands, with more\ntext, a larger model and more steps, make one that knows more: "
        "see README.md."
    )
