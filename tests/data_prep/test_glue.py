"""Tests of reading GLUE: the original's features exactly, bad files, TFDS folders, submissions."""

import collections
import hashlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from bert_tf.records.decoding import decode_example
from bert_tf.records.encoding import encode_examples
from bert_tf.records.schema import (
    classification_features,
    multi_label_features,
    regression_features,
)
from bert_tf.tasks.table import TASKS
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import glue
from data_prep.finetuning.glue import TextExample
from data_prep.finetuning.sources import tfds_source

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "classification"
OWN = json.loads((GOLDEN / "own.json").read_text(encoding="utf-8"))
DIGESTS = json.loads((GOLDEN / "digests.json").read_text(encoding="utf-8"))


def _read_split(task, folder, split, **options):
    return glue.read_file(task, glue.split_path(task, folder, split), split, **options)


def _load_make_golden():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load_make_golden()


@pytest.fixture(scope="module")
def tokenizer():
    return FullTokenizer(golden.TINY_VOCAB, do_lower_case=True)


def _features(task, path, split, tokenizer, length):
    examples = list(glue.read_file(TASKS[task], str(path), split))
    task = TASKS[task]
    return glue.make_features(examples, tokenizer, length, task.kind, task.labels)


def _rows(arrays):
    names = ("input_ids", "input_mask", "segment_ids", "label_ids")
    for row in zip(*(arrays[name] for name in names), strict=True):
        *inputs, label_ids = row
        yield *inputs, label_ids[0]


# Against the original.


@pytest.mark.parametrize("length", golden.OWN_LENGTHS)
@pytest.mark.parametrize("name", golden.OWN_FILES)
def test_own_sentences_equal_the_original(name, length, tokenizer):
    task, file, split = golden.OWN_FILES[name]
    arrays = _features(task, GOLDEN / file, split, tokenizer, length)
    expected = OWN[f"{name}-{length}"]
    assert len(expected) == 10
    found = [[*map(np.ndarray.tolist, inputs), int(label)] for *inputs, label in _rows(arrays)]
    assert found == expected
    assert arrays["is_real_example"].tolist() == [[1]] * 10


@pytest.mark.parametrize("name", golden.FILES)
@pytest.mark.parametrize("setting", golden.SETTINGS)
def test_real_files_equal_the_original(setting, name, shared_data):
    task, file, split = golden.FILES[name]
    vocab, do_lower_case, length = golden.SETTINGS[setting]
    tokenizer = FullTokenizer(shared_data / "vocab" / vocab, do_lower_case)
    arrays = _features(task, shared_data / "glue" / file, split, tokenizer, length)
    rows = [golden.canonical(*row) for row in _rows(arrays)]
    expected = DIGESTS[f"{setting} {name}"]
    assert len(rows) == expected["rows"]
    if "each" in expected:
        size = golden.DIGEST_CHARS
        for number, row in enumerate(rows):
            digest = expected["each"][number * size : (number + 1) * size]
            assert golden.row_digest(row) == digest, f"example {number}"
    assert hashlib.sha256(b"\n".join(rows)).hexdigest() == expected["sha256"]


# Real files of every task.

COUNTS = {
    "cola": {"train": 8551, "dev": 1043, "test": 1063},
    "sst-2": {"train": 67349, "dev": 872, "test": 1821},
    "mrpc": {"train": 3667, "dev": 408, "test": 1725},
    "sts-b": {"train": 5749, "dev": 1500, "test": 1379},
    "qqp": {"train": 8999, "dev": 1000},
    "mnli": {"train": 8999, "dev": 1000},
    "qnli": {"train": 8999, "dev": 5463, "test": 5463},
    "rte": {"train": 2490, "dev": 277, "test": 3000},
    "wnli": {"train": 635, "dev": 71, "test": 146},
    "ax": {"test": 1104},
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_task_is_read_whole(name, shared_data):
    task = TASKS[name]
    folder = shared_data / "glue" / task.folder
    assert glue.available_splits(task, folder) == list(COUNTS[name])
    for split, count in COUNTS[name].items():
        examples = list(_read_split(task, folder, split))
        assert len(examples) == count
        assert len({e.guid for e in examples}) == count
        assert all((e.text_b is not None) == task.has_pairs for e in examples)
        if split == "test":
            assert {e.label for e in examples} == {None}
        elif task.kind == "regression":
            assert 0 <= min(e.label for e in examples) < max(e.label for e in examples) <= 5
        else:
            assert {e.label for e in examples} == set(task.labels)


def test_official_columns_of_qqp(shared_data):
    path = shared_data / "glue/official_columns/QQP/train_16-13.tsv"
    examples = list(glue.read_file(TASKS["qqp"], str(path), "train"))
    assert len(examples) == 32
    line = path.read_text(encoding="utf-8").split("\n")[5].split("\t")
    assert (examples[4].text_a, examples[4].text_b, examples[4].label) == tuple(line[3:])
    assert examples[4].guid == f"train-{line[0]}" and examples[4].location == f"{path}, line 6"


# Files as they come.


def _write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def _read(folder, name, split="train", **options):
    return list(_read_split(TASKS[name], folder, split, **options))


def test_quotes_tabs_and_line_ends_are_plain(tmp_path):
    text = (
        "\ufeffsentence1\tsentence2\tlabel\r\n"
        '"open\tit\'s "" here"\tentailment\r\n'
        "a\x0b\x0c\x1c\x85\u2028b\tc\rd\tnot_entailment\r\n"
        "\n"
        "last\t\tentailment"
    )
    path = _write(tmp_path, "train.tsv", text)
    assert _read(tmp_path, "rte") == [
        TextExample("train-1", '"open', 'it\'s "" here"', "entailment", f"{path}, line 2"),
        TextExample(
            "train-2", "a\x0b\x0c\x1c\x85\u2028b", "c\rd", "not_entailment", f"{path}, line 3"
        ),
        TextExample("train-4", "last", "", "entailment", f"{path}, line 5"),
    ]


def test_columns_are_found_by_name_in_any_order(tmp_path):
    _write(tmp_path, "dev.tsv", "Label\tid\tx\tSentence\n1\t7\t?\tyes\n")
    for name in ("sst-2", "cola"):
        (example,) = _read(tmp_path, name, "dev")
        assert (example.guid, example.text_a, example.label) == ("dev-7", "yes", "1")


def test_cola_without_a_header_has_official_positions(tmp_path):
    _write(tmp_path, "train.tsv", "gj04\t1\t\tA b.\ngj04\t0\t*\tC d.")
    assert [(e.guid, e.text_a, e.text_b, e.label) for e in _read(tmp_path, "cola")] == [
        ("train-0", "A b.", None, "1"),
        ("train-1", "C d.", None, "0"),
    ]
    _write(tmp_path, "test.tsv", "index\tsentence\n5\tE f.\n")
    (example,) = _read(tmp_path, "cola", "test")
    assert (example.guid, example.text_a, example.label) == ("test-5", "E f.", None)


def test_a_test_file_without_an_index_is_counted_from_0_as_submissions_are(tmp_path):
    _write(tmp_path, "test.tsv", "sentence\nA b.\nC d.\n")
    examples = _read(tmp_path, "cola", "test")
    assert [example.guid for example in examples] == ["test-0", "test-1"]
    glue.write_submission(tmp_path / "CoLA.tsv", TASKS["cola"], examples, [1, 0])
    assert (tmp_path / "CoLA.tsv").read_text() == "index\tprediction\n0\t1\n1\t0\n"


def test_test_splits_need_and_read_no_labels(tmp_path):
    _write(tmp_path, "test_matched.tsv", "index\tsentence1\tsentence2\tgold_label\n3\ta\tb\thidden")
    (example,) = _read(tmp_path, "mnli", "test_matched")
    assert example.label is None and example.guid == "test_matched-3"


def test_pairs_without_a_gold_label_are_left_out(tmp_path):
    header = "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    path = _write(
        tmp_path, "dev_matched.tsv", header + "0\ta\tb\tneutral\t-\n1\tc\td\tneutral\tneutral\n"
    )
    skipped = []
    (example,) = _read(tmp_path, "mnli", "dev_matched", on_skip=skipped.append)
    assert example.guid == "dev_matched-1"
    assert skipped == [f"{path}, line 2: no gold label"]
    assert _read(tmp_path, "mnli", "dev_matched") == [example]
    _write(tmp_path, "dev.tsv", "sentence1\tsentence2\tlabel\na\tb\t-\n")
    with pytest.raises(ValueError, match="unknown label '-'"):
        _read(tmp_path, "rte", "dev")


BAD_LINES = [
    ("a\tentailment", "expected 3 columns, got 2"),
    ("a\tb\tentailment\tc", "expected 3 columns, got 4"),
    ("a\tb\tmaybe", "unknown label 'maybe': expected one of entailment, not_entailment"),
    ("a\tb\t", "unknown label '': expected one of entailment, not_entailment"),
    (b"a\xff\tb\tentailment", "not UTF-8"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named_and_can_be_left_out(tmp_path, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    good = b"x\ty\tentailment\n"
    path = _write(
        tmp_path, "train.tsv", b"sentence1\tsentence2\tlabel\n" + good + line + b"\n" + good
    )
    with pytest.raises(ValueError) as error:
        _read(tmp_path, "rte")
    assert str(error.value).startswith(f"{path}, line 3: {message}")
    messages = []
    examples = _read(tmp_path, "rte", on_bad=messages.append)
    assert [e.location for e in examples] == [f"{path}, line 2", f"{path}, line 4"]
    assert messages == [str(error.value)]


@pytest.mark.parametrize("score", ["", "five", "nan", "inf"])
def test_a_score_must_be_a_number(tmp_path, score):
    _write(tmp_path, "train.tsv", f"sentence1\tsentence2\tscore\na\tb\t{score}\n")
    with pytest.raises(ValueError, match="train.tsv, line 2: expected a finite number as label"):
        _read(tmp_path, "sts-b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.tsv: no examples"),
        ("\n\n", "train.tsv: no examples"),
        ("sentence1\tsentence2\tlabel\n", "train.tsv: no examples"),
        ("sentence1\tlabel\na\tentailment\n", "train.tsv, line 1: expected a header with column"),
        ("a\tb\tentailment\n", "line 1: expected a header with column 'sentence1', 'sentence2', "),
        ("sentence1\tsentence2\tlabel\tLabel\n", "line 1: column 'label' stands twice"),
        (b"\xff\xfes\x00", "train.tsv, line 1: not UTF-8"),
    ],
)
def test_a_bad_file_is_always_an_error(tmp_path, text, message):
    _write(tmp_path, "train.tsv", text)
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, "rte", on_bad=lambda message: None)


def test_missing_files_say_what_is_there(tmp_path):
    (tmp_path / "MRPC").mkdir()
    _write(tmp_path, "dev.tsv", "")
    with pytest.raises(FileNotFoundError, match="mrpc: no test.tsv in .*; the folder has dev.tsv"):
        _read(tmp_path, "mrpc", "test")
    _write(tmp_path / "MRPC", "test.tsv", "")
    with pytest.raises(FileNotFoundError, match="it lies in .*MRPC: give that folder"):
        _read(tmp_path, "mrpc", "test")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        _read(tmp_path / "x", "mrpc", "test")
    with pytest.raises(ValueError, match="task swag is not of GLUE"):
        _read(tmp_path, "swag")


def test_reading_streams(tmp_path):
    _write(tmp_path, "train.tsv", "sentence\tlabel\ngood\t1\nbad\tx\n")
    reader = _read_split(TASKS["sst-2"], tmp_path, "train")
    assert next(reader).text_a == "good"
    with pytest.raises(ValueError, match="line 3"):
        next(reader)


# Features.


def _example(label, text_b=None):
    return TextExample("dev-1", "hello world", text_b, label, "x.tsv, line 2")


def test_features_match_their_schemas(tokenizer):
    labels = ("u", "v", "w")
    for kind, schema, label, expected in (
        ("classification", classification_features(13), "w", [2]),
        ("classification", classification_features(13), None, [0]),
        ("regression", regression_features(13), 2.5, [2.5]),
        ("regression", regression_features(13), None, [0]),
        ("multi_label", multi_label_features(13, 3), ("w", "u"), [1, 0, 1]),
        ("multi_label", multi_label_features(13, 3), (), [0, 0, 0]),
        ("multi_label", multi_label_features(13, 3), None, [0, 0, 0]),
    ):
        arrays = glue.make_features([_example(label)] * 5, tokenizer, 13, kind, labels)
        assert arrays["label_ids"].tolist() == [expected] * 5
        (record, *_) = encode_examples(schema, arrays)
        decoded = decode_example(record, schema)
        assert decoded["label_ids"].tolist() == expected
        assert decoded["input_ids"].tolist() == [3, 11, 12, 4] + [0] * 9
        assert decoded["input_mask"].sum() == 4
    with pytest.raises(ValueError, match="x.tsv, line 2: unknown label 'z': expected one of u, v"):
        glue.make_features([_example("z")], tokenizer, 13, "classification", labels)
    with pytest.raises(ValueError, match="kind must be classification, regression or multi_label"):
        glue.make_features([_example("z")], tokenizer, 13, "span", labels)
    with pytest.raises(ValueError, match="max_seq_length must be at least 3, got 2"):
        glue.make_features([_example("u", "now")], tokenizer, 2, "classification", labels)
    assert glue.make_features([], tokenizer, 13, "regression", None)["input_ids"].shape == (0, 13)


# TensorFlow Datasets. In a process of its own, since importing it warns and takes seconds.

_TFDS = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import tensorflow_datasets as tfds
from bert_tf.tasks.table import TASKS
from data_prep.finetuning import glue

ROWS = [("a b", "c", 1, 7), ("\\u00e9", "", 0, 3), ("d", "e", 2, 5)]

def prepare(config, features, rows_of_split, root):
    with tfds.core.registered.skip_registration():
        class Glue(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("2.0.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)]
            name = "glue"
            def _info(self):
                features_dict = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features_dict)
            def _split_generators(self, manager):
                return {split: self._rows(rows) for split, rows in rows_of_split.items()}
            def _rows(self, rows):
                for row in rows:
                    yield row["idx"], row
            def _generate_examples(self):
                raise NotImplementedError
    Glue(data_dir=root, config=config).download_and_prepare()

root = sys.argv[1]
names = ["entailment", "neutral", "contradiction"]
text, idx = tfds.features.Text(), np.int32
rows = [dict(premise=a, hypothesis=b, label=l, idx=i) for a, b, l, i in ROWS]
hidden = [dict(row, label=-1) for row in rows]
prepare("mnli", dict(premise=text, hypothesis=text,
                     label=tfds.features.ClassLabel(names=names), idx=idx),
        {"train": rows, "validation_matched": rows[:2], "test_matched": hidden}, root)
rows = [dict(sentence=a, label=l % 2, idx=i) for a, b, l, i in ROWS]
prepare("cola", dict(sentence=text, idx=idx,
                     label=tfds.features.ClassLabel(names=["unacceptable", "acceptable"])),
        {"validation": rows}, root)
rows = [dict(sentence1=a, sentence2=b, label=l + .5, idx=i) for a, b, l, i in ROWS]
prepare("stsb", dict(sentence1=text, sentence2=text, label=np.float32, idx=idx),
        {"train": rows}, root)

def show(task, split, folder=root):
    for e in sorted(glue.read_tfds(TASKS[task], split, folder), key=lambda e: e.guid):
        print(ascii((task, e.guid, e.text_a, e.text_b, e.label)))

print("READ")
show("mnli", "train")
show("mnli", "dev_matched")
show("mnli", "test_matched")
show("cola", "dev", glue.tfds_folder(TASKS["cola"], root))
show("sts-b", "train")
for task, split, folder in [("mnli", "dev_mismatched", root), ("rte", "train", root)]:
    try:
        show(task, split, folder)
    except (ValueError, FileNotFoundError) as error:
        print(type(error).__name__, error)

from data_prep.finetuning import prepare as data
from data_prep.finetuning.sources import tfds_source
source = tfds_source(TASKS["mnli"], root, "train")
for again in (False, True):
    settings = data.FeatureSettings(TASKS["mnli"], 11)
    made = data.prepare(source, settings, data.TokenizerSettings(sys.argv[2]), root + "/cache",
                        num_workers=2, show_progress=False)
    print(made.num_examples, made.from_cache)
"""


def test_the_newest_version_of_a_prepared_folder_is_taken(tmp_path):
    task = TASKS["mrpc"]
    for version in ("1.9.0", "1.10.0", "2.0.0.incomplete", "3.0.0"):
        folder = tmp_path / "glue" / "mrpc" / version
        folder.mkdir(parents=True)
        if version != "3.0.0":
            (folder / "dataset_info.json").write_text("{}")
    newest = str(tmp_path / "glue" / "mrpc" / "1.10.0")
    assert glue.tfds_folder(task, tmp_path) == glue.tfds_folder(task, newest) == newest
    (pathlib.Path(newest) / "subfolder").mkdir()
    source = tfds_source(task, str(tmp_path), "test")
    assert source.files == (f"{newest}/dataset_info.json",) and not source.labelled


def test_prepared_examples_by_a_stand_in(tmp_path, monkeypatch):
    """What is read and refused; a slow test reads folders that TFDS has prepared."""
    (tmp_path / "dataset_info.json").write_text("{}")
    rows = [
        {"sentence1": b"a", "sentence2": "\u00e9".encode(), "label": 1, "idx": 7},
        {"sentence1": b"", "sentence2": b"d", "label": 5, "idx": 3},
        {"sentence1": b"e", "sentence2": b"f", "label": 0},
    ]
    features = {"sentence1": None, "sentence2": None, "idx": None}
    label = types.SimpleNamespace(names=["not_equivalent", "equivalent"])
    info = types.SimpleNamespace(
        splits={"train": 3, "validation": 3, "test": 3}, features={**features, "label": label}
    )
    asked = []
    builder = types.SimpleNamespace(
        info=info, as_dataset=lambda split, shuffle_files: asked.append(split) or rows
    )
    stand_in = types.SimpleNamespace(builder_from_directory=lambda _: builder, as_numpy=iter)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)
    bad, task = [], TASKS["mrpc"]
    found = [
        (x.guid, x.text_a, x.text_b, x.label)
        for x in glue.read_tfds(task, "dev", tmp_path, bad.append)
    ]
    assert found == [("dev-7", "a", "\u00e9", "1"), ("dev-2", "e", "f", "0")]
    assert bad == [f"{tmp_path}, dev example 1: unknown label '5': expected one of 0, 1"]
    source = tfds_source(task, str(tmp_path), "test")
    assert [x.label for x in source.read(None, None)] == 3 * [None]
    assert asked == ["validation", "test"]
    with pytest.raises(ValueError, match="no split 'x'; it has test, train, validation"):
        list(glue.read_tfds(task, "x", tmp_path))
    info.features = features
    with pytest.raises(ValueError, match="no feature 'label'; it has sentence1, sentence2, idx"):
        list(glue.read_tfds(task, "dev", tmp_path))
    assert glue._tfds_label(TASKS["sts-b"], 2.5, None) == 2.5


@pytest.mark.slow
def test_prepared_tfds_folders_give_the_official_examples(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _TFDS, str(tmp_path), str(golden.TINY_VOCAB)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("READ\n")[1].splitlines() == [
        r"('mnli', 'train-3', '\xe9', '', 'entailment')",
        "('mnli', 'train-5', 'd', 'e', 'contradiction')",
        "('mnli', 'train-7', 'a b', 'c', 'neutral')",
        r"('mnli', 'dev_matched-3', '\xe9', '', 'entailment')",
        "('mnli', 'dev_matched-7', 'a b', 'c', 'neutral')",
        r"('mnli', 'test_matched-3', '\xe9', '', None)",
        "('mnli', 'test_matched-5', 'd', 'e', None)",
        "('mnli', 'test_matched-7', 'a b', 'c', None)",
        r"('cola', 'dev-3', '\xe9', None, '0')",
        "('cola', 'dev-5', 'd', None, '0')",
        "('cola', 'dev-7', 'a b', None, '1')",
        r"('sts-b', 'train-3', '\xe9', '', 0.5)",
        "('sts-b', 'train-5', 'd', 'e', 2.5)",
        "('sts-b', 'train-7', 'a b', 'c', 1.5)",
        f"ValueError {tmp_path}/glue/mnli/2.0.0: no split 'validation_mismatched'; it has "
        "test_matched, train, validation_matched",
        f"FileNotFoundError rte: no prepared TFDS data in {tmp_path}: expected dataset_info.json "
        f"there or in {tmp_path}/glue/rte/<version>",
        "3 False",
        "3 True",
    ]


def test_tfds_classes_have_the_official_labels():
    """The names in tensorflow_datasets/text/glue.py, by task."""
    tfds = {
        "cola": ["unacceptable", "acceptable"],
        "sst-2": ["negative", "positive"],
        "mrpc": ["not_equivalent", "equivalent"],
        "qqp": ["not_duplicate", "duplicate"],
        "mnli": ["entailment", "neutral", "contradiction"],
        "qnli": ["entailment", "not_entailment"],
        "rte": ["entailment", "not_entailment"],
        "wnli": ["not_entailment", "entailment"],
    }
    for name, classes in tfds.items():
        found = [glue._tfds_label(TASKS[name], i, classes) for i in range(len(classes))]
        expected = ["0", "1"] if TASKS[name].labels == ("0", "1") else classes
        assert found == expected
        with pytest.raises(ValueError, match="unknown label '-1': expected one of"):
            glue._tfds_label(TASKS[name], -1, classes)


# Submissions.


def test_submission_of_labels(tmp_path):
    path = tmp_path / glue.submission_file_name(TASKS["mnli"], "test_mismatched")
    assert path.name == "MNLI-mm.tsv"
    examples = [TextExample(f"test_mismatched-{i}", "", "", None, "") for i in (2, 0, 10)]
    glue.write_submission(path, TASKS["mnli"], examples, [2, "entailment", np.int64(0)])
    assert path.read_bytes() == (
        b"index\tprediction\n0\tentailment\n2\tneutral\n10\tcontradiction\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["MNLI-mm.tsv"]


def test_submission_of_scores_stays_in_range(tmp_path):
    glue.write_submission(tmp_path / "x", TASKS["sts-b"], [0, 1, 2], np.array([-0.5, 2.25, 5.5]))
    assert (tmp_path / "x").read_text() == (
        "index\tprediction\n0\t0.00000\n1\t2.25000\n2\t5.00000\n"
    )


def test_submission_names_are_gluebenchmarks():
    names = {
        glue.submission_file_name(TASKS[name], split)
        for name in glue.GLUE_TASKS
        for split in TASKS[name].test_splits
    }
    assert names == {
        f"{name}.tsv"
        for name in "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX".split()
    }
    with pytest.raises(ValueError, match="mnli: split must be one of test_matched, test_mism"):
        glue.submission_file_name(TASKS["mnli"])
    with pytest.raises(ValueError, match="task swag is not of GLUE"):
        glue.submission_file_name(TASKS["swag"])


@pytest.mark.parametrize(
    ("ids", "predictions", "message"),
    [
        ([0, 1], ["1"], "predictions: expected 2, one for each example, got 1"),
        ([0, 0], ["1", "1"], "number 0 comes twice"),
        (["x"], ["1"], "expected the number of a test example, got 'x'"),
        ([0], ["yes"], "expected one of 0, 1, or its id, for example 0; got 'yes'"),
        ([0], [2], "expected one of 0, 1"),
        ([0], [0.5], "expected one of 0, 1"),
        ([0], [-1], "expected one of 0, 1"),
    ],
)
def test_submissions_that_cannot_be(tmp_path, ids, predictions, message):
    with pytest.raises(ValueError, match=message):
        glue.write_submission(tmp_path / "x", TASKS["wnli"], ids, predictions)
    assert list(tmp_path.iterdir()) == []


def test_a_score_of_nan_cannot_be_submitted(tmp_path):
    with pytest.raises(ValueError, match="expected a number for example 0, got nan"):
        glue.write_submission(tmp_path / "x", TASKS["sts-b"], [0], [float("nan")])


def test_majority_label():
    assert glue.majority_label(["1", "0", "1"]) == "1"
    assert glue.majority_label(["1", "0", "1", "0"]) == "0"
    with pytest.raises(ValueError, match="expected at least one, got none"):
        glue.majority_label([])


def test_majority_label_of_wnli(shared_data):
    labels = [e.label for e in _read_split(TASKS["wnli"], shared_data / "glue/WNLI", "train")]
    counts = collections.Counter(labels)
    assert glue.majority_label(labels) == max(counts, key=counts.get)


def test_kinds_of_glue_are_those_of_texts():
    assert {TASKS[name].kind for name in glue.GLUE_TASKS} == {"classification", "regression"}
    assert set(glue.GLUE_TASKS) < set(TASKS)
