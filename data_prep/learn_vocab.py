"""Learns a WordPiece vocabulary from text.

    python data_prep/learn_vocab.py --input_file='corpus/*.txt.gz' --output_file=vocab.txt \
      --vocab_size=30522 --do_lower_case

Words are what `bert_tf.tokenization.BasicTokenizer` makes of the text, so that the pieces fit what
will be looked up. Pieces are merged most frequent pair first by the trainer of the `tokenizers`
library (as its BertWordPieceTokenizer; Google's own learner was never released). The file begins as
bert-base-uncased's: [PAD], [unused0] to [unused98], [UNK], [CLS], [SEP], [MASK], the other [unused]
slots; then all single characters, their ## forms, and the merged pieces in the order of learning.

The same text and flags give the same bytes, whatever the number of threads. Memory is that of the
distinct words: about 150 bytes each.
"""

import functools
import itertools
import os
import sys
from collections.abc import Sequence

from absl import app, flags

from bert_tf.files import write_whole
from data_prep.corpus.extraction import expand_inputs
from data_prep.corpus.vocabulary import count_words, learn_vocab, read_lines


def define_flags(values: flags.FlagValues) -> None:
    """Define the script's flags."""
    flags.DEFINE_list(
        "input_file",
        None,
        "Text files or globs, comma-separated; .gz is read.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "output_file", None, "Vocabulary file to write.", required=True, flag_values=values
    )
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    integer("vocab_size", 30522, "Most pieces to learn, special tokens included.")
    flags.DEFINE_bool(
        "do_lower_case", True, "Lower-case the text and strip accents.", flag_values=values
    )
    integer("min_frequency", 2, "Occurrences that a pair needs to become a piece.")
    integer("num_unused", 994, "Number of [unused] slots.")
    integer("limit_alphabet", 1000, "Most characters to keep, the frequent ones.")


def main(argv: Sequence[str]) -> None:
    """Run the script; bad input ends it with one line on stderr and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: quote globs (--input_file='a/*')")
    values = flags.FLAGS
    try:
        paths = expand_inputs(values.input_file)
        lines = itertools.chain.from_iterable(map(read_lines, paths))
        words = count_words(lines, values.do_lower_case)
        if not words:
            raise ValueError(f"--input_file: no words in {', '.join(paths)}")
        vocabulary = learn_vocab(
            words,
            vocab_size=values.vocab_size,
            min_frequency=values.min_frequency,
            num_unused=values.num_unused,
            limit_alphabet=values.limit_alphabet,
        )
        with write_whole(values.output_file) as stream:
            stream.write("".join(f"{piece}\n" for piece in vocabulary.pieces).encode("utf-8"))
    except (ValueError, OSError) as error:
        sys.exit(f"learn_vocab: {error}")
    print(
        f"{vocabulary.num_words:,} words, {vocabulary.num_distinct_words:,} distinct, "
        f"{vocabulary.unknown_word_fraction:.2%} [UNK] for lack of a character"
    )
    if dropped := vocabulary.dropped_characters:
        print(
            f"{len(dropped):,} characters beyond --limit_alphabet={values.limit_alphabet} dropped, "
            f"such as {' '.join(dropped[:9])}"
        )
    if len(vocabulary.pieces) < values.vocab_size:
        print(
            f"fewer pieces than --vocab_size={values.vocab_size}: no other pair occurs "
            f"{values.min_frequency} times"
        )
    print(
        f"wrote {values.output_file}: {len(vocabulary.pieces):,} pieces, "
        f"{vocabulary.alphabet_size:,} characters, {os.path.getsize(values.output_file):,} bytes"
    )


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
