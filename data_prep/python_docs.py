"""Writes a corpus from the documentation that Python itself carries, one sentence per line.

It needs no network and no data: the texts are the language reference that `help()` shows (pydoc's
topics), the docstrings and the prose comments of the standard library's sources, and the docstrings
of the modules built into the interpreter. Sources are parsed, never imported, so that nothing runs.
One module or topic is one document; examples, signatures and tables are left out, and a paragraph
that occurs twice is kept once. About 2 MB of English in all: enough to see BERT learn, not
enough to make a useful model.

    python data_prep/python_docs.py --output_file=docs/train.txt \
      --heldout_output_file=docs/heldout.txt

The text depends on the version of Python, and on nothing else.
"""

import sys
import time
from collections.abc import Sequence

from absl import app, flags

from data_prep.corpus.python_docs import write_python_docs


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    values = flags.FLAGS
    start = time.monotonic()
    try:
        counts = write_python_docs(
            values.output_file,
            values.heldout_output_file,
            heldout_fraction=values.heldout_fraction,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"python_docs: {error}")
    print(
        f"{values.output_file}: {counts.documents:,} documents, {counts.sentences:,} sentences, "
        f"{counts.bytes / 1e6:.2f} MB"
    )
    if values.heldout_output_file:
        print(
            f"{values.heldout_output_file}: {counts.heldout_documents:,} documents, "
            f"{counts.heldout_sentences:,} sentences, {counts.heldout_bytes / 1e6:.2f} MB"
        )
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"documentation of Python {version}, read in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    flags.DEFINE_string("output_file", None, "Output text file (.gz compresses).", required=True)
    flags.DEFINE_string("heldout_output_file", None, "Output text file for held-out documents.")
    flags.DEFINE_float("heldout_fraction", 0.05, "Fraction of documents held out, by name.")
    app.run(main)
