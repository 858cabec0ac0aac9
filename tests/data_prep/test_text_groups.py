"""Texts that are compared with each other: reading, refusing, numbers of equal texts."""

import json
import zlib

import numpy as np
import pytest

from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import tables, text_groups
from data_prep.finetuning.kinds import READERS
from tests.support import synthetic_records as synthetic

LENGTH = 7
STS = "index\tgenre\tscore\tsentence1\tsentence2\n"


@pytest.fixture
def tokenizer():
    return FullTokenizer.from_vocab(synthetic.VOCAB, True)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def columns(**changes):
    return tables.Columns(**{"text": "a", "text_b": "b", **changes})


def test_official_sts(tmp_path):
    path = write(tmp_path / "dev.tsv", STS + "0\tx\t2.5\tw1 w2\tw3\n7\tx\t5.000\tw1\tw1\n")
    found = [*text_groups.read_sts(path, "dev", 5.0)]
    assert [(g.guid, g.texts, g.score) for g in found] == [
        ("dev-0", ("w1 w2", "w3"), 0.5),
        ("dev-7", ("w1", "w1"), 1.0),
    ]
    assert [g.score for g in text_groups.read_sts(path, "test", 5.0)] == [None, None]
    message = "dev.tsv, line 2: expected a score of -1 to 1, got 2.5; max_score is the score of"
    with pytest.raises(ValueError, match=message):
        [*text_groups.read_sts(path, "dev", 1.0)]


def test_own_tables(tmp_path):
    path = write(tmp_path / "x.csv", "a,b,no,s\nw1,w2,w3,-0.5\nw4,w5,,1\n")
    found = [*text_groups.read_table(path, columns(label=("s",)), ["no"], "train", 1.0)]
    assert [(g.texts, g.score) for g in found] == [
        (("w1", "w2", "w3"), -0.5),
        (("w4", "w5", ""), 1),
    ]
    lines = [{"a": "w1", "b": "w2", "no": None}, {"a": "w1", "b": "w2", "no": "w9"}]
    path = write(tmp_path / "x.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    found = [*text_groups.read_table(path, columns(), ["no"], "train", 1.0)]
    assert [g.texts[2] for g in found] == ["", "w9"] and found[0].score is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"a": "w1", "b": " ", "s": 1}', r"line 2: column 'b': expected text, got none"),
        ('{"a": 7, "b": "w1", "s": 1}', r"line 2: column 'a': expected text, got int"),
        ('{"a": "w1", "b": "w2", "s": "high"}', "line 2: expected a finite number as label"),
        ('{"a": "w1", "b": "w2", "s": true}', r"line 2: column 's': expected a number, got bool"),
        ('{"a": "w1", "b": "w2", "s": 1.5}', "line 2: expected a score of -1 to 1, got 1.5"),
        ('{"a": "w1", "s": 1}', "line 2: no key 'b'"),
    ],
)
def test_bad_rows_are_named_or_left_out(tmp_path, row, message):
    good = '{"a": "w1", "b": "w2", "s": 0.5}\n'
    path = write(tmp_path / "x.jsonl", f"{good}{row}\n{good}")

    def read(on_bad):
        return [*text_groups.read_table(path, columns(label=("s",)), (), "train", 1.0, on_bad)]

    with pytest.raises(ValueError, match=f"x.jsonl, {message}"):
        read(None)
    messages = []
    assert len(read(messages.append)) == 2
    assert len(messages) == 1


def test_each_different_text_comes_twice(tmp_path):
    path = write(tmp_path / "x.csv", "a,b\nw1,w2\nw2,w3\nw1,w1\n")
    groups = text_groups.repeated(text_groups.read_table(path, columns(), (), "train", 1.0))
    assert [g.texts for g in groups] == [("w1", "w1"), ("w2", "w2"), ("w3", "w3")]


def test_records(tokenizer):
    groups = [
        text_groups.TextGroup("0", ("w1 w2", "w3", ""), None, ""),
        text_groups.TextGroup("1", ("w3", "w1 W2", "w5"), None, ""),
    ]
    arrays = text_groups.make_features(groups, tokenizer, LENGTH, "retrieval")
    ids = arrays["input_ids"].reshape(2, 3, LENGTH)
    cls, sep, pad = (synthetic.VOCAB[name] for name in ("[CLS]", "[SEP]", "[PAD]"))
    w1, w2 = synthetic.VOCAB["w1"], synthetic.VOCAB["w2"]
    assert ids[0, 0].tolist() == [cls, w1, w2, sep, pad, pad, pad]
    assert arrays["input_mask"].reshape(2, 3, LENGTH)[0].sum(axis=1).tolist() == [4, 3, 2]
    assert not arrays["segment_ids"].any() and arrays["is_real_example"].all()
    numbers = arrays["label_ids"]
    # What has the same pieces has the same number.
    assert numbers[0, 0] == numbers[1, 1] and numbers[0, 1] == numbers[1, 0]
    assert numbers[0, 2] == text_groups.NOT_THERE
    assert len(set(numbers.flat)) == 4 and numbers.min() >= 0 and numbers.dtype == np.int64
    scored = [text_groups.TextGroup("0", ("w1", "w2"), score, "") for score in (0.25, None)]
    arrays = text_groups.make_features(scored, tokenizer, LENGTH, "similarity")
    assert arrays["label_ids"].tolist() == [[0.25], [0.0]]
    assert arrays["label_ids"].dtype == np.float32


def test_texts_with_one_checksum_have_two_numbers():
    polynomial = (0xEDB88320 << 1 | 1).to_bytes(16, "little")  # which changes no CRC-32
    pieces = np.zeros((2, 4), np.int32)
    pieces[1] ^= np.frombuffer(polynomial, np.int32)
    assert zlib.crc32(pieces[0].tobytes()) == zlib.crc32(pieces[1].tobytes())
    assert text_groups._number(pieces[0]) != text_groups._number(pieces[1])


def test_the_readers_find_official_files(tmp_path):
    path = write(tmp_path / "train.tsv", STS + "0\tx\t2\tw1\tw2\n")
    task = text_groups.text_task("similarity", "STS-B")
    assert task.num_choices == 2 and task.selection_metric == "spearman_correlation"
    reader = READERS["similarity"]
    assert reader.find_file(task, str(tmp_path), "train") == str(path)
    (group,) = reader.read_file(task, str(path), "train", None, None)
    assert group.score == 0.4 and reader.texts(group) == ("w1", "w2")


def test_bad_lines_of_sts_and_a_table_without_rows(tmp_path):
    path = write(tmp_path / "dev.tsv", STS + "0\tx\t1\tw1\t \n1\tx\t-6\tw1\tw2\n2\tx\t5\tw1\tw2\n")
    bad = []
    (group,) = text_groups.read_sts(path, "dev", 5.0, bad.append)
    assert group.guid == "dev-2"
    assert bad[0] == f"{path}, line 2: a sentence: expected text, got none"
    assert bad[1].startswith(f"{path}, line 3: expected a score of -5 to 5, got -6")
    path = write(tmp_path / "x.csv", "a,b\n")
    with pytest.raises(ValueError, match="x.csv: no examples: the file has but a header"):
        [*text_groups.read_table(path, columns(), (), "train", 1.0, bad.append)]
