"""Distillation of pre-training: the loss as torch's, its parts, and the student that is trained."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.models.task_models import bert_pretrainer
from bert_tf.training.distillation import Taught
from bert_tf.training.masked_lm_distillation import (
    PretrainingDistillation,
    check_matched,
    matched_student,
)
from bert_tf.training.objectives import PretrainingObjective
from tests.support import synthetic_records as synthetic

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "distillation" / "pretraining.npz"
WIDTH = 33


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(5)
    config = synthetic.small_config(hidden_size=WIDTH, num_attention_heads=3, num_hidden_layers=3)
    return bert_pretrainer(config, hidden_states=True)


def objective_of(teacher, **given):
    given = {"temperature": 3.0, "alpha": 0.7, "layers": (0, 2), "hidden_weight": 0.3, **given}
    return PretrainingDistillation(PretrainingObjective(next_sentence=False), teacher, **given)


def golden_batch(golden, rows=slice(None)):
    """Return outputs, labels and weights of some rows, and the tensors that are learnt."""
    learnt = {name: tf.constant(golden[name]) for name in ("student", "states", "matrices")}
    teacher = {"masked_lm_logits": golden["teacher"][rows], "input_mask": golden["mask"][rows]}
    teacher |= {f"matched_states_{n}": golden["teacher_states"][n][rows] for n in range(2)}
    labels = Taught({"masked_lm_logits": golden["ids"][rows]}, teacher)

    def outputs():
        states = [learnt["states"][n][rows] @ learnt["matrices"][n] for n in range(2)]
        matched = {f"matched_states_{n}": value for n, value in enumerate(states)}
        return {"masked_lm_logits": learnt["student"][rows], **matched}

    return outputs, labels, {"masked_lm_logits": golden["weights"][rows]}, learnt


def test_loss_and_gradients_are_those_of_torch(teacher):
    golden = np.load(GOLDEN)
    outputs, labels, weights, learnt = golden_batch(golden)
    objective = objective_of(teacher)
    with tf.GradientTape() as tape:
        tape.watch(learnt)
        loss, figures = objective(outputs(), labels, weights)
    assert float(loss) == pytest.approx(float(golden["loss"]), rel=1e-6)
    assert set(figures) == set(objective.metric_names)
    mean = {name: float(total) / float(weight) for name, (total, weight) in figures.items()}
    assert mean["teacher_loss"] == pytest.approx(float(golden["soft"]), rel=1e-5)
    assert mean["hidden_loss"] == pytest.approx(float(golden["hidden"]), rel=1e-6)
    assert mean["loss"] == pytest.approx(float(golden["loss"]), rel=1e-6)
    assert mean["task_loss"] == pytest.approx(mean["mlm_loss"], rel=1e-5)
    for name, gradient in tape.gradient(loss, learnt).items():
        np.testing.assert_allclose(gradient, golden[f"{name}_gradient"], rtol=1e-4, atol=1e-6)


def test_rows_that_hold_nothing_change_nothing(teacher):
    """As at the end of an epoch of batches of so many tokens."""
    objective = objective_of(teacher)
    golden = dict(np.load(GOLDEN))
    outputs, labels, weights, _ = golden_batch(golden)
    expected, figures = objective(outputs(), labels, weights)
    rows = np.array([0, 1, 1, 2])  # the third is to hold nothing
    for name in ("student", "teacher", "ids", "weights", "mask"):
        golden[name] = golden[name][rows]
    for name in ("states", "teacher_states"):
        golden[name] = golden[name][:, rows]
    for name in ("ids", "weights", "mask"):
        golden[name][2] = 0
    outputs, labels, weights, _ = golden_batch(golden)
    for whole in (None, objective.loss_weights(labels.labels, weights)):
        found, of_more = objective(outputs(), labels, weights, whole)
        assert float(found) == pytest.approx(float(expected), rel=1e-6)
        for one, other in zip(of_more["hidden_loss"], figures["hidden_loss"], strict=True):
            assert float(one) == pytest.approx(float(other), rel=1e-6)


def test_parts_of_a_batch_add_up_to_it(teacher):
    golden = np.load(GOLDEN)
    objective = objective_of(teacher)
    outputs, labels, weights, _ = golden_batch(golden)
    whole = objective.loss_weights(labels.labels, weights)
    total = 0.0
    for rows in (slice(0, 1), slice(1, 3)):
        outputs, labels, weights, _ = golden_batch(golden, rows)
        total += float(objective(outputs(), labels, weights, whole)[0])
    assert total == pytest.approx(float(golden["loss"]), rel=1e-6)


def test_a_student_is_trained_beside_matrices_that_it_does_not_have(teacher):
    keras.utils.set_random_seed(7)
    student = bert_pretrainer(synthetic.small_config(), hidden_states=True)
    trained = matched_student(student, WIDTH)
    own = {id(weight) for weight in student.weights}
    more = [weight for weight in trained.trainable_weights if id(weight) not in own]
    assert [weight.path for weight in more] == [f"distillation_{n}/kernel" for n in range(2)]
    arrays = synthetic.make_arrays(5, 1)
    names = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
    inputs = {name: tf.constant(arrays[name], tf.int32) for name in names}
    outputs, plain = trained(inputs), student(inputs)
    for name in ("masked_lm_logits", "next_sentence_logits"):
        np.testing.assert_array_equal(outputs[name], plain[name])
    expected = plain["hidden_states_2"] @ more[1].value
    np.testing.assert_allclose(outputs["matched_states_1"], expected, rtol=1e-5, atol=1e-6)
    # The states of layer n are those after it; the teacher's are taken likewise, as it is.
    taught = objective_of(teacher).taught(inputs, "labels")
    theirs = teacher(inputs, training=False)
    np.testing.assert_array_equal(
        taught.teacher_outputs["matched_states_1"], theirs["hidden_states_3"]
    )
    assert taught.labels == "labels" and "next_sentence_logits" not in taught.teacher_outputs
    same = matched_student(student, 22)
    assert {id(weight) for weight in same.weights} == own
    np.testing.assert_array_equal(same(inputs)["matched_states_0"], plain["hidden_states_1"])


def test_evaluation_needs_no_teacher(teacher):
    golden = np.load(GOLDEN)
    outputs, labels, weights, _ = golden_batch(golden)
    objective = objective_of(teacher)
    _, figures = objective(outputs(), labels.labels, weights)
    assert tuple(figures) != objective.metric_names
    assert set(figures) == set(objective.evaluation_metric_names)
    alone = objective_of(None)
    assert alone.metric_names == objective.metric_names
    with pytest.raises(ValueError, match="teacher: training needs one"):
        alone.taught({}, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a number above 0"),
        ({"alpha": 1.5}, "alpha: expected 0 to 1"),
        ({"hidden_weight": -1.0}, "hidden_weight: expected at least 0"),
        ({"layers": (0, 3)}, "layers: the teacher has 0 to 2, got 0,3"),
    ],
)
def test_settings_that_cannot_be_are_refused(teacher, given, message):
    with pytest.raises(ValueError, match=message):
        objective_of(teacher, **given)


def test_models_without_hidden_states_and_maps_of_other_length_are_refused(teacher):
    plain = bert_pretrainer(synthetic.small_config())
    with pytest.raises(ValueError, match="teacher: expected one that was made with hidden_states"):
        objective_of(plain, layers=(0, 1))
    with pytest.raises(ValueError, match="student: expected one that was made with hidden_states"):
        matched_student(plain, WIDTH)
    with pytest.raises(ValueError, match="for each of the student's 2, got 3"):
        check_matched((0, 1, 2), 5, 2)
    check_matched((), 5, 2)
