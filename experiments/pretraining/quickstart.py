"""The steps of the quickstart: each a command, and what they come to."""

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

from bert_tf.config import BertConfig
from bert_tf.files import read_json
from bert_tf.options import option
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from experiments.command_line.tables import print_rows
from experiments.pretraining.hidden_words import (
    HiddenWord,
    hide_words,
    most_frequent_word,
    rows_of_answers,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class QuickstartOptions:
    """What quickstart.py is asked for.

    Context is learned within minutes: short sequences and a small vocabulary make steps cheap;
    masks of 40% (arXiv 2202.08005), drawn anew each time, give 2.6 times the predictions of 15%
    for little more time; a rate of 2e-3 without dropout is worse in the first thousand steps and
    better from then on; initial weights of 0.05 let attention differ from a mean sooner; and next
    sentence prediction, whose gradient in batches of 32 is mostly noise, counts a tenth.
    """

    output_dir: str = option(
        "quickstart", "Folder for everything that is written.", path="local", group="output"
    )
    vocab_size: int = option(4000, "Pieces of the vocabulary.", group="data")
    max_seq_length: int = option(64, "Tokens of a sequence.")
    masked_lm_prob: float = option(0.4, "Share of the pieces that is predicted.")
    dupe_factor: int = option(10, "Times that the text is cut, each time into other pairs.")
    train_batch_size: int = option(32, "Sequences in a training batch.", group="training")
    num_train_steps: int = option(4000, "Steps of pre-training.")
    learning_rate: float = option(2e-3, "Peak learning rate.")
    next_sentence_weight: float = option(0.1, "What next sentence prediction counts in the loss.")
    initializer_range: float = option(0.05, "Standard deviation of initial weights.")
    jit_compile: str = option("true", "Whether XLA compiles the step: auto, true or false.")


EVAL_MASKED_LM_PROB = 0.15  # of held-out records: as BERT's, so that figures can be compared
NUM_HIDDEN_WORDS = 12

# What a run leaves in its folder; a new run begins by removing it.
_PARTS = ("text", "vocab.txt", "records", "bert_config.json", "model", "fill_mask", "answers.jsonl")


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
    """Return what run_pretraining wrote for comparison: uniform_loss, unigram_loss, ..."""
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
    loss, unigram = result["masked_lm_loss_at_mask"], base["unigram_loss"]
    losses = {
        "MLM loss at [MASK]": loss,
        "  of a unigram model": unigram,
        "  of a uniform guess": base["uniform_loss"],
    }
    rows = [
        ("held-out documents", "", ""),
        *(
            (f"  {name}", f"{x:.3f}", f"perplexity {math.exp(x):,.0f}")
            for name, x in losses.items()
        ),
        ("    below the unigram model by", f"{unigram - loss:.3f}", "nats"),
        ("  MLM accuracy at [MASK]", f"{result['masked_lm_accuracy_at_mask']:.1%}", ""),
        ("    of the most frequent piece", f"{base['unigram_accuracy']:.1%}", ""),
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
    for split, dupe_factor, share in (
        ("train", options.dupe_factor, options.masked_lm_prob),
        ("heldout", 2, EVAL_MASKED_LM_PROB),
    ):
        run_step(
            f"records of the {split} text: pairs of segments, to be masked while training",
            "data_prep/create_pretraining_data.py",
            input_file=out / f"text/{split}.txt",
            output_file=out / f"records/{split}.tfrecord",
            vocab_file=out / "vocab.txt",
            max_seq_length=options.max_seq_length,
            max_predictions_per_seq=_predictions(options),
            masked_lm_prob=share,
            dynamic_masking=True,
            dupe_factor=dupe_factor,
        )
    seconds["records"] = time.monotonic() - start
    return seconds


def train_and_try(out: pathlib.Path, options: QuickstartOptions) -> dict[str, float]:
    """Pre-train, export and fill in sentences; return the seconds that each took."""
    seconds = {}
    steps = options.num_train_steps
    config = BertConfig.from_size(
        "tiny",
        vocab_size=len(load_vocab(out / "vocab.txt")),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=options.initializer_range,
    )
    config.to_json_file(out / "bert_config.json")
    seconds["pre-training"] = run_step(
        "pre-training of a BERT-Tiny (2 layers of 128 units), and evaluation on held-out documents",
        "experiments/run_pretraining.py",
        input_file=out / "records/train.tfrecord",
        eval_input_file=out / "records/heldout.tfrecord",
        vocab_file=out / "vocab.txt",
        bert_config_file=out / "bert_config.json",
        max_seq_length=options.max_seq_length,
        max_predictions_per_seq=_predictions(options),
        do_train=True,
        do_eval=True,
        train_batch_size=options.train_batch_size,
        eval_batch_size=64,
        max_eval_steps=0,
        eval_every_steps=max(1, steps // 5),
        learning_rate=options.learning_rate,
        next_sentence_weight=options.next_sentence_weight,
        num_train_steps=steps,
        num_warmup_steps=steps // 10,
        log_steps=100,
        jit_compile=options.jit_compile,
        length_bins=0,  # short sequences have little padding, and each length would be compiled
        output_dir=out / "model",
    )
    seconds["export"] = run_step(
        "export: a SavedModel that takes plain strings",
        "experiments/export_model.py",
        model_dir=out / "model",
        saved_model=out / "fill_mask",
        max_seq_length=options.max_seq_length,
    )
    hidden = _hidden_words(out, options)
    seconds["fill in"] = run_step(
        "sentences of the held-out documents, filled in by the SavedModel in a new process",
        "experiments/fill_mask.py",
        saved_model=out / "fill_mask",
        output_file=out / "answers.jsonl",
        text=[sentence.text for sentence in hidden],
    )
    return seconds


def _hidden_words(out: pathlib.Path, options: QuickstartOptions) -> list[HiddenWord]:
    tokenizer = FullTokenizer(out / "vocab.txt")
    lines = _lines(out / "text/heldout.txt")
    return hide_words(lines, tokenizer, NUM_HIDDEN_WORDS, options.max_seq_length)


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def print_answers(out: pathlib.Path, options: QuickstartOptions) -> None:
    """Print the table of hidden words, and how many a model without context would find."""
    hidden = _hidden_words(out, options)
    answers = [json.loads(line) for line in _lines(out / "answers.jsonl")]
    print_rows(
        "held-out sentences, each with its middle word hidden", rows_of_answers(hidden, answers)
    )
    found = sum(x.word == answer["tokens"][0][0] for x, answer in zip(hidden, answers, strict=True))
    word, share = most_frequent_word(_lines(out / "text/train.txt"), load_vocab(out / "vocab.txt"))
    print(
        f"\n  right at once: {found} of {len(hidden)}; a unigram model says {word!r} "
        f"({share:.0%}) each time: {sum(x.word == word for x in hidden)} of {len(hidden)}"
    )


def _predictions(options: QuickstartOptions) -> int:
    return math.ceil(options.max_seq_length * options.masked_lm_prob)


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
    print_answers(out, options)
    print(
        "\nA BERT-Tiny after minutes has begun to use what stands around a word. More text, a "
        "larger model\nand more steps, by the same commands, make one that knows more: README.md."
    )
