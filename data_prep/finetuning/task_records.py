"""The records of a task, made as options say, and what is said of them."""

from collections.abc import Mapping

from bert_tf.files import size_of
from bert_tf.records.decoding import read_examples
from bert_tf.tokenization.vocabulary import load_vocab
from data_prep.finetuning.kinds import FeatureSettings
from data_prep.finetuning.options import (
    BadExamples,
    TaskRecordsOptions,
    extra_settings,
    find_sources,
)
from data_prep.finetuning.prepare import PreparedData, TokenizerSettings, write_split


def run(options: TaskRecordsOptions) -> None:
    """Make the records of each split.

    Raises:
        ValueError, OSError, RuntimeError: bad options or data; one line says what.
    """
    records = options.records
    task, sources = find_sources(
        options.data,
        options.tagged,
        options.spans,
        skip_bad_examples=records.skip_bad_examples,
    )
    settings = FeatureSettings(
        task,
        options.max_seq_length or task.max_seq_length,
        extra_settings(task, options.tagged, options.spans, options.windows),
    )
    tokenizer = TokenizerSettings(options.vocab_file, options.do_lower_case, options.strip_accents)
    for source in sources:
        bad = BadExamples(records.max_bad_shown)
        prepared = write_split(
            source,
            settings,
            tokenizer,
            options.output_dir,
            records.num_workers or None,
            bad if records.skip_bad_examples else None,
        )
        _report(prepared, source.split, bad.count, options.vocab_file)


def first_example(prepared: PreparedData, vocab_file: str) -> str:
    """Show the first record as text, so that a wrong vocabulary or casing is seen at once.

    Args:
        prepared: records.
        vocab_file: their vocabulary.

    Returns:
        Its pieces without padding, and its label if it has one.
    """
    example = next(read_examples(prepared.record_file, prepared.features))
    pieces = {i: piece for piece, i in load_vocab(vocab_file).items()}
    length = prepared.manifest["max_seq_length"]  # of several windows the first is shown
    ids = example["input_ids"][:length][example["input_mask"][:length] == 1]
    shown = " ".join(pieces[i] for i in ids.tolist())
    if not prepared.manifest["labelled"] or "label_ids" not in example:
        return f"first record: {shown}"
    label_ids = example["label_ids"].tolist()
    if prepared.manifest["kind"] == "token_classification" and prepared.labels:
        tags = [
            f"/{prepared.labels[label]}" if counts else ""
            for label, counts in zip(label_ids, example["label_mask"].tolist(), strict=True)
        ]
        words = zip(shown.split(" "), tags, strict=False)  # padding is not shown
        return "first record: " + " ".join(f"{piece}{tag}" for piece, tag in words)
    if prepared.manifest["kind"] == "classification" and prepared.labels:
        label_ids = [prepared.labels[i] for i in label_ids]
    return f"first record (label {', '.join(map(str, label_ids))}): {shown}"


def windows_text(counts: Mapping[str, int]) -> str:
    """Tell how many windows documents have, and how many were left out.

    Args:
        counts: of a manifest of documents in windows.
    """
    text = f"{counts['windows']:,} windows"
    if counts["windows_left_out"]:
        text += (
            f"; {counts['records_with_windows_left_out']:,} texts were cut, by "
            f"{counts['windows_left_out']:,} windows, which a larger --max_windows would keep"
        )
    return text


def _report(prepared: PreparedData, split: str, bad: int, vocab_file: str) -> None:
    counts = prepared.manifest["counts"]
    print(
        f"{split}: {counts['examples']:,} examples, {counts['records']:,} records, "
        f"{counts['tokens']:,} tokens, unknown {counts['unknown_token_rate']:.2%}, "
        f"padding {counts['padding_fraction']:.1%}, "
        f"{counts['full_length_records']:,} of full length"
    )
    if "windows" in counts:
        print(f"{split}: {windows_text(counts)}")
    if bad:
        path = prepared.record_file.removesuffix(".tfrecord") + ".bad_examples.txt"
        print(f"{split}: left out {bad:,} bad examples, listed in {path}")
    if counts["without_gold_label"]:
        print(f"{split}: left out {counts['without_gold_label']:,} examples without a gold label")
    print(first_example(prepared, vocab_file))
    state = "found" if prepared.from_cache else "wrote"
    print(f"{state} {prepared.record_file} ({size_of(prepared.record_file):,} bytes)")
