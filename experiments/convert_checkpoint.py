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

from experiments.command_line.command import run_command
from experiments.conversion.options import ConversionOptions

if __name__ == "__main__":
    run_command(ConversionOptions, "experiments.conversion.convert", "warning")
