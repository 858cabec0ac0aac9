"""Tests of reading one's own tables: formats, kinds of labels, and bad rows."""

import json

import pytest

from data_prep.finetuning import tables
from data_prep.finetuning.glue import TextExample
from data_prep.finetuning.tables import Columns

ONE = Columns(text="text", label=("label",))


def _write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def _read(path, columns=ONE, kind="classification", **options):
    return list(tables.read_examples(path, columns, kind, **options))


def _labels(path, columns=ONE, kind="classification", **options):
    return [e.label for e in _read(path, columns, kind, **options)]


# Formats.


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv_has_quotes_and_lines_within_them(tmp_path, bom, end):
    text = bom + end.join(
        ["text,other,label", '"a ""b"", c",,x', "", f'"two{end}lines",,y', "plain,,x"]
    )
    path = _write(tmp_path, "t.csv", text)
    assert _read(path) == [
        TextExample("train-2", 'a "b", c', None, "x", f"{path}, line 2"),
        TextExample("train-4", f"two{end}lines", None, "y", f"{path}, line 4"),
        TextExample("train-6", "plain", None, "x", f"{path}, line 6"),
    ]


def test_tsv_has_plain_quotes_unless_it_is_told(tmp_path):
    path = _write(tmp_path, "t.tsv", 'text\tlabel\n"open\tx\n"a\tb"\ty\n')
    (first,) = _read(path, on_bad=lambda message: None)
    assert first.text_a == '"open'
    path = _write(tmp_path, "q.tsv", 'text\tlabel\n"a\tb"\ty\n')
    (quoted,) = _read(path, Columns(text="text", label=("label",), quotes=True))
    assert quoted.text_a == "a\tb"


def test_jsonl(tmp_path):
    rows = [
        {"text": "a\u2028b", "pair": "c", "label": "x", "id": 5},
        {"text": "d", "pair": "", "label": 1, "id": "six"},
        {"text": "e", "pair": "f", "label": True, "id": 7},
    ]
    text = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = _write(tmp_path, "t.jsonl", text)
    columns = Columns(text="text", text_b="pair", label=("label",), id="id")
    assert _read(path, columns, split="dev") == [
        TextExample("dev-5", "a\u2028b", "c", "x", f"{path}, line 1"),
        TextExample("dev-six", "d", "", "1", f"{path}, line 3"),
        TextExample("dev-7", "e", "f", "true", f"{path}, line 5"),
    ]


def test_formats_go_by_extension_unless_given(tmp_path):
    path = _write(tmp_path, "t.txt", "text\tlabel\na,b\tx\n")
    with pytest.raises(ValueError, match=r"t.txt: expected a name ending in .csv, .tsv"):
        _read(path)
    (example,) = _read(path, Columns(text="text", label=("label",), file_format="tsv"))
    assert example.text_a == "a,b"
    for name, file_format in (("A.CSV", "csv"), ("b.tab", "tsv"), ("c.ndjson", "jsonl")):
        assert tables.format_of(name, ONE) == file_format


def test_a_table_without_a_header(tmp_path):
    path = _write(tmp_path, "t.csv", "x,hello\ny,world\n")
    columns = Columns(text="1", label=("0",), has_header=False)
    found = [(e.guid, e.text_a, e.label) for e in _read(path, columns)]
    assert found == [("train-1", "hello", "x"), ("train-2", "world", "y")]
    with pytest.raises(ValueError, match="line 1: no column 'text'; the file has 0, 1"):
        _read(path, Columns(text="text", label=("0",), has_header=False))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_fields_of_any_size(tmp_path, name):
    text = "ab " * 200_000
    sep = {"t.csv": ",", "t.tsv": "\t", "t.jsonl": ""}[name]
    row = f"text{sep}label\n{text}{sep}x\n" if sep else json.dumps({"text": text, "label": "x"})
    (example,) = _read(_write(tmp_path, name, row))
    assert example.text_a == text


def test_reading_streams(tmp_path):
    path = _write(tmp_path, "t.csv", "text,label\na,x\nb\n")
    reader = tables.read_examples(path, ONE, "classification")
    assert next(reader).text_a == "a"
    with pytest.raises(ValueError, match="t.csv, line 3: expected 2 columns, got 1"):
        next(reader)


# Labels.


def test_regression(tmp_path):
    path = _write(tmp_path, "t.csv", "text,label\na,1\nb,-2.5e1\n")
    assert _labels(path, kind="regression") == [1.0, -25.0]
    path = _write(tmp_path, "t.jsonl", '{"text": "a", "label": 3}\n{"text": "b", "label": "4.5"}')
    assert _labels(path, kind="regression") == [3.0, 4.5]
    assert tables.infer_labels(path, ONE, "regression") is None


def test_several_labels_in_one_column(tmp_path):
    path = _write(tmp_path, "t.csv", "text,label\na, x | y \nb,\nc,y\n")
    assert _labels(path, kind="multi_label") == [("x", "y"), (), ("y",)]
    path = _write(tmp_path, "t.jsonl", '{"text": "a", "label": ["x", 2]}\n{"text":"b","label":[]}')
    assert _labels(path, kind="multi_label") == [("x", "2"), ()]
    columns = Columns(text="text", label=("label",), separator="; ")
    path = _write(tmp_path, "t.tsv", "text\tlabel\na\tx; y|z\n")
    assert _labels(path, columns, "multi_label") == [("x", "y|z")]


def test_several_labels_in_several_columns(tmp_path):
    path = _write(tmp_path, "t.csv", "z,text,a\n1,t,0\n0.0,u,True\n1.0,v,1\n")
    columns = Columns(text="text", label=("z", "a"))
    assert _labels(path, columns, "multi_label") == [("z",), ("a",), ("z", "a")]
    assert tables.infer_labels(path, columns, "multi_label") == ("z", "a")
    path = _write(tmp_path, "t.jsonl", '{"text": "a", "z": true, "a": 0}')
    assert _labels(path, columns, "multi_label") == [("z",)]


def test_texts_without_labels(tmp_path):
    path = _write(tmp_path, "t.csv", "text\na\n")
    assert _labels(path, Columns(text="text")) == [None]
    assert not tables.has_labels(path, ONE)
    assert tables.has_labels(_write(tmp_path, "u.csv", "label,text\n,\n"), ONE)
    with pytest.raises(ValueError, match="u.csv: no examples: the file has but a header"):
        tables.has_labels(_write(tmp_path, "u.csv", "label,text\n"), ONE)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["b", "a", "B", "b"], ("B", "a", "b")),
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["1.5", "10", "9"], ("1.5", "10", "9")),
    ],
)
def test_labels_are_found_in_order(tmp_path, given, expected):
    path = _write(tmp_path, "t.csv", "text,label\n" + "".join(f"t,{label}\n" for label in given))
    assert tables.infer_labels(path, ONE, "classification") == expected
    joined = "text,label\nt," + "|".join(dict.fromkeys(given)) + "\nt,\n"
    path = _write(tmp_path, "u.csv", joined)
    assert tables.infer_labels(path, ONE, "multi_label") == expected


def test_labels_are_found_beside_bad_rows(tmp_path):
    path = _write(tmp_path, "t.csv", "text,label\na,x\nb\nc,y\n")
    with pytest.raises(ValueError, match="t.csv, line 3"):
        tables.infer_labels(path, ONE, "classification")
    assert tables.infer_labels(path, ONE, "classification", lambda m: None) == ("x", "y")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("text,label\na,x\n", "classification", "expected at least 2 labels, got x"),
        ("text,label\na,\n", "multi_label", "expected at least 1 labels, got none"),
    ],
)
def test_too_few_labels(tmp_path, text, kind, message):
    with pytest.raises(ValueError, match=message):
        tables.infer_labels(_write(tmp_path, "t.csv", text), ONE, kind)


# What is wrong.

BAD_ROWS = [
    ("csv", "a", "classification", "expected 2 columns, got 1"),
    ("csv", "a,x,", "classification", "expected 2 columns, got 3"),
    ("csv", 'a "b",x', None, None),  # a quote within a field is plain
    ("csv", '"a" b,x', "classification", "not a row of CSV: ',' expected after '\"'"),
    ("csv", "a,", "classification", "column 'label': expected a label, got none"),
    ("csv", "a,z", "classification", "unknown label 'z': expected one of x, y"),
    ("csv", "a,x|z", "multi_label", "unknown label 'z': expected one of x, y"),
    ("csv", "a,x||y", "multi_label", "column 'label': expected names between '|', got 'x||y'"),
    ("csv", "a,x|x", "multi_label", "column 'label': label 'x' stands twice"),
    ("csv", b"\xe9,x", "classification", "not UTF-8"),
    ("tsv", b"a\t\xff", "classification", "not UTF-8"),
    ("jsonl", "{", "classification", "not JSON: "),
    ("jsonl", "[1]", "classification", "expected a JSON object, got list"),
    ("jsonl", '{"label": "x"}', "classification", "no key 'text'; the row has label"),
    ("jsonl", '{"text": 5, "label": "x"}', "classification", "column 'text': expected text, got"),
    ("jsonl", '{"text": "a", "label": null}', "classification", "column 'label': expected a label"),
    ("jsonl", b'{"text": "\xff", "label": "x"}', "classification", "not UTF-8"),
    ("jsonl", '{"text": "a", "label": [["x"]]}', "multi_label", "whole number, got list"),
]


@pytest.mark.parametrize(("file_format", "row", "kind", "message"), BAD_ROWS)
def test_a_bad_row_is_named_and_can_be_left_out(tmp_path, file_format, row, kind, message):
    header, good = {
        "csv": (b"text,label\n", b"ok,x\n"),
        "tsv": (b"text\tlabel\n", b"ok\tx\n"),
        "jsonl": (b'{"text": "ok", "label": "x"}\n', b'{"text": "ok", "label": "x"}\n'),
    }[file_format]
    row = row if isinstance(row, bytes) else row.encode()
    path = _write(tmp_path, f"t.{file_format}", header + good + row + b"\n" + good)
    if message is None:
        assert len(_read(path)) == 3
        return
    with pytest.raises(ValueError) as error:
        _read(path, kind=kind, labels=("x", "y"))
    assert str(error.value).startswith(f"{path}, line 3: ") and message in str(error.value)
    messages = []
    examples = _read(path, kind=kind, labels=("x", "y"), on_bad=messages.append)
    assert [e.location for e in examples][-2:] == [f"{path}, line 2", f"{path}, line 4"]
    assert messages == [str(error.value)]


def test_values_that_are_no_numbers_or_flags(tmp_path):
    path = _write(tmp_path, "t.csv", "text,label\na,nan\n")
    with pytest.raises(ValueError, match="line 2: expected a finite number as label, got 'nan'"):
        _read(path, kind="regression")
    columns = Columns(text="text", label=("label", "more"))
    path = _write(tmp_path, "t.csv", "text,label,more\na,1,2\n")
    with pytest.raises(ValueError, match="line 2: column 'more': expected 0 or 1, got '2'"):
        _read(path, columns, "multi_label")
    path = _write(tmp_path, "t.jsonl", '{"text": "a", "label": true}')
    with pytest.raises(ValueError, match="column 'label': expected a number, got bool"):
        _read(path, kind="regression")


def test_a_quote_that_is_not_closed_names_its_beginning(tmp_path):
    path = _write(tmp_path, "t.csv", 'text,label\na,x\n"b,y\nc,x\nd,y\n')
    message = r"t.csv, line 3: not a row of CSV: unexpected end of data \(a quote opened here "
    with pytest.raises(ValueError, match=message + r"reaches to line 5\)"):
        _read(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "t.csv: the file is empty"),
        ("t.csv", "\n\n", "t.csv: the file is empty"),
        ("t.csv", "text,label\n", "t.csv: no examples: the file has but a header"),
        ("t.csv", "text,x\na,b\n", "t.csv, line 1: no column 'label'; the file has text, x"),
        ("t.csv", "text,label,text\na,b,c\n", "line 1: column 'text' stands twice in the header"),
        ("t.csv", b"\xff\xfet\x00", "t.csv, line 1: not UTF-8"),
        ("t.jsonl", "\n", "t.jsonl: the file is empty"),
        ("t.jsonl", '{"text": "a"}', "t.jsonl: no row has the key 'label'"),
    ],
)
def test_a_bad_file_is_always_an_error(tmp_path, name, text, message):
    path = _write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message):
        _read(path, on_bad=lambda message: None)


def test_columns_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="separator: expected at least one character"):
        Columns(text="a", separator="")
    with pytest.raises(ValueError, match="file_format must be one of csv, tsv, jsonl; got 'x'"):
        Columns(text="a", file_format="x")
    with pytest.raises(ValueError, match="label: columns must be distinct, got b, b"):
        Columns(text="a", label=("b", "b"))
    for columns in ({"text_b": "a"}, {"label": ("a",)}, {"text_b": "b", "label": ("b",)}):
        with pytest.raises(ValueError, match="columns must be distinct: text 'a'"):
            Columns(text="a", **columns)
    path = _write(tmp_path, "t.csv", "a,b,c\nx,0,1\n")
    columns = Columns(text="a", label=("b", "c"))
    with pytest.raises(ValueError, match="label: classification has one column, got b, c"):
        _read(path, columns)
    with pytest.raises(ValueError, match="kind must be classification, regression or multi_label"):
        _read(path, Columns(text="a"), "span")
    with pytest.raises(ValueError, match="classification needs a column of labels"):
        tables.infer_labels(path, Columns(text="a"), "classification")


# What is told of labels.


def _told(folder, capsys, labels, kind="classification"):
    rows = [json.dumps({"text": "t", "label": label}) for label in labels]
    path = _write(folder, "t.jsonl", "\n".join(rows))
    tables.infer_labels(path, ONE, kind)
    return capsys.readouterr().err


def test_labels_are_told_with_their_counts(tmp_path, capsys):
    told = _told(tmp_path, capsys, ["no", "yes", "yes", "no", "yes"])
    assert told == f"{tmp_path / 't.jsonl'}: column 'label': 2 labels: no 2, yes 3\n"
    told = _told(tmp_path, capsys, [str(i % 33) for i in range(99)])
    assert "33 labels: 0 3, 1 3, " in told and told.endswith("19 3 and 13 more\n")
    assert "warning" not in told


def test_labels_that_have_a_column_each_are_told_with_their_counts(tmp_path, capsys):
    path = _write(tmp_path, "t.csv", "text,z,a,none\none,1,0,0\ntwo,1,1,0\nthree,1,0,0\n")
    columns = Columns(text="text", label=("z", "a", "none"))
    assert tables.infer_labels(path, columns, "multi_label") == ("z", "a", "none")
    told = capsys.readouterr().err
    assert told == f"{path}: columns 'z', 'a', 'none': 3 labels: z 3, a 1, none 0\n"


def test_doubtful_labels_are_warned_of(tmp_path, capsys):
    told = _told(tmp_path, capsys, [f"some text {i}" for i in range(12)])
    assert "warning: " in told and "12 different labels in 12 rows" in told
    told = _told(tmp_path, capsys, ["0", "0.0", "1", "1.0"] * 5)
    assert "labels '0' and '0.0' are the same number" in told
    assert "labels '1' and '1.0' are the same number" in told
    told = _told(tmp_path, capsys, ["['a', 'b']", "['a']", "['b']"] * 5)
    assert "\"['a', 'b']\" looks like a list, but is one label" in told
    assert "warning" not in _told(tmp_path, capsys, ["1", "2", "x", "nan"] * 5)
    assert "warning" not in _told(tmp_path, capsys, ["a", "b"])


def test_a_first_row_that_cannot_be_read_does_not_tell_the_labels(tmp_path):
    path = _write(tmp_path, "t.jsonl", '{"text": "a", "label"\n{"text": "b", "label": "x"}\n')
    with pytest.raises(ValueError, match="t.jsonl, line 1: not JSON: "):
        tables.has_labels(path, ONE)


def test_one_label_of_several_may_be_a_number(tmp_path):
    path = _write(tmp_path, "t.jsonl", '{"text": "a", "label": 7}\n{"text": "b", "label": true}\n')
    assert _labels(path, kind="multi_label") == [("7",), ("true",)]
    path = _write(tmp_path, "t.jsonl", '{"text": "a", "label": null}\n')
    with pytest.raises(ValueError, match="line 1: column 'label': .* whole number, got NoneType"):
        _labels(path, kind="multi_label")
