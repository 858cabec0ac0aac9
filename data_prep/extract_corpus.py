"""Turns WikiExtractor output, plain text or JSON lines into one sentence per line.

The output is what `create_pretraining_data.py` reads: UTF-8, one sentence per line, an empty line
after each document. For example, the output folder of WikiExtractor:

    python data_prep/extract_corpus.py \
      --input_file='extracted/*/wiki_*' --output_file=corpus/train.txt \
      --heldout_output_file=corpus/heldout.txt --heldout_fraction=0.01

Formats, recognised file by file from the first line (or given by --format):

* wikiextractor: `<doc id=... url=... title=...>`, the title, one paragraph a line, `</doc>`.
  What WikiExtractor leaves behind is cleaned away: entities, tags, link brackets, table rows,
  category lines, empty brackets. Titles, headings and short list items are dropped, since BERT was
  pre-trained on running text only (--nodrop_titles and --nodrop_fragments keep them).
* jsonl: one JSON object a line, with its text in --text_field; new lines separate paragraphs.
* text: each file is one document, or with --text_documents=blank_line each run of lines between
  empty lines is one. Each line is a paragraph; for hard-wrapped text (books) --join_lines makes a
  paragraph of the lines between two empty lines.

Inputs ending in .gz or .bz2, and outputs ending in .gz, are compressed. Memory is bounded by the
largest document, and neither the order nor the bytes of the output depend on --num_workers.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from data_prep.corpus.extraction import FORMATS, Options, extract_corpus, report_lines


def _define_flags() -> None:
    default = Options()
    flags.DEFINE_list("input_file", None, "Input files or globs, comma-separated.", required=True)
    flags.DEFINE_string("output_file", None, "Output text file (.gz compresses).", required=True)
    flags.DEFINE_enum("format", default.format, ["auto", *FORMATS], "Format of the input files.")
    flags.DEFINE_string("text_field", default.text_field, "Field of a JSON line with the text.")
    flags.DEFINE_enum(
        "text_documents",
        default.text_documents,
        ["file", "blank_line"],
        "One document of plain text: a whole file, or the lines between two empty lines.",
    )
    flags.DEFINE_bool(
        "join_lines",
        default.join_lines,
        "For hard-wrapped text: the lines between two empty lines are one paragraph.",
    )
    flags.DEFINE_bool("unescape_html", default.unescape_html, "Turn HTML entities to characters.")
    flags.DEFINE_bool("clean_wiki", default.clean_wiki, "Remove leftovers of wiki markup.")
    flags.DEFINE_bool("drop_titles", default.drop_titles, "Drop the title line of an article.")
    flags.DEFINE_bool(
        "drop_fragments",
        default.drop_fragments,
        "Drop headings and list items of articles: short lines that do not end as a sentence.",
    )
    flags.DEFINE_integer(
        "min_document_sentences",
        default.min_document_sentences,
        "Drop documents with fewer sentences.",
        lower_bound=1,
    )
    flags.DEFINE_integer("max_documents", None, "Read at most so many documents.", lower_bound=1)
    flags.DEFINE_integer(
        "max_document_bytes",
        default.max_document_bytes,
        "A longer document is an error, since a document is held in memory.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "decode_errors",
        default.decode_errors,
        ["strict", "replace", "ignore"],
        "What to do with bytes that are not UTF-8.",
    )
    flags.DEFINE_string("language", default.language, "Language code for sentencex.")
    flags.DEFINE_string(
        "sentence_splitter",
        default.sentence_splitter,
        "module:function from a paragraph to a list of sentences; empty means sentencex.",
    )
    flags.DEFINE_string("heldout_output_file", None, "Output text file for held-out documents.")
    flags.DEFINE_float(
        "heldout_fraction",
        default.heldout_fraction,
        "Fraction of documents held out, whole, chosen by a hash of their bytes.",
    )
    flags.DEFINE_integer("num_workers", 0, "Worker processes; 0 means one per CPU.", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Run the script; bad input ends it with one line on stderr and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: quote globs (--input_file='a/*')")
    values = flags.FLAGS.flag_values_dict()
    names = {field.name for field in dataclasses.fields(Options)}
    start = time.monotonic()
    try:
        counts = extract_corpus(
            values["input_file"],
            values["output_file"],
            options=Options(**{k: v for k, v in values.items() if k in names}),
            heldout_output_file=values["heldout_output_file"],
            max_documents=values["max_documents"],
            num_workers=values["num_workers"] or os.cpu_count() or 1,
            show_progress=True,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"extract_corpus: {error}")
    for line in report_lines(
        counts,
        time.monotonic() - start,
        values["output_file"],
        values["heldout_output_file"] or "",
    ):
        print(line)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
