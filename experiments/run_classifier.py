r"""Fine-tunes BERT on GLUE, or on sentences and pairs of one's own, evaluates and predicts.

    python experiments/run_classifier.py --task_name=MRPC --do_train --do_eval \
        --data_dir=$GLUE_DIR/MRPC --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/mrpc

    python experiments/run_classifier.py --train_file=train.csv --dev_file=dev.csv \
        --text_column=review --label_column=stars --do_train --do_eval \
        --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/reviews

Flags and defaults are those of google-research/bert's run_classifier.py wherever it has the flag,
so its --vocab_file, --bert_config_file and --init_checkpoint work in place of --model_dir. The same
command continues a run that was stopped. --seeds=1,2,3 trains a run each, and the best is kept.

In the output folder: the model (a model directory with bert_task.json), eval_results.txt and .json,
confusion_matrix.png, curves.png; of --do_predict test_results.tsv with probabilities as the
original writes them, and for GLUE the file to submit, for own data predictions.csv.
"""

from __future__ import annotations

from absl import app, flags

from data_prep.finetuning.flags import define_data_flags
from experiments.command_line.exit_status import exit_on_error
from experiments.finetuning import flags as finetuning_flags
from experiments.finetuning.classification import run

FLAGS = flags.FLAGS


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    finetuning_flags.define_flags(values)
    define_data_flags(values)
    flags.DEFINE_bool(
        "majority_class",
        None,
        "Predict the commonest label of the training set; by default for WNLI alone, as the paper.",
        flag_values=values,
    )


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return exit_on_error("run_classifier", lambda: run(FLAGS))


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
