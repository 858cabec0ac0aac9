"""Parts of a training set: each example is held out once, and no text is on both sides."""

import csv
import json
from collections import Counter

import pytest

from bert_tf.tasks.table import TASKS, custom_task, get_task
from data_prep.finetuning.folds import Fold, unit_of, with_fold
from data_prep.finetuning.sources import TaggedOptions, file_source, table_source, tagged_source
from data_prep.finetuning.tables import Columns

COUNT = 5


def parts_of(task, source, count=COUNT, **given):
    """Return of each fold what is trained on, and what is held out."""
    folds = []
    for number in range(count):
        sources = Fold(number, count).sources(task, source, **given)
        assert [one.split for one in sources] == ["train", "dev"]
        folds.append([list(one.read(None, None)) for one in sources])
    return folds


def check(task, source, count=COUNT, **given):
    """Check that every example is held out once, and shares no text with training."""
    folds = parts_of(task, source, count, **given)
    whole = list((given.get("held_out") or source).read(None, None))
    held_out = [example for _, part in folds for example in part]
    assert Counter(map(repr, held_out)) == Counter(map(repr, whole))
    for train, part in folds:
        assert train and part
        assert not {unit_of(task, x) for x in train} & {unit_of(task, x) for x in part}
    return folds


@pytest.fixture
def table(tmp_path):
    """Return the source of 61 notes of three labels, some of which stand there twice."""
    path = tmp_path / "train.csv"
    rows = [(f"note {n}", "ab"[n % 2] if n % 6 else "c") for n in range(56)]
    rows += [("note 1", "a"), ("note 1", "b"), ("note 2", "a"), ("note 6", "c"), ("note 7", "b")]
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    task = custom_task("classification", ("a", "b", "c"), False)
    return task, table_source(task, path, "train", Columns(text="text", label=("label",)))


def test_labels_are_spread_and_texts_that_come_twice_stay_together(table):
    task, source = table
    folds = check(task, source)
    for _, part in folds:
        distinct = {example.text_a: example.label for example in part}
        counts = Counter(distinct.values())
        assert counts["c"] == 2 and 10 <= len(distinct) <= 12 and 3 <= counts["a"] <= 4
    # The same each time, and told apart from other parts.
    assert parts_of(task, source) == folds
    settings = [Fold(n, k).sources(task, source)[1].settings["fold"] for n, k in ((0, 5), (1, 5))]
    assert settings[0]["parts"] == settings[1]["parts"] and settings[0] != settings[1]
    assert Fold(0, 4).sources(task, source)[1].settings["fold"]["parts"] != settings[0]["parts"]


def test_texts_that_differ_in_case_spaces_or_order_stay_together(tmp_path):
    """Told by the first letters, which are one for all writings of a text."""
    path = tmp_path / "train.csv"
    rows = []
    for letter in "abcdefghijklmnopqrst":
        one, two = f"{letter} Good  film", f"{letter} \ufb01ne"
        rows += [(one, two), (two, one), (one.lower(), two), (f" {one} ", two.upper())]
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([("a", "b", "label"), *((*row, "x") for row in rows)])
    task = custom_task("classification", ("x", "y"), True)
    source = table_source(task, path, "train", Columns("a", "b", ("label",)))
    for train, part in parts_of(task, source):
        letters = [{x.text_a.strip()[0].lower() for x in side} for side in (train, part)]
        assert len(part) == 16 and not letters[0] & letters[1]


def test_numbers_are_parted_too_and_bad_examples_left_out(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"t{n},{n / 3}\n" for n in range(12)) + "bad,much\n")
    task = custom_task("regression", None, False)
    source = table_source(task, path, "train", Columns(text="text", label=("label",)))
    with pytest.raises(ValueError, match="line 14"):
        Fold(0, 3).sources(task, source)
    sources = Fold(0, 3).sources(task, source, on_bad=lambda message: None)
    bad = []
    assert [len(list(one.read(bad.append, None))) for one in sources] == [8, 4] and len(bad) == 2


def test_few_examples(table, tmp_path, caplog):
    path = tmp_path / "few.csv"
    path.write_text("text,label\nx,a\ny,a\nz,a\nx,a\nv,b\n")
    task, columns = (
        custom_task("classification", ("a", "b"), False),
        Columns("text", None, ("label",)),
    )
    source = table_source(task, path, "train", columns)
    check(task, source, 3)
    assert "fewer than 3 examples have the label b, so that parts have none" in caplog.text
    check(task, source, 4)  # more than of any label
    with pytest.raises(
        ValueError, match=r"folds: expected at most 4, the different examples of .*few.csv, got 5"
    ):
        Fold(0, 5).sources(task, source)
    with pytest.raises(ValueError, match="folds: custom has no train split"):
        with_fold(Fold(0, 3), task, [])
    for number, count in ((0, 1), (3, 3), (-1, 3)):
        with pytest.raises(ValueError, match="folds: expected at least 2 and a number below"):
            Fold(number, count)
    assert with_fold(None, task, [source]) == [source]


def test_sentences_documents_questions_and_choices(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("".join(f"w{n} O\n{'-DOCSTART- O' if n % 3 == 2 else ''}\n" for n in range(18)))
    ner = TASKS["ner"]
    assert len(check(ner, tagged_source(path, "train"))[0][1]) == 4
    documents = tagged_source(path, "train", TaggedOptions(document_context=True))
    folds = check(ner, documents, 3)
    assert all(len(group) > 1 for _, part in folds for group in part)
    with pytest.raises(ValueError, match="at most 6, the different sentences or documents of"):
        Fold(0, 9).sources(ner, documents)

    def paragraph(n):
        answer = {"text": f"w{n}", "answer_start": 0}
        qas = [{"id": f"{n}-{k}", "question": "Who?", "answers": [answer]} for k in range(3)]
        return {"context": f"w{n} is there", "qas": qas}

    path = tmp_path / "train.json"
    content = {"data": [{"title": "t", "paragraphs": [paragraph(n) for n in range(7)]}]}
    path.write_text(json.dumps(content))
    task = get_task("squad1.1")
    train, dev = (file_source(task, path, split) for split in ("train", "dev"))
    folds = check(task, train, held_out=dev)
    assert all(example.answers for _, part in folds for example in part)
    assert all(example.start_position == 0 for part, _ in folds for example in part)
    path = tmp_path / "train.csv"
    header = ["video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source"]
    rows = [["v", n, "", f"s{n // 2}", "He", "g", f"a{n}", "b", n % 2] for n in range(12)]
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([[*header, "ending0", "ending1", "label"], *rows])
    task = TASKS["swag"]
    check(task, file_source(task, path, "train"))
