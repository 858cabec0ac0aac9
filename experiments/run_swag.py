r"""Fine-tunes BERT to choose the right ending, as in SWAG, evaluates and predicts.

    python experiments/run_swag.py --data_dir=SWAG --do_train --do_eval --do_predict \
        --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/swag

    python experiments/run_swag.py --train_file=train.csv --dev_file=dev.csv --do_train --do_eval \
        --train_batch_size=16 --learning_rate=2e-5 --num_train_epochs=3 --seeds=1,2,3 \
        --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/endings

The folder holds train.csv, val.csv and test.csv; --train_file, --dev_file and --test_file name
other CSV files with the columns sent1, sent2, ending0, ending1, ... and, but for the test, label.
How many endings there are, the header says. Batch size, learning rate and epochs are the paper's
(section 4.4) where no flag gives them; other flags and defaults that run_classifier.py of
google-research/bert has are its own. The same command continues a run that was stopped.

In the output folder: the model (a model directory with bert_task.json), curves.png; of --do_eval
eval_results.txt and .json; of --do_predict predictions.csv.
"""

from experiments.command_line.command import run_command
from experiments.finetuning.options import MultipleChoiceOptions, defaults_of

DEFAULTS = defaults_of("swag")

if __name__ == "__main__":
    run_command(MultipleChoiceOptions, "experiments.finetuning.multiple_choice", **DEFAULTS)
