r"""Learns a WordPiece vocabulary from text.

    python data_prep/learn_vocab.py --input_file='corpus/*.txt.gz' --output_file=vocab.txt \
      --vocab_size=30522 --do_lower_case

    python data_prep/learn_vocab.py --input_file=hindi.txt --output_file=vocab.txt \
      --vocab_size=16000 --strip_accents=False

Words are what `bert_tf.tokenization.BasicTokenizer` makes of the text, so that the pieces fit what
will be looked up. Pieces are merged most frequent pair first by the trainer of the `tokenizers`
library (as its BertWordPieceTokenizer; Google's own learner was never released). The file begins as
bert-base-uncased's: [PAD], [unused0] to [unused98], [UNK], [CLS], [SEP], [MASK], the other [unused]
slots; then all single characters, their ## forms, and the merged pieces in the order of learning.

The same text and flags give the same bytes, whatever the number of threads. Memory is that of the
distinct words: about 150 bytes each.
"""

from data_prep.corpus.vocabulary import CommandOptions, run
from data_prep.processes.command import QUOTE_GLOBS, run_command

if __name__ == "__main__":
    run_command(CommandOptions, run, QUOTE_GLOBS)
