r"""Makes the records of a fine-tuning task: GLUE, SWAG, SQuAD, tagged words, or one's own tables.

    python data_prep/create_finetuning_data.py --task_name=MRPC --data_dir=glue_data/MRPC \
      --vocab_file=bert-base-uncased-vocab.txt --output_dir=records/mrpc

    python data_prep/create_finetuning_data.py --train_file=train.csv --dev_file=dev.csv \
      --text_column=review --label_column=stars \
      --vocab_file=bert-base-uncased-vocab.txt --output_dir=records/reviews

    python data_prep/create_finetuning_data.py --task_name=ner --train_file=train.conll \
      --dev_file=dev.conll --vocab_file=bert-base-cased-vocab.txt --do_lower_case=false \
      --output_dir=records/ner

    python data_prep/create_finetuning_data.py --task_name=squad2.0 --train_file=train-v2.0.json \
      --vocab_file=bert-base-uncased-vocab.txt --output_dir=records/squad

Records are those of google-research/bert run_classifier.py and run_squad.py, and flags that these
have mean the same.
For each split come <split>.tfrecord, <split>.lengths.npy and <split>.manifest.json; a second run
with the same input and flags finds them made. --tfds reads what TensorFlow Datasets has prepared.
"""

import sys
from collections.abc import Sequence

from absl import app, flags

from bert_tf.options import define, read
from data_prep.finetuning.options import TaskRecordsOptions
from data_prep.finetuning.task_records import run


def main(argv: Sequence[str]) -> None:
    """Run the script; bad input ends it with one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        run(read(TaskRecordsOptions, flags.FLAGS))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"create_finetuning_data: {error}")
    except KeyboardInterrupt:
        sys.exit("create_finetuning_data: stopped")


if __name__ == "__main__":
    define(TaskRecordsOptions, flags.FLAGS)
    app.run(main)
