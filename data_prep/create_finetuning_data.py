r"""Makes the records of a fine-tuning task: GLUE, SWAG, SQuAD, tagged words, or one's own tables.

    python data_prep/create_finetuning_data.py --task_name=MRPC --data_dir=glue_data/MRPC \
      --vocab_file=bert-base-uncased-vocab.txt --output_dir=records/mrpc

    python data_prep/create_finetuning_data.py --train_file=train.csv --dev_file=dev.csv \
      --text_column=review --label_column=stars \
      --vocab_file=bert-base-uncased-vocab.txt --output_dir=records/reviews

    python data_prep/create_finetuning_data.py --task_name=ner --train_file=train.conll \
      --dev_file=dev.conll --vocab_file=bert-base-cased-vocab.txt --do_lower_case=false \
      --output_dir=records/ner

    python data_prep/create_finetuning_data.py --task_name=squad2.0 --train_file=train-v2.0.json \
      --vocab_file=bert-base-uncased-vocab.txt --output_dir=records/squad

Records are those of google-research/bert run_classifier.py and run_squad.py, and flags that these
have mean the same.
For each split come <split>.tfrecord, <split>.lengths.npy and <split>.manifest.json; a second run
with the same input and flags finds them made. --tfds reads what TensorFlow Datasets has prepared.
"""

import functools
import os
import sys
from collections.abc import Sequence

from absl import app, flags

from bert_tf.records.decoding import read_examples
from bert_tf.tokenization.vocabulary import load_vocab
from data_prep.finetuning.flags import (
    BadExamples,
    define_data_flags,
    define_span_flags,
    define_tagged_flags,
    extra_settings,
    sources_from_flags,
)
from data_prep.finetuning.prepare import PreparedData, TokenizerSettings, write_split


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the script's flags.

    Args:
        values: where to define them.
    """
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    string("output_dir", None, "Where the records are written.")
    string("vocab_file", None, "Vocabulary of the model, one WordPiece a line.")
    flags.DEFINE_bool(
        "do_lower_case",
        True,
        "True for uncased models, False for cased ones.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_seq_length",
        None,
        "Tokens of a sequence; longer ones are cut. Default: the task's.",
        flag_values=values,
    )
    flags.mark_flags_as_required(["output_dir", "vocab_file"], values)
    define_data_flags(values)
    define_tagged_flags(values)
    define_span_flags(values)


def first_example(made: PreparedData, vocab_file: str) -> str:
    """Show the first record as text, so that a wrong vocabulary or casing is seen at once.

    Args:
        made: records.
        vocab_file: their vocabulary.

    Returns:
        Its pieces without padding, and its label if it has one.
    """
    example = next(read_examples(made.record_file, made.features))
    pieces = {i: piece for piece, i in load_vocab(vocab_file).items()}
    ids = example["input_ids"][example["input_mask"] == 1]
    shown = " ".join(pieces[i] for i in ids.tolist())
    if not made.manifest["labelled"] or "label_ids" not in example:
        return f"first record: {shown}"
    label_ids = example["label_ids"].tolist()
    if made.manifest["kind"] == "token_classification" and made.labels:
        tags = [
            f"/{made.labels[label]}" if counts else ""
            for label, counts in zip(label_ids, example["label_mask"].tolist(), strict=True)
        ]
        words = zip(shown.split(" "), tags, strict=False)  # padding is not shown
        return "first record: " + " ".join(f"{piece}{tag}" for piece, tag in words)
    if made.manifest["kind"] == "classification" and made.labels:
        label_ids = [made.labels[i] for i in label_ids]
    return f"first record (label {', '.join(map(str, label_ids))}): {shown}"


def main(argv: Sequence[str]) -> None:
    """Run the script; bad input ends it with one line on standard error and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    try:
        task, sources = sources_from_flags(values)
        tokenizer = TokenizerSettings(values.vocab_file, values.do_lower_case)
        for source in sources:
            bad = BadExamples(values.max_bad_shown)
            made = write_split(
                task,
                source,
                tokenizer,
                values.max_seq_length or task.max_seq_length,
                values.output_dir,
                values.num_workers or None,
                bad if values.skip_bad_examples else None,
                extra=extra_settings(values, task),
            )
            _report(made, source.split, bad.count, values.vocab_file)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"create_finetuning_data: {error}")
    except KeyboardInterrupt:
        sys.exit("create_finetuning_data: stopped")


def _report(made: PreparedData, split: str, bad: int, vocab_file: str) -> None:
    counts = made.manifest["counts"]
    print(
        f"{split}: {counts['examples']:,} examples, {counts['records']:,} records, "
        f"{counts['tokens']:,} tokens, unknown {counts['unknown_token_rate']:.2%}, "
        f"padding {counts['padding_fraction']:.1%}, "
        f"{counts['full_length_records']:,} of full length"
    )
    if bad:
        path = made.record_file.removesuffix(".tfrecord") + ".bad_examples.txt"
        print(f"{split}: left out {bad:,} bad examples, listed in {path}")
    if counts["without_gold_label"]:
        print(f"{split}: left out {counts['without_gold_label']:,} examples without a gold label")
    print(first_example(made, vocab_file))
    state = "found" if made.from_cache else "wrote"
    print(f"{state} {made.record_file} ({os.path.getsize(made.record_file):,} bytes)")


if __name__ == "__main__":
    define_flags()
    app.run(main)
