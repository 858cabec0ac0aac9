"""Tests of SWAG: reading its columns, and one sequence for each choice."""

import csv
import itertools

import numpy as np
import pytest

from bert_tf.records.decoding import decode_example
from bert_tf.records.encoding import encode_examples
from bert_tf.records.schema import multiple_choice_features
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import swag
from data_prep.finetuning.swag import ChoiceExample

VOCAB = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f g h".split()
HEADER = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,label\n"


@pytest.fixture(scope="module")
def tokenizer():
    return FullTokenizer.from_vocab({piece: i for i, piece in enumerate(VOCAB)})


def _write(folder, text, name="train.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def _read(path, **options):
    return list(swag.read_examples(path, **options))


def test_context_and_continuations(tmp_path):
    path = _write(
        tmp_path,
        "\ufeff" + HEADER + '7,v,1,x,"A man, he",He,gold,"runs, ""fast"".",sits.,eats.,2\n'
        "8,v,1,x,Sent one. Then,,gold,p,q,r, 0\n",
    )
    assert _read(path, split="dev") == [
        ChoiceExample(
            "dev-7",
            "A man, he",
            ('He runs, "fast".', "He sits.", "He eats."),
            2,
            f"{path}, line 2",
        ),
        ChoiceExample("dev-8", "Sent one. Then", ("p", "q", "r"), 0, f"{path}, line 3"),
    ]


def test_test_files_have_no_labels(tmp_path):
    path = _write(tmp_path, "sent1,sent2,ending0,ending1\na,b,c,d\n")
    (example,) = _read(path, split="test")
    assert example == ChoiceExample("test-2", "a", ("b c", "b d"), None, f"{path}, line 2")
    with pytest.raises(ValueError, match="train.csv, line 1: no column 'label'"):
        _read(path)


def test_features_of_all_choices_in_one_row(tokenizer):
    examples = [
        ChoiceExample("x-0", "a b c", ("d", "e f", "g g g g g g g"), 2, "x.csv, line 2"),
        ChoiceExample("x-1", "b", ("a", "b", "c"), None, "x.csv, line 3"),
    ]
    arrays = swag.make_features(examples, tokenizer, 11, 3)
    ids = arrays["input_ids"].reshape(2, 3, 11)
    assert ids[0].tolist() == [
        [2, 5, 6, 7, 3, 8, 3, 0, 0, 0, 0],
        [2, 5, 6, 7, 3, 9, 10, 3, 0, 0, 0],
        [2, 5, 6, 7, 3, 11, 11, 11, 11, 11, 3],
    ]
    segments = arrays["segment_ids"].reshape(2, 3, 11)
    assert segments[0, 1].tolist() == [0] * 5 + [1] * 3 + [0] * 3
    np.testing.assert_array_equal(arrays["input_mask"], arrays["input_ids"] > 0)
    assert arrays["label_ids"].tolist() == [[2], [0]]
    assert arrays["is_real_example"].tolist() == [[1], [1]]
    schema = multiple_choice_features(11, 3)
    for row, record in enumerate(encode_examples(schema, arrays)):
        decoded = decode_example(record, schema)
        np.testing.assert_array_equal(decoded["input_ids"].reshape(3, 11), ids[row])
    with pytest.raises(ValueError, match="x.csv, line 2: expected 4 choices, got 3"):
        swag.make_features(examples, tokenizer, 11, 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,v,1,x,a,b,gold,c,d,e", "expected 11 columns, got 10"),
        ("1,v,1,x,a,b,gold,c,d,e,3", "label must be from 0 to 2, got '3'"),
        ("1,v,1,x,a,b,gold,c,d,e,", "label must be from 0 to 2, got ''"),
        ("1,v,1,x,a,b,gold,c,d,e,01", "label must be from 0 to 2, got '01'"),
        (b"1,v,1,x,\xff,b,gold,c,d,e,1", "not UTF-8"),
        ('1,v,1,x,a,b,gold,c,d,"e"e,1', "not a row of CSV"),
    ],
)
def test_a_bad_row_is_named_and_can_be_left_out(tmp_path, row, message):
    row = row if isinstance(row, bytes) else row.encode()
    good = b"0,v,1,x,a,b,gold,c,d,e,1\n"
    path = _write(tmp_path, HEADER.encode() + good + row + b"\n" + good)
    with pytest.raises(ValueError) as error:
        _read(path)
    assert str(error.value).startswith(f"{path}, line 3: {message}")
    messages = []
    examples = _read(path, on_bad=messages.append)
    assert [e.location for e in examples] == [f"{path}, line 2", f"{path}, line 4"]
    assert messages == [str(error.value)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.csv: the file is empty"),
        (HEADER, "train.csv: no examples: the file has but a header"),
        ("sent1,sent2,ending0,label\n", "train.csv, line 1: no column 'ending1'"),
        ("sent1,sent2,ending0,ending2,label\n", "train.csv, line 1: no column 'ending1'"),
        ("sent1,ending0,ending1,label\na,b,c,0\n", "train.csv, line 1: no column 'sent2'"),
    ],
)
def test_a_bad_file_is_always_an_error(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        _read(_write(tmp_path, text), on_bad=lambda message: None)


def test_official_file_names(tmp_path):
    _write(tmp_path, "", "val.csv")
    assert swag.split_path(tmp_path, "dev") == str(tmp_path / "val.csv")
    with pytest.raises(FileNotFoundError, match="swag: no train.csv in"):
        swag.split_path(tmp_path, "train")
    with pytest.raises(ValueError, match="split must be one of train, dev, test; got 'val'"):
        swag.split_path(tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "count"),
    [("codah_train", 2220), ("codah_val", 556), ("hellaswag_train", 1873), ("hellaswag_val", 1000)],
)
def test_real_files(shared_data, name, count):
    path = shared_data / "swag" / f"{name}.csv"
    examples = _read(path)
    assert len(examples) == count and swag.count_choices(path) == 4
    assert {e.label for e in examples} == {0, 1, 2, 3}
    with open(path, encoding="utf-8", newline="") as stream:
        for example, row in itertools.zip_longest(examples, csv.DictReader(stream)):
            assert example.context == row["sent1"] and example.label == int(row["label"])
            for i, choice in enumerate(example.choices):
                assert choice.split() == (row["sent2"] + " " + row[f"ending{i}"]).split()
