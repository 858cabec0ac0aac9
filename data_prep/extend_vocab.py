r"""Adds words of a domain to a vocabulary, and to a model.

    python data_prep/extend_vocab.py --vocab_file=vocab.txt --input_file='notes/*.txt' \
      --output_file=extended.txt --num_words=500

    python data_prep/extend_vocab.py --model_dir=uncased_L-12_H-768_A-12 --word_list=terms.txt \
      --input_file=notes.txt --place=end --output_dir=extended

The words are those of a list, one a line, or those that cost a text most: occurrences times pieces
beyond the first. They take the place of [unused] pieces, which leaves the model's size as it is, or
stand at the end. With a model, the row of a new word in the word embeddings begins as the mean of
the rows of the pieces that it was until now, and its output bias likewise; every other weight stays
as it is to the bit. The model is written in the format that it was read from. Go on with
pre-training or fine-tuning, so that the rows learn what the words mean.

With a text the command tells how many pieces it was and is. Words that the tokenizer would never
make one piece of, and those that are there already, are left out, counted and shown.
"""

from data_prep.corpus.new_words import CommandOptions, run
from data_prep.processes.command import QUOTE_GLOBS, run_command

if __name__ == "__main__":
    run_command(CommandOptions, run, QUOTE_GLOBS)
