"""Make the golden values of the named entity tests.

    python tests/golden/ner/make_golden.py --conlleval_pl=FILE

transformers (5.23 was used) cuts the words of tiny.conll into pieces and says which word each piece
belongs to; conlleval_pl, the Perl script of the CoNLL-2003 shared task, version 2004-01-26,
evaluates a file that `data_prep.ner.write_conll` wrote of the words and tags below.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

from data_prep.finetuning import ner

FOLDER = pathlib.Path(__file__).resolve().parent
VOCABULARY = FOLDER.parent / "tokenization" / "tiny_vocab.txt"

# Words that a file of three columns cannot hold as they are, and some that it can.
ODD = (
    (
        ("-X-", "Ida van Gogh", "\u00a0", "\u2028", "-DOCSTART-", "#", '"'),
        ("B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O", "O"),
        ("B-PER", "I-PER", "O", "B-LOC", "B-LOC", "O", "O"),
    ),
    (("\ufeff", "a\tb", "\u0085"), ("I-LOC", "O", "B-ORG"), ("I-LOC", "O", "B-ORG")),
)


def odd_sentences() -> tuple[list[ner.Sentence], list[tuple[str, ...]]]:
    """Return the sentences of ODD, and their predicted tags."""
    return [ner.Sentence(words, tags) for words, tags, _ in ODD], [tags for *_, tags in ODD]


def main() -> None:
    """Write both files."""
    import transformers

    parser = argparse.ArgumentParser()
    parser.add_argument("--conlleval_pl", required=True)
    arguments = parser.parse_args()
    tokenizer = transformers.BertTokenizerFast(vocab=str(VOCABULARY), do_lower_case=False)
    rows = []
    for sentence in ner.read_sentences(FOLDER / "tiny.conll"):
        encoded = tokenizer(list(sentence.words), is_split_into_words=True)
        rows.append({"input_ids": encoded["input_ids"], "word_ids": encoded.word_ids()})
    (FOLDER / "pieces.json").write_text(json.dumps(rows) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "odd.txt")
        ner.write_conll(path, *odd_sentences())
        with open(path, "rb") as written:
            done = subprocess.run(
                ["perl", arguments.conlleval_pl], stdin=written, capture_output=True, check=True
            )
    (FOLDER / "odd_report.txt").write_bytes(done.stdout)


if __name__ == "__main__":
    main()
