r"""Makes masked language model and next sentence prediction records from text.

The flags, their defaults and what comes out are those of google-research/bert
create_pretraining_data.py; new flags are new abilities. The input is UTF-8 text with one sentence a
line and blank lines between documents (extract_corpus.py makes it):

    python data_prep/create_pretraining_data.py \
      --input_file='corpus/*.txt' --output_file=records/wiki.tfrecord \
      --vocab_file=bert-base-uncased-vocab.txt --num_shards=16

    python data_prep/create_pretraining_data.py \
      --input_file=train.txt --output_file=records/train.tfrecord --vocab_file=vocab.txt \
      --max_seq_length=512 --max_predictions_per_seq=77 --dynamic_masking --do_whole_word_mask

The random choices have the original's distribution. With --compatible they are the original's own:
the same records in the same order, for the same seed and order of input files (the original leaves
the order of a glob's files to the file system; here they are sorted).

A run that was stopped or killed is continued by the same command, and gives the same bytes. Beside
the records lies their manifest, <output>.manifest.json: counts, settings, and the loss of a unigram
model. On a machine with several cores all are used; --num_workers sets how many.

--runner=spark makes the same records on Apache Spark (the extra "spark"), and a runner of Apache
Beam (the extra "beam") on that; flags that this script does not have go to it (each as
--name=value):

    python data_prep/create_pretraining_data.py --runner=spark --spark_master=spark://HOST:7077 ...
"""

from absl import app, flags

from data_prep.pretraining.options import define_flags
from data_prep.pretraining.run import parse, run

if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(run, flags_parser=parse)
