r"""Writes a corpus from the documentation that Python itself carries, one sentence per line.

It needs no network and no data: the texts are the language reference that `help()` shows (pydoc's
topics), the docstrings and the prose comments of the standard library's sources, and the docstrings
of the modules built into the interpreter. Sources are parsed, never imported, so that nothing runs.
One module or topic is one document; examples, signatures and tables are left out, and a paragraph
that occurs twice is kept once. About 2 MB of English in all: enough to see BERT learn, not
enough to make a useful model.

    python data_prep/python_docs.py --output_file=docs/train.txt \
      --heldout_output_file=docs/heldout.txt

    python data_prep/python_docs.py --output_file=docs/all.txt.gz --heldout_fraction=0

The text depends on the version of Python, and on nothing else.
"""

from data_prep.corpus.python_docs import CommandOptions, run
from data_prep.processes.command import run_command

if __name__ == "__main__":
    run_command(CommandOptions, run)
