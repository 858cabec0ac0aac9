"""Tests of the script that makes records of fine-tuning tasks."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from bert_tf.records.decoding import read_examples
from bert_tf.records.files import scan_records
from bert_tf.records.schema import (
    classification_features,
    span_features,
    token_classification_features,
)
from data_prep.finetuning import task_records
from data_prep.finetuning.options import DataOptions, TaskRecordsOptions, find_sources
from tests.support import command_options

ROOT = pathlib.Path(__file__).parents[2]
VOCAB = pathlib.Path(__file__).parents[1] / "golden" / "tokenization" / "tiny_vocab.txt"


def _sources(*arguments):
    required = [f"--vocab_file={VOCAB}", "--output_dir=out"]
    options = command_options.parse(TaskRecordsOptions, [*required, *arguments])
    return find_sources(options.data, options.tagged, options.spans)


def _run(*arguments, vocab=VOCAB):
    command = [sys.executable, "-m", "data_prep.create_finetuning_data", f"--vocab_file={vocab}"]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def _write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_task_of_glue(tmp_path):
    _write(tmp_path, "train.tsv", "sentence\tlabel\nhello world\t1\nstop\t0\n")
    _write(tmp_path, "test.tsv", "index\tsentence\n0\tnow\n")
    out = tmp_path / "made" / "here"
    arguments = ["--task_name=SST2", f"--data_dir={tmp_path}", f"--output_dir={out}"]
    done = _run(*arguments, "--max_seq_length=7")
    assert done.returncode == 0, done.stderr
    size = (out / "train.tfrecord").stat().st_size
    assert done.stdout.splitlines() == [
        "train: 2 examples, 2 records, 7 tokens, unknown 0.00%, padding 50.0%, 0 of full length",
        "first record (label 1): [CLS] hello world [SEP]",
        f"wrote {out}/train.tfrecord ({size:,} bytes)",
        "test: 1 examples, 1 records, 3 tokens, unknown 0.00%, padding 57.1%, 0 of full length",
        "first record: [CLS] now [SEP]",
        f"wrote {out}/test.tfrecord ({(out / 'test.tfrecord').stat().st_size:,} bytes)",
    ]
    # The header is no example.
    assert re.search(r"^sst-2 train: 100%.* 2\.00/2\.00 ", done.stderr, re.MULTILINE), done.stderr
    (first, second) = read_examples(out / "train.tfrecord", classification_features(7))
    assert first["input_ids"].tolist() == [3, 11, 12, 4, 0, 0, 0]
    assert (first["label_ids"], second["label_ids"]) == (1, 0)
    again = _run(*arguments, "--max_seq_length=7")
    assert f"found {out}/train.tfrecord" in again.stdout and "wrote" not in again.stdout
    # The task's own length is the default.
    assert _run(*arguments, "--splits=test").returncode == 0
    assert json.loads((out / "test.manifest.json").read_text())["max_seq_length"] == 128
    assert json.loads((out / "train.manifest.json").read_text())["max_seq_length"] == 7


def test_own_tables_with_bad_rows(tmp_path):
    train = _write(tmp_path, "train.csv", "t,c\nhello,good\nnow,bad\nstop\nstop,\nstop,good\n")
    dev = _write(tmp_path, "dev.csv", "t,c\nworld,worse\nworld,bad\n")
    arguments = [
        f"--train_file={train}",
        f"--dev_file={dev}",
        "--text_column=t",
        "--label_column=c",
        f"--output_dir={tmp_path / 'out'}",
    ]
    done = _run(*arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (f"create_finetuning_data: {train}, line 4: expected 2 columns, got 1\n")
    done = _run(*arguments, "--skip_bad_examples", "--max_bad_shown=1", "--max_seq_length=5")
    assert done.returncode == 0, done.stderr
    listed = tmp_path / "out" / "train.bad_examples.txt"
    assert f"train: left out 2 bad examples, listed in {listed}" in done.stdout
    assert "first record (label good): [CLS] hello [SEP]" in done.stdout
    assert len(listed.read_text().splitlines()) == 2
    shown = [line for line in done.stderr.splitlines() if line.startswith("bad example: ")]
    assert shown == [
        f"bad example: {train}, line 4: expected 2 columns, got 1",
        f"bad example: {dev}, line 2: unknown label 'worse': expected one of bad, good",
    ]
    manifest = json.loads((tmp_path / "out" / "dev.manifest.json").read_text())
    assert manifest["labels"] == ["bad", "good"]
    assert manifest["counts"]["bad_examples"] == manifest["counts"]["examples"] == 1


def test_choices_are_counted_in_the_file(tmp_path):
    path = _write(tmp_path, "x.csv", "sent1,sent2,ending0,ending1,ending2,label\na,b,c,d,e,2\n")
    task, (source,) = _sources("--task_name=swag", f"--dev_file={path}")
    assert task.num_choices == 3 and source.split == "dev"
    (example,) = source.read(None, None)
    assert example.label == 2


def test_flags_of_own_tables(tmp_path):
    path = _write(tmp_path, "x.txt", '1\t"a\tb"\tu;v\n2\tc\tw\n')
    task, (source,) = _sources(
        f"--train_file={path}",
        "--nohas_header",
        "--file_format=tsv",
        "--quotes",
        "--kind=multi_label",
        "--text_column=1",
        "--label_column=2",
        "--label_separator=;",
        "--labels=w,v,u",
        "--id_column=0",
    )
    assert task.kind == "multi_label" and task.labels == ("w", "v", "u") and not task.has_pairs
    found = [(e.guid, e.text_a, e.label) for e in source.read(None, None)]
    assert found == [("train-1", "a\tb", ("u", "v")), ("train-2", "c", ("w",))]


def _gold(*arguments):
    _, sources = _sources("--task_name=ner", "--tag_scheme=bio", *arguments)
    return {s.split: [" ".join(one.tags) for x in s.read(None, None) for one in x] for s in sources}


def test_what_tags_mean_is_one_in_all_files(tmp_path):
    train = _write(tmp_path, "a.conll", "New LOC\nYork LOC\nis O\n\nIda PER\n")
    dev = _write(tmp_path, "b.conll", "New LOC\nYork LOC\n\nIda PER\n")
    test = _write(tmp_path, "c.conll", "New LOC\nYork LOC\nis O\n")
    files = [f"--dev_file={dev}", f"--test_file={test}"]
    expected = {"dev": ["B-LOC I-LOC", "B-PER"], "test": ["B-LOC I-LOC O"]}
    assert _gold(*files, "--labels=O,B-LOC,I-LOC,B-PER") == expected
    assert _gold(*files, f"--train_file={train}") == {
        "train": ["B-LOC I-LOC O", "B-PER"],
        **expected,
    }
    # Parts of speech are words, and tags with forms are what they say, whatever those of train are.
    words = _write(tmp_path, "d.conll", "a LOC\nb LOC\nc PER\n")
    forms = _write(tmp_path, "e.conll", "New B-LOC\nYork U-LOC\nis O\n")
    found = _gold(f"--train_file={words}", f"--dev_file={dev}", f"--test_file={forms}")
    assert (found["dev"], found["test"]) == (["B-LOC B-LOC", "B-PER"], ["B-LOC B-LOC O"])
    assert _gold(f"--train_file={train}", f"--dev_file={forms}")["dev"] == ["B-LOC B-LOC O"]
    _, sources = _sources("--task_name=ner", f"--train_file={train}", *files)
    assert not any("scheme" in source.settings for source in sources)  # caches stay
    mixed = _write(tmp_path, "f.conll", "New B-LOC\n\nYork LOC\n")
    with pytest.raises(ValueError, match=rf"{mixed}, line 3: expected a tag, .* got 'LOC'"):
        _gold(f"--train_file={mixed}", f"--dev_file={dev}")
    with pytest.raises(ValueError, match=f"{forms}: its tags and the labels: .* got 'LOC', among"):
        _sources("--task_name=ner", f"--train_file={train}", f"--dev_file={forms}")


def test_tagged_words(tmp_path):
    train = _write(tmp_path, "a.conll", "-DOCSTART-\nhello I-X\nworld I-X\nnow O\n\nstop I-A\n")
    dev = _write(tmp_path, "b.conll", "stop B-Y\nhello B-X\nstop B-Y\n")
    test = _write(tmp_path, "c.conll", "hello\nnow\n")
    arguments = ["--task_name=ner", f"--train_file={train}", f"--dev_file={dev}"]
    arguments += [f"--test_file={test}", "--tag_scheme=bio", "--max_seq_length=7"]
    done = _run(*arguments, f"--output_dir={tmp_path}", "--document_context")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("train: ", "first"))]
    assert lines == [
        "train: 1 examples, 2 records, 12 tokens, unknown 0.00%, padding 14.3%, 0 of full length",
        "first record: [CLS] hello/B-X world/I-X now/O stop [SEP]",
        "first record: [CLS] stop/O hello/B-X stop/O [SEP]",
        "first record: [CLS] hello now [SEP]",
    ]
    told = f"{train}: column -1: 4 labels: O 1, B-A 1, B-X 1, I-X 1"
    assert told in done.stderr.splitlines()
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    doubts = ("pieces with accents", "pieces have capital letters")  # of the vocabulary
    for doubt in doubts:
        assert sum(doubt in line for line in warnings) == 3  # one for each file
    assert [line for line in warnings if not any(doubt in line for doubt in doubts)] == [
        f"warning: {dev}: 2 words have tags that are not among the labels (B-Y 2); "
        "no model predicts them, so they count as missed"
    ]
    found = list(read_examples(tmp_path / "train.tfrecord", token_classification_features(7)))
    assert [e["label_ids"].tolist() for e in found] == [
        [0, 2, 3, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
    ]
    assert [e["label_mask"].tolist() for e in found] == [
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
    ]
    manifests = [json.loads((tmp_path / f"{s}.manifest.json").read_text()) for s in ("dev", "test")]
    assert [m["labels"] for m in manifests] == [["O", "B-A", "B-X", "I-X"]] * 2
    assert [m["labelled"] for m in manifests] == [True, False]


def test_columns_and_labels_of_tagged_words(tmp_path):
    train = _write(tmp_path, "train.txt", "I-X 1 hello\nO 2 now\n\n")
    _write(tmp_path, "test.txt", "I-X 1 stop\n")
    flags_of = ["--task_name=ner", f"--data_dir={tmp_path}", "--token_column=-1", "--tag_column=0"]
    task, sources = _sources(*flags_of)
    assert task.labels == ("O", "I-X") and [s.split for s in sources] == ["train", "test"]
    ((sentence,),) = sources[0].read(None, None)
    assert (sentence.words, sentence.tags) == (("hello", "now"), ("I-X", "O"))
    assert sources[1].labelled
    task, (source,) = _sources(*flags_of, "--labels=I-X,O,I-Z", "--splits=test")
    assert task.labels == ("I-X", "O", "I-Z") and source.split == "test"
    # A training file must have the labels that are given.
    done = _run(*flags_of, "--labels=O,I-Y", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"create_finetuning_data: {train}, line 1: expected one of the labels O I-Y, got 'I-X' for "
        "word 0, 'hello'"
    )


def test_questions(tmp_path):
    def write(name, data):
        return _write(tmp_path, name, json.dumps({"version": "v", "data": data}))

    context = "hello world now stop it now"
    answers = [{"text": "stop", "answer_start": context.index("stop")}]
    question = {"id": "a", "question": "hello it now", "answers": answers, "is_impossible": False}
    path = write(
        "train.json", [{"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}]
    )
    arguments = ["--task_name=squad2.0", f"--train_file={path}", f"--output_dir={tmp_path}"]
    options = ["--max_seq_length=8", "--doc_stride=2", "--max_query_length=2"]
    done = _run(*arguments, *options)
    assert done.returncode == 0, done.stderr
    assert "train: 1 examples, 3 records" in done.stdout
    assert "first record: [CLS] hello it [SEP] hello world now [SEP]" in done.stdout
    found = read_examples(tmp_path / "train.tfrecord", span_features(8))
    # A window without the answer points at [CLS].
    assert [int(example["start_positions"][0]) for example in found] == [0, 5, 0]
    extra = json.loads((tmp_path / "train.manifest.json").read_text())["extra"]
    assert extra == {"doc_stride": 2, "max_query_length": 2}
    # In a folder, by its official name.
    (tmp_path / "train.json").rename(tmp_path / "train-v2.0.json")
    _, (source,) = _sources("--task_name=squad2", f"--data_dir={tmp_path}")
    assert source.split == "train" and source.files == (str(tmp_path / "train-v2.0.json"),)


def test_scripts_without_the_flags_refuse_the_tasks(tmp_path):
    for name, command in (("ner", "run_ner"), ("squad1.1", "run_squad")):
        file = _write(tmp_path, "x", "x")
        data = command_options.of(DataOptions, task_name=name, train_file=file)
        with pytest.raises(ValueError, match=f"task_name: {name} is for {command}.py"):
            find_sources(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give task_name and data_dir, or train_file and text_column"),
        (["--task_name=x"], "unknown task 'x': expected one of cola, "),
        (["--task_name=mrpc"], "mrpc: give either data_dir, or train_file, dev_file, test_file"),
        (["--task_name=mrpc", "--data_dir={tmp}"], "mrpc: no file of the task in {tmp}"),
        (["--task_name=mrpc", "--data_dir={tmp}", "--splits=dev"], "mrpc: no dev.tsv in {tmp}"),
        (
            ["--task_name=mrpc", "--data_dir={tmp}", "--tfds"],
            "mrpc: no prepared TFDS data in",
        ),
        (
            ["--task_name=mrpc", "--data_dir=memory://x", "--tfds"],
            "data_dir: with tfds expected a local folder, got memory://x",
        ),
        (["--task_name=mrpc", "--text_column=a"], "mrpc has columns of its own"),
        (["--train_file={tmp}/t.csv"], "text_column: needed to read tables of your own"),
        (["--train_file={tmp}/t.csv", "--text_column=a"], "label_column: needed for the train and"),
        (["--train_file={tmp}/no.csv", "--text_column=a"], "no such file: {tmp}/no.csv"),
        (
            ["--dev_file={tmp}/t.csv", "--text_column=a", "--label_column=b"],
            "labels: classification needs a training file, or the labels themselves",
        ),
        (
            ["--task_name=swag", "--dev_file={tmp}/t.csv", "--splits=dev"],
            "splits: the files given say which there are",
        ),
        (
            ["--task_name=ner", "--dev_file={tmp}/t.csv"],
            "labels: ner needs a training file, or the labels themselves",
        ),
        (["--task_name=ner", "--train_file={tmp}/t.csv"], "t.csv, line 1: expected a column of"),
        (["--task_name=ner", "--data_dir={tmp}"], "ner: no file of the task in {tmp}"),
        (["--task_name=squad1.1"], "squad1.1: give either data_dir, or train_file"),
    ],
)
def test_flags_that_cannot_be(tmp_path, arguments, message):
    _write(tmp_path, "t.csv", "a,b\nhello,x\nworld,y\n")
    with pytest.raises((ValueError, OSError)) as error:
        _sources(*(a.format(tmp=tmp_path) for a in arguments))
    assert message.format(tmp=tmp_path) in str(error.value)


def test_real_tasks_from_the_command_line(tmp_path, shared_data):
    vocab = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    for name, folder, splits in (
        ("mnli", "glue/MNLI", {"train": 8999, "dev": 1000}),
        ("stsb", "glue/STS-B", {"train": 5749, "dev": 1500, "test": 1379}),
        ("ax", "glue/AX", {"test": 1104}),
    ):
        out = tmp_path / name
        done = _run(
            f"--task_name={name}",
            f"--data_dir={shared_data / folder}",
            f"--output_dir={out}",
            vocab=vocab,
        )
        assert done.returncode == 0, done.stderr
        counts = {path.name.split(".")[0]: scan_records(path) for path in out.glob("*.tfrecord")}
        assert counts == splits


def test_examples_without_a_gold_label_are_counted(tmp_path, capsys):
    lines = ["index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label"]
    lines += [
        f"{i}\tx\thello\tstop\tneutral\t{gold}" for i, gold in enumerate(("-", "neutral", "-"))
    ]
    _write(tmp_path, "train.tsv", "".join(f"{line}\n" for line in lines))
    arguments = [f"--vocab_file={VOCAB}", "--task_name=MNLI", f"--data_dir={tmp_path}"]
    arguments += [f"--output_dir={tmp_path / 'out'}", "--num_workers=1", "--max_seq_length=9"]
    task_records.run(command_options.parse(TaskRecordsOptions, arguments))
    printed = capsys.readouterr().out
    assert "train: 1 examples, 1 records, " in printed
    assert "train: left out 2 examples without a gold label\n" in printed
    assert "bad examples" not in printed
