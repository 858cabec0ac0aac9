"""Vocabularies learned from text."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from bert_tf.files import check_output, size_of, write_text
from bert_tf.options import option
from bert_tf.tokenization.vocabulary import SPECIAL_TOKENS
from bert_tf.tokenization.wordpiece import MAX_CHARS_PER_WORD, BasicTokenizer
from data_prep.corpus import scripts
from data_prep.corpus.extraction import expand_inputs, open_input, readable_lines

_MAX_CHUNKS = 2**20  # distinct chunks held before their words are counted
_SHARE_TO_WARN = 0.01
_WORDS_PER_SEQUENCE = 1000  # what the trainer takes at a time


@dataclasses.dataclass(frozen=True)
class CommandOptions:
    """Options of the command; `learn_vocab` holds the numbers against their bounds."""

    input_file: tuple[str, ...] = option(
        None,
        "Text files or globs, comma-separated; .gz is read.",
        required=True,
        path="any",
        group="data",
    )
    output_file: str = option(
        None, "Vocabulary file to write.", required=True, path="any", group="output"
    )
    vocab_size: int = option(
        30522, "Most pieces to learn, special tokens included.", group="vocabulary"
    )
    do_lower_case: bool = option(True, "Lower-case the text, and by default strip accents.")
    strip_accents: bool | None = option(
        None, "Strip accents, and with them vowel signs; by default where text is lower-cased."
    )
    min_frequency: int = option(2, "Occurrences that a pair needs to become a piece.")
    num_unused: int = option(994, "Number of [unused] slots.")
    limit_alphabet: int = option(1000, "Most characters to keep, the frequent ones.")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A learned vocabulary and what it was learned from.

    Attributes:
        pieces: the pieces, by id.
        num_words: words in the text.
        num_distinct_words: distinct words in the text.
        alphabet_size: characters kept.
        dropped_characters: characters too rare for the alphabet, most frequent first.
        unknown_word_fraction: fraction of the text's words that are [UNK] for lack of a character,
            or are longer than the tokenizer accepts.
        unknown_character_fraction: fraction of the words' characters that are in these.
        long_word_character_fraction: fraction in those that are longer.
    """

    pieces: list[str]
    num_words: int
    num_distinct_words: int
    alphabet_size: int
    dropped_characters: list[str]
    unknown_word_fraction: float
    unknown_character_fraction: float
    long_word_character_fraction: float


def special_pieces(num_unused: int) -> list[str]:
    """Return the special tokens and [unused] slots in the order of bert-base-uncased.

    Args:
        num_unused: number of [unused] slots; from 99 on, [UNK] to [MASK] have ids 100 to 103, as in
            the released vocabularies.
    """
    pad, *others = SPECIAL_TOKENS
    unused = [f"[unused{number}]" for number in range(num_unused)]
    return [pad, *unused[:99], *others, *unused[99:]]


def read_lines(path: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, decompressed where its name ends in .gz or .bz2.

    Raises:
        ValueError: naming file and line where the file is not UTF-8 or the compression is broken.
    """
    with open_input(path) as (stream, _):
        for number, line in enumerate(readable_lines(path, stream), start=1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8: {error}") from None


def count_words(
    lines: Iterable[str],
    do_lower_case: bool = True,
    strip_accents: bool | None = None,
    signs: collections.Counter[str] | None = None,
) -> collections.Counter[str]:
    """Count the words that BERT's basic tokenizer finds.

    Args:
        lines: text; no word crosses a line.
        do_lower_case: whether words are lower-cased.
        strip_accents: whether they lose their accents; None if they are lower-cased.
        signs: is told how often each vowel sign was stripped.
    """
    tokenizer = BasicTokenizer(do_lower_case, strip_accents)
    tokenize = tokenizer.tokenize
    words: collections.Counter[str] = collections.Counter()
    chunks: collections.Counter[str] = collections.Counter()

    def count_chunks() -> None:
        for chunk, count in chunks.items():
            for word in tokenize(chunk):
                words[word] += count
            if signs is not None and tokenizer.strip_accents:
                for sign in scripts.stripped_signs(chunk):
                    signs[sign] += count
        chunks.clear()

    for line in lines:
        chunks.update(line.split(" "))  # no rule looks across a space
        if len(chunks) > _MAX_CHUNKS:
            count_chunks()
    count_chunks()
    return words


def learn_vocab(
    words: collections.Counter[str],
    *,
    vocab_size: int = 30522,
    min_frequency: int = 2,
    num_unused: int = 994,
    limit_alphabet: int = 1000,
) -> Vocabulary:
    """Learn a vocabulary from counted words.

    Args:
        words: number of occurrences of each word, as `count_words` returns them.
        vocab_size: most pieces to learn, special tokens and [unused] slots included. There are
            fewer if no more pairs occur `min_frequency` times.
        min_frequency: occurrences that a pair of pieces needs to become one piece.
        num_unused: number of [unused] slots; the default is bert-base-uncased's.
        limit_alphabet: most characters to keep, the most frequent ones; words with any other are
            left out, since the tokenizer will make them [UNK].

    Raises:
        ValueError: there are no words, an argument is out of range, or vocab_size leaves no room
            for the special tokens and the alphabet.
    """
    for name, value, least in (
        ("vocab_size", vocab_size, 1),
        ("min_frequency", min_frequency, 1),
        ("num_unused", num_unused, 0),
        ("limit_alphabet", limit_alphabet, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not words:
        raise ValueError("expected text to learn from, got no words")

    characters: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    ranked = sorted(characters, key=lambda character: (-characters[character], character))
    alphabet = set(ranked[:limit_alphabet])
    kept = sorted(
        (word, count)
        for word, count in words.items()
        if len(word) <= MAX_CHARS_PER_WORD and alphabet.issuperset(word)
    )
    if not kept:
        raise ValueError(
            f"limit_alphabet {limit_alphabet} leaves no word: the text has {len(ranked)} characters"
        )
    first = sorted({character for word, _ in kept for character in word})
    continuing = sorted({f"##{character}" for word, _ in kept for character in word[1:]})
    specials = special_pieces(num_unused)
    needed = len(specials) + len(first) + len(continuing)
    if vocab_size < needed:
        raise ValueError(
            f"vocab_size must be at least {needed}, for {len(specials)} special tokens and "
            f"[unused] slots and {len(first) + len(continuing)} single characters, got "
            f"{vocab_size}; num_unused and limit_alphabet can be lowered"
        )
    merged = _merge(kept, [*first, *continuing], vocab_size - len(specials), min_frequency)
    num_words = words.total()
    return Vocabulary(
        pieces=[*specials, *first, *continuing, *merged],
        num_words=num_words,
        num_distinct_words=len(words),
        alphabet_size=len(first),
        dropped_characters=ranked[limit_alphabet:],
        unknown_word_fraction=1 - sum(count for _, count in kept) / num_words,
        unknown_character_fraction=1 - _characters(kept) / _characters(words.items()),
        long_word_character_fraction=_characters(
            item for item in words.items() if len(item[0]) > MAX_CHARS_PER_WORD
        )
        / _characters(words.items()),
    )


def _characters(words: Iterable[tuple[str, int]]) -> int:
    return sum(len(word) * count for word, count in words)


def _merge(
    words: Sequence[tuple[str, int]], single: list[str], vocab_size: int, min_frequency: int
) -> list[str]:
    """Return the pieces merged from single characters, in the order of learning."""
    # Late: only this function needs the library.
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    # Ties between pairs go to the smaller ids. Left to itself the trainer numbers the ## characters
    # in the order of a hash table, anew in each process; given as special tokens, which it numbers
    # first and in this order, they make its result repeatable.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=single,
        continuing_subword_prefix="##",
    )
    tokenizer.train_from_iterator(_sequences(words), trainer)
    ids = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(set(ids) - set(single), key=ids.__getitem__)


def _sequences(words: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Yield the counted words again as text, which is the only form that the trainer takes."""
    repeated = itertools.chain.from_iterable(itertools.repeat(word, count) for word, count in words)
    while sequence := list(itertools.islice(repeated, _WORDS_PER_SEQUENCE)):
        yield " ".join(sequence)


def run(options: CommandOptions) -> None:
    """Run the command."""
    paths = expand_inputs(options.input_file)
    check_output(options.output_file, "output_file")
    lines = itertools.chain.from_iterable(map(read_lines, paths))
    signs: collections.Counter[str] = collections.Counter()
    words = count_words(lines, options.do_lower_case, options.strip_accents, signs)
    if not words:
        raise ValueError(f"--input_file: no words in {', '.join(paths)}")
    vocabulary = learn_vocab(
        words,
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        num_unused=options.num_unused,
        limit_alphabet=options.limit_alphabet,
    )
    write_text(options.output_file, "".join(f"{piece}\n" for piece in vocabulary.pieces))
    print(
        f"{vocabulary.num_words:,} words, {vocabulary.num_distinct_words:,} distinct, "
        f"{vocabulary.unknown_word_fraction:.2%} [UNK] for lack of a character "
        f"({vocabulary.unknown_character_fraction:.2%} of the characters)"
    )
    for warning in _warnings(options, vocabulary, _characters(words.items()), signs):
        print(warning)
    if dropped := vocabulary.dropped_characters:
        print(
            f"{len(dropped):,} characters beyond --limit_alphabet={options.limit_alphabet} "
            f"dropped, such as {' '.join(dropped[:9])}"
        )
    if len(vocabulary.pieces) < options.vocab_size:
        print(
            f"fewer pieces than --vocab_size={options.vocab_size}: no other pair occurs "
            f"{options.min_frequency} times"
        )
    print(
        f"wrote {options.output_file}: {len(vocabulary.pieces):,} pieces, "
        f"{vocabulary.alphabet_size:,} characters, {size_of(options.output_file):,} bytes"
    )


def _warnings(
    options: CommandOptions,
    vocabulary: Vocabulary,
    characters: int,
    signs: collections.Counter[str],
) -> Iterator[str]:
    """Yield warnings of text that the vocabulary cannot hold, with the remedy."""
    if signs.total() > _SHARE_TO_WARN * (characters + signs.total()):
        shown = " ".join(f"\N{DOTTED CIRCLE}{sign}" for sign, _ in signs.most_common(9))
        yield (
            f"warning: {signs.total():,} vowel signs and like marks, "
            f"{signs.total() / (characters + signs.total()):.1%} of the characters, were stripped "
            f"as accents ({shown}); --strip_accents=False keeps them, here and in the commands "
            "that use the vocabulary"
        )
    long = vocabulary.long_word_character_fraction
    if long > _SHARE_TO_WARN:
        yield (
            f"warning: {long:.1%} of the characters stand in runs of more than "
            f"{MAX_CHARS_PER_WORD} without a space, which become [UNK]; set spaces between the "
            "words, or cut lines shorter with extract_corpus.py "
            f"--max_sentence_characters={MAX_CHARS_PER_WORD}"
        )
    if vocabulary.unknown_character_fraction - long > _SHARE_TO_WARN:
        yield (
            f"warning: {vocabulary.unknown_character_fraction - long:.1%} of the characters stand "
            "in words that lack one, and become [UNK]; raise "
            f"--limit_alphabet={options.limit_alphabet}"
        )
