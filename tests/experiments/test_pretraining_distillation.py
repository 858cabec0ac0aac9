"""--teacher_dir of run_pretraining: students of a random teacher, and teachers that do not fit."""

import json

import keras
import numpy as np
import pytest

from bert_tf.models.task_models import bert_encoder, bert_pretrainer
from bert_tf.models.variables import weights_by_name
from bert_tf.training.trainer import Trainer
from bert_tf.weights.load import load_checkpoint
from bert_tf.weights.save import save_model_directory
from bert_tf.weights.tensor_bundle import read_tensors
from experiments.command_line.exit_status import InputError
from experiments.pretraining import run as pretraining
from experiments.pretraining.options import PretrainingOptions
from experiments.pretraining.plan import make_plan
from experiments.pretraining.run import PretrainingRun
from tests.support import command_options
from tests.support import synthetic_records as synthetic
from tests.support.pretraining_runs import arguments, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def make_teacher(folder, data, model=bert_pretrainer, vocab_file=None, **changes):
    keras.utils.set_random_seed(3)
    made = model(synthetic.small_config(**changes))
    save_model_directory(folder, made, vocab_file or data / "vocab.txt")
    return folder


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """Return a teacher of two layers, wider than the student."""
    folder = tmp_path_factory.mktemp("teachers") / "wide"
    return make_teacher(folder, data, hidden_size=33, num_attention_heads=3)


def options_of(data, output, **given):
    steps = {"num_train_steps": 6, "num_warmup_steps": 2, "save_checkpoints_steps": 3}
    given = {"do_eval": False, "log_steps": 3, **steps, **given}
    return command_options.parse(PretrainingOptions, arguments(data, output, **given))


GIVEN = {"distill_layers": "1", "distill_hidden_weight": 0.5}


def test_a_run_learns_from_a_wider_teacher(data, teacher, tmp_path):
    before = {path: path.read_bytes() for path in teacher.iterdir()}
    steps = {"num_train_steps": 2, "save_checkpoints_steps": 2, "log_steps": 2}
    evaluated = {"do_eval": True, "max_eval_steps": 1}
    given = {**GIVEN, "teacher_dir": teacher, **steps}
    pretraining.run(options_of(data, tmp_path, **given, **evaluated))
    # What lets it go on: the matrix between the widths, with its moments.
    state = read_tensors(tmp_path / "model.ckpt-2")
    shapes = [x.shape for name, x in state.items() if "distillation_0/kernel" in name]
    assert shapes == [(22, 33)] * 3
    written = read_tensors(tmp_path / "bert_model.ckpt")
    assert not [name for name in written if "distillation" in name or "teacher" in name]
    assert {path: path.read_bytes() for path in before} == before
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    last = [line for line in map(json.loads, lines) if line["kind"] == "train"][-1]
    parts = last["task_loss"], last["teacher_loss"], last["hidden_loss"]
    assert last["loss"] == pytest.approx(sum(parts) / 2, rel=1e-4)
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert results["masked_lm_loss"] > 0 and "hidden_loss" not in results
    described = json.loads((tmp_path / "config.json").read_text())["teacher"]
    assert described["distill_layers"] == [1] and len(described["weights"]) == 16
    for other in ({**given, "distill_alpha": 0.25}, steps):
        with pytest.raises(InputError, match="holds a run with another teacher, or without"):
            pretraining.run(options_of(data, tmp_path, **other))
    # Evaluated by itself: without the teacher, though its checkpoints have what matched it.
    options = options_of(data, tmp_path, do_train=False, **evaluated)
    run = PretrainingRun(options, make_plan(options), None)
    assert run.load() and run.trainer.step == 2
    # It is read as any checkpoint, what matched its layers aside.
    load_checkpoint(bert_pretrainer(run.plan.config), tmp_path / "model.ckpt-2")


@pytest.mark.slow
def test_a_student_that_was_stopped_goes_on_to_the_same_weights(
    data, teacher, tmp_path, monkeypatch
):
    given = {**GIVEN, "teacher_dir": teacher}
    pretraining.run(options_of(data, tmp_path / "whole", **given))
    save = Trainer.save

    def stop(self):
        save(self)
        if self.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", stop)
        pretraining.run(options_of(data, tmp_path / "parts", **given))
    pretraining.run(options_of(data, tmp_path / "parts", **given))
    found = [read_tensors(tmp_path / name / "bert_model.ckpt") for name in ("whole", "parts")]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        np.testing.assert_array_equal(tensor, found[1][name], err_msg=name)


def test_a_student_begins_with_layers_of_its_teacher(data, tmp_path):
    place = make_teacher(tmp_path / "teacher", data, num_hidden_layers=3)
    given = {"teacher_dir": place, "student_layers": "0,2", "bert_config_file": None}
    options = options_of(data, tmp_path / "run", **given)
    run = PretrainingRun(options, make_plan(options), None)
    mine, theirs = weights_by_name(run.model), read_tensors(place / "bert_model.ckpt")
    assert run.model.count_params() < sum(tensor.size for tensor in theirs.values())
    for name, weight in mine.items():
        source = theirs[name.replace("/layer_1/", "/layer_2/")]
        np.testing.assert_array_equal(weight.numpy(), source, err_msg=name)
    # A teacher is none of what is trained.
    assert run.trainer.model is run.model
    # The run's own flags do to evaluate it, where no teacher is read.
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "bert_config.json").write_text(json.dumps(run.plan.config.to_dict()))
    alone = options_of(data, tmp_path / "run", **given, do_train=False, do_eval=True)
    assert make_plan(alone).config == run.plan.config


@pytest.mark.parametrize(
    ("made", "given", "message"),
    [
        ({}, {"distill_layers": "2"}, "distill_layers: the teacher has 0 to 1, got 2"),
        ({}, {"distill_layers": "0,1"}, "distill_layers: expected one .* the student's 1, got 2"),
        ({}, {"student_layers": "0"}, "student_layers: the model begins .* --bert_config_file"),
        (
            {},
            {"student_layers": "3", "bert_config_file": None},
            "student_layers: expected some of 0 to 1 in order, as 0,2,4; got 3",
        ),
        (
            {"max_position_embeddings": 29},
            {},
            "teacher_dir: it has 29 positions, and sequences have 31",
        ),
        (
            {"left_to_right": True},
            {},
            "teacher_dir: its left_to_right is True, the student's False",
        ),
        (
            {"type_vocab_size": 1},
            {},
            "teacher_dir: it tells 1 segments apart, the student 2",
        ),
        ({"vocab_size": 98}, {}, "teacher_dir: its vocab_size is 98, the student's 97"),
        ({"words": True}, {}, "teacher_dir: .* has another vocabulary than the records"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(data, teacher, tmp_path, made, given, message):
    made = dict(made)
    if made.pop("words", False):
        lines = (data / "vocab.txt").read_text().replace("w3\n", "v3\n")
        (tmp_path / "words.txt").write_text(lines)
        made["vocab_file"] = tmp_path / "words.txt"
    place = make_teacher(tmp_path / "teacher", data, **made) if made else teacher
    with pytest.raises(InputError, match=message):
        make_plan(options_of(data, tmp_path / "run", teacher_dir=place, **given))


def test_what_is_no_teacher_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="distill_layers: needs --teacher_dir"):
        options_of(data, tmp_path / "run", distill_layers="0")
    with pytest.raises(InputError, match="teacher_dir: .*nowhere"):
        make_plan(options_of(data, tmp_path / "run", teacher_dir=tmp_path / "nowhere"))
    place = make_teacher(tmp_path / "teacher", data, model=bert_encoder)
    options = options_of(data, tmp_path / "run", teacher_dir=place)
    with pytest.raises(InputError, match="teacher_dir: .*cls/predictions"):
        PretrainingRun(options, make_plan(options), None)
