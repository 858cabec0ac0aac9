"""Texts of any length as records of windows, against the windows of SQuAD's documents."""

import json
import pathlib

import numpy as np
import pytest

from bert_tf.input_pipeline.finetuning import TaskRecords
from bert_tf.tasks.document_windows import TextRule, WindowRule, encode_words, make_windows
from bert_tf.tokenization.vocabulary import load_vocab
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import glue
from data_prep.finetuning.kinds import FeatureSettings, text_rule
from data_prep.finetuning.options import (
    SpanOptions,
    TaggedOptions,
    TaskRecordsOptions,
    WindowOptions,
    WindowOrSpanOptions,
    extra_settings,
)
from data_prep.finetuning.task_records import run
from tests.support import command_options

VOCAB = pathlib.Path(__file__).parents[1] / "golden" / "tokenization" / "tiny_vocab.txt"
INPUTS = ("input_ids", "input_mask", "segment_ids")
WORDS = ("hello", "world", "now", "stop", "it")


@pytest.fixture(scope="module")
def tokenizer():
    return FullTokenizer(VOCAB)


def texts_of(*sizes):
    random = np.random.default_rng(5)
    return [" ".join(random.choice(WORDS, size)) for size in sizes]


def windows_of(arrays, row, length):
    """Return the windows of a record without padding: ids and segments of each."""
    inputs = [np.asarray(arrays[name])[row].reshape(-1, length) for name in INPUTS]
    found = []
    for ids, mask, segments in zip(*inputs, strict=True):
        size = int(mask.sum())
        assert mask.tolist() == [1] * size + [0] * (length - size)
        assert not ids[size:].any() and not segments[size:].any()
        found.append((ids[:size].tolist(), segments[:size].tolist()))
    return found


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_pairs_are_cut_as_questions_on_documents(tokenizer, stride):
    questions = [*texts_of(2, 9, 3, 1), ""]
    documents = texts_of(1, 25, 8, 40, 7)
    rule = TextRule(13, stride, 50, has_pairs=True, max_query_length=3)
    pairs = list(zip(questions, documents, strict=True))
    arrays = glue.pack_documents(pairs, tokenizer, rule)
    assert not arrays["windows_left_out"].any()
    for row, (question, document) in enumerate(pairs):
        pieces = encode_words(document.split(), tokenizer)
        expected = [
            (w.input_ids, [0] * w.doc_offset + [1] * (len(w.input_ids) - w.doc_offset))
            for w in make_windows(question, pieces, tokenizer, WindowRule(13, stride, 3))
        ]
        found = windows_of(arrays, row, 13)
        assert found[: len(expected)] == expected
        assert not any(ids for ids, _ in found[len(expected) :])


def test_a_text_is_cut_with_overlap_and_one_that_fits_is_as_without_windows(tokenizer):
    texts = [(text, None) for text in texts_of(0, 3, 11, 12, 13, 31)]
    arrays = glue.pack_documents(texts, tokenizer, TextRule(13, 4, 3))
    # 11 pieces fit; the others begin every 4 pieces, and three windows end at 11 + 2 * 4 = 19.
    assert arrays["windows_left_out"].tolist() == [0, 0, 0, 0, 0, 3]
    plain = glue.pack_texts(texts, tokenizer, 13)
    for name in INPUTS:
        np.testing.assert_array_equal(arrays[name][:3, :13], plain[name][:3])
        assert not arrays[name][:3, 13:].any()
    ids = tokenizer.encode(texts[-1][0])
    cls_id, sep_id = tokenizer.vocab["[CLS]"], tokenizer.vocab["[SEP]"]
    expected = [([cls_id, *ids[s : s + 11], sep_id], [0] * 13) for s in (0, 4, 8)]
    assert windows_of(arrays, 5, 13) == expected
    expected = [ids for s in (0, 4) for ids in [tokenizer.encode(texts[4][0])[s : s + 11]]]
    assert [ids[1:-1] for ids, _ in windows_of(arrays, 4, 13)] == [*expected, []]


def _make(folder, texts, *more):
    rows = [{"t": text, "u": "it", "c": ("yes", "no")[i % 2]} for i, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        f"--train_file={folder / 'train.jsonl'}",
        *("--text_column=t", "--label_column=c", "--max_seq_length=13"),
        *(f"--vocab_file={VOCAB}", f"--output_dir={folder}"),
    ]
    run(command_options.parse(TaskRecordsOptions, [*arguments, *more]))
    return folder / "train.tfrecord"


def test_records_and_their_batches(tokenizer, tmp_path, capsys):
    texts = texts_of(3, 31, 11, 12, 40, 14, 2, 16, 1, 10, 30)
    path = _make(tmp_path, texts, "--doc_stride=4", "--max_windows=3")
    said = capsys.readouterr().out
    # Windows: 1 3 1 2 3 2 1 3 1 1 3, and of 31, 40 and 30 pieces 3, 6 and 3 more.
    assert (
        "train: 21 windows; 3 texts were cut, by 12 windows, which a larger --max_windows" in said
    )
    first = said.split("first record (label yes): ")[1].splitlines()[0]
    assert first == f"[CLS] {texts[0]} [SEP]"
    manifest = json.loads((tmp_path / "train.manifest.json").read_text())
    assert manifest["extra"] == {"doc_stride": 4, "max_windows": 3}
    records = TaskRecords.open(path)
    assert (records.max_seq_length, records.max_windows) == (13, 3)
    counted = TaskRecords(
        path, "classification", records._schema, max_windows=3, vocab_size=len(load_vocab(VOCAB))
    )
    np.testing.assert_array_equal(counted.lengths, records.lengths)
    expected = glue.pack_documents([(t, None) for t in texts], tokenizer, TextRule(13, 4, 3))
    by_name = {n: np.asarray(expected[n]).reshape(-1, 3, 13) for n in INPUTS}
    seen, shapes = [], set()
    order = records.order.evaluation_order(3, group_by_length=True)
    dataset = records.evaluation_dataset(batch_size=3, group_by_length=True)
    for numbers, (inputs, labels, _) in zip(order, dataset, strict=True):
        numbers = numbers[numbers >= 0]
        seen += numbers.tolist()
        windows, length = inputs["input_ids"].shape[1:]
        shapes.add((windows, length))
        for name in INPUTS:
            np.testing.assert_array_equal(
                inputs[name], by_name[name][numbers][:, :windows, :length]
            )
            assert not by_name[name][numbers][:, windows:].any()
            assert not by_name[name][numbers][:, :, length:].any()
        names = [records.label_names[label] for label in labels.numpy()]
        assert names == [("yes", "no")[number % 2] for number in numbers]
    # Documents with like numbers of windows come together, and short ones alone are cut.
    assert sorted(seen) == list(range(11)) and shapes == {(1, 13), (2, 13), (3, 13)}
    (inputs, *_), *_ = records.evaluation_dataset(batch_size=2, pad_to_max=True)
    assert inputs["input_ids"].shape == (2, 3, 13)
    # All sizes are known before there are data, as TPUs want them.
    padded = records.training_dataset(batch_size=2, pad_to_max=True).element_spec[0]
    assert {tuple(spec.shape) for spec in padded.values()} == {(2, 3, 13)}
    counted.lengths[4] = 26  # of other records
    with pytest.raises(Exception, match="a record has more windows than its length says"):
        list(counted.evaluation_dataset(batch_size=11, group_by_length=False).take(1))
        list(counted.evaluation_dataset(batch_size=1).skip(4).take(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--doc_stride=12"],
            "doc_stride must be at most 11, the pieces of a window that max_seq_",
        ),
        (["--doc_stride=0"], "doc_stride: expected at least 1, got 0"),
        (["--doc_stride=4", "--max_windows=0"], "max_windows: expected at least 1, got 0"),
        (
            ["--doc_stride=4", "--text_b_column=u", "--max_query_length=7"],
            "doc_stride must be at most 3, .* beside 3 special tokens and max_query_length 7, got",
        ),
    ],
)
def test_refuses_windows_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        _make(tmp_path, texts_of(3, 4), *options)


def test_other_kinds_have_no_such_windows(tmp_path):
    from bert_tf.records.schema import multiple_choice_features
    from bert_tf.tasks.table import TASKS

    with pytest.raises(ValueError, match="doc_stride: is for texts to classify, got the task swag"):
        extra_settings(TASKS["swag"], windows=WindowOptions(doc_stride=4))
    assert extra_settings(TASKS["mrpc"], windows=WindowOptions()) == {}
    for name in ("max_windows", "max_query_length"):
        with pytest.raises(ValueError, match=f"{name}: needs --doc_stride, which cuts texts into"):
            extra_settings(TASKS["mrpc"], windows=WindowOptions(**{name: 3}))
    windows = WindowOrSpanOptions(max_windows=3)
    for name in ("squad1.1", "ner"):
        with pytest.raises(ValueError, match="max_windows: is for texts to classify, got the task"):
            extra_settings(TASKS[name], TaggedOptions(), windows.spans, windows)
        with pytest.raises(ValueError, match="max_windows: is for texts to classify, got a task"):
            text_rule(FeatureSettings(TASKS[name], 9, {"max_windows": 3}))
    assert windows.spans == SpanOptions()
    with pytest.raises(ValueError, match="max_windows: is for texts to classify, got 3 for multip"):
        TaskRecords(
            "x", "multiple_choice", multiple_choice_features(5, 2), num_choices=2, max_windows=3
        )
