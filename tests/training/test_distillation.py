"""Distillation: losses and gradients as torch's, and one step however it is taken."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.models.variables import weights_by_name
from bert_tf.training import losses
from bert_tf.training.distillation import (
    DISTILLED_KINDS,
    DistillationObjective,
    DistilledModel,
    copy_layers,
)
from bert_tf.training.objectives import FineTuningObjective, finetuning_compile_arguments
from bert_tf.training.optimizers import create_optimizer
from bert_tf.training.options import TrainerOptions
from bert_tf.training.trainer import Trainer
from tests.input_pipeline.test_finetuning import make_records, small_model
from tests.training.test_objectives import calm_model

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "distillation" / "losses.npz"
CLASSIFICATION = FineTuningObjective("classification")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("records"), "classification")[0]


def given_logits(logits):
    """Return a model whose outputs are these, whatever its inputs."""
    return lambda inputs, training: tf.constant(logits)


# === Losses ===


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", ["one", "several", "whole"])
def test_losses_and_gradients_are_those_of_torch(name, temperature):
    golden = np.load(GOLDEN)
    logits, teacher = tf.constant(golden["student"]), golden["teacher"]
    weights = tf.constant(golden["weights"])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        if name == "whole":
            objective = DistillationObjective(
                CLASSIFICATION, given_logits(teacher), temperature, alpha=0.7
            )
            labels = objective.taught(None, tf.constant(golden["labels"]))
            value, figures = objective(logits, labels, weights)
            soft, weight = map(float, figures["teacher_loss"])
            assert soft / weight == pytest.approx(float(golden[f"one_{temperature}"]), rel=1e-5)
        else:
            loss = losses.soft_label_loss if name == "one" else losses.soft_multi_label_loss
            total, weight = loss(logits, teacher, weights, temperature)
            value = total / weight
    assert float(value) == pytest.approx(float(golden[f"{name}_{temperature}"]), rel=1e-5)
    gradient = tape.gradient(value, logits)
    np.testing.assert_allclose(gradient, golden[f"{name}_{temperature}_gradient"], atol=2e-6)


def test_probabilities_of_none_make_no_nan():
    logits = tf.constant([[300.0, -300.0, 0.0]])
    for loss in (losses.soft_label_loss, losses.soft_multi_label_loss):
        assert np.isfinite(loss(logits, -logits, None, 0.5)[0])
        assert loss(logits, logits)[0] == 0


def test_numbers_are_learnt_as_the_teacher_has_them():
    objective = DistillationObjective(
        FineTuningObjective("regression"), given_logits([[3.0], [5.0]]), alpha=0.25
    )
    labels = objective.taught(None, tf.constant([1.0, 0.0]))
    loss, _ = objective(tf.constant([[2.0], [1.0]]), labels, tf.ones(2))
    assert float(loss) == pytest.approx(0.75 * (1 + 1) / 2 + 0.25 * (1 + 16) / 2)


def test_evaluation_is_the_tasks_own():
    objective = DistillationObjective(CLASSIFICATION, given_logits([[0.0, 9.0]]))
    batch = tf.constant([[1.0, 2.0]]), tf.constant([0]), tf.ones(1)
    assert objective(*batch) == CLASSIFICATION(*batch)
    assert objective.evaluation_metric_names == CLASSIFICATION.metric_names
    parts = tf.constant([0, 1]), tf.constant([1.0, 0.5])
    assert objective.loss_weights(*parts) == CLASSIFICATION.loss_weights(*parts) == {"loss": 1.5}


# === Steps ===


def train(folder, records, *, strategy=None, **options):
    """Take three steps with a teacher of two layers; return it, the trainer and its last line."""
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(7)
        student = calm_model("classification")
        optimizer = create_optimizer(1e-2, 9, 1)
        teacher = small_model("classification", num_hidden_layers=2, initializer_range=0.3)
    objective = DistillationObjective(CLASSIFICATION, teacher)
    trainer = Trainer(
        student,
        optimizer,
        objective,
        folder,
        TrainerOptions(tensorboard=False, verbose=False, log_steps=3, **options),
        strategy=strategy,
    )
    last = trainer.train(
        lambda step: records.training_dataset(
            batch_size=6, seed=2, start_step=step, with_weights=True
        ),
        3,
        sequences_per_batch=6,
    )
    return teacher, trainer, last


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), records, jit_compile=False)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        pytest.param({"strategy": "mirrored"}, marks=pytest.mark.slow),
    ],
    ids=["accumulated", "compiled", "mirrored"],
)
def test_a_step_is_the_same_however_it_is_taken(whole, records, tmp_path, options):
    options = {"jit_compile": False, **options}
    if "strategy" in options:
        options["strategy"] = tf.distribute.MirroredStrategy(["CPU:0"])
    _, trainer, last = train(tmp_path, records, **options)
    for name in trainer.objective.metric_names:
        assert last[name] == pytest.approx(whole[2][name], rel=1e-4), name
    expected = weights_by_name(whole[1].model)
    for name, weight in weights_by_name(trainer.model).items():
        np.testing.assert_allclose(weight, expected[name], atol=2e-5, err_msg=name)


def test_the_teacher_stays_as_it_was_and_is_not_saved(whole):
    teacher, trainer, last = whole
    assert last["loss"] == pytest.approx((last["task_loss"] + last["teacher_loss"]) / 2, rel=1e-5)
    keras.utils.set_random_seed(7)
    calm_model("classification")
    create_optimizer(1e-2, 9, 1)
    before = small_model("classification", num_hidden_layers=2, initializer_range=0.3)
    for one, other in zip(teacher.weights, before.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    ours = {id(weight) for weight in teacher.weights}
    assert not ours & {id(variable) for variable in trainer.keeper.variables.values()}


# === Keras ===


def test_fit_takes_the_trainers_step(records):
    batch = next(iter(records.training_dataset(batch_size=6, seed=2, with_weights=True).take(1)))
    keras.utils.set_random_seed(7)
    student, teacher = (calm_model("classification") for _ in range(2))
    names = [weight.path for weight in student.weights]
    objective = DistillationObjective(CLASSIFICATION, teacher, 3.0, 0.3)
    with tf.GradientTape() as tape:
        inputs, labels, weights = batch
        loss, _ = objective(student(inputs), objective.taught(inputs, labels), weights)
    gradients = tape.gradient(loss, student.trainable_variables)
    expected = [
        variable.numpy() if gradient is None else variable.numpy() - tf.convert_to_tensor(gradient)
        for variable, gradient in zip(student.trainable_variables, gradients, strict=True)
    ]
    model = DistilledModel(student, teacher, "classification", 3.0, 0.3)
    model.compile(keras.optimizers.SGD(1.0), **finetuning_compile_arguments("classification"))
    history = model.fit(tf.data.Dataset.from_tensors(batch), shuffle=False, verbose=0)
    assert history.history["loss"][0] == pytest.approx(float(loss), rel=1e-5)
    for variable, value in zip(student.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, atol=1e-5, err_msg=variable.path)
    assert [weight.path for weight in model.weights] == names
    task, _ = CLASSIFICATION(student(inputs), labels, weights)
    found = model.evaluate(tf.data.Dataset.from_tensors(batch), verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(float(task), rel=1e-5)


# === A student of the teacher's layers ===


def test_layers_are_copied_and_all_that_is_no_layers():
    teacher = small_model("classification", num_hidden_layers=3)
    student = small_model("classification", num_hidden_layers=2)
    copy_layers(teacher, student, [0, 2])
    theirs = weights_by_name(teacher)
    for name, weight in weights_by_name(student).items():
        source = name.replace("/layer_1/", "/layer_2/")
        np.testing.assert_array_equal(weight, theirs[source], err_msg=name)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0], "layers: expected 2, as the student has, got 1"),
        ([0, 3], "some of 0 to 2 in order.*got 0,3"),
        ([2, 0], "some of 0 to 2 in order.*got 2,0"),
    ],
)
def test_layers_that_are_not_the_teachers(layers, message):
    teacher = small_model("classification", num_hidden_layers=3)
    with pytest.raises(ValueError, match=message):
        copy_layers(teacher, small_model("classification", num_hidden_layers=2), layers)


def test_a_student_of_other_sizes_takes_nothing():
    teacher = small_model("classification", num_hidden_layers=3)
    student = small_model("classification", num_hidden_layers=1, intermediate_size=5)
    before = student.get_weights()
    with pytest.raises(ValueError, match=r"layer_0/.*: expected the teacher's of .*5.*, found"):
        copy_layers(teacher, student, [1])
    for weight, value in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("span", {}, "distillation is for kinds classification, .*got span"),
        ("classification", {"temperature": 0.0}, "temperature: expected a number above 0, got 0"),
        ("classification", {"alpha": 1.5}, "alpha: expected 0 to 1, got 1.5"),
    ],
)
def test_what_cannot_be_distilled(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        DistillationObjective(FineTuningObjective(kind), given_logits([[0.0]]), **settings)
    assert "multi_label" in DISTILLED_KINDS


def test_outputs_that_differ():
    objective = DistillationObjective(CLASSIFICATION, given_logits([[0.0, 1.0, 2.0]]))
    labels = objective.taught(None, tf.constant([0]))
    with pytest.raises(ValueError, match="teacher: expected 2 outputs.*got 3"):
        objective(tf.constant([[1.0, 2.0]]), labels, tf.ones(1))
