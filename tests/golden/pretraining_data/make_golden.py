"""Makes digests.json by running the original create_pretraining_data.py.

    python tests/golden/pretraining_data/make_golden.py --bert=PATH_TO_CHECKOUT --data=PATH_TO_DATA

PATH_TO_CHECKOUT is a clone of google-research/bert at commit eedf571; PATH_TO_DATA has
corpus/wikipedia_en_extract.txt.gz and vocab/. The script runs unchanged, with the name `tensorflow`
standing for tensorflow.compat.v1, and its records are read with TensorFlow's own parser.
"""

import argparse
import hashlib
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

from real_text import write_real_text

HERE = pathlib.Path(__file__).resolve().parent

_RUNNER = """
import runpy, sys
import tensorflow.compat.v1
sys.modules["tensorflow"] = tensorflow.compat.v1
script = sys.argv.pop(1)
sys.path.insert(0, script.rsplit("/", 1)[0])
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""

_TINY = "--input_file={here}/tiny_1.txt,{here}/tiny_2.txt"
_REAL = "--input_file={real}"
# name -> (text, vocabulary, other flags)
CASES = {
    "tiny_uncased": (_TINY, "{here}/tiny_vocab_uncased.txt", ["--max_seq_length=37"]),
    "tiny_uncased_words": (
        _TINY,
        "{here}/tiny_vocab_uncased.txt",
        ["--max_seq_length=61", "--do_whole_word_mask=True", "--max_predictions_per_seq=7"],
    ),
    "tiny_cased": (
        _TINY,
        "{here}/tiny_vocab_cased.txt",
        [
            "--do_lower_case=False",
            "--max_seq_length=29",
            "--short_seq_prob=0.5",
            "--masked_lm_prob=0.3",
            "--random_seed=7",
            "--dupe_factor=3",
        ],
    ),
    "tiny_cased_words": (
        _TINY,
        "{here}/tiny_vocab_cased.txt",
        [
            "--do_lower_case=False",
            "--max_seq_length=131",
            "--do_whole_word_mask=True",
            "--masked_lm_prob=0.4",
            "--max_predictions_per_seq=53",
            "--random_seed=-3",
            "--dupe_factor=5",
        ],
    ),
    **{
        f"real_{casing}{'_words' * words}": (
            _REAL,
            "{data}/vocab/bert-base-" + casing + "-vocab.txt",
            [
                f"--do_lower_case={casing == 'uncased'}",
                f"--do_whole_word_mask={words}",
                "--dupe_factor=3",
            ],
        )
        for casing in ("uncased", "cased")
        for words in (False, True)
    },
}
FILES_PER_CASE = 2


def main() -> None:
    """Run every case and write the digests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bert", required=True, type=pathlib.Path)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        real = pathlib.Path(folder, "real.txt")
        write_real_text(arguments.data / "corpus" / "wikipedia_en_extract.txt.gz", real)
        names = {"here": HERE, "data": arguments.data, "real": real}
        for case, (text, vocabulary, options) in CASES.items():
            files = [pathlib.Path(folder, f"{case}-{i}") for i in range(FILES_PER_CASE)]
            flags = [
                text.format(**names),
                "--vocab_file=" + vocabulary.format(**names),
                "--output_file=" + ",".join(map(str, files)),
                *options,
            ]
            script = arguments.bert.resolve() / "create_pretraining_data.py"
            subprocess.run([sys.executable, "-c", _RUNNER, str(script), *flags], check=True)
            golden[case] = {
                "text": text,
                "vocab_file": vocabulary,
                "flags": options,
                "files": [_digest(path) for path in files],
            }
    with open(HERE / "digests.json", "w", encoding="utf-8") as stream:
        json.dump(golden, stream, indent=1)
        stream.write("\n")


def _digest(path: pathlib.Path) -> dict:
    """Return the number of records, and SHA-256 over all features of all records in order."""
    import tensorflow as tf

    digest, count = hashlib.sha256(), 0
    for record in tf.data.TFRecordDataset(str(path)):
        example = tf.train.Example.FromString(record.numpy())
        for name, feature in sorted(example.features.feature.items()):
            integers, floats = feature.int64_list.value, feature.float_list.value
            digest.update(name.encode())
            digest.update(struct.pack(f"<{len(integers)}q", *integers))
            digest.update(struct.pack(f"<{len(floats)}f", *floats))
        count += 1
    return {"records": count, "sha256": digest.hexdigest()}


if __name__ == "__main__":
    main()
