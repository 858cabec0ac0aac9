"""The options of data preparation for pre-training, and what follows from them alone."""

import dataclasses
import functools
import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from bert_tf.files import absolute, sha256
from bert_tf.options import define, option, read
from bert_tf.records.files import output_base
from bert_tf.records.schema import FeatureSpec, pretraining_features, unmasked_pretraining_features
from bert_tf.tokenization.vocabulary import PAD_TOKEN, casing_of, keeps_accents
from bert_tf.tokenization.wordpiece import MAX_CHARS_PER_WORD, FullTokenizer
from data_prep.cluster.command import spark_master_option
from data_prep.corpus import text_files
from data_prep.pretraining import instances, token_store, units
from data_prep.pretraining.listed_words import WordMarker

flags.disclaim_key_flags()  # as in bert_tf.options

FORMAT_VERSION = 1  # of what lies in a work folder, and of the order of random draws

UNKNOWN_RATE_TO_WARN = 0.05
LONG_WORD_RATE_TO_WARN = 0.01
UNUSED_RATE_TO_WARN = 0.15
PAIRS_STAGE, PLAN_STAGE, RECORDS_STAGE = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """What is made from what.

    Attributes:
        input_files: text, one sentence a line, blank lines between documents; .gz is decompressed.
        output_files: TFRecord files; .gz is compressed.
    """

    input_files: tuple[str, ...]
    output_files: tuple[str, ...]
    # The rest are flags. Names and defaults are the original's where it has the flag.
    vocab_file: str = option(
        None,
        "Vocabulary of the model, one WordPiece a line.",
        required=True,
        path="any",
        group="vocabulary",
    )
    do_lower_case: bool = option(
        True, "Lower-case the text: True for uncased models, False for cased ones."
    )
    strip_accents: bool | None = option(
        None, "Strip accents, and with them vowel signs; by default where text is lower-cased."
    )
    do_whole_word_mask: bool = option(
        False, "Mask whole words instead of single pieces.", group="masks"
    )
    word_list: str | None = option(
        None,
        "Words, one a line, of a script without spaces, as Chinese: they are masked whole too.",
        path="any",
    )
    max_seq_length: int = option(128, "Tokens of a sequence, at least 5.", group="sequences")
    max_predictions_per_seq: int = option(
        20, "Most masked tokens in a sequence; about max_seq_length * masked_lm_prob."
    )
    random_seed: int = option(12345, "Seed of all random choices.", alias="seed")
    dupe_factor: int = option(
        10,
        "How often the text is gone through, with other pairs and masks each time. Default: 10, "
        "or 1 with --dynamic_masking.",
    )
    masked_lm_prob: float = option(0.15, "Fraction of tokens to predict.", group="masks")
    short_seq_prob: float = option(
        0.1, "Probability that a document is cut into shorter sequences.", group="sequences"
    )
    mask_prob: float = option(
        0.8, "Fraction of predicted tokens that become [MASK].", group="masks"
    )
    random_prob: float = option(0.1, "Fraction of predicted tokens that become a random piece.")
    keep_prob: float = option(0.1, "Fraction of predicted tokens that stay.")
    dynamic_masking: bool = option(
        False, "Write unmasked pairs; masks are drawn anew in each epoch of training."
    )
    compatible: bool = option(
        False,
        "Make exactly the original script's records, in one process and in memory.",
        group="sequences",
    )

    def __post_init__(self):
        for name in ("input_files", "output_files"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one file")
        if len(set(map(absolute, self.output_files))) != len(self.output_files):
            raise ValueError(f"output_file: names must differ, got {', '.join(self.output_files)}")
        if overwritten := set(map(absolute, self.input_files)) & set(
            map(absolute, self.output_files)
        ):
            raise ValueError(f"output_file: {overwritten.pop()} is also an input file")
        if self.dupe_factor < 1:
            raise ValueError(f"dupe_factor must be at least 1, got {self.dupe_factor}")
        if self.compatible and self.dynamic_masking:
            raise ValueError("compatible: the original has no dynamic_masking; choose one")
        if self.word_list is not None and not self.do_whole_word_mask:
            raise ValueError("word_list: is for do_whole_word_mask, which is not set")
        if self.word_list is not None and self.dynamic_masking:
            raise ValueError(
                "word_list: unmasked records do not tell its words to training; leave out "
                "dynamic_masking"
            )
        _ = self.pair_rule, self.mask_rule  # which check the rest

    def described(self) -> dict[str, Any]:
        """Return the options as they are recorded; later ones where they are given."""
        described = dataclasses.asdict(self)
        for name in ("strip_accents", "word_list"):
            if described[name] is None:
                del described[name]
        return described

    @functools.cached_property
    def pair_rule(self) -> instances.PairRule:
        """How pairs are cut."""
        return instances.PairRule(self.max_seq_length, self.short_seq_prob)

    @functools.cached_property
    def mask_rule(self) -> instances.MaskRule:
        """How tokens are masked."""
        return instances.MaskRule(
            self.max_predictions_per_seq,
            self.masked_lm_prob,
            self.do_whole_word_mask,
            self.mask_prob,
            self.random_prob,
            self.keep_prob,
        )

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """Schema of the records."""
        if self.dynamic_masking:
            return unmasked_pretraining_features(self.max_seq_length)
        return pretraining_features(self.max_seq_length, self.max_predictions_per_seq)


@dataclasses.dataclass(frozen=True)
class CommandOptions:
    """Options of the command beside those that the records are made by."""

    input_file: str = option(
        None,
        "Input text files or globs, comma-separated; files named .gz are decompressed.",
        required=True,
        group="data",
    )
    output_file: str = option(
        None,
        "Output TFRecord file, or several, comma-separated; files named .gz are compressed.",
        required=True,
        group="output",
    )
    num_shards: int = option(
        1,
        "Number of output files to make of one --output_file: NAME-00000-of-00016.tfrecord, ...",
        minimum=1,
    )
    num_workers: int = option(0, "Worker processes; 0 for one per core.", minimum=0, group="work")
    runner: str = option(
        "local",
        "local for processes of this machine, spark for Apache Spark, or a runner of Apache Beam, "
        "such as DirectRunner or DataflowRunner; these take the flags that are not known here.",
    )
    spark_master: str | None = spark_master_option()
    gzip: bool = option(
        False, "Compress the output; .gz is added to names that lack it.", group="output"
    )


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define(CommandOptions, values)
    define(Options, values, dupe_factor=None)


def options_from_flags(values: flags.FlagValues) -> tuple[CommandOptions, Options]:
    """Read the options of a run.

    Raises:
        ValueError: flags out of range or contradicting each other.
        FileNotFoundError: a pattern of --input_file that matches nothing.
    """
    command = read(CommandOptions, values)
    outputs = [name.strip() for name in command.output_file.split(",")]
    if unnamed := [name for name in outputs if not os.path.basename(name)]:
        raise ValueError(f"output_file: expected names of files, got {unnamed[0]!r}")
    if command.num_shards > 1:
        if len(outputs) > 1:
            raise ValueError("num_shards: give one --output_file with it, or list the files")
        outputs = shard_names(outputs[0], command.num_shards)
    if command.gzip:
        outputs = [name if name.endswith(".gz") else name + ".gz" for name in outputs]
    dupe_factor = values.dupe_factor
    if dupe_factor is None:
        dupe_factor = 1 if values.dynamic_masking else Options.dupe_factor
    options = read(
        Options,
        values,
        input_files=tuple(text_files.expand_patterns(command.input_file)),
        output_files=tuple(outputs),
        dupe_factor=dupe_factor,
    )
    return command, options


def shard_names(output_file: str, num_shards: int) -> tuple[str, ...]:
    """Name the files of a set of shards: wiki-00000-of-00016.tfrecord, ... for wiki.tfrecord.

    Args:
        output_file: name as if there were one file.
        num_shards: how many; with 1 the name stays.

    Returns:
        The names in order.
    """
    if num_shards == 1:
        return (output_file,)
    base = output_base(output_file)
    rest = output_file[len(base) :]
    return tuple(f"{base}-{i:05d}-of-{num_shards:05d}{rest}" for i in range(num_shards))


def warn_user(message: str) -> None:
    """Print a warning on standard error."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def warn_about_flags(options: Options, tokenizer: FullTokenizer) -> None:
    """Warn of flags that contradict each other but are not forbidden."""
    casing = casing_of(tokenizer.vocab)
    lengths = options.max_seq_length * options.masked_lm_prob
    if not options.dynamic_masking and options.max_predictions_per_seq < int(lengths):
        warn_user(
            f"max_predictions_per_seq {options.max_predictions_per_seq} cuts off predictions: "
            f"max_seq_length * masked_lm_prob is {lengths:g}"
        )
    if options.do_lower_case and casing == "cased":
        warn_user(
            f"do_lower_case is set, but vocabulary {options.vocab_file} has upper-case pieces, "
            "which the text can then never have; cased models need --do_lower_case=False"
        )
    elif tokenizer.strip_accents and keeps_accents(tokenizer.vocab):
        warn_user(
            f"vocabulary {options.vocab_file} has pieces with accents or vowel signs, which the "
            "text then never has, for they are stripped; --strip_accents=False keeps them"
        )
    if tokenizer.vocab[PAD_TOKEN] != 0:
        warn_user(
            f"[PAD] is not the first line of {options.vocab_file}; padding is 0 all the same, as "
            "in the original, and input_mask tells it apart"
        )


def warn_about_word_list(options: Options, marker: WordMarker) -> None:
    """Warn of a list of words that cannot be found."""
    if not marker.num_words:
        warn_user(
            f"word_list {options.word_list}: no word of several pieces, so that it changes nothing"
        )
    if marker.num_unknown:
        warn_user(
            f"word_list {options.word_list}: {marker.num_unknown:,} words have a part that is "
            f"[UNK] to {options.vocab_file}, and are not looked for"
        )


def warn_about_corpus(options: Options, counts: dict[str, int]) -> None:
    """Warn of a corpus from which no good pairs can come.

    Raises:
        ValueError: there is no document.
    """
    files = ", ".join(options.input_files[:3]) + (", ..." if len(options.input_files) > 3 else "")
    documents, sentences = counts["documents"], counts["sentences"]
    if not documents:
        raise ValueError(f"{files}: no documents: no line has any text")
    if documents == 1:
        warn_user(
            f"{files}: one document only, so every 'random next' text comes from the same "
            "document; separate documents by blank lines"
        )
    elif sentences < 2 * documents:
        warn_user(
            f"{files}: {sentences / documents:.2f} lines per document on average; a line should "
            "be a sentence, not a paragraph (see extract_corpus.py)"
        )
    characters = counts.get("characters", 0) or 1
    long = counts.get("long_word_characters", 0) / characters
    if long > LONG_WORD_RATE_TO_WARN:
        warn_user(
            f"{files}: {long:.1%} of the characters stand in runs of more than "
            f"{MAX_CHARS_PER_WORD} without a space, each of which becomes a single [UNK]; set "
            "spaces between the words, or cut lines shorter with extract_corpus.py "
            f"--max_sentence_characters={MAX_CHARS_PER_WORD}"
        )
    unknown = counts["unknown_tokens"] / counts["tokens"]
    unknown_characters = counts.get("unknown_characters", 0) / characters
    if max(unknown, unknown_characters - long) > UNKNOWN_RATE_TO_WARN:
        warn_user(
            f"{files}: {unknown:.1%} of tokens are [UNK]; check that {options.vocab_file} is of "
            f"the text's language, and do_lower_case={options.do_lower_case} right for it "
            f"([UNK] stands for {unknown_characters:.1%} of the characters)"
        )


def warn_about_records(options: Options, counts: Mapping[str, Any]) -> None:
    """Warn of text that came into no record.

    Args:
        options: what was made from what.
        counts: those of the manifest.
    """
    unused = counts.get("unused_token_rate", 0)
    if unused > UNUSED_RATE_TO_WARN:
        warn_user(
            f"{unused:.0%} of the text's {counts['tokens']:,} tokens are in no record: what "
            f"exceeds max_seq_length {options.max_seq_length} is cut off, and a line has "
            f"{counts['tokens'] / counts['sentences']:.0f} tokens on average; put one sentence on "
            "a line (see extract_corpus.py, and its --max_sentence_characters where no mark shows "
            "where sentences end), or raise dupe_factor, which cuts elsewhere each time"
        )


def fingerprint(options: Options, layout: str | None = None) -> str:
    """Return a digest of all that the records depend on, and of how unfinished work is laid out.

    Args:
        options: what is made from what.
        layout: name of another layout than the local runner's.

    Returns:
        16 hexadecimal digits.
    """
    dependencies = {
        **options.described(),
        "input_files": [text_files.input_stamp(path) for path in options.input_files],
        "output_files": list(map(absolute, options.output_files)),
        "vocab_file": sha256(options.vocab_file),
        "format": FORMAT_VERSION,
        "sizes": [
            text_files.PIECE_BYTES,
            units.BLOCK_SENTENCES,
            units.LOCKSTEP_DOCUMENTS,
            units.LOCKSTEP_DOCUMENTS_OF_LARGE,
            token_store.MAX_RESIDENT_BYTES,
            units.SHUFFLED_PAIRS,
            units.CHUNK_INSTANCES,
            units.BATCH_TOKENS,
        ],
        "numpy": np.__version__,
        "unicode": unicodedata.unidata_version,
    }
    if options.word_list is not None:
        dependencies["word_list_sha256"] = sha256(options.word_list)
    if layout is not None:
        dependencies["layout"] = layout
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:16]


def generator(options: Options, stage: int, *index: int) -> np.random.Generator:
    """Make the random numbers of one piece of work, the same wherever and whenever it is done.

    Args:
        options: for the seed.
        stage: PAIRS_STAGE, PLAN_STAGE or RECORDS_STAGE.
        *index: number of the block or chunk.
    """
    seed = np.random.SeedSequence(options.random_seed % (1 << 64), spawn_key=(stage, *index))
    return np.random.Generator(np.random.SFC64(seed))


def refuses_upper_case(options: Options, vocab: Mapping[str, int]) -> bool:
    """Tell whether a capital letter in the text is an error, as no piece could have it."""
    return not options.do_lower_case and casing_of(vocab) == "uncased"


def instances_of_files(options: Options, total: int) -> list[int]:
    """Divide instances among the output files, as evenly as can be."""
    files = len(options.output_files)
    return [total // files + (index < total % files) for index in range(files)]
