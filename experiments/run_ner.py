r"""Fine-tunes BERT to tag words, such as the names in a text, evaluates as conlleval and predicts.

    python experiments/run_ner.py --train_file=train.conll --dev_file=dev.conll \
        --test_file=test.conll --do_train --do_eval --do_predict \
        --model_dir=cased_L-12_H-768_A-12 --output_dir=runs/ner

    python experiments/run_ner.py --test_file=words.conll --do_predict --output_dir=runs/ner

Files hold a word and its tag in each line and blank lines between sentences, as CoNLL-2003's; of
other columns --token_column and --tag_column say which count. The labels are the tags of the
training file. --document_context shows the model the words around a sentence, as the paper did;
--tag_scheme=bio rewrites IOB1 and IOBES. Flags and defaults that run_classifier.py of
google-research/bert has are its own. The same command continues a run that was stopped.

In the output folder: the model (a model directory with bert_task.json), curves.png; of --do_eval
eval_results.txt and .json, ner_report.txt as conlleval prints it, ner_types.png,
predictions_dev.conll (word, true tag, predicted tag); of --do_predict predictions_test.conll, and
if the test file has tags test_results.txt and .json, ner_report_test.txt, ner_types_test.png.
All figures are in percent.
"""

from __future__ import annotations

from absl import app, flags

from data_prep.finetuning.flags import define_file_flags, define_tagged_flags
from experiments.command_line.exit_status import exit_on_error
from experiments.finetuning import flags as finetuning_flags
from experiments.finetuning.tagging import TASK, run

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
    define_tagged_flags(values)


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return exit_on_error("run_ner", lambda: run(FLAGS))


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
