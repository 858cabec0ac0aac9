r"""Fine-tunes BERT on SQuAD 1.1 or 2.0, answers the questions of a file and scores the answers.

    python experiments/run_squad.py --do_train --train_file=train-v1.1.json \
        --do_eval --do_predict --predict_file=dev-v1.1.json \
        --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/squad

    python experiments/run_squad.py --version_2_with_negative --do_eval --do_predict \
        --predict_file=dev-v2.0.json --null_score_diff_threshold=-1.5 --output_dir=runs/squad2

Flags and defaults are those of google-research/bert's run_squad.py wherever it has the flag, so its
--vocab_file, --bert_config_file and --init_checkpoint work in place of --model_dir. The same
command continues a run that was stopped. --seeds=1,2,3 trains a run each, and the best is kept.

In the output folder: the model (a model directory with bert_task.json); of --do_predict
predictions.json, nbest_predictions.json and, for version 2.0, null_odds.json, as the original
writes them; of --do_eval eval_results.txt and .json with what the official evaluation scripts say
of these files.

Padding can be no answer here: neither the loss nor the best starts and ends see it, and so it does
not matter with which others a window lies in a batch. With --pad_to_max_seq_length both are the
original's, whose padding takes part. That is for models trained so: what padding scores in another
has no meaning, and may take the places of real answers in nbest_predictions.json.
"""

from __future__ import annotations

from absl import app, flags

from experiments.command_line.exit_status import exit_on_error
from experiments.finetuning import flags as finetuning_flags
from experiments.finetuning.question_answering import run

FLAGS = flags.FLAGS


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    finetuning_flags.define_flags(values, max_seq_length=384)
    text, switch, integer = flags.DEFINE_string, flags.DEFINE_bool, flags.DEFINE_integer
    text("train_file", None, "SQuAD's JSON to train on.", flag_values=values)
    text("predict_file", None, "SQuAD's JSON to answer and evaluate.", flag_values=values)
    integer("doc_stride", 128, "Tokens between the starts of two windows.", flag_values=values)
    integer("max_query_length", 64, "Tokens of a question; the rest is cut.", flag_values=values)
    integer("n_best_size", 20, "Starts, ends and answers that are kept.", flag_values=values)
    integer("max_answer_length", 30, "Longest answer, in tokens.", flag_values=values)
    switch(
        "version_2_with_negative",
        False,
        "SQuAD 2.0: questions may have no answer.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "null_score_diff_threshold",
        0.0,
        "No answer is given where the score of none exceeds the best answer's by more than this.",
        flag_values=values,
    )
    switch(
        "verbose_logging",
        False,
        "Show each training question that is left out because its answer is not at its place.",
        flag_values=values,
    )
    integer(
        "num_workers",
        0,
        "Processes that make records; 0 for one per core, or none if the input is small.",
        lower_bound=0,
        flag_values=values,
    )
    switch(
        "skip_bad_examples",
        False,
        "Leave bad questions out, and list them in a file.",
        flag_values=values,
    )
    integer(
        "max_bad_shown",
        10,
        "Most bad questions shown of a file.",
        lower_bound=0,
        flag_values=values,
    )


def main(argv: list[str]) -> int:
    """Run the script; bad input gives one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    return exit_on_error("run_squad", lambda: run(FLAGS))


if __name__ == "__main__":
    define_flags(FLAGS)
    app.run(main)
