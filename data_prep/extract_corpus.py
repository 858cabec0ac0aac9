r"""Turns WikiExtractor output, plain text or JSON lines into one sentence per line.

The output is what `create_pretraining_data.py` reads: UTF-8, one sentence per line, an empty line
after each document. For example, the output folder of WikiExtractor:

    python data_prep/extract_corpus.py \
      --input_file='extracted/*/wiki_*' --output_file=corpus/train.txt \
      --heldout_output_file=corpus/heldout.txt --heldout_fraction=0.01

    python data_prep/extract_corpus.py --input_file='books/*.txt' --output_file=books.txt \
      --text_documents=file --join_lines --language=de

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

--runner=spark writes the same files on Apache Spark (the extra "spark"); flags that this script
does not have go to it (each as --spark.name=value). Large files that are not compressed are read
by several workers at once.

    python data_prep/extract_corpus.py --runner=spark --spark_master=spark://HOST:7077 ...
"""

from data_prep.cluster.command import run_command
from data_prep.corpus.extraction import CommandOptions, run

if __name__ == "__main__":
    run_command(CommandOptions, run)
