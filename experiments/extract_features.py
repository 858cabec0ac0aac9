r"""Writes hidden states of a frozen BERT for the lines of a text file.

    python experiments/extract_features.py --input_file=lines.txt --output_file=features.npz \
        --model_dir=uncased_L-12_H-768_A-12 --pooling=mean
    python experiments/extract_features.py --input_file=lines.txt --output_file=features.jsonl \
        --vocab_file=vocab.txt --bert_config_file=bert_config.json \
        --init_checkpoint=bert_model.ckpt --layers=-1,-2,-3,-4

A line is a text, or two as "A ||| B". Flags and defaults are those of google-research/bert's
extract_features.py; --model_dir, anything that bert_tf.load_bert reads, is the short way. The file
is streamed, and lines are grouped by length: the results do not depend on that beyond rounding.

Formats, of N lines, T tokens of all lines, K layers and D numbers in each hidden state:

- json (default): the original's lines, {"linex_index", "features": [{"token", "layers": [{"index",
  "values"}]}]}.
- npz (default with --pooling): `values` float32 or float16 [T, K, D], the lines one after the
  other; `offsets` int64 [N + 1], line i having values[offsets[i]:offsets[i + 1]]; `input_ids` int32
  [T], the pieces' ids in the vocabulary; `layers`, K strings. With --pooling `values` [N, K * D],
  one row a line, and `layers`.
- tfrecord: a tf.train.Example for each line, with `line_index` int64 [1], `input_ids` int64 [F] and
  `values` float [F * K * D], reshaped to [F, K, D]. With --pooling `line_index` and `values` float
  [K * D].
"""

from experiments.command_line.command import run_command
from experiments.feature_based.options import ExtractionOptions

if __name__ == "__main__":
    run_command(ExtractionOptions, "experiments.feature_based.extraction", "warning")
