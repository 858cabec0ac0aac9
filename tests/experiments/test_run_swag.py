"""The script that chooses endings: what it learns, writes and refuses."""

import csv
import json
import pathlib
import random

import numpy as np
import pytest

from bert_tf.tasks.table import TASKS
from bert_tf.weights.tensor_bundle import read_tensors
from data_prep.finetuning import swag
from experiments import run_swag
from experiments.command_line.exit_status import InputError
from experiments.finetuning import multiple_choice, splits
from experiments.finetuning.options import MultipleChoiceOptions
from tests.support import command_options, warm_commands
from tests.support import synthetic_records as synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CHOICES = 3


def write_table(path, count, seed):
    """Write endings of which the right one alone is of w0 to w4."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        endings = [f"ending{i}" for i in range(CHOICES)]
        writer.writerow(["", "sent1", "sent2", *endings, "label"])
        for number in range(count):
            label = rng.randrange(CHOICES)
            words = [
                f"w{rng.randrange(5) if i == label else rng.randrange(5, 60)}"
                for i in range(CHOICES)
            ]
            writer.writerow([number + 100, f"w{rng.randrange(60, 90)}", "w91", *words, label])


def parsed(**given):
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return command_options.parse(MultipleChoiceOptions, arguments, **run_swag.DEFAULTS)


def given_of(data, output, **changes):
    return {
        "data_dir": data,
        "bert_config_file": data / "bert_config.json",
        "vocab_file": data / "vocab.txt",
        "output_dir": output,
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "max_seq_length": 11,
        "learning_rate": 1e-2,
        "train_batch_size": 13,
        "num_train_epochs": 5,
        "eval_batch_size": 31,
        "predict_batch_size": 31,
        "pad_to_max_seq_length": True,  # one shape to compile
        **changes,
    }


def run(data, output, **changes):
    multiple_choice.run(parsed(**given_of(data, output, **changes)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number, (name, count) in enumerate((("train", 149), ("val", 37), ("test", 29))):
        write_table(folder / f"{name}.csv", count, number)
    synthetic.write_vocabulary(folder / "vocab.txt")
    synthetic.small_config(num_hidden_layers=1).to_json_file(folder / "bert_config.json")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "swag"
    run(data, output, report=True)
    return output


def predictions(folder):
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_learns_and_writes_its_choices(data, trained):
    found = json.loads((trained / "eval_results.json").read_text())
    assert found["eval_accuracy"] > 0.9
    stored = json.loads((trained / "run.json").read_text())["run"]
    assert stored["steps"] == int(149 / 13 * 5)
    assert found["global_step"] == stored["best_step"]
    assert "eval_accuracy = " in (trained / "eval_results.txt").read_text()
    assert (trained / "curves.png").exists() and not (trained / "labels.txt").exists()
    wrong = round(37 * (1 - found["eval_accuracy"]))
    assert f"{wrong} of 37 examples are wrong" in (trained / "report.html").read_text()
    rows = predictions(trained)
    assert list(rows[0]) == ["id", "choice", *(f"probability of ending{i}" for i in range(CHOICES))]
    # The labels of the test file, which the script does not read.
    labels = [e.label for e in swag.read_examples(data / "test.csv", "train")]
    assert [row["id"] for row in rows] == [str(number + 100) for number in range(29)]
    assert (
        np.mean([int(row["choice"]) == label for row, label in zip(rows, labels, strict=True)])
        > 0.9
    )
    for row in rows:
        numbers = [float(row[f"probability of ending{i}"]) for i in range(CHOICES)]
        assert sum(numbers) == pytest.approx(1, abs=1e-5)
        assert int(row["choice"]) == np.argmax(numbers)


def test_a_finished_run_is_not_trained_again(data, trained, capsys):
    before = {path.name: path.read_bytes() for path in trained.glob("bert_model*")}
    results = (trained / "eval_results.json").read_bytes()
    run(data, trained, do_predict=False)
    assert "seed 12345: is finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in trained.glob("bert_model*")} == before
    assert (trained / "eval_results.json").read_bytes() == results
    # The folder is a model by itself; then no training file is read.
    rows = predictions(trained)
    run(data, trained, do_train=False, do_eval=False, bert_config_file=None, vocab_file=None)
    assert predictions(trained) == rows
    with pytest.raises(InputError, match="holds a run with num_train_epochs 5.0, and now it is 7"):
        run(data, trained, num_train_epochs=7)


@pytest.mark.slow
def test_a_stopped_run_goes_on(data, tmp_path, monkeypatch, capsys):
    options = {"num_train_steps": 7, "eval_every_steps": 2, "save_checkpoints_steps": 4}
    options |= {"do_predict": False}
    run(data, tmp_path / "whole", **options)
    whole = capsys.readouterr().out
    figures_of, calls = splits.figures_of, []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return figures_of(*arguments)

    monkeypatch.setattr(splits, "figures_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "parts", **options)
    monkeypatch.undo()
    capsys.readouterr()
    run(data, tmp_path / "parts", **options)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert steps == [line for line in whole.splitlines() if line.startswith(("step 6", "step 7"))]
    a, b = (read_tensors(tmp_path / name / "bert_model.ckpt") for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    for name in ("eval_results.json", "eval_results.txt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_defaults_are_the_papers():
    values = parsed(output_dir="x")
    task = TASKS["swag"]
    assert values.train_batch_size == task.train_batch_size == 16
    assert values.learning_rate == task.learning_rates[0] == 2e-5
    assert values.num_train_epochs == task.num_train_epochs == 3
    assert values.max_seq_length == task.max_seq_length == 128


def test_files_that_cannot_be(data, tmp_path):
    def change(name, old, new):
        text = (data / "val.csv").read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new, 1))
        files = {"data_dir": None, "train_file": data / "train.csv", "do_predict": False}
        return {**files, "dev_file": tmp_path / name}

    last = (data / "val.csv").read_text().splitlines()[-1]
    for options, message in (
        (change("label.csv", last, f"{last[:-1]}3"), "line 38: label must be from 0 to 2, got '3'"),
        (change("head.csv", "ending1", "end1"), "no column 'ending1'"),
        (change("few.csv", ",label", ",ending3,label"), "line 2: expected 8 columns, got 7"),
        ({"data_dir": tmp_path}, "swag: no file of the task in"),
        ({"dev_file": data / "val.csv"}, "swag: give either data_dir, or train_file"),
    ):
        with pytest.raises((ValueError, OSError)) as error:
            run(data, tmp_path / "out", **options)
        assert message in str(error.value), error.value
    two = "sent1,sent2,ending0,ending1,label\nw1,w2,w3,w4,1\n"
    (tmp_path / "two.csv").write_text(two)
    options = {"data_dir": None, "train_file": data / "train.csv", "do_predict": False}
    with pytest.raises(ValueError, match=r"two\.csv, line 2: expected 3 choices, got 2"):
        run(data, tmp_path / "out", **options, dev_file=tmp_path / "two.csv")


def test_bad_input_is_one_line_and_status_1(data, tmp_path):
    (tmp_path / "train.csv").write_text("sent1,sent2,ending0,ending1,label\nw1,w2,w3,w4,yes\n")
    script = str(REPOSITORY / "experiments" / "run_swag.py")
    given = given_of(data, tmp_path / "out", train_file=tmp_path / "train.csv")
    names = ("train_file", "bert_config_file", "vocab_file", "output_dir")
    arguments = [f"--{name}={given[name]}" for name in names]
    done = warm_commands.run(
        [script, "--do_train", "--max_seq_length=11", *arguments], cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"run_swag: {tmp_path}/train.csv, line 2: label must be from 0 to 1, got 'yes'"
    )
    assert "Traceback" not in done.stderr
