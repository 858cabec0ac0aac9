r"""Writes hidden states of a frozen BERT for the lines of a text file.

    python experiments/extract_features.py --input_file=lines.txt --output_file=features.npz \
        --model_dir=uncased_L-12_H-768_A-12 --pooling=mean
    python experiments/extract_features.py --input_file=lines.txt --output_file=features.jsonl \
        --vocab_file=vocab.txt --bert_config_file=bert_config.json \
        --init_checkpoint=bert_model.ckpt --layers=-1,-2,-3,-4

A line is a text, or two as "A ||| B". Flags and defaults are those of google-research/bert's
extract_features.py; --model_dir, anything that bert_tf.load_bert reads, is the short way. The file
is streamed, and lines are grouped by length: the results do not depend on that beyond rounding.

Formats, of N lines, T tokens of all lines, K layers and D numbers in each hidden state:

- json (default): the original's lines, {"linex_index", "features": [{"token", "layers": [{"index",
  "values"}]}]}.
- npz (default with --pooling): `values` float32 or float16 [T, K, D], the lines one after the
  other; `offsets` int64 [N + 1], line i having values[offsets[i]:offsets[i + 1]]; `input_ids` int32
  [T], the pieces' ids in the vocabulary; `layers`, K strings. With --pooling `values` [N, K * D],
  one row a line, and `layers`.
- tfrecord: a tf.train.Example for each line, with `line_index` int64 [1], `input_ids` int64 [F] and
  `values` float [F * K * D], reshaped to [F, K, D]. With --pooling `line_index` and `values` float
  [K * D].
"""

from __future__ import annotations

import functools
import logging as python_logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be looked up elsewhere

from absl import app, flags, logging

from experiments.command_line.exit_status import exit_on_error
from experiments.feature_based.extraction import FORMATS, extract
from experiments.feature_based.flags import define_model_flags


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of the script."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    choice = functools.partial(flags.DEFINE_enum, flag_values=values)
    text("input_file", None, "Texts, one a line, or two as A ||| B.", required=True)
    text("output_file", None, "What to write.", required=True)
    text(
        "layers",
        "-1,-2,-3,-4",
        "Layers: -1 the last, 0 the first, or embeddings; with pooling -1 alone by default.",
    )
    define_model_flags(values)
    integer("max_seq_length", 128, "Pieces of a line at most, [CLS] and [SEP] counted.")
    integer("batch_size", 32, "Lines computed at once.")
    choice("output_format", None, FORMATS, "json, or with pooling npz, by default.")
    choice("pooling", None, ["mean", "cls", "max"], "One vector a line, over all its tokens.")
    choice("dtype", "float32", ["float32", "float16"], "Of the values in npz.")


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        python_logging.getLogger("bert_tf").setLevel(python_logging.WARNING)
    return exit_on_error("extract_features", lambda: extract(values))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
