"""Converts a checkpoint of any system that has BERT into another's, and verifies the result.

    python experiments/convert_checkpoint.py --from=uncased_L-12_H-768_A-12 --to=bert-hf --format=hf
    python experiments/convert_checkpoint.py --from=bert-hf --to=bert-tf1 --format=tf1

Reads what bert_tf.load_model reads: TF1 checkpoints, transformers directories and files, KerasHub
presets, TF Model Garden checkpoints, .keras and .weights.h5 files. The format of --from is found
out. --to is a directory, or for --format=keras a name ending in .keras or .weights.h5.

Prints the weights that were moved, ignored and missing, and compares outputs on a fixed batch: of
the source in its own system, where that is installed, of the model between, and of the target, read
back here and in its own system. Ends with status 1 if they differ.
"""

import functools
import logging as python_logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be looked up elsewhere

from absl import app, flags, logging

from experiments.command_line.exit_status import exit_on_error
from experiments.conversion.convert import convert
from experiments.conversion.verify import FORMATS


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of the script."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    number = functools.partial(flags.DEFINE_float, flag_values=values)
    patterns = functools.partial(flags.DEFINE_multi_string, flag_values=values)
    choice = functools.partial(flags.DEFINE_enum, flag_values=values)
    text("from", None, "Checkpoint: directory, file or TensorFlow prefix.", required=True)
    text("to", None, "What to write.", required=True)
    choice("format", None, FORMATS, "The target's format.", required=True)
    text("bert_config_file", None, "Configuration; by default the source's.")
    text("kind", None, "Kind of model; by default what the weights say.")
    boolean("do_lower_case", None, "Casing; by default what the source says.")
    patterns("ignore", [], "Regular expression of weights of the source to leave; repeatable.")
    patterns("allow_missing", [], "Regular expression of weights that it may lack; repeatable.")
    text("hidden_act", None, "Activation to take in place of the source's.")
    number("layer_norm_eps", None, "Epsilon to take in place of the source's.")
    integer("vocab_size", None, "Cut or extend the word embeddings to this.")
    integer("max_position_embeddings", None, "Cut or extend the positions to this.")
    integer("type_vocab_size", None, "Cut or extend the segment embeddings to this.")
    boolean("overwrite", False, "Write into a target that exists.")
    boolean("all_weights", False, "List every layer's weights, not one line for all.")
    boolean("verify", True, "Compare source and target.")
    number("tolerance", 1e-4, "Largest absolute difference of outputs.")


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    if not values["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        python_logging.getLogger("bert_tf").setLevel(python_logging.WARNING)
    return exit_on_error("convert_checkpoint", lambda: convert(values))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
