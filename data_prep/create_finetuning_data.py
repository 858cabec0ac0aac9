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

from data_prep.finetuning.options import TaskRecordsOptions
from data_prep.finetuning.task_records import run
from data_prep.processes.command import run_command

if __name__ == "__main__":
    run_command(TaskRecordsOptions, run)
