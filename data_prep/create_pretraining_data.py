"""Makes masked language model and next sentence prediction records from text.

The flags, their defaults and what comes out are those of google-research/bert
create_pretraining_data.py; new flags are new abilities. The input is UTF-8 text with one sentence a
line and blank lines between documents (extract_corpus.py makes it):

    python data_prep/create_pretraining_data.py \
      --input_file='corpus/*.txt' --output_file=records/wiki.tfrecord \
      --vocab_file=bert-base-uncased-vocab.txt --num_shards=16

The random choices have the original's distribution. With --compatible they are the original's own:
the same records in the same order, for the same seed and order of input files (the original leaves
the order of a glob's files to the file system; here they are sorted).

A run that was stopped or killed is continued by the same command, and gives the same bytes. Beside
the records lies their manifest, <output>.manifest.json: counts, settings, and the loss of a unigram
model. On a machine with several cores all are used; --num_workers sets how many.

--runner names a runner of Apache Beam (the extra "beam"), which makes the same records on a
cluster; flags that this script does not have go to it (each as --name=value):

    python data_prep/create_pretraining_data.py --runner=FlinkRunner --flink_master=HOST:8081 ...
"""

import difflib
import functools
import logging
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from bert_tf.records.decoding import read_examples
from bert_tf.tokenization.vocabulary import load_vocab
from data_prep.corpus import text_files
from data_prep.pretraining import local_runner
from data_prep.pretraining.options import Options, shard_names


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the script's flags.

    Args:
        values: where to define them.
    """
    default = {field.name: field.default for field in Options.__dataclass_fields__.values()}
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    boolean = functools.partial(flags.DEFINE_bool, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    fraction = functools.partial(flags.DEFINE_float, flag_values=values)
    string(
        "input_file",
        None,
        "Input text files or globs, comma-separated; files named .gz are decompressed.",
    )
    string(
        "output_file",
        None,
        "Output TFRecord file, or several, comma-separated; files named .gz are compressed.",
    )
    string("vocab_file", None, "Vocabulary of the model, one WordPiece a line.")
    boolean(
        "do_lower_case",
        default["do_lower_case"],
        "Lower-case the text: True for uncased models, False for cased ones.",
    )
    boolean(
        "do_whole_word_mask",
        default["do_whole_word_mask"],
        "Mask whole words instead of single pieces.",
    )
    integer("max_seq_length", default["max_seq_length"], "Tokens of a sequence, at least 5.")
    integer(
        "max_predictions_per_seq",
        default["max_predictions_per_seq"],
        "Most masked tokens in a sequence; about max_seq_length * masked_lm_prob.",
    )
    integer("random_seed", default["random_seed"], "Seed of all random choices.")
    integer(
        "dupe_factor",
        None,
        "How often the text is gone through, with other pairs and masks each time. Default: "
        f"{default['dupe_factor']}, or 1 with --dynamic_masking.",
    )
    fraction("masked_lm_prob", default["masked_lm_prob"], "Fraction of tokens to predict.")
    fraction(
        "short_seq_prob",
        default["short_seq_prob"],
        "Probability that a document is cut into shorter sequences.",
    )
    fraction("mask_prob", default["mask_prob"], "Fraction of predicted tokens that become [MASK].")
    fraction(
        "random_prob",
        default["random_prob"],
        "Fraction of predicted tokens that become a random piece.",
    )
    fraction("keep_prob", default["keep_prob"], "Fraction of predicted tokens that stay.")
    integer(
        "num_shards",
        1,
        "Number of output files to make of one --output_file: NAME-00000-of-00016.tfrecord, ...",
        lower_bound=1,
    )
    integer("num_workers", 0, "Worker processes; 0 for one per core.", lower_bound=0)
    string(
        "runner",
        "local",
        "local for processes of this machine, or a runner of Apache Beam, such as DirectRunner, "
        "DataflowRunner, FlinkRunner or SparkRunner; it takes the flags that are not known here.",
    )
    boolean("gzip", False, "Compress the output; .gz is added to names that lack it.")
    boolean(
        "dynamic_masking",
        default["dynamic_masking"],
        "Write unmasked pairs; masks are drawn anew in each epoch of training.",
    )
    boolean(
        "compatible",
        default["compatible"],
        "Make exactly the original script's records, in one process and in memory.",
    )
    flags.mark_flags_as_required(["input_file", "output_file", "vocab_file"], values)


def options_from_flags(values: flags.FlagValues) -> Options:
    """Options of a run.

    Args:
        values: parsed flags.

    Returns:
        The options.

    Raises:
        ValueError: flags out of range or contradicting each other.
        FileNotFoundError: a pattern of --input_file that matches nothing.
    """
    outputs = values.output_file.split(",")
    if values.num_shards > 1:
        if len(outputs) > 1:
            raise ValueError("num_shards: give one --output_file with it, or list the files")
        outputs = shard_names(outputs[0], values.num_shards)
    if values.gzip:
        outputs = [name if name.endswith(".gz") else name + ".gz" for name in outputs]
    dupe_factor = values.dupe_factor
    if dupe_factor is None:
        dupe_factor = 1 if values.dynamic_masking else Options.dupe_factor
    given = {name: values[name].value for name in Options.__dataclass_fields__ if name in values}
    return Options(
        **{
            **given,
            "input_files": tuple(text_files.expand_patterns(values.input_file)),
            "output_files": tuple(outputs),
            "dupe_factor": dupe_factor,
        }
    )


def beam_arguments(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Arguments for a runner of Beam.

    Args:
        argv: what is left once the script's flags are parsed, the script's name first.
        values: the script's flags.

    Returns:
        The arguments.

    Raises:
        ValueError: one that is not "--name=value", or a slip of the pen in a flag of this script.
    """
    for argument in argv[1:]:
        name = argument.split("=")[0].lstrip("-")
        if not argument.startswith("--"):
            raise ValueError(
                f"unexpected argument {argument!r}: quote globs (--input_file='a/*'), and give "
                "Beam's options as --name=value"
            )
        if meant := difflib.get_close_matches(name, list(values), 1, 0.9):
            raise ValueError(f"{name}: unknown flag; did you mean {meant[0]}?")
    return list(argv[1:])


def _create(options: Options, argv: Sequence[str]) -> dict[str, Any]:
    values = flags.FLAGS
    if values.runner == "local":
        return local_runner.create_pretraining_data(
            options, values.num_workers or None, show_progress=True
        )
    try:
        from data_prep.pretraining import beam_runner
    except ImportError as error:
        raise ValueError(
            f"runner: {values.runner} needs Apache Beam: pip install 'bert-tf[beam]' ({error})"
        ) from error
    if values.runner == "DirectRunner":  # on a cluster Beam's notes tell where to look
        logging.getLogger("apache_beam").setLevel(logging.WARNING)
    return beam_runner.create_pretraining_data(
        options, values.runner, values.num_workers, beam_arguments(argv, values)
    )


def first_example(options: Options) -> str:
    """Show the first record as text, so that a wrong vocabulary or casing is seen at once.

    Args:
        options: of a finished run.

    Returns:
        Its pieces, each masked one followed by what it stands for; "" if there is no record.
    """
    example = next(read_examples(options.output_files[0], options.features), None)
    if example is None:
        return ""
    pieces = {i: piece for piece, i in load_vocab(options.vocab_file).items()}
    shown = [pieces[i] for i in example["input_ids"][: example["input_mask"].sum()].tolist()]
    if not options.dynamic_masking:
        count = int((example["masked_lm_weights"] > 0).sum())
        for position, label in zip(
            example["masked_lm_positions"][:count].tolist(),
            example["masked_lm_ids"][:count].tolist(),
            strict=True,
        ):
            shown[position] += f"<{pieces[label]}>"
    label = "random" if example["next_sentence_labels"][0] else "actual"
    return f"first record ({label} next): {' '.join(shown)}"


def main(argv: Sequence[str]) -> None:
    """Run the script; bad input ends it with one line on standard error and exit status 1."""
    values = flags.FLAGS
    if len(argv) > 1 and values.runner == "local":
        raise app.UsageError(f"unexpected argument {argv[1]!r}: quote globs (--input_file='a/*')")
    try:
        options = options_from_flags(values)
        manifest = _create(options, argv)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"create_pretraining_data: {error}")
    except KeyboardInterrupt:
        sys.exit("create_pretraining_data: stopped; the same command continues where it was")
    counts = manifest["counts"]
    print(
        f"{counts['instances']:,} instances from {counts['documents']:,} documents, "
        f"{counts['sentences']:,} sentences, {counts['tokens']:,} tokens"
    )
    print(
        f"random next {counts['random_next_fraction']:.1%}, unknown tokens "
        f"{counts['unknown_token_rate']:.2%}, padding {counts['padding_fraction']:.1%}"
    )
    if not text_files.is_remote(options.output_files[0]):
        print(first_example(options))
    for path, size in zip(options.output_files, manifest["file_bytes"], strict=True):
        print(f"wrote {path} ({size:,} bytes)")


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags; where a runner of Beam is named, those that are unknown are its."""
    names = [argument.lstrip("-").split("=")[0] for argument in argv[1:]]
    if "runner" not in names or "--runner=local" in argv:
        return app.parse_flags_with_usage(argv)
    try:
        return flags.FLAGS(argv, known_only=True)
    except flags.Error as error:
        sys.exit(f"create_pretraining_data: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=_parse)
