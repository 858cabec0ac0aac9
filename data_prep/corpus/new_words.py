"""New words for a vocabulary: found, checked, and put in unused places or at the end."""

import collections
import dataclasses
import itertools
import logging
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence

from bert_tf.files import check_output, open_file, write_text
from bert_tf.options import option
from bert_tf.tokenization.vocabulary import casing_of, check_special_tokens, load_vocab
from bert_tf.tokenization.wordpiece import MAX_CHARS_PER_WORD, FullTokenizer
from data_prep.corpus.extraction import expand_inputs
from data_prep.corpus.vocabulary import count_words, read_lines

PLACES = ("unused", "end")
_UNUSED = re.compile(r"\[unused\d+\]")
_SHOWN = 5  # words of each kind that a message shows


@dataclasses.dataclass(frozen=True)
class CommandOptions:
    """Options of the command.

    Raises:
        ValueError: neither or both of a vocabulary and a model, of a list and a text neither, or
            an output that does not go with them.
    """

    word_list: str | None = option(None, "Words to add, one a line.", path="any", group="new words")
    input_file: tuple[str, ...] = option(
        (),
        "Text files or globs, comma-separated; .gz is read. Without --word_list the words are "
        "found in them; with it, they only tell what is saved.",
        path="any",
    )
    num_words: int = option(1000, "Most words to find in the text.", minimum=1)
    min_frequency: int = option(10, "Occurrences that a word of the text needs.", minimum=1)
    vocab_file: str | None = option(
        None, "Vocabulary to extend, where there is no model.", path="any", group="vocabulary"
    )
    do_lower_case: bool | None = option(None, "Casing; by default the vocabulary's.")
    strip_accents: bool | None = option(
        None, "Whether accents are stripped; by default the model's, or as the casing."
    )
    place: str = option(
        "unused",
        "Where words go: unused takes the place of [unused] pieces, end adds rows.",
        choices=PLACES,
    )
    model_dir: str | None = option(
        None,
        "Model to extend, with its vocabulary: a directory or checkpoint of any format, or a name.",
        path="model",
        group="model",
    )
    output_file: str | None = option(
        None, "Vocabulary to write, for --vocab_file.", path="any", group="output"
    )
    output_dir: str | None = option(
        None, "New folder for the model and its vocabulary, for --model_dir.", path="local"
    )

    def __post_init__(self) -> None:
        if (self.vocab_file is None) == (self.model_dir is None):
            raise ValueError("vocab_file, model_dir: expected one of the two")
        if self.word_list is None and not self.input_file:
            raise ValueError("word_list, input_file: expected a list of words, or a text")
        given, wanted = ("vocab_file", "output_file"), ("model_dir", "output_dir")
        if self.vocab_file is None:
            given, wanted = wanted, given
        if getattr(self, given[1]) is None or getattr(self, wanted[1]) is not None:
            raise ValueError(f"{given[1]}: is what goes with {given[0]}, and {wanted[1]} does not")


@dataclasses.dataclass(frozen=True)
class NewWords:
    """Words that a vocabulary can take.

    Attributes:
        words: in the order in which they are added.
        refused: reason -> the words that cannot be added for it, each with where it stands.
    """

    words: tuple[str, ...]
    refused: Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class TextCost:
    """How many pieces a text is.

    Attributes:
        words: words of the text.
        pieces: pieces of all of them.
        unknown: how many of the pieces are [UNK].
    """

    words: int
    pieces: int
    unknown: int


# === Which words ===


def refusal(word: str, tokenizer: FullTokenizer) -> str | None:
    """Say why a word cannot become a piece; None if it can.

    Args:
        word: as it would stand in the vocabulary.
        tokenizer: of the vocabulary.
    """
    if word in tokenizer.vocab:
        return "in the vocabulary already"
    if len(word) > MAX_CHARS_PER_WORD:
        return f"longer than {MAX_CHARS_PER_WORD} characters, which the tokenizer never looks up"
    parts = tokenizer.basic_tokenizer.tokenize(word)
    if len(parts) > 1:
        return (
            "cut before pieces are looked up (at white space, punctuation, and around each "
            "ideograph)"
        )
    if parts != [word]:
        return (
            "not as the tokenizer writes words ("
            f"{'lower case' if tokenizer.do_lower_case else 'case kept'}, accents "
            f"{'stripped' if tokenizer.strip_accents else 'kept'}, control characters dropped)"
        )
    return None


def read_new_words(path: str | os.PathLike[str], tokenizer: FullTokenizer) -> NewWords:
    """Read a list of words, one a line; blank lines count for nothing.

    Args:
        path: UTF-8.
        tokenizer: of the vocabulary that the words are for.

    Raises:
        ValueError: a line is not UTF-8, or no word of the list can be added; the message tells why.
        OSError: there is no such file.
    """
    words: dict[str, int] = {}
    refused: dict[str, list[str]] = {}
    with open_file(path) as reader:
        for number, line in enumerate(reader, start=1):
            try:
                word = line.decode("utf-8").strip().removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8: {error}") from None
            if not word:
                continue
            reason = f"a repetition of line {words[word]}" if word in words else None
            reason = reason or refusal(word, tokenizer)
            if reason is None:
                words[word] = number
            else:
                reason = "repetitions" if word in words else reason
                refused.setdefault(reason, []).append(f"{word} (line {number})")
    if not words:
        told = "; ".join(f"{reason}: {_shown(those)}" for reason, those in refused.items())
        raise ValueError(f"word_list {path}: no word that can be added ({told or 'no word'})")
    return NewWords(tuple(words), refused)


def find_new_words(
    counts: Mapping[str, int], tokenizer: FullTokenizer, num_words: int, min_frequency: int = 10
) -> NewWords:
    """Find the words that cost a text most: occurrences times pieces beyond the first.

    A word that is [UNK] costs one piece, and so is not found. Words without a letter, as numbers,
    are passed over.

    Args:
        counts: occurrences of each word, as `vocabulary.count_words` returns them.
        tokenizer: of the vocabulary.
        num_words: how many to find at most.
        min_frequency: occurrences that a word needs.

    Returns:
        The words, the costliest first; equal ones in alphabetical order.
    """
    encode = tokenizer.wordpiece_tokenizer.encode_word
    costs = {
        word: count * (len(encode(word)) - 1)
        for word, count in counts.items()
        if count >= min_frequency and any(map(str.isalpha, word))
    }
    ranked = sorted((-cost, word) for word, cost in costs.items() if cost > 0)
    words = (word for _, word in ranked if refusal(word, tokenizer) is None)
    return NewWords(tuple(itertools.islice(words, num_words)), {})


def text_cost(counts: Mapping[str, int], tokenizer: FullTokenizer) -> TextCost:
    """Count the pieces of a text.

    Args:
        counts: occurrences of each word, as `vocabulary.count_words` returns them.
        tokenizer: of the vocabulary.
    """
    wordpiece = tokenizer.wordpiece_tokenizer
    pieces = unknown = 0
    for word, count in counts.items():
        ids = wordpiece.encode_word(word)
        pieces += count * len(ids)
        unknown += count * ids.count(wordpiece.unk_id)
    return TextCost(sum(counts.values()), pieces, unknown)


# === Where they go ===


def unused_ids(vocab: Mapping[str, int]) -> list[int]:
    """Return the ids of the [unused] pieces of a vocabulary, ascending."""
    return sorted(i for piece, i in vocab.items() if _UNUSED.fullmatch(piece))


def add_to_lines(lines: Sequence[str], words: Iterable[str], place: str) -> list[str]:
    """Put words into a vocabulary.

    Args:
        lines: the vocabulary, a piece each; the number of a line from 0 is its id.
        words: that can be added (`refusal`).
        place: "unused" or "end".

    Returns:
        The new lines.

    Raises:
        ValueError: there are fewer [unused] pieces than words.
    """
    words, lines = list(words), list(lines)
    if place == "end":
        return lines + words
    ids = unused_ids({line.strip(): i for i, line in enumerate(lines)})
    if len(words) > len(ids):
        raise ValueError(
            f"place: {len(words):,} words, and the vocabulary has {len(ids):,} [unused] pieces; "
            "--place=end adds rows, or give fewer words"
        )
    for i, word in zip(ids, words, strict=False):
        lines[i] = word
    return lines


def extended(tokenizer: FullTokenizer, words: Iterable[str], place: str) -> FullTokenizer:
    """Make the tokenizer of a vocabulary with new words.

    Args:
        tokenizer: of the vocabulary as it is.
        words: see `add_to_lines`.
        place: see `add_to_lines`.

    Returns:
        A tokenizer of the same casing, without a file.
    """
    return _tokenizer_of(add_to_lines(_lines_of(tokenizer), words, place), tokenizer)


def _lines_of(tokenizer: FullTokenizer) -> list[str]:
    if not tokenizer.vocab_file:
        highest = max(tokenizer.vocab.values())
        return [tokenizer.inv_vocab.get(i, f"[unused_id_{i}]") for i in range(highest + 1)]
    with open_file(tokenizer.vocab_file) as reader:
        return [line.decode("utf-8").removesuffix("\n") for line in reader]


def _tokenizer_of(lines: Sequence[str], like: FullTokenizer) -> FullTokenizer:
    vocab = {line.strip(): i for i, line in enumerate(lines)}
    return FullTokenizer.from_vocab(vocab, like.do_lower_case, strip_accents=like.strip_accents)


# === The command ===


def run(options: CommandOptions) -> None:
    """Run the command."""
    paths = expand_inputs(options.input_file) if options.input_file else []
    if options.output_file is not None:
        check_output(options.output_file, "output_file")
    tokenizer, model = _opened(options)
    counts: collections.Counter[str] = collections.Counter()
    if paths:
        lines = itertools.chain.from_iterable(map(read_lines, paths))
        counts = count_words(lines, tokenizer.do_lower_case, tokenizer.strip_accents)
        if not counts:
            raise ValueError(f"--input_file: no words in {', '.join(paths)}")
    new = _new_words(options, counts, tokenizer)
    vocabulary = add_to_lines(_lines_of(tokenizer), new.words, options.place)
    later = _tokenizer_of(vocabulary, tokenizer)
    _report(new, counts, tokenizer, later)
    text = "".join(f"{line}\n" for line in vocabulary)
    if model is None:
        write_text(str(options.output_file), text)
        print(f"wrote {options.output_file}: {len(vocabulary):,} pieces")
        return
    with tempfile.TemporaryDirectory() as folder:  # which writers copy byte by byte
        file = pathlib.Path(folder) / "vocab.txt"
        file.write_text(text, encoding="utf-8", newline="")
        with_file = FullTokenizer(
            file, tokenizer.do_lower_case, strip_accents=tokenizer.strip_accents
        )
        print(model.write(str(options.output_dir), tokenizer, with_file, new.words))


def _opened(options: CommandOptions):
    """Return the tokenizer, and the model if there is one."""
    if options.model_dir is not None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported
        logging.getLogger("bert_tf").setLevel(logging.WARNING)
        # Late: data preparation needs neither Keras nor TensorFlow but here.
        from data_prep.corpus import extended_model

        model = extended_model.SourceModel(options.model_dir, str(options.output_dir))
        return model.tokenizer(options.do_lower_case, options.strip_accents), model
    path = str(options.vocab_file)
    vocab = load_vocab(path)
    check_special_tokens(vocab, path)
    casing = options.do_lower_case
    casing = casing_of(vocab) != "cased" if casing is None else casing
    return FullTokenizer(path, casing, strip_accents=options.strip_accents), None


def _new_words(
    options: CommandOptions, counts: Mapping[str, int], tokenizer: FullTokenizer
) -> NewWords:
    """Return the words of the list, or of the text as many as there is room for."""
    if options.word_list is not None:
        return read_new_words(options.word_list, tokenizer)
    limit = options.num_words
    if options.place == "unused":
        limit = min(limit, len(unused_ids(tokenizer.vocab)))
        if not limit:
            raise ValueError("place: the vocabulary has no [unused] pieces; --place=end adds rows")
    new = find_new_words(counts, tokenizer, limit, options.min_frequency)
    if not new.words:
        raise ValueError(
            f"min_frequency: no word that occurs {options.min_frequency} times in the text is "
            "more than one piece"
        )
    if len(new.words) == limit < options.num_words:
        print(f"no more than {limit:,} words: as many [unused] pieces there are")
    return new


def _report(
    new: NewWords, counts: Mapping[str, int], before: FullTokenizer, after: FullTokenizer
) -> None:
    """Print which words are new, which are not, and what the text saves."""
    for reason, words in new.refused.items():
        _warn(f"{len(words):,} words left out, {reason}: {_shown(words)}")
    cut = {word: before.wordpiece_tokenizer.tokenize(word) for word in new.words}
    unknown = [w for w, pieces in cut.items() if pieces == [before.wordpiece_tokenizer.unk_token]]
    if unknown:
        _warn(
            f"{len(unknown):,} words were [UNK] until now, so that their rows begin as its row: "
            f"{_shown(unknown)}"
        )
    print(f"{len(new.words):,} new words, such as:")
    for word in new.words[:_SHOWN]:
        times = f", {counts[word]:,} times in the text" if counts else ""
        print(f"  {word} (was {' '.join(cut[word])}{times})")
    if not counts:
        return
    if absent := [word for word in new.words if word not in counts]:
        _warn(f"{len(absent):,} words do not occur in the text: {_shown(absent)}")
    old, new_cost = text_cost(counts, before), text_cost(counts, after)
    saved = old.pieces - new_cost.pieces
    print(
        f"text of {old.words:,} words: {old.pieces:,} pieces before, {new_cost.pieces:,} after, "
        f"{saved:,} ({saved / old.pieces:.2%}) saved; {old.pieces / old.words:.3f} pieces a word "
        f"before, {new_cost.pieces / old.words:.3f} after"
    )
    if new_cost.unknown > old.unknown:
        _warn(
            f"{new_cost.unknown - old.unknown:,} more words of the text are [UNK] than before: "
            "they begin with a new word, and the vocabulary has no piece for the rest"
        )


def _shown(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
