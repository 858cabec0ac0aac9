r"""Fine-tunes BERT to choose the right ending, as in SWAG, evaluates and predicts.

    python experiments/run_swag.py --data_dir=SWAG --do_train --do_eval --do_predict \
        --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/swag

The folder holds train.csv, val.csv and test.csv; --train_file, --dev_file and --test_file name
other CSV files with the columns sent1, sent2, ending0, ending1, ... and, but for the test, label.
How many endings there are, the header says. Batch size, learning rate and epochs are the paper's
(section 4.4) where no flag gives them; other flags and defaults that run_classifier.py of
google-research/bert has are its own. The same command continues a run that was stopped.

In the output folder: the model (a model directory with bert_task.json), curves.png; of --do_eval
eval_results.txt and .json; of --do_predict predictions.csv.
"""

from __future__ import annotations

from absl import app, flags

from data_prep.finetuning.flags import define_file_flags
from experiments.command_line.exit_status import exit_on_error
from experiments.finetuning import flags as finetuning_flags
from experiments.finetuning.multiple_choice import TASK, run

FLAGS = flags.FLAGS


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    finetuning_flags.define_flags(
        values,
        max_seq_length=TASK.max_seq_length,
        train_batch_size=TASK.train_batch_size,
        learning_rate=TASK.learning_rates[0],
        num_train_epochs=TASK.num_train_epochs,
    )
    define_file_flags(values)


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return exit_on_error("run_swag", lambda: run(FLAGS))


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
