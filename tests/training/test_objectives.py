"""Learning tiny tasks of each kind; padding, frozen weights and a resume change nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.models.freezing import freeze, frozen_layers
from bert_tf.tasks.kinds import KINDS as ALL_KINDS
from bert_tf.training.finetuning import make_model
from bert_tf.training.log import METRICS_NAME, read_metrics
from bert_tf.training.objectives import FineTuningObjective
from bert_tf.training.optimizers import AdamWeightDecay, create_optimizer, layer_wise_rules
from bert_tf.training.options import TrainerOptions
from bert_tf.training.trainer import Trainer
from tests.input_pipeline.test_finetuning import (
    BATCH,
    COUNT,
    KINDS,
    LABELS,
    LENGTH,
    make_records,
    num_labels_of,
    small_model,
)
from tests.support import synthetic_records as synthetic
from tests.support.optimizer_slots import slot_variables

STEPS, RATE = 163, 1e-2


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {kind: make_records(folder, kind) for kind in KINDS}


def calm_model(kind, **arguments):
    """Return a small model without dropout."""
    config = synthetic.small_config(
        num_hidden_layers=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    if kind not in ("span", "similarity", "retrieval"):  # whose heads have no dropout
        arguments = {"dropout_rate": 0.0, **arguments}
    return make_model(kind, config, num_labels_of(kind), **arguments)


# === Models ===


@pytest.mark.parametrize("kind", KINDS)
def test_models_have_the_heads_of_their_kinds(kind):
    assert set(ALL_KINDS) == set(KINDS)
    model = small_model(kind)
    outputs = model.output if isinstance(model.output, dict) else {"logits": model.output}
    expected = {
        "classification": [(None, LABELS)],
        "multi_label": [(None, LABELS)],
        "regression": [(None, 1)],
        "multiple_choice": [(None, None)],
        "similarity": [(None, None, 22)],
        "retrieval": [(None, None, 22)],
        "token_classification": [(None, None, LABELS)],
        "span": [(None, None), (None, None)],
    }
    assert [tuple(x.shape) for x in outputs.values()] == expected[kind]


@pytest.mark.parametrize(
    ("kind", "num_labels", "message"),
    [
        ("other", 3, "kind: expected one of classification, .* got 'other'"),
        ("regression", 2, "num_labels: a regression has 1, got 2"),
        ("span", 2, "num_labels: span takes none, got 2"),
        ("multiple_choice", 3, "num_labels: multiple_choice takes none, got 3"),
        ("classification", None, "num_labels: classification takes a number of labels, got None"),
    ],
)
def test_numbers_of_labels_that_do_not_fit(kind, num_labels, message):
    with pytest.raises(ValueError, match=message):
        make_model(kind, synthetic.small_config(), num_labels)


@pytest.mark.parametrize(
    ("kind", "label_smoothing", "message"),
    [
        ("classification", 1.0, "at least 0 and below 1, got 1.0"),
        ("multi_label", -0.1, "at least 0 and below 1, got -0.1"),
        ("classification", float("nan"), "at least 0 and below 1, got nan"),
        ("regression", 0.1, "is for labels that are classes, got regression"),
        ("span", 0.1, "is for labels that are classes, got span"),
    ],
)
def test_smoothing_that_cannot_be_is_refused(kind, label_smoothing, message):
    with pytest.raises(ValueError, match=f"label_smoothing: .*{message}"):
        FineTuningObjective(kind, label_smoothing)


def test_smoothing_changes_the_loss_and_not_the_accuracy():
    logits, labels = np.array([[2.0, -1.0, 0.5]], np.float32), np.array([0])
    plain, figures = FineTuningObjective("classification")(logits, labels, np.ones(1, np.float32))
    loss, smoothed = FineTuningObjective("classification", 0.3)(
        logits, labels, np.ones(1, np.float32)
    )
    assert smoothed["accuracy"] == figures["accuracy"]
    # -log p of each class, by hand: log(e^2 + e^-1 + e^0.5) = 2.2413.
    assert float(plain) == pytest.approx(0.2413, abs=1e-4)
    assert float(loss) == pytest.approx(0.8 * 0.2413 + 0.1 * (3.2413 + 1.7413), abs=2e-4)


def test_objective_of_no_kind():
    with pytest.raises(ValueError, match="kind: expected one of .* got 'ner'"):
        FineTuningObjective("ner")


# === Padding ===


def batches_of(tasks, kind, steps, with_mask=True, **options):
    return tasks.training_dataset(
        batch_size=BATCH,
        seed=1,
        num_steps=steps,
        with_mask=with_mask,
        with_weights=True,
        **options,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_loss_does_not_depend_on_padding(all_kinds, kind):
    tasks, _ = all_kinds[kind]
    keras.utils.set_random_seed(5)
    model = small_model(kind, initializer_range=0.5)
    objective = FineTuningObjective(kind)
    lengths = set()
    pairs = zip(
        batches_of(tasks, kind, 11), batches_of(tasks, kind, 11, pad_to_max=True), strict=True
    )
    for batches in pairs:
        found = []
        for inputs, labels, weights in batches:
            loss, metrics = objective(model(inputs, training=False), labels, weights)
            assert tuple(metrics) == objective.metric_names
            found.append([loss, *tf.nest.flatten(metrics)])
            lengths.add(inputs["input_ids"].shape[-1])
        np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-6)
    assert len(lengths) > 1 and LENGTH in lengths


def test_loss_of_spans_without_a_mask_depends_on_padding_as_the_originals(all_kinds):
    tasks, _ = all_kinds["span"]
    keras.utils.set_random_seed(5)
    model = small_model("span", initializer_range=0.5)
    losses = []
    for options in ({}, {"pad_to_max": True}):
        (batch,) = batches_of(tasks, "span", 1, with_mask=False, **options)
        inputs, labels, weights = batch
        assert (inputs["input_mask"].shape[1] == LENGTH) == bool(options)
        losses.append(
            float(FineTuningObjective("span")(model(inputs, training=False), labels, weights)[0])
        )
    assert losses[1] > losses[0] + 0.05


@pytest.mark.parametrize("kind", ["token_classification", "span"])
def test_gradients_do_not_depend_on_padding(all_kinds, kind):
    tasks, _ = all_kinds[kind]
    keras.utils.set_random_seed(5)
    model = small_model(kind, initializer_range=0.1)
    found = []
    for options in ({}, {"pad_to_max": True}):
        (batch,) = batches_of(tasks, kind, 1, **options)
        inputs, labels, weights = batch
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=False)
            loss, _ = FineTuningObjective(kind)(outputs, labels, weights)
        gradients = tape.gradient(loss, model.trainable_weights)
        found.append([tf.convert_to_tensor(g).numpy() for g in gradients])
    for weight, one, other in zip(model.trainable_weights, *found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=weight.path)
    assert all(np.abs(one).max() > 1e-6 for one in found[0] if one.ndim == 2)


def test_fillers_do_not_count(all_kinds):
    # The negatives of retrieval are of its batch; test_sentence_losses has its fillers.
    for kind in set(KINDS) - {"retrieval"}:
        tasks, _ = all_kinds[kind]
        model = small_model(kind, initializer_range=0.5)
        sums = []
        for size in (BATCH, COUNT):
            found = [
                tf.nest.flatten(
                    FineTuningObjective(kind)(model(inputs, training=False), labels, weights)[1]
                )
                for inputs, labels, weights in tasks.evaluation_dataset(
                    batch_size=size, pad_to_max=True, fill_last_batch=True
                )
            ]
            sums.append(np.sum(found, axis=0))
        np.testing.assert_allclose(*sums, rtol=1e-5)
        if kind != "token_classification":
            assert sums[0][1] == COUNT, kind


# === Training ===


def make_trainer(folder, model, kind, steps=STEPS, **options):
    options = {"log_steps": 40, "save_checkpoints_steps": None, **options}
    return Trainer(
        model,
        create_optimizer(RATE, steps, steps // 10, bias_correction=True),
        FineTuningObjective(kind),
        folder,
        TrainerOptions(jit_compile=False, tensorboard=False, verbose=False, **options),
    )


def run(trainer, tasks, steps=STEPS, **options):
    return trainer.train(
        lambda step: tasks.training_dataset(
            batch_size=BATCH, seed=2, start_step=step, with_mask=True, with_weights=True
        ),
        steps,
        sequences_per_batch=BATCH,
        **options,
    )


def accuracy(tasks, kind, model, arrays):
    found = tasks.predict(model, batch_size=13, fill=-1e9)
    if kind == "span":
        right = [
            found[f"{end}_logits"].argmax(1) == arrays[f"{end}_positions"][:, 0]
            for end in ("start", "end")
        ]
        return np.mean(right)
    logits, labels = found["logits"], tasks.labels()
    if kind == "token_classification":
        counts = labels["label_mask"] == 1
        return (logits.argmax(-1) == labels["label_ids"])[counts].mean()
    if kind == "multi_label":
        return ((logits > 0) == labels).mean()
    if kind == "regression":
        return np.corrcoef(logits[:, 0], labels)[0, 1]
    return (logits.argmax(-1) == labels).mean()


# The scripts' tests train the others, too.
_MARKS = {"classification": (), "span": pytest.mark.thorough}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *(
            pytest.param(k, None, marks=_MARKS.get(k, pytest.mark.slow))
            for k in KINDS
            if k not in ("similarity", "retrieval")  # which test_run_embeddings trains
        ),
        pytest.param("classification", "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_small_models_learn_small_tasks(all_kinds, tmp_path, kind, precision):
    tasks, arrays = all_kinds[kind]
    keras.utils.set_random_seed(7)
    model = calm_model(kind, dtype=precision)
    trainer = make_trainer(tmp_path, model, kind)
    last = run(trainer, tasks)
    lines = read_metrics(tmp_path / METRICS_NAME)
    assert lines[-1]["loss"] == last["loss"] < 0.5 * lines[0]["loss"]
    assert set(trainer.objective.metric_names) < set(last)
    assert accuracy(tasks, kind, model, arrays) > 0.9
    assert not list(tmp_path.glob("model.ckpt*"))


def test_batches_without_weights_are_refused(all_kinds, tmp_path):
    tasks, _ = all_kinds["classification"]
    trainer = make_trainer(tmp_path, calm_model("classification"), "classification")
    with pytest.raises(ValueError, match="expected elements .inputs, labels, weights.*with_weight"):
        trainer.train(
            lambda step: tasks.training_dataset(batch_size=BATCH, start_step=step),
            3,
            sequences_per_batch=BATCH,
        )


def test_training_ends_where_it_should_stop(all_kinds, tmp_path):
    tasks, _ = all_kinds["classification"]
    trainer = make_trainer(tmp_path, calm_model("classification"), "classification")
    seen = []

    def evaluate():
        seen.append(trainer.step)
        return {"figure": len(seen)}

    run(trainer, tasks, 31, eval_every_steps=3, evaluate=evaluate, should_stop=lambda: seen[2:])
    assert seen == [3, 6, 9] and trainer.step == 9
    lines = read_metrics(tmp_path / METRICS_NAME, "eval")
    assert [(line["step"], line["eval_figure"]) for line in lines] == [(3, 1), (6, 2), (9, 3)]
    assert not list(tmp_path.glob("model.ckpt*"))


# === Plain Keras ===


@pytest.mark.parametrize(
    "kind",
    [
        "span",
        pytest.param("classification", marks=pytest.mark.slow),
        pytest.param("token_classification", marks=pytest.mark.slow),
    ],
)
def test_plain_keras_trains_evaluates_and_predicts(all_kinds, kind):
    tasks, arrays = all_kinds[kind]
    keras.utils.set_random_seed(7)
    model = calm_model(kind)

    def loss():
        return keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )

    outputs = ("start_logits", "end_logits")
    model.compile(
        optimizer=create_optimizer(RATE, 160, 16, bias_correction=True),
        loss={name: loss() for name in outputs} if kind == "span" else loss(),
        weighted_metrics={name: ["accuracy"] for name in outputs}
        if kind == "span"
        else ["accuracy"],
        jit_compile=False,
    )
    history = model.fit(
        tasks.training_dataset(batch_size=BATCH, seed=2),
        steps_per_epoch=40,
        epochs=4,
        shuffle=False,
        verbose=0,
    ).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    dataset = tasks.evaluation_dataset(
        batch_size=BATCH, group_by_length=True, pad_to_max=True, fill_last_batch=True
    )
    figures = model.evaluate(dataset, verbose=0, return_dict=True)
    predicted = model.predict(dataset, verbose=0)
    order = tasks.order.evaluation_order(BATCH).ravel()
    objective = FineTuningObjective(kind)
    sums = np.zeros(2)
    for inputs, labels, weights in dataset:
        found = objective(model(inputs, training=False), labels, weights)[1]
        sums += np.array([float(x) for x in found["loss"]])
    halves = 2 if kind == "span" else 1  # Keras adds the losses of outputs
    if kind != "token_classification":  # of which Keras takes the mean over batches
        # The last batch counts as a whole one there, however many of its rows are fillers.
        assert figures["loss"] == pytest.approx(halves * sums[0] / sums[1], rel=0.15, abs=0.01)
    names = [f"{name}_accuracy" for name in outputs] if kind == "span" else ["accuracy"]
    assert np.mean([figures[name] for name in names]) == pytest.approx(
        accuracy(tasks, kind, model, arrays), abs=0.05 if kind == "span" else 1e-6
    )
    ours = tasks.predict(model, batch_size=BATCH, pad_to_max=True)
    predicted = predicted if isinstance(predicted, dict) else {"logits": predicted}
    for name, values in predicted.items():
        expected = ours[name][order[order >= 0]]
        real = slice(None)
        if kind != "classification":
            real = arrays["input_mask"][order[order >= 0]] == 1
        np.testing.assert_allclose(values[:COUNT][real], expected[real], atol=1e-5)


# === Frozen weights ===


def values_of(model):
    return {weight.path: weight.numpy() for weight in model.weights}


def test_frozen_weights_stay_to_the_bit_and_have_no_slots(all_kinds, tmp_path):
    tasks, _ = all_kinds["classification"]
    model = small_model("classification", num_hidden_layers=2)
    frozen = freeze(model, frozen_layers(1, 2))
    expected = [
        w.path
        for w in model.weights
        if w.path.startswith(("bert/embeddings/", "bert/encoder/layer_0/"))
    ]
    assert frozen == expected and len(frozen) == 5 + 16
    assert freeze(model, ["layer_0/"]) == []
    before = values_of(model)
    trainer = make_trainer(tmp_path, model, "classification")
    run(trainer, tasks, 3)
    for path, value in values_of(model).items():
        if path in frozen:
            np.testing.assert_array_equal(value, before[path], err_msg=path)
        else:
            assert (value != before[path]).any(), path
    slots = slot_variables(trainer.optimizer)
    learning = {w.path for w in model.weights} - set(frozen)
    assert slots.keys() == {f"{path}/{slot}" for path in learning for slot in ("adam_m", "adam_v")}
    names = trainer.keeper.variables
    assert not any(f"{path}/adam_m" in names for path in frozen)
    assert set(frozen) < set(names)


@pytest.mark.slow
def test_a_run_with_frozen_weights_continues_to_the_bit(all_kinds, tmp_path):
    tasks, _ = all_kinds["classification"]

    def make(folder, seed):
        keras.utils.set_random_seed(seed)
        model = small_model("classification", num_hidden_layers=2)
        freeze(model, ["^bert/embeddings/", "LayerNorm"])
        return make_trainer(
            tmp_path / folder, model, "classification", steps=11, save_checkpoints_steps=5
        )

    unbroken = make("a", 3)
    run(unbroken, tasks, 11)
    first = make("b", 3)
    run(first, tasks, 5)
    second = make("b", 17)
    assert second.restore() == 5
    run(second, tasks, 11)
    expected = {name: v.numpy() for name, v in unbroken.keeper.variables.items()}
    assert expected.keys() == second.keeper.variables.keys()
    for name, variable in second.keeper.variables.items():
        np.testing.assert_array_equal(variable.numpy(), expected[name], err_msg=name)


def test_patterns_that_cannot_be_frozen_change_nothing():
    model = small_model("classification")
    count = len(model.trainable_weights)
    with pytest.raises(ValueError, match="no weight of the model matches 'layer_7/'"):
        freeze(model, ["^bert/embeddings/", "layer_7/"])
    with pytest.raises(ValueError, match="no weight is left to learn after bert, classifier"):
        freeze(model, ["bert", "classifier"])
    assert len(model.trainable_weights) == count
    span = small_model("span")  # whose pooler does not learn anyway
    assert freeze(span, ["pooler"]) == []


def test_patterns_of_the_lowest_layers():
    assert frozen_layers(0, 13) == ("^bert/embeddings/",)
    assert frozen_layers(2, 13)[1:] == ("^bert/encoder/layer_0/", "^bert/encoder/layer_1/")
    # Layer 1 is not layer 11.
    model = small_model("classification", num_hidden_layers=13)
    frozen = freeze(model, frozen_layers(2, 13))
    assert {path.split("/")[2] for path in frozen if "encoder" in path} == {"layer_0", "layer_1"}
    for number in (-1, 14):
        with pytest.raises(ValueError, match="num_frozen must be from 0 to 13"):
            frozen_layers(number, 13)


# === Rates of layers ===


def test_layer_wise_rates_of_a_real_model():
    layers = 13
    model = small_model("classification", num_hidden_layers=layers)
    optimizer = AdamWeightDecay(learning_rate_rules=layer_wise_rules(layers, 0.7))
    optimizer.build(model.trainable_variables)
    found = dict(
        zip([v.path for v in model.trainable_variables], optimizer._rate_factors, strict=True)
    )
    assert len(found) == 5 + 16 * layers + 2 + 2
    for path, factor in found.items():
        parts = path.split("/")
        if parts[:2] == ["bert", "embeddings"]:
            expected = 0.7**14
        elif parts[:2] == ["bert", "encoder"]:
            expected = 0.7 ** (13 - int(parts[2].removeprefix("layer_")))
        else:
            assert parts[0] == "classifier" or parts[1] == "pooler"
            expected = 1
        assert factor == pytest.approx(expected), path
