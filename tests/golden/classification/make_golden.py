"""Makes own.json and digests.json by running the original run_classifier.py.

    python tests/golden/classification/make_golden.py --bert=PATH_TO_CHECKOUT --data=PATH_TO_DATA

PATH_TO_CHECKOUT is a clone of google-research/bert at commit eedf571; PATH_TO_DATA has glue/ and
vocab/. run_classifier.py is imported unchanged, with the name `tensorflow` standing for
tensorflow.compat.v1; its processors read the files and its convert_single_example makes the
features, whose digests are taken here.
"""

import argparse
import hashlib
import importlib
import json
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
TINY_VOCAB = HERE.parent / "tokenization" / "tiny_vocab.txt"
DIGEST_CHARS = 12  # 48 bits of each row's SHA-256
# (vocabulary, do_lower_case, max_seq_length): the second cuts many pairs.
SETTINGS = {
    "uncased-128": ("bert-base-uncased-vocab.txt", True, 128),
    "cased-37": ("bert-base-cased-vocab.txt", False, 37),
}
# name -> (task, file below glue/, split). Of those in ROWS each row's digest is kept.
FILES = {
    "mrpc-dev": ("mrpc", "MRPC/dev.tsv", "dev"),
    "mrpc-train": ("mrpc", "MRPC/train.tsv", "train"),
    "mrpc-test": ("mrpc", "MRPC/test.tsv", "test"),
    "cola-dev": ("cola", "CoLA/dev.tsv", "dev"),
    "cola-train": ("cola", "CoLA/train.tsv", "train"),
    "cola-test": ("cola", "CoLA/test.tsv", "test"),
    "mnli-dev_matched": ("mnli", "official_columns/MNLI/dev_matched_16-13.tsv", "dev_matched"),
    **{
        f"mnli-train-{seed}": ("mnli", f"official_columns/MNLI/train_16-{seed}.tsv", "train")
        for seed in (13, 21, 42, 87, 100)
    },
}
ROWS = [name for name in FILES if not name.endswith(("train", "test"))]
# Own sentences, in the columns of each processor; the vocabulary is the tokenizer tests' own.
OWN_LENGTHS = (11, 23)
OWN_FILES = {
    "mrpc-dev": ("mrpc", "own_mrpc.tsv", "dev"),
    "cola-train": ("cola", "own_cola.tsv", "train"),
    "mnli-dev_matched": ("mnli", "own_mnli.tsv", "dev_matched"),
}


def canonical(input_ids, input_mask, segment_ids, label_id) -> bytes:
    """One row's features as bytes."""
    return json.dumps(
        [*(list(map(int, row)) for row in (input_ids, input_mask, segment_ids)), int(label_id)]
    ).encode()


def row_digest(row: bytes) -> str:
    return hashlib.sha256(row).hexdigest()[:DIGEST_CHARS]


def load_original(checkout: str):
    """Import the original's run_classifier and tokenization."""
    import tensorflow.compat.v1 as tensorflow

    sys.modules["tensorflow"] = tensorflow
    sys.path.insert(0, checkout)
    return importlib.import_module("run_classifier"), importlib.import_module("tokenization")


def original_rows(original, task, path, split, tokenizer, max_seq_length):
    """Yield the original's features of a file, one tuple a row."""
    processor = {
        "mrpc": original.MrpcProcessor,
        "cola": original.ColaProcessor,
        "mnli": original.MnliProcessor,
    }[task]()
    name = "test_matched" if (task, split) == ("mnli", "test") else split
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, f"{folder}/{name}.tsv")
        read = getattr(processor, f"get_{split.split('_')[0]}_examples")
        examples = read(folder)
    for example in examples:
        made = original.convert_single_example(
            99, example, processor.get_labels(), max_seq_length, tokenizer
        )
        yield made.input_ids, made.input_mask, made.segment_ids, made.label_id


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bert", required=True)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    original, tokenization = load_original(arguments.bert)

    own = {}
    tokenizer = tokenization.FullTokenizer(str(TINY_VOCAB), do_lower_case=True)
    for name, (task, file, split) in OWN_FILES.items():
        for length in OWN_LENGTHS:
            own[f"{name}-{length}"] = [
                list(row)
                for row in original_rows(original, task, HERE / file, split, tokenizer, length)
            ]
    with open(HERE / "own.json", "w", encoding="utf-8") as stream:
        stream.write("{\n")
        entries = [
            f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]"
            for name, rows in own.items()
        ]
        stream.write(",\n".join(entries) + "\n}\n")

    digests = {}
    for setting, (vocab, do_lower_case, length) in SETTINGS.items():
        tokenizer = tokenization.FullTokenizer(str(arguments.data / "vocab" / vocab), do_lower_case)
        for name, (task, file, split) in FILES.items():
            path = arguments.data / "glue" / file
            rows = [
                canonical(*row)
                for row in original_rows(original, task, path, split, tokenizer, length)
            ]
            digests[f"{setting} {name}"] = {
                "rows": len(rows),
                "sha256": hashlib.sha256(b"\n".join(rows)).hexdigest(),
                **({"each": "".join(map(row_digest, rows))} if name in ROWS else {}),
            }
            print(setting, name, len(rows))
    with open(HERE / "digests.json", "w", encoding="utf-8") as stream:
        json.dump(digests, stream, indent=1)
        stream.write("\n")


if __name__ == "__main__":
    main()
