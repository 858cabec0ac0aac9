"""Tests of preparing records: order, cache, bad examples, and workers."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from bert_tf.records.decoding import read_examples
from bert_tf.records.files import manifest_path, scan_records
from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tasks.table import TASKS, custom_task
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import glue, ner, squad, swag, tables
from data_prep.finetuning import prepare as finetuning_prepare
from data_prep.finetuning.kinds import READERS, FeatureSettings, _text_features, reader_of
from data_prep.finetuning.options import SpanOptions, extra_settings
from data_prep.finetuning.prepare import (
    CHUNK_EXAMPLES,
    FORMAT_VERSION,
    TokenizerSettings,
    prepare,
    write_split,
)
from data_prep.finetuning.sources import (
    TaggedOptions,
    available_splits,
    folder_source,
    table_source,
    table_task,
    tagged_source,
)

ROOT = pathlib.Path(__file__).parents[2]
VOCAB = pathlib.Path(__file__).parents[1] / "golden" / "tokenization" / "tiny_vocab.txt"
TOKENIZER = TokenizerSettings(str(VOCAB))
LENGTH = 19
SST = TASKS["sst-2"]


def _write_sst(folder, count, split="train", name=None):
    lines = [f"{'hello world it now stop'[: 5 + i % 19]} {i}\t{i % 2}\n" for i in range(count)]
    path = folder / (name or f"{split}.tsv")
    path.write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")
    return path


def _prepare(source, folder, task=SST, length=LENGTH, **options):
    options = {"num_workers": 1, "show_progress": False, **options}
    tokenizer = options.pop("tokenizer", TOKENIZER)
    settings = FeatureSettings(task, length, options.pop("extra", {}))
    return prepare(source, settings, tokenizer, folder / "cache", **options)


def _sst_source(folder, split="train"):
    return folder_source(SST, folder, split)


def _refuse_to_read(source):
    def read(on_bad, on_skip):
        raise AssertionError("read though it is there")

    return dataclasses.replace(source, read=read)


# Records.


def test_records_are_the_features_in_order(tmp_path):
    count = 2 * CHUNK_EXAMPLES + 41
    _write_sst(tmp_path, count)
    examples = list(glue.read_file(SST, glue.split_path(SST, tmp_path, "train"), "train"))
    tokenizer = FullTokenizer(VOCAB)
    expected = glue.make_features(examples, tokenizer, LENGTH, SST.kind, SST.labels)
    written = {}
    for workers in (1, 2):
        made = _prepare(_sst_source(tmp_path), tmp_path / str(workers), num_workers=workers)
        assert made.num_examples == made.num_records == count
        assert made.labels == ("0", "1") and not made.from_cache
        found = list(read_examples(made.record_file, made.features))
        for name, values in expected.items():
            np.testing.assert_array_equal([row[name] for row in found], values)
        lengths = np.load(made.lengths_file)
        assert lengths.dtype == np.int32
        np.testing.assert_array_equal(lengths, expected["input_mask"].sum(axis=1))
        folder = os.path.dirname(made.record_file)
        assert sorted(os.listdir(folder)) == [
            "train.lengths.npy",
            "train.manifest.json",
            "train.tfrecord",
        ]
        written[workers] = [
            (pathlib.Path(folder) / name).read_bytes() for name in sorted(os.listdir(folder))
        ]
    assert written[1] == written[2]


def test_manifest_says_what_is_known(tmp_path):
    path = _write_sst(tmp_path, 7)
    made = _prepare(_sst_source(tmp_path), tmp_path)
    on_disk = json.loads(pathlib.Path(manifest_path(made.record_file)).read_text())
    assert on_disk == made.manifest
    lengths = np.load(made.lengths_file)
    assert on_disk["counts"] == {
        "examples": 7,
        "records": 7,
        "tokens": int(lengths.sum()),
        "unknown_token_rate": 0.0,
        "padding_fraction": 1 - lengths.sum() / (7 * LENGTH),
        "full_length_records": int((lengths == LENGTH).sum()),
        "bad_examples": 0,
        "without_gold_label": 0,
    }
    expected = {
        "task": "sst-2",
        "kind": "classification",
        "split": "train",
        "labelled": True,
        "labels": ["0", "1"],
        "max_seq_length": LENGTH,
        "do_lower_case": True,
        "vocab_file": str(VOCAB),
        "files": ["train.tfrecord"],
        "format_version": FORMAT_VERSION,
    }
    assert {name: on_disk[name] for name in expected} == expected
    assert on_disk["input_files"][0]["path"] == str(path)


def test_lengths_of_choices_are_those_of_the_longest(tmp_path):
    path = tmp_path / "val.csv"
    path.write_text("sent1,sent2,ending0,ending1,label\na,b,c,d d d,1\na a,,b b b,c,0\n")
    task = dataclasses.replace(TASKS["swag"], num_choices=swag.count_choices(path))
    source = folder_source(task, tmp_path, "dev")
    made = _prepare(source, tmp_path, task)
    assert np.load(made.lengths_file).tolist() == [8, 8]
    assert made.manifest["counts"]["tokens"] == 6 + 8 + 8 + 6
    rows = list(read_examples(made.record_file, made.features))
    assert [row["label_ids"].tolist() for row in rows] == [[1], [0]]
    assert rows[0]["input_ids"].shape == (2 * LENGTH,)
    assert made.manifest["num_choices"] == 2
    with pytest.raises(ValueError, match="val.csv, line 2: expected 4 choices, got 2"):
        _prepare(source, tmp_path, TASKS["swag"])


@pytest.mark.parametrize(
    ("kind", "columns", "values", "expected"),
    [
        ("classification", ("c",), ["10", "9", "10"], [[1], [0], [1]]),
        ("regression", ("c",), ["2.5", "-1", "0"], [[2.5], [-1], [0]]),
        ("multi_label", ("c",), ["x|w", "", "w"], [[1, 1], [0, 0], [1, 0]]),
        ("multi_label", ("c", "d"), ["1,0", "1,1", "0,0"], [[1, 0], [1, 1], [0, 0]]),
    ],
)
def test_own_tables(tmp_path, kind, columns, values, expected):
    path = tmp_path / "own.csv"
    rows = "".join(f"hello,world now,{value}\n" for value in values)
    path.write_text(f"one,two,{','.join(columns)}\n" + rows)
    columns = tables.Columns(text="one", text_b="two", label=columns)
    task = table_task(kind, columns, path)
    made = _prepare(table_source(task, path, "train", columns), tmp_path, task)
    found = [row["label_ids"].tolist() for row in read_examples(made.record_file, made.features)]
    assert found == expected
    assert made.labels == task.labels


def test_own_test_files_are_labelled_if_they_have_the_columns(tmp_path):
    columns = tables.Columns(text="t", label=("c",))
    task = table_task("classification", columns, labels=["no", "yes"])
    for text, labelled, label in (("t,c\nhello,yes\n", True, 1), ("t\nhello\n", False, 0)):
        path = tmp_path / "test.csv"
        path.write_text(text)
        source = table_source(task, path, "test", columns)
        made = _prepare(source, tmp_path, task)
        assert made.manifest["labelled"] == source.labelled == labelled
        (row,) = read_examples(made.record_file, made.features)
        assert row["label_ids"].tolist() == [label]


def test_a_kind_may_make_several_records_of_an_example(tmp_path, monkeypatch):
    firsts = []

    def make_features(examples, tokenizer, settings, first):
        firsts.append(first)
        assert settings.extra == {"times": 3}
        twice = [e for e in examples for _ in range(settings.extra["times"])]
        return _text_features(twice, tokenizer, settings, first)

    kind = dataclasses.replace(READERS["classification"], make_features=make_features)
    monkeypatch.setitem(READERS, "classification", kind)
    monkeypatch.setattr(finetuning_prepare, "CHUNK_EXAMPLES", 4)
    _write_sst(tmp_path, 11)
    made = _prepare(_sst_source(tmp_path), tmp_path, extra={"times": 3})
    assert (made.num_examples, made.num_records) == (11, 33)
    assert np.load(made.lengths_file).shape == (33,)
    assert scan_records(made.record_file) == 33
    assert firsts == [0, 4, 8]


# Cache.


def test_records_are_made_once(tmp_path):
    _write_sst(tmp_path, 7)
    source = _sst_source(tmp_path)
    first = _prepare(source, tmp_path)
    again = _prepare(_refuse_to_read(source), tmp_path)
    assert again.from_cache
    assert dataclasses.replace(again, from_cache=False) == first
    # What counts is what the file holds, not where or how old it is.
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(tmp_path / "train.tsv", moved)
    os.utime(moved / "train.tsv", (1, 1))
    assert _prepare(_refuse_to_read(_sst_source(moved)), tmp_path).from_cache


def _other_vocab(tmp_path):
    path = tmp_path / "other_vocab.txt"
    path.write_text(VOCAB.read_text(encoding="utf-8") + "zz\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda tmp_path: {"length": LENGTH + 1},
        lambda tmp_path: {"tokenizer": TokenizerSettings(str(VOCAB), do_lower_case=False)},
        lambda tmp_path: {"tokenizer": TokenizerSettings(str(_other_vocab(tmp_path)))},
        lambda tmp_path: {"task": dataclasses.replace(SST, labels=("1", "0"))},
        lambda tmp_path: {"task": dataclasses.replace(SST, name="other")},
        lambda tmp_path: {"extra": {"x": 1}},
        lambda tmp_path: {"on_bad": lambda message: None},
        lambda tmp_path: {"source": _sst_source(tmp_path, "dev")},
        lambda tmp_path: {"source": dataclasses.replace(_sst_source(tmp_path), settings={"x": 1})},
    ],
    ids="length casing vocab labels task extra skip split settings".split(),
)
def test_another_setting_is_other_records(tmp_path, change):
    _write_sst(tmp_path, 7)
    _write_sst(tmp_path, 7, "dev")
    first = _prepare(_sst_source(tmp_path), tmp_path)
    changed = change(tmp_path)
    other = _prepare(changed.pop("source", _sst_source(tmp_path)), tmp_path, **changed)
    assert not other.from_cache and other.record_file != first.record_file
    assert os.path.exists(first.record_file)


def test_other_content_is_other_records(tmp_path, monkeypatch):
    path = _write_sst(tmp_path, 7)
    times = (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns)
    first = _prepare(_sst_source(tmp_path), tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\t1", b"\t0"))
    os.utime(path, ns=times)  # same size, same time
    other = _prepare(_sst_source(tmp_path), tmp_path)
    assert not other.from_cache and other.record_file != first.record_file
    monkeypatch.setattr(finetuning_prepare, "FORMAT_VERSION", 0)
    assert not _prepare(_sst_source(tmp_path), tmp_path).from_cache


@pytest.mark.parametrize("file", ["record_file", "lengths_file", "manifest"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_what_is_not_whole_is_made_again(tmp_path, file, damage):
    _write_sst(tmp_path, 7)
    first = _prepare(_sst_source(tmp_path), tmp_path)
    path = pathlib.Path(
        manifest_path(first.record_file) if file == "manifest" else getattr(first, file)
    )
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-5] if damage == "cut" else b"")
    again = _prepare(_sst_source(tmp_path), tmp_path)
    assert not again.from_cache and path.read_bytes() == whole


def test_a_failed_run_leaves_nothing_that_looks_whole(tmp_path):
    _write_sst(tmp_path, 7)
    source = _sst_source(tmp_path)
    settings = (FeatureSettings(SST, LENGTH), TOKENIZER, tmp_path / "out", 1)
    made = write_split(source, *settings, show_progress=False)
    assert made.record_file == str(tmp_path / "out" / "train.tfrecord")
    assert write_split(_refuse_to_read(source), *settings, show_progress=False).from_cache

    def read(on_bad, on_skip):
        yield from source.read(on_bad, on_skip)
        raise KeyboardInterrupt

    stopped = dataclasses.replace(source, read=read, settings={"other": 1})
    with pytest.raises(KeyboardInterrupt):
        write_split(stopped, *settings, show_progress=False)
    assert sorted(os.listdir(tmp_path / "out")) == ["train.lengths.npy", "train.tfrecord"]
    with pytest.raises(KeyboardInterrupt):
        _prepare(stopped, tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    assert list(folder.iterdir()) == []


def test_input_that_changes_while_it_is_read(tmp_path):
    path = _write_sst(tmp_path, 7)
    source = _sst_source(tmp_path)

    def read(on_bad, on_skip):
        yield from source.read(on_bad, on_skip)
        path.write_text(path.read_text() + "more\t1\n")

    with pytest.raises(RuntimeError, match="train.tsv: changed while being read"):
        _prepare(dataclasses.replace(source, read=read), tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    assert list(folder.iterdir()) == []


# Bad examples.


def test_bad_examples_are_counted_and_listed(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\nhello\t1\nworld\tx\nnow\nstop\t0\n")
    with pytest.raises(ValueError, match="train.tsv, line 3: unknown label 'x'"):
        _prepare(_sst_source(tmp_path), tmp_path)
    expected = [
        f"{path}, line 3: unknown label 'x': expected one of 0, 1",
        f"{path}, line 4: expected 2 columns, got 1",
    ]
    for from_cache in (False, True):
        messages = []
        made = _prepare(_sst_source(tmp_path), tmp_path, on_bad=messages.append)
        assert made.from_cache == from_cache
        assert messages == expected
        assert made.num_examples == 2 and made.manifest["counts"]["bad_examples"] == 2
    listed = pathlib.Path(made.record_file).parent / "train.bad_examples.txt"
    assert listed.read_text().splitlines() == expected
    listed.unlink()
    assert not _prepare(_sst_source(tmp_path), tmp_path, on_bad=messages.append).from_cache


def test_no_example_is_left(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nhello\tx\n")
    with pytest.raises(ValueError, match="no examples are left: 1 were bad, 0 without a gold"):
        _prepare(_sst_source(tmp_path), tmp_path, on_bad=lambda message: None)


def test_examples_without_a_gold_label_are_counted(tmp_path):
    (tmp_path / "dev_matched.tsv").write_text(
        "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\t-\n1\tc\td\tneutral\n"
    )
    task = TASKS["mnli"]
    made = _prepare(folder_source(task, tmp_path, "dev_matched"), tmp_path, task)
    assert made.num_examples == 1 and made.manifest["counts"]["without_gold_label"] == 1


# Settings that cannot be, and warnings.


def test_settings_that_cannot_be(tmp_path):
    _write_sst(tmp_path, 7)
    source = _sst_source(tmp_path)
    with pytest.raises(ValueError, match="max_seq_length must be at least 3, got 2"):
        _prepare(source, tmp_path, length=2)
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        _prepare(source, tmp_path, num_workers=0)
    with pytest.raises(ValueError, match="split: expected letters, digits and _ . -, got 'a/b'"):
        dataclasses.replace(source, split="a/b")
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\nhello\n")
    with pytest.raises(ValueError, match=r"vocab.txt has no \[CLS\] \[SEP\] \[MASK\]"):
        _prepare(source, tmp_path, tokenizer=TokenizerSettings(str(vocab)))
    with pytest.raises(ValueError, match="labels: classification needs a training file"):
        table_task("classification", tables.Columns(text="t", label=("c",)))
    columns = tables.Columns(text="t", label=("c", "d"))
    with pytest.raises(ValueError, match="where each label has a column, they are the columns'"):
        table_task("multi_label", columns, labels=["d", "c"])
    odd = custom_task("multiple_choice", None, True)
    with pytest.raises(ValueError, match="task custom: num_choices must be given"):
        _prepare(source, tmp_path, odd)


def test_a_kind_that_is_not_there(monkeypatch):
    monkeypatch.delitem(READERS, "regression")
    with pytest.raises(ValueError, match="task sts-b: no reader for kind regression; there are"):
        reader_of(TASKS["sts-b"])


def test_many_unknown_tokens_are_warned_of(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nщщ щщ\t1\n", encoding="utf-8")
    _prepare(_sst_source(tmp_path), tmp_path)
    message = capsys.readouterr().err
    assert message.startswith(f"warning: {tmp_path}/train.tsv: 50.0% of tokens are [UNK]; check")


def test_characters_of_long_runs_are_counted_and_told(tmp_path, capsys):
    lines = [f"{'a b ' * 70}\t0\n"] * 9 + [f"{'ab' * 130} a\t1\n"]
    (tmp_path / "train.tsv").write_text("".join(["sentence\tlabel\n", *lines]))
    made = _prepare(_sst_source(tmp_path), tmp_path)
    rate = 260 / (9 * 140 + 261)
    assert made.manifest["counts"]["long_word_character_rate"] == rate
    assert made.manifest["counts"]["unknown_token_rate"] < 0.01
    told = capsys.readouterr().err
    assert f"{tmp_path}/train.tsv: {rate:.1%} of the characters stand in runs of more than" in told
    assert "200 without a space, each of which becomes a single [UNK]" in told


def test_a_document_is_counted_once_though_each_question_has_it(tmp_path, monkeypatch):
    counted = []
    count = FullTokenizer.count_unknown
    monkeypatch.setattr(
        FullTokenizer, "count_unknown", lambda self, x: counted.append(x) or count(self, x)
    )
    document = f"hello {'ab' * 130}"
    answer = [{"text": "hello", "answer_start": 0}]
    questions = [{"id": str(i), "question": "stop it", "answers": answer} for i in range(5)]
    article = {"title": "t", "paragraphs": [{"context": document, "qas": questions}]}
    text = json.dumps({"version": "1.1", "data": [article]})
    (tmp_path / "train-v1.1.json").write_text(text)
    task = TASKS["squad1.1"]
    source = folder_source(task, tmp_path, "train")
    made = _prepare(source, tmp_path, task, extra={"doc_stride": 5, "max_query_length": 7})
    assert sorted(counted) == [document, "stop it"]
    # As a share of what a model is shown, each time.
    assert made.manifest["counts"]["long_word_character_rate"] == 260 / (265 + 6)


@pytest.mark.parametrize("task", ["mrpc", "swag", "ner", "squad1.1"])
def test_every_kind_tells_the_texts_that_it_tokenizes(task):
    example = {
        "mrpc": glue.TextExample("g", "one", "two", "0", "x"),
        "swag": swag.ChoiceExample("g", "one", ("two",), 0, "x"),
        "ner": [ner.Sentence((word,), ("O",), 0, "x", 1) for word in ("one", "two")],
        "squad1.1": types.SimpleNamespace(question_text="one", doc_tokens=("two",)),
    }[task]
    assert list(READERS[TASKS[task].kind].texts(example)) == ["one", "two"]


def test_small_input_starts_no_processes(tmp_path, monkeypatch):
    started = []

    class Pool(finetuning_prepare.WorkerPool):
        def __init__(self, num_workers, *arguments):
            started.append(num_workers)
            super().__init__(1, *arguments)

    monkeypatch.setattr(finetuning_prepare, "WorkerPool", Pool)
    monkeypatch.setattr(finetuning_prepare, "available_cores", lambda: 5)
    _write_sst(tmp_path, 7)
    _prepare(_sst_source(tmp_path), tmp_path, num_workers=None)
    monkeypatch.setattr(finetuning_prepare, "WORKERS_PAY_BYTES", 10)
    _prepare(_sst_source(tmp_path), tmp_path, num_workers=None, length=LENGTH + 1)
    _prepare(_sst_source(tmp_path), tmp_path, num_workers=3, length=LENGTH + 2)
    assert started == [1, 5, 3]


_SCRIPT = """
import sys
print("script runs", flush=True)
from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tasks.table import TASKS
from data_prep.finetuning import prepare as data
from data_prep.finetuning.sources import folder_source
source = folder_source(TASKS["sst-2"], sys.argv[1], "train")
settings = data.FeatureSettings(TASKS["sst-2"], 19)
made = data.prepare(source, settings, data.TokenizerSettings(sys.argv[2]),
                    sys.argv[1] + "/cache", 2, show_progress=False)
print(made.num_examples, __file__, __spec__)
"""


def test_workers_do_not_run_the_callers_script_again(tmp_path):
    """A runner imports TensorFlow at its top, and needs no guard around its body here."""
    _write_sst(tmp_path, 2 * CHUNK_EXAMPLES + 1)
    script = tmp_path / "runner.py"
    script.write_text(_SCRIPT)
    done = subprocess.run(
        [sys.executable, script, str(tmp_path), str(VOCAB)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["script runs", f"513 {script} None"]


def test_available_splits(tmp_path):
    assert available_splits(TASKS["swag"], tmp_path) == []
    (tmp_path / "val.csv").write_text("")
    assert available_splits(TASKS["swag"], tmp_path) == ["dev"]
    (tmp_path / "valid.txt").touch()
    assert available_splits(TASKS["ner"], tmp_path) == ["dev"]
    _write_sst(tmp_path, 1)
    assert available_splits(SST, tmp_path) == ["train"]
    assert available_splits(TASKS["ax"], tmp_path, tfds=True) == ["test"]


# Spans and tagged words, of which an example may give several records.


def _write_squad(path, count):
    articles = []
    for i in range(count):
        # Contexts of 3 to 25 words; most need several windows.
        words = [("hello", "world", "it", "now")[(i + j) % 4] for j in range(3 + i * 7 % 23)]
        start = len(" ".join(words[: i % 3])) + (i % 3 > 0)
        answer = {"text": words[i % 3], "answer_start": start}
        qa = {"id": f"q{i}", "question": "stop it", "answers": [answer]}
        articles.append({"title": "t", "paragraphs": [{"context": " ".join(words), "qas": [qa]}]})
    path.write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")


def _assert_records(made, expected):
    found = list(read_examples(made.record_file, made.features))
    assert len(found) == made.num_records
    for name, values in expected.items():
        np.testing.assert_array_equal([row[name] for row in found], values, err_msg=name)
    lengths = np.load(made.lengths_file)
    np.testing.assert_array_equal(lengths, expected["input_mask"].sum(axis=1))
    assert made.manifest["counts"]["tokens"] == lengths.sum()


@pytest.mark.parametrize("split", ["train", "dev"])
def test_records_of_spans_are_the_features_in_order(tmp_path, split, monkeypatch):
    monkeypatch.setattr(finetuning_prepare, "CHUNK_EXAMPLES", 13)
    _write_squad(tmp_path / f"{split}-v1.1.json", 41)
    task = TASKS["squad1.1"]
    source = folder_source(task, tmp_path, split)
    extra = {"doc_stride": 5, "max_query_length": 7}
    examples = list(
        squad.read_squad(
            tmp_path / f"{split}-v1.1.json",
            version_2_with_negative=False,
            is_training=split == "train",
        )
    )
    tokenizer = FullTokenizer(VOCAB)
    rule = WindowRule(LENGTH, **extra)
    expected = squad.make_features(examples, tokenizer, rule, is_training=split == "train")
    ids = expected.pop("unique_ids")
    assert (expected["start_positions"] > 0).any() == (split == "train")
    made = _prepare(source, tmp_path, task, extra=extra)
    assert made.num_examples == 41 < made.num_records == len(ids)
    _assert_records(made, expected)
    found = [int(row["unique_ids"][0]) for row in read_examples(made.record_file, made.features)]
    assert found[0] == squad.FIRST_UNIQUE_ID and (np.diff(found) > 0).all()
    other = _prepare(source, tmp_path, task, extra={**extra, "doc_stride": 7})
    assert other.record_file != made.record_file and other.num_records < made.num_records


def test_answers_that_are_learned_elsewhere_are_told(tmp_path, capsys):
    context = "it-it now"
    answers = [{"text": "it", "answer_start": 3}]
    qas = [{"id": "q", "question": "now", "answers": answers}]
    data = [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]
    (tmp_path / "train-v1.1.json").write_text(json.dumps({"data": data}), encoding="utf-8")
    task = TASKS["squad1.1"]
    source = folder_source(task, tmp_path, "train")
    positions = []
    for at_start in (False, True):
        spans = SpanOptions(5, 7, answers_at_start=at_start)
        made = _prepare(source, tmp_path, task, extra=extra_settings(task, spans=spans))
        (record,) = read_examples(made.record_file, made.features)
        positions.append(record["start_positions"].tolist())
        counts = made.manifest["counts"]
        assert (counts["answers"], counts["answers_elsewhere"]) == (1, 1)
        said = "of 1 of 1 answers other text is learned" in capsys.readouterr().err
        assert said != at_start
    assert positions[1][0] == positions[0][0] + 2


@pytest.mark.parametrize("document_context", [False, True])
def test_records_of_tagged_words_are_the_features_in_order(tmp_path, document_context, monkeypatch):
    monkeypatch.setattr(finetuning_prepare, "CHUNK_EXAMPLES", 5)
    lines = []
    for document in range(7):
        lines.append("-DOCSTART- O\n")
        for sentence in range(1 + document % 3):
            size = 1 + (5 * document + 3 * sentence) % 29
            lines += [
                f"{('hello', 'it', 'now')[(document + n) % 3]} {'OB'[n % 2]}{'-X' * (n % 2)}"
                for n in range(size)
            ]
            lines.append("")
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = custom_task("token_classification", ("O", "B-X"), False, "own")
    source = tagged_source(path, "train", TaggedOptions(document_context=document_context))
    sentences = list(ner.read_sentences(path))
    tokenizer = FullTokenizer(VOCAB)
    expected, windows = ner.make_features(
        sentences, tokenizer, task.labels, LENGTH, document_context
    )
    assert len(windows) > len(sentences)  # some do not fit
    assert expected["label_mask"].sum() == sum(len(s.words) for s in sentences)
    for workers in (1, 2):
        made = _prepare(
            source,
            tmp_path / str(workers),
            task,
            extra={"document_context": document_context},
            num_workers=workers,
        )
        _assert_records(made, expected)


def test_records_are_opened_by_their_manifest(tmp_path):
    import tensorflow as tf

    from bert_tf.input_pipeline.finetuning import TaskRecords

    vocab = tmp_path / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    vocab.write_text("".join(f"{piece}\n" for piece in pieces))
    (tmp_path / "train.csv").write_text("text,label\ngood,yes\nbad bad,no\nbad good bad,no\n")
    columns = tables.Columns(text="text", label=("label",))
    task = table_task("classification", columns, tmp_path / "train.csv")
    source = table_source(task, tmp_path / "train.csv", "train", columns)
    tokenizer = TokenizerSettings(str(vocab), True)
    made = write_split(source, FeatureSettings(task, 7), tokenizer, tmp_path / "out")
    opened = TaskRecords.open(made.record_file)
    assert opened.kind == "classification" and opened.max_seq_length == 7 and len(opened) == 3
    assert opened.lengths.tolist() == [3, 4, 5] and opened.labels().tolist() == [1, 0, 0]
    assert opened.label_names == ("no", "yes")
    inputs, labels, weights = next(iter(opened.evaluation_dataset(batch_size=3)))
    assert inputs["input_ids"].shape == (3, 7) and labels.shape == weights.shape == (3,)
    # A model may have a smaller vocabulary than the records, or a larger one.
    for vocab_size, fits in ((None, True), (5000, True), (7, True), (6, False)):
        dataset = TaskRecords.open(made.record_file, vocab_size=vocab_size).evaluation_dataset(
            batch_size=3
        )
        with (
            contextlib.nullcontext()
            if fits
            else pytest.raises(tf.errors.InvalidArgumentError, match="beyond the vocab_size 6")
        ):
            next(iter(dataset))
    manifest = pathlib.Path(made.record_file).with_name("train.manifest.json")
    text = manifest.read_text()
    manifest.write_text(text.replace('"classification"', '"clairvoyance"'))
    with pytest.raises(ValueError, match="train.manifest.json: not a manifest"):
        TaskRecords.open(made.record_file)
    manifest.write_text(text)
    lengths = pathlib.Path(made.lengths_file)
    content = lengths.read_bytes()
    # An empty file, one cut off, one of something else, and one that claims to be huge.
    huge = content.replace(b"(3,)", b"(3000000000000,)")
    odd = content.replace(b"{'descr'", b"((((((((")
    for data in (b"", content[:20], content[:-1], b"no lengths", huge, odd):
        lengths.write_bytes(data)
        with pytest.raises(ValueError, match=f"{lengths.name}: not the lengths of records"):
            TaskRecords.open(made.record_file)
    manifest.unlink()
    with pytest.raises(FileNotFoundError):
        TaskRecords.open(made.record_file)


def test_records_with_and_without_accents_are_others(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ncafé\t1\n", encoding="utf-8")
    ids, folders = [], []
    for settings in (TOKENIZER, dataclasses.replace(TOKENIZER, strip_accents=False)):
        made = _prepare(_sst_source(tmp_path), tmp_path, tokenizer=settings)
        (record,) = read_examples(made.record_file, made.features)
        ids.append(record["input_ids"][1])
        folders.append(made.record_file)
        assert ("strip_accents" in made.manifest) == (settings.strip_accents is not None)
        warned = "pieces with accents or vowel signs" in capsys.readouterr().err
        assert warned == (settings.strip_accents is None)
    tokenizer = TOKENIZER.open()
    assert ids == [tokenizer.encode("cafe")[0], tokenizer.vocab["café"]]
    assert folders[0] != folders[1]
