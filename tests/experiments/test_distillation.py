"""--teacher_dir of run_classifier: students of a tiny teacher, and teachers that do not fit."""

import json

import keras
import numpy as np
import pytest

from bert_tf.models.variables import weights_by_name
from bert_tf.tasks.trained_task import TrainedTask
from bert_tf.training.finetuning import make_model
from bert_tf.training.trainer import Trainer
from bert_tf.weights.load import load_model
from bert_tf.weights.save import save_model_directory
from experiments.command_line.exit_status import InputError
from experiments.finetuning import classification
from experiments.finetuning.options import ClassifierOptions
from tests.experiments.test_run_classifier import CONFIG, VOCABULARY, own, read_json, tables
from tests.support import command_options

assert tables  # a fixture
DATA = "bert_model.ckpt.data-00000-of-00001"
STEPS = {"max_seq_length": 13, "num_train_steps": 9, "train_batch_size": 7, "learning_rate": 3e-3}


def make_teacher(folder, vocabulary=VOCABULARY, labels=("no", "yes"), kind="classification"):
    """Write a model of two layers that begins at random: what it answers does not matter."""
    folder.mkdir()
    (folder / "words.txt").write_text("".join(f"{piece}\n" for piece in vocabulary))
    keras.utils.set_random_seed(3)
    config = CONFIG.__class__(**{**CONFIG.to_dict(), "num_hidden_layers": 2})
    model = make_model("classification", config, len(labels))
    save_model_directory(folder, model, folder / "words.txt", labels=labels)
    TrainedTask(kind, 13, temperature=1.5).write(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher") / "t")


def run(tables, output, **given):
    given = {**own(tables), "do_train": True, "output_dir": output, **STEPS, **given}
    classification.run(command_options.of(ClassifierOptions, **given))


@pytest.mark.thorough(traced=True)
def test_a_student_that_was_stopped_goes_on_to_the_same_weights(
    tables, teacher, tmp_path, monkeypatch, capsys
):
    given = {"teacher_dir": teacher, "student_layers": "1", "save_checkpoints_steps": 4}
    before = {path: path.read_bytes() for path in teacher.iterdir() if path.is_file()}
    run(tables, tmp_path / "whole", **given)
    out = capsys.readouterr().out
    assert "begins with layers 1 of" in out and "not divided by the temperature 1.5" in out
    save = Trainer.save

    def stop(self):
        save(self)
        if self.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", stop)
        run(tables, tmp_path / "parts", **given)
    with pytest.raises(InputError, match="holds a run with distillation"):
        run(tables, tmp_path / "parts", **given, distill_alpha=0.75)
    run(tables, tmp_path / "parts", **given)
    assert (tmp_path / "parts" / DATA).read_bytes() == (tmp_path / "whole" / DATA).read_bytes()
    assert {path: path.read_bytes() for path in before} == before
    student = load_model(tmp_path / "whole")
    assert student.config.num_hidden_layers == 1 and student.labels == ("no", "yes")
    settings = read_json(tmp_path / "whole" / "config.json")["distillation"]
    assert settings["layers"] == [1] and len(settings["teacher"]) == 16
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx((last["task_loss"] + last["teacher_loss"]) / 2, rel=1e-5)


@pytest.mark.slow
def test_a_teacher_without_a_part_in_the_loss_changes_nothing(tables, teacher, tmp_path):
    """The student, of a directory of its own, begins as it does without a teacher."""
    model = make_teacher(tmp_path / "model")
    run(tables, tmp_path / "alone", model_dir=model, num_train_steps=2)
    taught = {"model_dir": model, "teacher_dir": teacher, "num_train_steps": 2}
    run(tables, tmp_path / "idle", **taught, distill_alpha=0)
    alone, idle = (load_model(tmp_path / name).model for name in ("alone", "idle"))
    expected = weights_by_name(alone)
    for name, weight in weights_by_name(idle).items():
        np.testing.assert_allclose(weight, expected[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        (
            {"vocabulary": (*VOCABULARY[:-1], "cat")},
            {},
            "another vocabulary.*15 pieces.*15, 1 of wh",
        ),
        ({"labels": ("yes", "no")}, {}, "its labels are yes, no, the task's no, yes"),
        ({"kind": "multi_label"}, {}, "trained for multi_label, not for classification"),
        ({}, {"doc_stride": 5}, "both read texts in windows, or neither"),
        ({}, {"teacher_dir": "/none"}, "teacher_dir: .*none"),
        ({}, {"student_layers": "0,2"}, "student_layers: expected some of 0 to 1 .*got 0,2"),
        ({}, {"student_layers": "0", "model_dir": "x"}, "leave out --model_dir"),
    ],
    ids="vocabulary labels kind windows nowhere layers both".split(),
)
def test_teachers_that_do_not_fit(tables, teacher, tmp_path, changes, given, message):
    place = make_teacher(tmp_path / "other", **changes) if changes else teacher
    model = {} if "student_layers" in given else {"model_dir": teacher}
    with pytest.raises(InputError, match=message):
        run(tables, tmp_path / "out", **{**model, "teacher_dir": place, **given})
    assert not list((tmp_path / "out").glob("bert_model*"))


def test_layers_need_a_teacher():
    with pytest.raises(InputError, match="student_layers: needs --teacher_dir"):
        command_options.of(ClassifierOptions, output_dir="x", student_layers="0")
