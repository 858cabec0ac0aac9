r"""Fine-tunes BERT on GLUE, or on texts of one's own, evaluates and predicts.

    python experiments/run_classifier.py --task_name=MRPC --do_train --do_eval \
        --data_dir=$GLUE_DIR/MRPC --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/mrpc

    python experiments/run_classifier.py --train_file=train.csv --dev_file=dev.csv \
        --text_column=review --label_column=stars --do_train --do_eval --seeds=1,2,3 \
        --train_batch_size=32 --learning_rate=3e-5 --num_train_epochs=3 \
        --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/reviews

Flags and defaults are those of google-research/bert's run_classifier.py wherever it has the flag,
so its --vocab_file, --bert_config_file and --init_checkpoint work in place of --model_dir. The same
command continues a run that was stopped. --seeds=1,2,3 trains a run each, and the best is kept.

In the output folder: the model (a model directory with bert_task.json), eval_results.txt and .json,
class_report.txt, confusion_matrix.png, curves.png; of --do_predict test_results.tsv with
probabilities as the original writes them, and for GLUE the file to submit, for own data
predictions.csv.
"""

from experiments.command_line.command import run_command
from experiments.finetuning.options import ClassifierOptions

if __name__ == "__main__":
    run_command(ClassifierOptions, "experiments.finetuning.classification")
