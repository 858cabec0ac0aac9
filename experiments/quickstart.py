"""The whole of BERT's pre-training in a few minutes on a CPU, with no download.

`make quickstart` sets up an environment and runs this. Text comes from the documentation that
Python carries; then every command is one that works for real text too, and is printed before it
runs: learn a vocabulary, make records, pre-train a BERT-Tiny, evaluate it on held-out documents,
export a SavedModel that takes plain strings, and fill in masked sentences with it in a new process.

    python experiments/quickstart.py --output_dir=quickstart

    python experiments/quickstart.py --output_dir=longer --num_train_steps=20000 --dupe_factor=20
"""

from experiments.command_line.command import run_command
from experiments.pretraining.quickstart import QuickstartOptions

if __name__ == "__main__":
    run_command(QuickstartOptions, "experiments.pretraining.quickstart")
