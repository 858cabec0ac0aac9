"""Parts of run_pretraining without a run: what is found and refused, and who writes what."""

import dataclasses
import types

import numpy as np
import pytest

from bert_tf.files import sha256
from bert_tf.input_pipeline.masking import NextPieceRule
from bert_tf.models.task_models import HEADS
from bert_tf.weights.save import save_model_directory
from experiments.command_line.exit_status import InputError
from experiments.pretraining import batch_size, continuation, plan
from experiments.pretraining import run as pretraining
from experiments.pretraining.batch_size import Trial
from experiments.pretraining.options import PretrainingOptions, PretrainingTeacherOptions
from experiments.pretraining.run import PretrainingRun
from experiments.pretraining.teacher import PretrainingTeacher
from tests.support import command_options
from tests.support import synthetic_records as synthetic

REQUIRED = {"input_file": "x", "do_train": True, "bert_config_file": "c"}


def options_of(folder="out", **given):
    return command_options.of(PretrainingOptions, **{**REQUIRED, "output_dir": folder, **given})


# === What is found before anything is built ===


def init_of(vocab_file, path="bert_model.ckpt"):
    """Return what is asked of initial weights: where they and their vocabulary lie."""
    return types.SimpleNamespace(
        located=types.SimpleNamespace(path=path, vocab_file=vocab_file and str(vocab_file))
    )


def test_the_vocabulary_of_the_records_is_found_where_it_lies(tmp_path):
    synthetic.write_vocabulary(tmp_path / "v.txt")
    (tmp_path / "other.txt").write_text("[PAD]\n")
    manifests = [{"vocab_sha256": sha256(tmp_path / "v.txt"), "flags": {"vocab_file": "/gone"}}]
    options = options_of(tmp_path / "out")
    found = plan._find_vocabulary(options, manifests, None)
    assert found is None and plan._tokenizer(options, found, manifests) is None
    assert plan._find_vocabulary(options, manifests, init_of(tmp_path / "other.txt")) is None
    beside = init_of(tmp_path / "v.txt")
    assert plan._find_vocabulary(options, manifests, beside) == str(tmp_path / "v.txt")
    (tmp_path / "out").mkdir()
    synthetic.write_vocabulary(tmp_path / "out" / "vocab.txt")  # of the run that goes on
    assert plan._find_vocabulary(options, manifests, None) == f"{tmp_path}/out/vocab.txt"


def test_initial_weights_of_another_vocabulary_or_casing_are_refused(tmp_path):
    vocab = synthetic.write_vocabulary(tmp_path / "v.txt")
    (tmp_path / "other.txt").write_text("[PAD]\n")
    options = options_of()
    known = [{"vocab_sha256": sha256(vocab), "do_lower_case": False}]
    plan._check_vocabulary(options, vocab, known, init_of(vocab))
    plan._check_vocabulary(options, None, [], init_of(tmp_path / "other.txt"))  # nothing is known
    message = "init_checkpoint: its vocabulary .*other.txt is not the one that the records were"
    for manifests in (known, []):
        with pytest.raises(InputError, match=message):
            plan._check_vocabulary(options, vocab, manifests, init_of(tmp_path / "other.txt"))
    path = "models/uncased_L-12_H-768_A-12/bert_model.ckpt"
    with pytest.raises(ValueError, match="do_lower_case|uncased"):
        plan._check_vocabulary(options, vocab, known, init_of(vocab, path))
    known[0]["do_lower_case"] = True
    plan._check_vocabulary(options, vocab, known, init_of(vocab, path))


def test_a_left_to_right_model_predicts_what_follows():
    config = synthetic.small_config(left_to_right=True)
    rule = plan._masking(options_of(), config, ["x"], False, None)
    assert isinstance(rule, NextPieceRule)
    with pytest.raises(InputError, match="x: holds masked records; a left-to-right model predicts"):
        plan._masking(options_of(), config, ["x"], True, None)


def test_rows_are_not_counted_where_memory_is_measured(monkeypatch):
    monkeypatch.setattr(plan, "count_rows", None)
    options = options_of(pack_sequences=True, measure_only=True)
    assert plan._row_counts(options, options.phases[0], ["a", "b"], None) == [1, 1]
    assert plan._row_counts(options_of(), options.phases[0], ["a", "b"], None) is None


def test_a_teacher_needs_a_configuration_and_may_give_no_layers(tmp_path):
    model = HEADS["encoder"].make(synthetic.small_config(num_hidden_layers=1))
    vocab = synthetic.write_vocabulary(tmp_path / "v.txt")
    save_model_directory(tmp_path / "t", model, vocab)
    found = PretrainingTeacher.find(PretrainingTeacherOptions(teacher_dir=str(tmp_path / "t")))
    assert found is not None and found.student_config is None
    (tmp_path / "t" / "bert_config.json").unlink()
    message = f"teacher_dir: no bert_config.json lies in {tmp_path}/t"
    with pytest.raises(InputError, match=message):
        PretrainingTeacher.find(PretrainingTeacherOptions(teacher_dir=str(tmp_path / "t")))


def test_a_run_of_another_model_is_not_continued():
    begun, now = {"bert_config": {"hidden_size": 2}}, {"bert_config": {"hidden_size": 3}}
    with pytest.raises(InputError, match="out holds a run of another model configuration; use"):
        continuation.check_continuation(begun, now, options_of())


# === The largest batch ===


def test_a_limit_of_memory_that_nothing_fits(monkeypatch, capsys):
    limits = []

    def try_within(command, limit):
        limits.append(limit)
        return Trial(False, 3 * 2**30)

    monkeypatch.setattr(batch_size, "try_within", try_within)
    monkeypatch.setattr(batch_size, "available_bytes", lambda: 5 * 2**30)
    with pytest.raises(InputError, match="find_batch_size: not even a batch of 6 fits"):
        batch_size.find_batch_size(options_of(num_replicas=2, gradient_accumulation_steps=3))
    assert limits and set(limits) == {5 * 2**30}
    printed = capsys.readouterr().out
    assert printed.startswith("limit: 5.00 GiB") and "6: does not fit, 3.00 GiB at mo" in printed


def test_the_most_tokens_of_a_batch_are_found(monkeypatch, capsys):
    tried = []

    def try_within(command, limit):
        tried.append([x for x in command if "train_batch" in x])
        return Trial(tried[-1][-1] in ("--train_batch_tokens=1024", "--train_batch_tokens=2048"), 1)

    monkeypatch.setattr(batch_size, "try_within", try_within)
    given = {"train_batch_tokens": 77777, "second_input_file": "x", "num_replicas": 2}
    batch_size.find_batch_size(options_of(distribution_strategy="mirrored", **given))
    assert "largest train_batch_tokens that fits: 2048 (" in capsys.readouterr().out
    assert [x[-1] for x in tried] == [f"--train_batch_tokens={n}" for n in (1024, 2048, 4096, 3072)]
    monkeypatch.setattr(batch_size, "try_within", lambda *_: Trial(False, 1))
    with pytest.raises(InputError, match="not even a batch of 512 tokens fits"):
        batch_size.find_batch_size(options_of(train_batch_tokens=77777, max_seq_length=512))


def test_the_largest_batch_is_all_that_such_a_command_looks_for(monkeypatch):
    asked = []
    monkeypatch.setattr(pretraining, "find_batch_size", asked.append)
    monkeypatch.setattr(pretraining, "make_plan", None)
    options = options_of(find_batch_size=True)
    level = pretraining.logging.get_verbosity()
    pretraining.run(options)
    pretraining.logging.set_verbosity(level)
    assert asked == [options]


# === The run ===


class Steps:
    """In place of a trainer: notes what it is asked for."""

    def __init__(self, is_chief=True):
        self.is_chief, self.step, self.asked = is_chief, 5, []

    def restore(self):
        return None

    def train(self, dataset, end, **batches):
        self.asked.append(("train", end, batches["sequences_per_batch"], batches["rows_per_batch"]))

    def evaluate(self, dataset):
        self.asked.append(("evaluate",))


def run_of(tmp_path, is_chief=True, init=None, **given):
    """Return a run whose model and trainer are stand-ins."""
    run = PretrainingRun.__new__(PretrainingRun)
    run.folder, run.options, run.model = tmp_path, options_of(tmp_path, **given), "model"
    common = {"token_batches": None}
    phases = [
        types.SimpleNamespace(begin=0, end=8, batch_size=3, sequences_per_batch=7.5, **common),
        types.SimpleNamespace(begin=8, end=11, batch_size=2, sequences_per_batch=4, **common),
    ]
    run.plan = types.SimpleNamespace(init=init, phases=phases)
    run.trainer = Steps(is_chief)
    return run


def test_steps_are_taken_to_measure_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "baselines", None)  # nothing else is done
    run = run_of(tmp_path, measure_only=True, num_train_steps=2)
    run._run()
    assert run.trainer.asked == [("train", 7, 7.5, 3), ("train", 7, 4, 2)]
    # Of batches of so many tokens each shape has to be met.
    run.trainer.asked.clear()
    batches = types.SimpleNamespace(num_shapes=9)
    shapes = {"token_batches": batches, "batch_size": 0, "sequences_per_batch": 3.5}
    run.plan.phases[:] = [types.SimpleNamespace(**shapes)]
    run._run()
    assert run.trainer.asked == [("train", 14, 3.5, 0)]
    assert not list(tmp_path.iterdir())


def test_another_host_computes_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretraining, "baselines", None)
    monkeypatch.setattr(pretraining, "evaluation_dataset", lambda *_: None)
    steps = [("train", 8, 7.5, 3), ("train", 11, 4, 2)]
    for given, expected in (
        ({"do_eval": True}, [*steps, ("evaluate",)]),
        ({"do_eval": True, "do_train": False}, [("evaluate",)]),
        ({}, steps),
    ):
        init = types.SimpleNamespace() if "do_train" in given else None
        run = run_of(tmp_path, is_chief=False, init=init, **given)
        monkeypatch.setattr(run, "load", lambda: False)
        run.run()
        assert run.trainer.asked == expected
        last = "this worker has finished; results are written by the chief, worker 0\n"
        assert capsys.readouterr().out == last
    assert not list(tmp_path.iterdir())


def test_what_the_initial_weights_lack_is_told(tmp_path, monkeypatch, capsys):
    given = []

    def load(model, init, **arguments):
        given.append(arguments)
        missing = ("cls/a", "cls/b") if arguments["allow_missing"] else ()
        return types.SimpleNamespace(description="some weights", missing=missing)

    monkeypatch.setattr(pretraining, "load_checkpoint", load)
    run = run_of(tmp_path, init="init", init_allow_missing="^cls/", init_ignore="x,y")
    assert run.load() is False
    assert capsys.readouterr().out == (
        "weights from some weights\nnot in it, so freshly drawn: cls/a, cls/b\n"
    )
    assert run_of(tmp_path, init="init").load() is False
    assert capsys.readouterr().out == "weights from some weights\n"
    assert given[0] == {"ignore": ["x", "y"], "allow_missing": ["^cls/"]}
    assert given[1] == {"ignore": [], "allow_missing": []}
    message = f"do_eval: {tmp_path} holds no checkpoint and init_checkpoint is not given"
    with pytest.raises(InputError, match=message):
        run_of(tmp_path, do_train=False, do_eval=True).load()


def test_a_second_phase_may_have_a_schedule_of_its_own(tmp_path):
    run = run_of(tmp_path)
    assert run._schedule_of_two_phases() == {}
    second = {"second_input_file": "y", "second_phase_steps": 3, "second_num_warmup_steps": 2}
    run = run_of(tmp_path, second_learning_rate=0.5, num_train_steps=11, **second)
    schedule = run._schedule_of_two_phases()
    assert schedule["num_train_steps"] == 8
    rates = [float(schedule["then"](step)) for step in range(4)]  # of three steps
    np.testing.assert_allclose(rates, [0, 0.25, 0.5 / 3, 0], atol=1e-7)
    run.plan.phases.pop()
    assert run._schedule_of_two_phases() == {}


def test_kernels_are_deterministic_where_that_is_asked_for(tmp_path, monkeypatch):
    called = []

    def end(precision):
        raise InputError(precision)

    experimental = pretraining.tf.config.experimental
    monkeypatch.setattr(experimental, "enable_op_determinism", lambda: called.append(1))
    monkeypatch.setattr(pretraining, "set_precision", end)
    for deterministic, expected in ((False, []), (True, [1])):
        options = options_of(tmp_path, deterministic=deterministic)
        with pytest.raises(InputError, match="float32"):
            PretrainingRun(options, types.SimpleNamespace(), None)  # pyright: ignore
        assert called == expected


def test_curves_need_a_package_and_a_log(tmp_path, monkeypatch, caplog):
    def draw(metrics, png):
        raise ImportError("no matplotlib")

    monkeypatch.setattr(pretraining, "plot_curves", draw)
    run = run_of(tmp_path)
    assert run._curves_row() == [] and not caplog.text
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    with caplog.at_level("WARNING", "absl"):
        assert run._curves_row() == []
    assert "no curves: the package matplotlib is not installed" in caplog.text


def test_a_model_that_sees_no_masks_is_not_judged_by_them(tmp_path, monkeypatch, capsys):
    floor = {"unigram_loss": 4.0, "uniform_loss": 5.0, "unigram_accuracy": 0.25}
    names = list(pretraining._EVAL_NAMES)
    for mask_id, expected in ((None, 1), (4, 3)):
        run = run_of(tmp_path, do_eval=True)
        monkeypatch.setattr(run, "evaluate", lambda: dict.fromkeys(names, 3.5))
        run.plan.mask_id, run.plan.held_out = mask_id, True
        run.trainer.log_line = lambda *_: None
        rows = run._evaluate_and_write(floor)
        assert len(rows) == expected
        better = "3.5000 (unigram 4.0000, uniform 5.0000; +0.5000 better than unigram)"
        assert rows[0] == ("held-out MLM loss", better)
    assert rows[2] == ("  accuracy at [MASK]", "350.0% (unigram 25.0%)")
    assert "evaluation on held-out records:" in capsys.readouterr().out


def test_epochs_of_rows_that_were_not_counted_are_not_told():
    phase = plan.Phase(
        **dataclasses.asdict(options_of().phases[0]),
        files=["a"],
        counts=[60],
        masking=None,
        length_bins=0,
    )
    phase = dataclasses.replace(phase, begin=0, end=10, batch_size=4)
    options = options_of(pack_sequences=True)
    assert pretraining._rows_of(phase, options)[1] == ("steps", "10 of 4 rows")
    phase = dataclasses.replace(phase, row_counts=[20])
    assert pretraining._rows_of(phase, options)[1] == (
        "steps",
        "10 of 4 rows (2.00 epochs), 3.00 sequences a row",
    )
