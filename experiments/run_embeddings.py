r"""Trains BERT to give like texts like vectors, for search and comparison, and evaluates them.

    python experiments/run_embeddings.py --task_name=STS-B --data_dir=$GLUE_DIR/STS-B --do_train \
        --do_eval --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/sts

    python experiments/run_embeddings.py --train_file=train.csv --dev_file=dev.csv \
        --text_column=question --text_b_column=answer --do_train --do_eval \
        --train_batch_size=64 --model_dir=uncased_L-12_H-768_A-12 --output_dir=runs/search

It learns from what the training data have: pairs with a score (--label_column), which the cosine is
to follow; pairs that belong together, of which each finds its partner among those of its batch; or
texts alone, each of which finds itself under another dropout (SimCSE). On dev pairs with scores it
reports Spearman's correlation, on others how early the partner comes among all of the file.

In the output folder: the model (a model directory with bert_task.json), sentence_transformers/ with
the same for that library, eval_results.txt and .json, curves.png; of --do_predict predictions.csv.
"""

from experiments.command_line.command import run_command
from experiments.finetuning.options import EmbeddingOptions

DEFAULTS = {"eval_batch_size": 32, "predict_batch_size": 32}

if __name__ == "__main__":
    run_command(EmbeddingOptions, "experiments.finetuning.embeddings", **DEFAULTS)
