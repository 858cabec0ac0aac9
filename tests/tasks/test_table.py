"""Tests of the table of tasks: names, labels, and the paper's settings."""

import dataclasses
import math

import numpy as np
import pytest

from bert_tf.tasks.kinds import KINDS
from bert_tf.tasks.table import _ALIASES, TASKS, _plain, custom_task, get_task
from bert_tf.tasks.trained_task import TRAINED_TASK_NAME, TrainedTask, read_trained_task


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("SST-2", "sst-2"),
        ("sst2", "sst-2"),
        ("sst_2", "sst-2"),
        ("STSB", "sts-b"),
        ("sts-b", "sts-b"),
        ("MRPC", "mrpc"),
        ("CoLA", "cola"),
        ("squad_v1.1", "squad1.1"),
        ("SQuAD2.0", "squad2.0"),
        ("SQuAD-v2", "squad2.0"),
        ("conll2003", "ner"),
        ("diagnostic", "ax"),
    ],
)
def test_names_in_use_are_found(given, name):
    assert get_task(given) is TASKS[name]


def test_tasks_of_one_text_and_of_two():
    """As the paper's appendix B.1 describes them."""
    assert {n for n, task in TASKS.items() if not task.has_pairs} == {"sst-2", "cola", "ner"}


def test_the_defaults_of_a_trained_task_are_the_originals():
    """Those of the flags of run_classifier.py and run_squad.py."""
    task = TrainedTask("span")
    assert (task.max_seq_length, task.doc_stride, task.max_query_length) == (128, 128, 64)
    assert (task.max_answer_length, task.n_best_size) == (30, 20)
    assert (task.null_score_diff_threshold, task.version_2_with_negative) == (0.0, False)


@pytest.mark.parametrize(
    "name", ["max_seq_length", "doc_stride", "max_query_length", "max_answer_length", "n_best_size"]
)
def test_bounds_of_the_whole_numbers_of_a_trained_task(name):
    for value in (1, 2**20):
        assert getattr(TrainedTask("span", **{name: value}), name) == value
    for value in (0, 2**20 + 1):
        with pytest.raises(ValueError, match=f"{name} must be an integer of 1 to 1,048,576, got"):
            TrainedTask("span", **{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        *({"temperature": value} for value in (0.0, -1.0, math.inf, math.nan, "1", True)),
        *({"thresholds": [0.5, value]} for value in (0, 1.0, -0.1, math.nan, "0.5", True)),
        {"thresholds": 0.5},
    ],
)
def test_temperatures_and_thresholds_that_cannot_be(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        TrainedTask("multi_label", **changes)


def test_decisions_at_a_temperature_and_thresholds():
    logits = np.array([[1.0, -0.4, 0.0], [-1.5, 0.5, 3.0]], np.float32)
    task = TrainedTask("multi_label", temperature=2.0, thresholds=(0.7, 0.4, 0.5))
    # By hand: sigmoids of logits / 2.
    expected = [[0.6225, 0.4502, 0.5], [0.3208, 0.5622, 0.8176]]
    np.testing.assert_allclose(task.probabilities(logits), expected, atol=1e-4)
    assert task.decide(logits).tolist() == [[0, 1, 0], [0, 1, 1]]
    assert TrainedTask("multi_label").decide(logits).tolist() == [[1, 0, 0], [0, 1, 1]]
    task = TrainedTask("classification", temperature=2.0)
    assert task.decide(logits).tolist() == [0, 2]
    expected = [[0.4755, 0.2361, 0.2884], [0.0757, 0.2058, 0.7184]]
    np.testing.assert_allclose(task.probabilities(logits), expected, atol=1e-4)


def test_an_unknown_name_lists_all():
    with pytest.raises(ValueError, match="unknown task 'squad'") as error:
        get_task("squad")
    for name in TASKS:
        assert name in str(error.value)


def test_names_stay_apart_without_signs():
    plain = [_plain(name) for name in TASKS]
    assert len({*plain, *_ALIASES}) == len(plain) + len(_ALIASES)
    for name, task in TASKS.items():
        assert task.name == name


def test_labels_stand_in_the_originals_order():
    """run_classifier.py, get_labels of each processor."""
    assert TASKS["mnli"].labels == ("contradiction", "entailment", "neutral")
    assert TASKS["mrpc"].labels == TASKS["cola"].labels == ("0", "1")
    assert TASKS["ax"].labels == TASKS["mnli"].labels
    assert TASKS["sts-b"].labels is None


def test_settings_are_the_papers():
    glue = "cola sst-2 mrpc sts-b qqp mnli qnli rte wnli".split()
    for name in glue:
        task = TASKS[name]
        assert (task.train_batch_size, task.num_train_epochs) == (32, 3)
        assert task.learning_rates == (5e-5, 4e-5, 3e-5, 2e-5)
        assert task.max_seq_length == 128
    squad, unanswerable = TASKS["squad1.1"], TASKS["squad2.0"]
    assert (squad.train_batch_size, squad.num_train_epochs) == (32, 3)
    assert (unanswerable.train_batch_size, unanswerable.num_train_epochs) == (48, 2)
    assert squad.learning_rates == unanswerable.learning_rates == (5e-5,)
    swag = TASKS["swag"]
    assert (swag.train_batch_size, swag.num_train_epochs, swag.learning_rates) == (16, 3, (2e-5,))
    assert swag.num_choices == 4
    assert TASKS["ner"].learning_rates == (5e-5, 3e-5, 2e-5)  # appendix A.3
    assert TASKS["mnli"].eval_splits == ("dev_matched", "dev_mismatched")
    assert {t.name: t.selection_metric for t in map(TASKS.get, glue)} == {
        "cola": "matthews_correlation",
        "sst-2": "accuracy",
        "mrpc": "f1",
        "sts-b": "spearman_correlation",
        "qqp": "f1",
        "mnli": "accuracy",
        "qnli": "accuracy",
        "rte": "accuracy",
        "wnli": "accuracy",
    }


def test_the_diagnostic_set_is_for_prediction_with_a_model_of_mnli():
    task = TASKS["ax"]
    assert task.train_split is None and task.eval_splits == () and task.test_splits == ("test",)
    assert task.model_task == "mnli"


def test_own_tasks():
    task = custom_task("classification", ("no", "yes"), has_pairs=True)
    assert task.metrics == ("accuracy", "f1") and task.selection_metric == "accuracy"
    assert custom_task("classification", ("a", "b", "c"), False).metrics == (
        "accuracy",
        "macro_f1",
    )
    assert custom_task("regression", None, False).selection_metric == "pearson_correlation"
    for kind in KINDS:
        assert custom_task(kind, ("a", "b"), False).kind == kind


def test_tasks_that_cannot_be():
    with pytest.raises(ValueError, match="kind: expected one of classification, .*, got 'x'"):
        custom_task("x", None, False)
    with pytest.raises(ValueError, match="labels: classification needs the names"):
        custom_task("classification", None, False)
    with pytest.raises(ValueError, match="classification needs at least 2, got"):
        custom_task("classification", ("a",), False)
    with pytest.raises(ValueError, match="labels must be distinct, got twice: a"):
        custom_task("multi_label", ("a", "b", "a"), False)
    for label in ("two\nlines", "", "a\u2028b"):
        with pytest.raises(ValueError, match="labels: expected names of one line each, got "):
            custom_task("classification", ("a", label), False)
    with pytest.raises(ValueError, match="selection_metric must be one of accuracy; got 'f1'"):
        dataclasses.replace(TASKS["rte"], selection_metric="f1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["rte"].name = "x"


def test_what_a_model_is_for_comes_back(tmp_path):
    assert read_trained_task(tmp_path) is None
    written = TrainedTask("span", 384, has_pairs=True, version_2_with_negative=True)
    written.write(tmp_path)
    assert read_trained_task(tmp_path) == written
    chosen = TrainedTask("multi_label", temperature=1.25, thresholds=(0.25, 0.5))
    chosen.write(tmp_path)
    assert read_trained_task(tmp_path) == chosen
    assert [path.name for path in tmp_path.iterdir()] == [TRAINED_TASK_NAME]


def test_thresholds_decide_as_before_at_another_temperature():
    before = TrainedTask("multi_label", temperature=1.7, thresholds=(0.03, 0.5, 0.9))
    logits = np.random.default_rng(5).normal(0, 4, (400, 3))
    for temperature in (0.3, 1.0, 4.2):
        after = before.at_temperature(temperature)
        assert after.temperature == temperature
        np.testing.assert_array_equal(after.decide(logits), before.decide(logits))
    assert before.at_temperature(1.7) == before
    assert before.at_temperature(1.0).thresholds[2] == pytest.approx(9 ** (1.7) / (1 + 9**1.7))
    extreme = TrainedTask("multi_label", temperature=20, thresholds=(1e-9, 1 - 1e-9))
    assert extreme.at_temperature(0.05).temperature == 0.05  # still between 0 and 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"kind": "x"}', '{"kind": "span", "more": 1}', "{}"]
    + [f'{{"kind": "span", "null_score_diff_threshold": {x}}}' for x in ("1" + "0" * 400, "NaN")],
)
def test_a_damaged_file_of_what_a_model_is_for_is_named(tmp_path, text):
    path = tmp_path / TRAINED_TASK_NAME
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}: "):
        read_trained_task(tmp_path)
