"""A run of create_pretraining_data: on this machine or on a cluster, and what is told of it."""

import logging
from collections.abc import Sequence
from typing import Any

from absl import flags

from bert_tf.files import is_remote
from bert_tf.records.decoding import read_examples
from bert_tf.tokenization.vocabulary import load_vocab
from data_prep.cluster.command import needing, parser_of, runner_arguments
from data_prep.pretraining import local_runner
from data_prep.pretraining.options import CommandOptions, Options, options_from_flags
from data_prep.processes.command import end_in_one_line

parse = parser_of(CommandOptions, Options)


def run(arguments: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: what `parse` left, the command's name first.
    """

    def create() -> None:
        of_runner = runner_arguments(arguments, flags.FLAGS)
        command, options = options_from_flags(flags.FLAGS)
        _report(options, _create(command, options, of_runner))

    end_in_one_line(create, "stopped; the same command continues where it was")


def _create(command: CommandOptions, options: Options, of_runner: Sequence[str]) -> dict[str, Any]:
    if command.runner == "local":
        return local_runner.create_pretraining_data(options, command.num_workers or None)
    # Late: both engines are extras.
    if command.runner == "spark":
        with needing("Apache Spark", "spark", command.runner):
            from data_prep.pretraining import spark_runner
        return spark_runner.create_pretraining_data(
            options, command.spark_master, command.num_workers, of_runner
        )
    with needing("Apache Beam", "beam", command.runner):
        from data_prep.pretraining import beam_runner
    if command.runner == "DirectRunner":  # on a cluster Beam's notes tell where to look
        logging.getLogger("apache_beam").setLevel(logging.WARNING)
    return beam_runner.create_pretraining_data(
        options, command.runner, command.num_workers, of_runner
    )


def _report(options: Options, manifest: dict[str, Any]) -> None:
    counts = manifest["counts"]
    print(
        f"{counts['instances']:,} instances from {counts['documents']:,} documents, "
        f"{counts['sentences']:,} sentences, {counts['tokens']:,} tokens"
    )
    print(
        f"random next {counts['random_next_fraction']:.1%}, unknown tokens "
        f"{counts['unknown_token_rate']:.2%}, padding {counts['padding_fraction']:.1%}"
    )
    if flags.FLAGS.runner == "local" or not is_remote(options.output_files[0]):
        print(first_example(options))
    for path, size in zip(options.output_files, manifest["file_bytes"], strict=True):
        print(f"wrote {path} ({size:,} bytes)")


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
