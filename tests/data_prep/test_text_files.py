"""What is refused of text files before any work, by each command that reads them."""

import bz2
import gzip
import subprocess
import sys
import types

import pytest

from bert_tf.tokenization.vocabulary import check_special_tokens, load_vocab
from data_prep.corpus.extraction import Options, extract_corpus
from data_prep.corpus.text_files import check_text, expand_patterns, input_bytes, open_input
from data_prep.corpus.vocabulary import read_lines
from data_prep.pretraining import original_order

TEXT = b"Hello world.\nStop now.\n"
GZIPPED = gzip.compress(TEXT, mtime=0)  # names of tests hold it: the same in each process
MAC_GZIPPED = gzip.compress(TEXT.replace(b"\n", b"\r"), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bz2", bz2.compress(TEXT), "a.bz2: holds bz2 data, which is not read here: unpack it"),
        ("a.txt", GZIPPED, "a.txt: holds gz data: unpack it, or give it a name in .gz"),
        ("a.gz", TEXT, "a.gz: broken gzip file: Not a gzipped file"),
        ("a.txt", TEXT.replace(b"\n", b"\r"), "a.txt: its lines end in carriage returns alone"),
        ("a.gz", MAC_GZIPPED, "a.gz: its lines end in carriage"),
    ],
)
def test_text_for_records(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_text(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", TEXT), ("a.gz", GZIPPED), ("a.gz", b""), ("a.txt", b"x\r\ny\rz\r\n")],
)
def test_text_that_is_read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    check_text(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", bz2.compress(TEXT), "a.txt: holds bz2 data: unpack it, or give it a name in"),
        ("a.txt", GZIPPED, "a.txt: holds gz data: unpack it, or give it a name in .gz"),
        ("a.bz2", TEXT, "a.bz2:1: cannot read further: Invalid data stream"),
    ],
)
def test_text_for_extraction_and_vocabularies(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        extract_corpus([str(path)], str(tmp_path / "out.txt"))
    with pytest.raises(ValueError, match=message):
        next(read_lines(str(path)))


def test_text_that_begins_as_json_does(tmp_path):
    path, out = tmp_path / "a.txt", tmp_path / "out.txt"
    path.write_text("{Hello} world.\nStop now.\n")
    with pytest.raises(ValueError, match="broken JSON: .*; for plain text give --format=text"):
        extract_corpus([str(path)], str(out))
    extract_corpus([str(path)], str(out), options=Options(format="text"))
    assert out.read_text().startswith("{Hello} world.\n")


def test_one_file_for_training_and_held_out_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT)
    out = tmp_path / "out.txt"
    with pytest.raises(ValueError, match="heldout_output_file: .*out.txt is also the output_file"):
        extract_corpus(
            [str(tmp_path / "a.txt")],
            str(out),
            heldout_output_file=f"{tmp_path}/./out.txt",
            options=Options(heldout_fraction=0.5),
        )
    assert not out.exists()


def test_vocabularies_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="vocab_file: a folder, expected a file: "):
        load_vocab(tmp_path)
    path = tmp_path / "vocab.txt"
    path.write_text("\ufeff[PAD]\n[UNK]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="begins with a byte order mark"):
        check_special_tokens(load_vocab(path), path)


def test_the_value_of_a_boolean_needs_its_flag():
    command = [sys.executable, "-m", "data_prep.learn_vocab", "--input_file=a", "--output_file=b"]
    done = subprocess.run(
        [*command, "--do_lower_case", "False"], capture_output=True, text=True, check=False
    )
    assert "unexpected argument 'False': give it with its flag, as in --do_train=False" in (
        done.stdout + done.stderr
    )


def test_more_shards_than_files_may_be_open(monkeypatch):
    set_to = []
    monkeypatch.setattr(original_order.resource, "getrlimit", lambda what: (256, 1000))
    monkeypatch.setattr(original_order.resource, "setrlimit", lambda what, to: set_to.append(to))
    original_order._allow_open_files(100)
    assert not set_to
    original_order._allow_open_files(500)
    assert set_to == [(564, 1000)]
    with pytest.raises(ValueError, match="num_shards: .* at most 936 shards, got 1100"):
        original_order._allow_open_files(1100)


def test_a_file_system_that_nobody_knows(monkeypatch):
    for module in (None, types.SimpleNamespace(FileSystems=_NoFileSystems)):
        monkeypatch.setitem(sys.modules, "apache_beam.io.filesystems", module)
        for ask in (open_input, input_bytes, expand_patterns):
            with pytest.raises(ValueError, match="nosuch.*: Protocol not known: nosuch"):
                ask("nosuch://b/x.txt")


class _NoFileSystems:
    """As Apache Beam's, where it does not know the path's either."""

    @staticmethod
    def get_filesystem(path):
        raise ValueError(f"Unable to get filesystem from specified path: {path}")
