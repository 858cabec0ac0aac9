r"""Fine-tunes BERT on SQuAD 1.1 or 2.0, answers the questions of a file and scores the answers.

    python experiments/run_squad.py --do_train --train_file=train-v1.1.json \
        --do_eval --do_predict --predict_file=dev-v1.1.json --max_seq_length=384 \
        --train_batch_size=12 --learning_rate=3e-5 --num_train_epochs=2 \
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

from experiments.command_line.command import run_command
from experiments.finetuning.options import QuestionAnsweringOptions

DEFAULTS = {"max_seq_length": 384}

if __name__ == "__main__":
    run_command(QuestionAnsweringOptions, "experiments.finetuning.question_answering", **DEFAULTS)
