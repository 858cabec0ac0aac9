"""The train step against fit and NumPy, exact continuation, logs and errors."""

import json
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.training import distribution, progress
from bert_tf.training.errors import NonFiniteLossError, StoppedError
from bert_tf.training.log import (
    METRICS_NAME,
    append_metrics,
    cut_metrics,
    read_metrics,
    read_metrics_or_nothing,
    write_config,
)
from bert_tf.training.objectives import PretrainingObjective, pretraining_compile_arguments
from bert_tf.training.optimizers import create_optimizer
from bert_tf.training.options import TrainerOptions
from bert_tf.training.progress import Progress, RunLog
from bert_tf.training.trainer import BestStep, Trainer, resolve_jit_compile, set_precision
from bert_tf.weights.tensor_bundle import read_tensors
from bert_tf.weights.tensor_files import checkpoint_steps
from tests.support import synthetic_records as synthetic
from tests.support.synthetic_records import LENGTH, PREDICTIONS

BATCH = 13
STEPS = 11


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("records") / "t.tfrecord", 101, 1)


TOKENS = {"batch_size": None, "batch_tokens": 157, "length_bins": 4}


def dataset_of(path, step=0, is_training=True, batch_size=BATCH, **settings):
    return pretraining_dataset(
        path,
        batch_size=batch_size,
        max_seq_length=LENGTH,
        max_predictions_per_seq=PREDICTIONS,
        is_training=is_training,
        fill_last_batch=True,
        seed=7,
        start_step=step,
        **settings,
    )


def make_trainer(folder, *, seed=3, precision=None, config=None, **settings):
    keras.utils.set_random_seed(seed)
    config = config or synthetic.small_config(num_hidden_layers=1)
    callbacks = settings.pop("callbacks", ())
    momentum, packed = settings.pop("ema_momentum", None), settings.pop("packed", False)
    averages = {} if momentum is None else {"use_ema": True, "ema_momentum": momentum}
    optimizer = create_optimizer(1e-2, STEPS, 3, **averages)
    if precision == "mixed_float16":
        # Grows within the run, and begins so high that the first steps must be skipped.
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=2.0**20, dynamic_growth_steps=2
        )
    settings = {"log_steps": 4, "save_checkpoints_steps": 5, "verbose": False, **settings}
    return Trainer(
        bert_pretrainer(config, packed=packed, dtype=precision),
        optimizer,
        PretrainingObjective(config.next_sentence_prediction),
        folder,
        TrainerOptions(
            tensorboard=False, jit_compile=settings.pop("jit_compile", False), **settings
        ),
        callbacks=callbacks,
    )


def train(trainer, path, steps=STEPS, **settings):
    return trainer.train(
        lambda step: dataset_of(path, step), steps, sequences_per_batch=BATCH, **settings
    )


def log_of(folder, kind="train"):
    """Log lines without what the clock decides."""
    lines = read_metrics(folder / METRICS_NAME, kind)
    timed = ("sequences_per_second", "tokens_per_second", "time_seconds", "cpu_seconds")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def state_of(trainer):
    return {name: v.numpy() for name, v in trainer.keeper.variables.items()}


def assert_same_state(first, second):
    first, second = state_of(first), state_of(second)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(records_file, tmp_path_factory):
    """Return a run never stopped."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    train(trainer, records_file)
    return trainer


def test_objective_is_the_papers(records_file):
    random = np.random.default_rng(0)
    logits = random.normal(size=(BATCH, PREDICTIONS, synthetic.VOCAB_SIZE)).astype("float32")
    next_logits = random.normal(size=(BATCH, 2)).astype("float32")
    _, labels, weights = next(dataset_of(records_file).as_numpy_iterator())
    weights = {name: w.copy() for name, w in weights.items()}
    weights["next_sentence_logits"][-2:] = 0  # two examples that only fill the batch
    outputs = {"masked_lm_logits": logits, "next_sentence_logits": next_logits}
    total, found = PretrainingObjective()(outputs, labels, weights)

    def cross_entropy(x, ids):
        x = x.astype(np.float64)
        log_probabilities = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return -np.take_along_axis(log_probabilities, ids[..., None], -1)[..., 0]

    ids, w = labels["masked_lm_logits"], weights["masked_lm_logits"]
    mlm = (cross_entropy(logits, ids) * w).sum()
    nsp = cross_entropy(next_logits, labels["next_sentence_logits"])[:-2]
    expected = {
        "loss": (mlm / (w.sum() + 1e-5) + nsp.mean(), 1),
        "mlm_loss": (mlm, w.sum()),
        "mlm_accuracy": (((logits.argmax(-1) == ids) * w).sum(), w.sum()),
        "nsp_loss": (nsp.sum(), BATCH - 2),
        "nsp_accuracy": (
            (next_logits.argmax(-1) == labels["next_sentence_logits"])[:-2].sum(),
            BATCH - 2,
        ),
    }
    assert float(total) == pytest.approx(expected["loss"][0], rel=1e-6)
    assert found.keys() == expected.keys() == set(PretrainingObjective().metric_names)
    for name, pair in expected.items():
        assert [float(x) for x in found[name]] == pytest.approx(pair, rel=1e-6), name
    lighter, figures = PretrainingObjective(next_sentence_weight=0.25)(outputs, labels, weights)
    assert float(lighter) == pytest.approx(mlm / (w.sum() + 1e-5) + 0.25 * nsp.mean(), rel=1e-6)
    assert float(figures["nsp_loss"][0]) == pytest.approx(nsp.sum(), rel=1e-6)  # told as it is
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="next_sentence_weight: expected a number of at least"):
            PretrainingObjective(next_sentence_weight=wrong)
    # With weights so small the 1e-5 is a part of the divisor that shows.
    weights["masked_lm_logits"] = w * np.float32(2**-20)
    small, _ = PretrainingObjective()(outputs, labels, weights)
    assert float(small) == pytest.approx(mlm / (w.sum() + 1e-5 * 2**20) + nsp.mean(), rel=1e-6)


def test_steps_are_traced_without_autograph(records_file, tmp_path, monkeypatch):
    found, call = [], PretrainingObjective.__call__

    def traced(self, *arguments, **settings):
        found.append(tf.__internal__.autograph.control_status_ctx().status.name)
        return call(self, *arguments, **settings)

    monkeypatch.setattr(PretrainingObjective, "__call__", traced)
    train(make_trainer(tmp_path), records_file, 2)
    assert found and "ENABLED" not in found, found


def test_objective_reports_predictions_that_show_mask_apart(records_file):
    random = np.random.default_rng(0)
    logits = random.normal(size=(BATCH, PREDICTIONS, synthetic.VOCAB_SIZE)).astype("float32")
    outputs = {
        "masked_lm_logits": logits,
        "next_sentence_logits": random.normal(size=(BATCH, 2)).astype("float32"),
    }
    _, labels, weights = next(dataset_of(records_file).as_numpy_iterator())
    shown = weights["masked_lm_logits"] * random.integers(0, 2, size=(BATCH, PREDICTIONS))
    objective = PretrainingObjective(at_mask=True)
    assert objective.metric_names == PretrainingObjective().metric_names  # of the training state
    weights = {**weights, "masked_lm_at_mask": shown.astype("float32")}
    total, found = objective(outputs, labels, weights)
    shown = weights.pop("masked_lm_at_mask")
    plain, _ = objective(outputs, labels, weights)
    assert float(total) == float(plain)  # reported, not minimised
    assert found.keys() == set(objective.evaluation_metric_names)
    _, of_those = objective(outputs, labels, {**weights, "masked_lm_logits": shown})
    for name in ("mlm_loss", "mlm_accuracy"):
        pair = [float(x) for x in found[f"{name}_at_mask"]]
        assert pair == [float(x) for x in of_those[name]] != [float(x) for x in found[name]]


def test_fit_gives_the_same_losses(records_file, tmp_path):
    trainer = make_trainer(tmp_path, log_steps=1)
    train(trainer, records_file)

    keras.utils.set_random_seed(3)
    config = synthetic.small_config(num_hidden_layers=1)
    model = bert_pretrainer(config)
    model.compile(
        create_optimizer(1e-2, STEPS, 3),
        **pretraining_compile_arguments(config),
        jit_compile=False,
    )
    history = model.fit(
        dataset_of(records_file), steps_per_epoch=1, epochs=STEPS, shuffle=False, verbose=0
    ).history
    ours = log_of(tmp_path)
    for name, theirs in (
        ("loss", "loss"),
        ("mlm_accuracy", "masked_lm_logits_accuracy"),
        ("nsp_accuracy", "next_sentence_logits_accuracy"),
    ):
        np.testing.assert_allclose([x[name] for x in ours], history[theirs], rtol=1e-6)
    for one, other in zip(trainer.model.weights, model.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6, err_msg=one.path)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="float32"),
        pytest.param({"precision": "mixed_float16"}, id="mixed_float16", marks=pytest.mark.slow),
        pytest.param({"precision": "mixed_bfloat16"}, id="mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param({"jit_compile": True}, id="xla", marks=pytest.mark.slow),
        pytest.param({"jit_compile": "pointwise"}, id="pointwise", marks=pytest.mark.thorough),
    ],
)
def test_continued_run_is_the_unbroken_one_to_the_bit(records_file, tmp_path, settings, whole):
    unbroken = whole
    if settings:
        unbroken = make_trainer(tmp_path / "a", **settings)
        train(unbroken, records_file)
    first = make_trainer(tmp_path / "b", **settings)
    train(first, records_file, steps=7)  # beyond its checkpoint of step 5, within a log window
    (tmp_path / "b" / "model.ckpt-7.index").unlink()
    second = make_trainer(tmp_path / "b", seed=17, **settings)  # whose weights must not matter
    assert second.restore() == 5
    assert [line["step"] for line in log_of(tmp_path / "b")] == [4]
    train(second, records_file)
    assert_same_state(second, unbroken)
    lines = log_of(tmp_path / "b")
    assert [line["step"] for line in lines] == [4, 8, 11]
    assert lines == log_of(unbroken.output_dir)
    if settings.get("precision") == "mixed_float16":
        skipped = STEPS - int(unbroken.optimizer.iterations.numpy())
        assert 0 < skipped < STEPS
        assert lines[0]["loss_scale"] < 2.0**20
        assert lines[-1]["skipped_steps"] == skipped == unbroken.skipped_steps
    assert all(np.isfinite(line["loss"]) for line in lines)


@pytest.mark.parametrize(
    ("batches", "jit"),
    [
        ({"length_bins": 4}, False),
        pytest.param({"length_bins": 4}, "pointwise", marks=pytest.mark.thorough),
        pytest.param({"length_bins": 4}, True, marks=pytest.mark.slow),
        pytest.param(TOKENS, False, marks=pytest.mark.thorough),
        pytest.param(TOKENS, True, marks=pytest.mark.slow),
        pytest.param({"sequences_per_row": 3}, False, marks=pytest.mark.thorough),
        pytest.param({"sequences_per_row": 3}, "pointwise", marks=pytest.mark.thorough),
        pytest.param({"sequences_per_row": 3}, True, marks=pytest.mark.slow),
    ],
)
def test_runs_of_other_batches_are_continued_to_the_bit(records_file, tmp_path, batches, jit):
    packed = "sequences_per_row" in batches

    def run(folder, steps=STEPS, **settings):
        trainer = make_trainer(tmp_path / folder, packed=packed, jit_compile=jit, **settings)
        began = trainer.restore()
        trainer.train(
            lambda step: dataset_of(records_file, step, **batches),
            steps,
            sequences_per_batch=BATCH,
            rows_per_batch=0 if "batch_tokens" in batches else None,
        )
        return began, trainer

    _, unbroken = run("a")
    run("b", steps=7)
    (tmp_path / "b" / "model.ckpt-7.index").unlink()
    began, second = run("b", seed=17)
    assert began == 5
    assert_same_state(second, unbroken)
    assert log_of(tmp_path / "b") == log_of(unbroken.output_dir)
    taken = dataset_of(records_file, **batches).take(STEPS).as_numpy_iterator()
    inputs = [inputs["input_mask"] for inputs, _, _ in taken]
    assert (len({mask.shape for mask in inputs}) > 2) != packed
    # Padding does not count, wherever it is left.
    assert log_of(tmp_path / "b")[-1]["tokens"] == sum(mask.sum() for mask in inputs)


def test_log_line_holds_means_over_its_window(records_file, whole):
    first = log_of(whole.output_dir)[0]
    schedule = whole.optimizer.learning_rate
    assert first["step"] == 4 and set(whole.objective.metric_names) < set(first)
    assert log_of(whole.output_dir)[-1]["learning_rate"] == pytest.approx(1e-2 * (1 - 10 / 11))
    assert float(schedule) == 0  # of the step that would come next
    timed = read_metrics(whole.output_dir / METRICS_NAME)[1]
    real = sum(
        int(inputs["input_mask"].sum())
        for inputs, _, _ in dataset_of(records_file, 4).take(4).as_numpy_iterator()
    )
    seconds = 4 * BATCH / timed["sequences_per_second"]
    assert timed["tokens_per_second"] * seconds == pytest.approx(real)
    assert checkpoint_steps(whole.output_dir) == [5, 10, 11]


def test_a_batch_in_parts_makes_the_steps_and_the_figures_of_the_whole(records_file, tmp_path):
    config = synthetic.small_config(
        num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    logs, states = [], []
    for parts in (1, 5):
        folder = tmp_path / str(parts)
        trainer = make_trainer(
            folder, config=config, log_steps=1, gradient_accumulation_steps=parts
        )
        make_dataset = lambda step: dataset_of(records_file, step, batch_size=20)  # noqa: E731
        batches = trainer.train_step.training_batches(make_dataset, 0, 20)
        shape = tf.nest.flatten(batches.element_spec)[0].shape
        assert shape[:-1] == ([20] if parts == 1 else [5, 4])  # only a part needs memory
        trainer.train(make_dataset, 3, sequences_per_batch=20)
        timed = read_metrics(folder / METRICS_NAME, "train")
        tokens = [x["tokens_per_second"] / x["sequences_per_second"] for x in timed]
        logs.append([{**x, "tokens": n} for x, n in zip(log_of(folder), tokens, strict=True)])
        states.append(state_of(trainer))
    for whole, divided in zip(*logs, strict=True):
        assert whole.pop("kind") == divided.pop("kind") == "train"
        assert whole == pytest.approx(divided, rel=1e-5)
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, atol=2e-5, err_msg=name)


def test_evaluation_counts_each_example_once_whatever_the_batch(records_file, whole):
    figures = {}
    for size in (13, 101):
        dataset = dataset_of(records_file, is_training=False, batch_size=size)
        whole.evaluate(dataset_of(records_file, is_training=False).take(1))  # leaves nothing behind
        figures[size] = whole.evaluate(dataset)
    for name in ("mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"):
        assert figures[13][name] == pytest.approx(figures[101][name], rel=1e-5), name
    arrays = synthetic.make_arrays(101, 1)
    outputs = whole.model.predict(
        {
            name: arrays[name].astype(np.int32)
            for name in ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
        },
        batch_size=101,
        verbose=0,
    )
    right = outputs["masked_lm_logits"].argmax(-1) == arrays["masked_lm_ids"]
    weights = arrays["masked_lm_weights"]
    assert figures[13]["mlm_accuracy"] == pytest.approx((right * weights).sum() / weights.sum())
    right = outputs["next_sentence_logits"].argmax(-1) == arrays["next_sentence_labels"][:, 0]
    assert figures[13]["nsp_accuracy"] == pytest.approx(right.mean())
    with pytest.raises(ValueError, match="at least one batch"):
        whole.evaluate(dataset_of(records_file, is_training=False).take(0))


def test_evaluation_and_steps_per_call_change_nothing(records_file, tmp_path, whole):
    trainer = make_trainer(tmp_path, steps_per_call=2)
    seen = []

    def evaluate():
        seen.append(trainer.step)
        return trainer.evaluate(dataset_of(records_file, is_training=False).take(1))

    train(trainer, records_file, eval_every_steps=3, evaluate=evaluate)
    assert seen == [3, 6, 9] == [line["step"] for line in log_of(tmp_path, "eval")]
    assert checkpoint_steps(tmp_path) == checkpoint_steps(whole.output_dir) == [5, 10, 11]
    assert log_of(tmp_path) == log_of(whole.output_dir)
    assert_same_state(trainer, whole)


def test_without_next_sentence_prediction(records_file, tmp_path):
    config = synthetic.small_config(num_hidden_layers=1, next_sentence_prediction=False)
    trainer = make_trainer(tmp_path, config=config)
    trainer.train(lambda step: dataset_of(records_file, step), 2, sequences_per_batch=BATCH)
    line = log_of(tmp_path)[0]
    assert line["step"] == 2 and "nsp_loss" not in line
    assert line["loss"] == pytest.approx(line["mlm_loss"], rel=1e-3)


def test_loss_that_is_not_finite_stops_the_run(records_file, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(progress.RunLog, "close", lambda log: closed.append(log))
    trainer = make_trainer(tmp_path, save_checkpoints_steps=2)

    def poisoned(step):
        def poison(number, inputs, labels, weights):
            factor = tf.where(number == 2, np.nan, 1.0)
            return inputs, labels, {name: w * factor for name, w in weights.items()}

        return (
            dataset_of(records_file, step)
            .enumerate(step)
            .map(lambda number, element: poison(number, *element))
        )

    with pytest.raises(
        NonFiniteLossError,
        match=r"not finite at step 3; .* is model\.ckpt-2\. Lower.*nonfinite-batch-3\.npz$",
    ):
        trainer.train(poisoned, STEPS, sequences_per_batch=BATCH)
    with pytest.raises(NonFiniteLossError, match="not finite at step 3"):
        trainer.save()
    assert checkpoint_steps(tmp_path) == [2] and len(closed) == 1
    saved = np.load(tmp_path / "nonfinite-batch-3.npz")
    inputs, labels, _ = next(dataset_of(records_file, 2).as_numpy_iterator())
    for part, values in (("inputs", inputs), ("labels", labels)):
        for name, value in values.items():
            np.testing.assert_array_equal(saved[f"{part}/{name}"], value)
    assert np.isnan(saved["weights/masked_lm_logits"]).all()


@pytest.mark.thorough
def test_the_best_checkpoint_stays_beside_the_newest(records_file, tmp_path):
    losses = {2: 5.0, 4: 3.0, 6: float("nan"), 8: 3.5, 10: 2.0}
    settings = {"keep_checkpoints": 1, "keep_best_by": "loss", "save_checkpoints_steps": 3}

    def go_on(until):
        trainer = make_trainer(tmp_path, **settings)
        trainer.restore()
        evaluate = lambda: {"loss": losses[trainer.step]}  # noqa: E731
        train(trainer, records_file, until, eval_every_steps=2, evaluate=evaluate)
        return trainer.best

    assert go_on(3) == BestStep(2, 5.0)
    assert checkpoint_steps(tmp_path) == [2, 3]
    assert go_on(9) == BestStep(4, 3.0)
    assert checkpoint_steps(tmp_path) == [4, 9]
    assert "model.ckpt-4" in (tmp_path / "checkpoint").read_text()
    assert go_on(STEPS) == BestStep(10, 2.0)
    assert checkpoint_steps(tmp_path) == [10, STEPS]
    trainer = make_trainer(tmp_path / "other", keep_best_by="f1")
    with pytest.raises(ValueError, match="keep_best_by: expected one of loss, got 'f1'"):
        train(trainer, records_file, eval_every_steps=2, evaluate=lambda: {"loss": 1.0})


def test_an_evaluation_that_is_no_number_or_no_better_saves_nothing(records_file, tmp_path):
    losses = {2: float("nan"), 4: 3.0, 6: 3.0, 8: float("inf"), 10: 2.5}
    trainer = make_trainer(
        tmp_path, keep_checkpoints=9, keep_best_by="loss", save_checkpoints_steps=100
    )
    evaluate = lambda: {"loss": losses[trainer.step]}  # noqa: E731
    train(trainer, records_file, 3, eval_every_steps=2, evaluate=evaluate)
    assert trainer.best is None and checkpoint_steps(tmp_path) == [3]
    train(trainer, records_file, 9, eval_every_steps=2, evaluate=evaluate)
    assert trainer.best == BestStep(4, 3.0) and checkpoint_steps(tmp_path) == [3, 4, 9]


def test_of_equal_evaluations_the_first_is_the_best(records_file, tmp_path):
    trainer = make_trainer(
        tmp_path, keep_checkpoints=9, keep_best_by="loss", save_checkpoints_steps=2
    )
    train(trainer, records_file, 7, eval_every_steps=2, evaluate=lambda: {"loss": 3.0})
    assert checkpoint_steps(tmp_path) == [2, 4, 6, 7] and trainer.best == BestStep(2, 3.0)


def test_averages_of_weights_are_evaluated_and_resumed(records_file, tmp_path):
    settings = {"save_checkpoints_steps": 1, "log_steps": 1, "ema_momentum": 0.75}
    trainer = make_trainer(tmp_path, **settings)
    name = "cls/predictions/transform/dense/kernel"
    weight = next(v for v in trainer.model.weights if v.path == name)
    averages = []
    train(
        trainer,
        records_file,
        steps=4,
        eval_every_steps=1,
        evaluate=lambda: averages.append(weight.numpy()) or {},
    )
    with trainer.averaged_weights(), trainer.averaged_weights():  # also within itself
        averages.append(weight.numpy())
    expected = None
    for step, average in enumerate(averages, 1):
        stored = read_tensors(tmp_path / f"model.ckpt-{step}", [name, f"{name}/average"])
        expected = stored[name] if step == 1 else 0.75 * expected + 0.25 * stored[name]
        np.testing.assert_allclose(average, expected, atol=1e-7)
        np.testing.assert_array_equal(average, stored[f"{name}/average"])
    np.testing.assert_array_equal(weight.numpy(), stored[name])
    assert not np.array_equal(weight.numpy(), averages[-1])
    again = make_trainer(tmp_path, seed=17, **settings)
    with again.averaged_weights():  # of which there are none yet
        assert not np.array_equal(again.model.weights[0].numpy(), trainer.model.weights[0].numpy())
    assert again.restore() == 4
    assert_same_state(again, trainer)


def test_metrics_are_cut_after_a_step_and_where_a_write_was_killed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    cut_metrics(path, 3)  # nothing there, nothing to do
    for step in (0, 2, 4):
        append_metrics(path, "train", {"step": step, "loss": 0.5})
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    with pytest.raises(ValueError, match="line 4: not JSON"):
        read_metrics(path)
    cut_metrics(path, 2)
    assert [line["step"] for line in read_metrics(path)] == [0, 2]
    assert read_metrics(path, "eval") == []
    assert read_metrics_or_nothing(tmp_path / "absent", "train") == []


def test_progress_of_a_continued_run_tells_its_own_time_left(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    bar = Progress(100, 40, ["loss"])
    for step in (50, 60):
        now[0] += 20 if step == 50 else 10
        bar.update(step, [("loss", 2.5)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["50/100 - 100 s left - loss: 2.5", "60/100 - 40 s left - loss: 2.5"]


def test_a_terminal_shows_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True)
    Progress(100, 40, ["loss"]).update(50, [("loss", 2.5)])
    text = capsys.readouterr().out
    assert "50/100" in text and "loss: 2.5" in text and "s left" not in text


def test_a_log_needs_no_tensorboard_and_another_host_writes_none(tmp_path, monkeypatch, caplog):
    def create(*_):
        raise AttributeError("no TensorBoard")

    monkeypatch.setattr(tf.summary, "create_file_writer", create)
    settings = dict(start=0, target=9, tokens=0, verbose=False, tensorboard=True)
    with caplog.at_level(logging.WARNING, "bert_tf"):
        log = RunLog(tmp_path, ["loss"], is_chief=True, **settings)
    assert "no TensorBoard summaries: the package tensorboard is not installed" in caplog.text
    RunLog(tmp_path, ["loss"], is_chief=False, **settings).write_eval(7, {"loss": 1.5})
    log.write_eval(5, {"loss": 2.5})
    lines = read_metrics(tmp_path / METRICS_NAME, "eval")
    assert [(line["step"], line["eval_loss"]) for line in lines] == [(5, 2.5)]
    log.close()


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="log_steps: expected at least 1, got 0"):
        make_trainer(tmp_path, log_steps=0)
    with pytest.raises(ValueError, match="gradient_accumulation_steps: expected at least 1, got 0"):
        make_trainer(tmp_path, gradient_accumulation_steps=0)
    with pytest.raises(ValueError, match="loss_normalization: expected one of global, per_replica"):
        make_trainer(tmp_path, loss_normalization="none")
    with pytest.raises(ValueError, match="expected auto, true, false or pointwise, got 'yes'"):
        resolve_jit_compile("yes")
    with pytest.raises(ValueError, match="precision: expected one of float32"):
        set_precision("float16")
    assert resolve_jit_compile("true") and not resolve_jit_compile(False)
    with pytest.raises(ValueError, match="jit_compile: pointwise is for float32 and mixed_bfloat"):
        make_trainer(tmp_path, precision="mixed_float16", jit_compile="pointwise")
    with pytest.raises(ValueError, match="sequences_per_batch: 2.5 is a mean, which needs rows"):
        make_trainer(tmp_path).train(None, STEPS, sequences_per_batch=2.5)


def test_a_precision_is_the_policy_of_what_is_made_next():
    before = keras.config.dtype_policy()
    try:
        set_precision("mixed_bfloat16")
        assert keras.layers.Dense(3).compute_dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(("normalization", "factor"), [("global", 1), ("per_replica", 4)])
def test_the_loss_of_a_replica_is_its_share_of_all(
    records_file, tmp_path, monkeypatch, normalization, factor
):
    """With batches of its own each; their sum is then the mean, as the Trainer adds them."""
    config = synthetic.small_config(
        num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    batch, results = next(iter(dataset_of(records_file))), []
    for replicas in (1, 4):
        monkeypatch.setattr(distribution, "num_replicas_of", lambda _, count=replicas: count)
        trainer = make_trainer(
            tmp_path / str(replicas), config=config, loss_normalization=normalization
        )
        result = trainer.train_step._result(batch)
        results.append([result.loss, *(g for g in result.gradients if g is not None)])
    for alone, share in zip(*results, strict=True):
        np.testing.assert_allclose(share * factor, alone, rtol=1e-5, atol=1e-9)


def test_config_is_written_whole(tmp_path):
    write_config(tmp_path / "new", {"b": 1, "a": [2]})
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == {"a": [2], "b": 1}


@pytest.mark.thorough
@pytest.mark.parametrize("every", [pytest.param(None, marks=pytest.mark.slow), 4])
def test_training_stops_where_it_should(records_file, tmp_path, every):
    trainer = make_trainer(tmp_path, save_checkpoints_steps=every)
    asked = []

    def should_stop():
        asked.append(trainer.step)
        return len(asked) == 2

    def evaluate():
        assert len(asked) < 2
        return {"figure": 1.0}

    train(trainer, records_file, eval_every_steps=3, evaluate=evaluate, should_stop=should_stop)
    assert asked == [3, 6] and trainer.step == 6
    assert [line["step"] for line in log_of(tmp_path, "eval")] == [3, 6]
    assert checkpoint_steps(tmp_path) == ([] if every is None else [4, 6])
    # From there it goes on as if it had not stopped.
    if every:
        again = make_trainer(tmp_path, seed=17, save_checkpoints_steps=every)
        assert again.restore() == 6
        train(again, records_file)
        unbroken = make_trainer(tmp_path / "whole")
        train(unbroken, records_file)
        assert_same_state(again, unbroken)


def test_without_checkpoints_only_what_is_interrupted_is_saved(records_file, tmp_path, whole):
    trainer = make_trainer(tmp_path, save_checkpoints_steps=None)
    assert trainer.restore() is None
    given = {"eval_every_steps": 5, "evaluate": dict, "should_stop": lambda: False}
    with pytest.raises(StoppedError, match="stopped by a signal after step 5,"):
        train(trainer, records_file, interrupted=lambda: trainer.step == 5, **given)
    assert checkpoint_steps(tmp_path) == [5]
    train(trainer, records_file, interrupted=lambda: False, **given)
    assert checkpoint_steps(tmp_path) == [5]
    assert log_of(tmp_path) == log_of(whole.output_dir)
    assert_same_state(trainer, whole)


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / METRICS_NAME
    path.mkdir()
    with pytest.raises(OSError, match="metrics.jsonl"):
        append_metrics(path, "train", {"step": 1})
    path.rmdir()
    path.symlink_to("/dev/full")  # opens, and cannot be written to
    with pytest.raises(OSError, match="No space left on device.*metrics.jsonl"):
        append_metrics(path, "train", {"step": 1})
