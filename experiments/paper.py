r"""Makes a table of the paper: runs all that it needs, and writes a report with pictures.

    python experiments/paper.py --table=5 --scale=small --output_dir=runs/paper \
        --corpus_files=wiki/train.txt --heldout_files=wiki/heldout.txt --glue_dir=$GLUE_DIR \
        --squad1_train_file=train-v1.1.json --squad1_dev_file=dev-v1.1.json

    python experiments/paper.py --table=1 --scale=full --model_dir=uncased_L-12_H-768_A-12 \
        --glue_dir=$GLUE_DIR --output_dir=runs/paper --dry_run

Tables 1 to 4 (GLUE, SQuAD 1.1 and 2.0, SWAG) and 7 (named entities) fine-tune the models of
--model_dir and --large_model_dir; 5 (pre-training tasks), 6 (model size) and 8 (masking) pre-train
their own on --corpus_files. --scale=full is the paper's recipe, with its search over rates, and
prints what it will cost before it begins; --scale=small is the same code with small models on
samples; --scale=FILE.json has sizes of your own (see paper_tables/scale.py). The same command goes
on with what was stopped, and runs again what failed. In the folder tableN of --output_dir:
REPORT.md, REPORT.html and the runs, each with its log beside it. Records and the models of tables
5, 6 and 8 lie in data and pretrained, and tables share them.
"""

from experiments.command_line.command import run_command
from experiments.paper_tables.options import PaperOptions

if __name__ == "__main__":
    run_command(PaperOptions, "experiments.paper_tables.make")
