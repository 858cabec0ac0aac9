"""Tests of create_pretraining_data: the original's records exactly, and its distribution in bulk."""

import gzip
import hashlib
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags

from bert_tf import records, tokenization
from data_prep import create_pretraining_data as script
from data_prep import instances, pretraining_pipeline, token_store
from data_prep.pretraining_pipeline import Options, create_pretraining_data

GOLDEN = pathlib.Path(__file__).parent / "golden" / "pretraining_data"
DIGESTS = json.loads((GOLDEN / "digests.json").read_text())


def _options(arguments):
    values = flags.FlagValues()
    script.define_flags(values)
    values(["create_pretraining_data", *map(str, arguments)])
    return script.options_from_flags(values), values


def _digest(path, features):
    digest, count = hashlib.sha256(), 0
    for example in records.read_examples(path, features):
        for name in sorted(example):
            digest.update(name.encode())
            digest.update(example[name].astype(example[name].dtype.newbyteorder("<")).tobytes())
        count += 1
    return {"records": count, "sha256": digest.hexdigest()}


def _check_golden(golden, names, folder, *more):
    files = [folder / f"{i}.tfrecord" for i in range(len(golden["files"]))]
    options, _ = _options(
        [
            golden["text"].format(**names),
            "--vocab_file=" + golden["vocab_file"].format(**names),
            "--output_file=" + ",".join(map(str, files)),
            "--compatible",
            *golden["flags"],
            *more,
        ]
    )
    create_pretraining_data(options, show_progress=False)
    assert [_digest(path, options.features) for path in options.output_files] == golden["files"]


@pytest.mark.parametrize("case", [name for name in DIGESTS if name.startswith("tiny")])
def test_compatible_records_equal_the_original_on_committed_text(case, tmp_path):
    _check_golden(DIGESTS[case], {"here": GOLDEN}, tmp_path)


def test_compatible_reads_and_writes_gzip(tmp_path):
    for name in ("tiny_1.txt", "tiny_2.txt", "tiny_vocab_uncased.txt"):
        (tmp_path / name).write_bytes((GOLDEN / name).read_bytes())
    (tmp_path / "tiny_1.txt.gz").write_bytes(gzip.compress((tmp_path / "tiny_1.txt").read_bytes()))
    golden = DIGESTS["tiny_uncased"]
    golden = {**golden, "text": golden["text"].replace("tiny_1.txt", "tiny_1.txt.gz")}
    _check_golden(golden, {"here": tmp_path}, tmp_path, "--gzip")
    written = sorted(path.name for path in tmp_path.glob("*tfrecord*"))
    assert written == ["0.tfrecord.gz", "1.tfrecord.gz"]
    assert all(records.compression_of(tmp_path / name) == "gzip" for name in written)


@pytest.fixture(scope="session")
def real_text(shared_data, tmp_path_factory):
    sys.path.insert(0, str(GOLDEN))
    try:
        from real_text import write_real_text
    finally:
        sys.path.remove(str(GOLDEN))
    path = tmp_path_factory.mktemp("real") / "real.txt"
    extract = shared_data / "corpus" / "wikipedia_en_extract.txt.gz"
    assert write_real_text(extract, path) >= 1_000_000
    return path


@pytest.mark.parametrize("case", [name for name in DIGESTS if name.startswith("real")])
def test_compatible_records_equal_the_original_on_a_megabyte(
    case, shared_data, real_text, tmp_path
):
    _check_golden(DIGESTS[case], {"data": shared_data, "real": real_text}, tmp_path)
