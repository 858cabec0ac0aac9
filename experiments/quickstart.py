"""The whole of BERT's pre-training in a few minutes on a CPU, with no download.

`make quickstart` sets up an environment and runs this. Text comes from the documentation that
Python carries; then every command is one that works for real text too, and is printed before it
runs: learn a vocabulary, make records, pre-train a BERT-Tiny, evaluate it on held-out documents,
export a SavedModel that takes plain strings, and fill in masked sentences with it in a new process.

    python experiments/quickstart.py --output_dir=quickstart
"""

import json
import math
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any

from absl import app, flags

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Learned in minutes: short sequences, and a small vocabulary, make steps cheap. A rate of 1e-3 gets
# BERT-Tiny past the loss of a unigram model within 300 steps; at 2e-3 and above it stays there.
DEFAULTS = {
    "vocab_size": 4000,
    "max_seq_length": 64,
    "dupe_factor": 6,
    "train_batch_size": 32,
    "num_train_steps": 2000,
    "learning_rate": 1e-3,
}
MASKED_LM_PROB = 0.15

SENTENCES = (
    "Return true if the string is empty, [MASK] otherwise.",
    "Return the number of items in the [MASK].",
    "If the file does not [MASK], an error is raised.",
    "This [MASK] is called when the connection is closed.",
)
# What a run leaves in --output_dir; a new run begins by removing it.
_PARTS = ("text", "vocab.txt", "records", "model", "fill_mask")


class StepFailed(Exception):
    """A command ended with an error, which it has printed."""


def run_step(title: str, script: str, **arguments) -> float:
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
    flat = []
    for name, value in arguments.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool):
                flat.append(f"--{name}" if one else f"--no{name}")
            else:
                flat.append(f"--{name}={one}")
    shown = " \\\n    ".join([f"python {script}", *(shlex.quote(argument) for argument in flat)])
    print(f"\n== {title}\n\n  {shown}\n", flush=True)
    # Without a GPU, TensorFlow logs as an error that it found none.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    start = time.monotonic()
    status = subprocess.call([sys.executable, script, *flat], cwd=REPOSITORY, env=environment)
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


def summary_lines(out: pathlib.Path, seconds: dict[str, float]) -> list[str]:
    """Return the table at the end, from the files that the steps wrote."""
    model = out / "model"
    base = baselines(model / "metrics.jsonl")
    result = json.loads((model / "eval_results.json").read_text(encoding="utf-8"))
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


def run(out: pathlib.Path, settings: dict) -> list[str]:
    """Run all steps.

    Args:
        out: folder for what is written.
        settings: the values of DEFAULTS, or others.

    Returns:
        Lines of the table at the end.

    Raises:
        StepFailed: a step ended with an error.
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        path = out / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    length = settings["max_seq_length"]
    predictions = math.ceil(length * MASKED_LM_PROB)
    seconds = {}
    seconds["text"] = run_step(
        "text: the documentation of Python, one sentence a line",
        "data_prep/python_docs.py",
        output_file=out / "text/train.txt",
        heldout_output_file=out / "text/heldout.txt",
    )
    seconds["vocabulary"] = run_step(
        f"vocabulary: {settings['vocab_size']:,} word pieces",
        "data_prep/learn_vocab.py",
        input_file=out / "text/train.txt",
        output_file=out / "vocab.txt",
        vocab_size=settings["vocab_size"],
        num_unused=0,
    )
    start = time.monotonic()
    for split, dupe_factor in (("train", settings["dupe_factor"]), ("heldout", 2)):
        run_step(
            f"records of the {split} text: pairs of segments, masked",
            "data_prep/create_pretraining_data.py",
            input_file=out / f"text/{split}.txt",
            output_file=out / f"records/{split}.tfrecord",
            vocab_file=out / "vocab.txt",
            max_seq_length=length,
            max_predictions_per_seq=predictions,
            dupe_factor=dupe_factor,
        )
    seconds["records"] = time.monotonic() - start
    steps = settings["num_train_steps"]
    seconds["pre-training"] = run_step(
        "pre-training of a BERT-Tiny (2 layers of 128 units), and evaluation on held-out documents",
        "experiments/run_pretraining.py",
        input_file=out / "records/train.tfrecord",
        eval_input_file=out / "records/heldout.tfrecord",
        vocab_file=out / "vocab.txt",
        model_size="tiny",
        max_seq_length=length,
        max_predictions_per_seq=predictions,
        do_train=True,
        do_eval=True,
        train_batch_size=settings["train_batch_size"],
        eval_batch_size=64,
        max_eval_steps=0,
        eval_every_steps=max(1, steps // 5),
        learning_rate=settings["learning_rate"],
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
        max_seq_length=length,
    )
    seconds["fill in"] = run_step(
        "masked sentences, filled in by the SavedModel in a new process",
        "experiments/fill_mask.py",
        saved_model=out / "fill_mask",
        text=list(SENTENCES),
    )
    return summary_lines(out, seconds)


def main(argv: list[str]) -> None:
    """Run the script."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    # As typed where that is what the commands see; they run in the repository's root.
    out = pathlib.Path(values.output_dir)
    if not out.is_absolute() and pathlib.Path.cwd() != REPOSITORY:
        out = out.resolve()
    try:
        lines = run(out, {name: values[name].value for name in DEFAULTS})
    except (StepFailed, OSError, ValueError) as error:
        sys.exit(f"quickstart: {error}")
    print("\n== result\n")
    print("\n".join(lines))
    print(
        "\nA BERT-Tiny after minutes knows which words are frequent, and little more: to copy the "
        "tenth of the\npredicted pieces that masking leaves as they are would gain as much. The "
        "same commands, with more\ntext, a larger model and more steps, make one that knows more: "
        "see README.md."
    )


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "quickstart", "Folder for everything that is written.")
    for _name, _value in DEFAULTS.items():
        _define: Any = flags.DEFINE_float if isinstance(_value, float) else flags.DEFINE_integer
        _define(_name, _value, "See the step that has this flag.")
    app.run(main)
