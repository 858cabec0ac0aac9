"""Recomputed activations: the same outputs and gradients, dropout on, from less kept."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.models.encoder import bert_encoder
from bert_tf.models.layers import recomputed_layers
from bert_tf.models.task_models import HEADS, bert_classifier

CONFIG = BertConfig(
    vocab_size=37,
    hidden_size=14,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=19,
    max_position_embeddings=13,
    hidden_dropout_prob=0.3,
    attention_probs_dropout_prob=0.2,
)
INPUTS = {
    "input_ids": np.random.default_rng(4).integers(0, 37, (5, 11), np.int32),
    "input_mask": (np.arange(11) < np.array([[11], [7], [3], [9], [10]])).astype(np.int32),
    "segment_ids": np.random.default_rng(5).integers(0, 2, (5, 11), np.int32),
}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", ()),
        ("all", (0, 1, 2, 3, 4)),
        ("every_1", (0, 1, 2, 3, 4)),
        ("every_2", (0, 2, 4)),
        ("every_12", (0,)),
        ("3,1", (1, 3)),
        ("4", (4,)),
        ((), ()),
        ([4, 0, 4], (0, 4)),
    ],
)
def test_choices(choice, expected):
    assert recomputed_layers(choice, 5) == expected


@pytest.mark.parametrize(
    "choice", ["", "some", "every_0", "every_", "1,", "5", "-1", (5,), (True,)]
)
def test_wrong_choices_are_refused(choice):
    with pytest.raises(ValueError, match=r"recompute: expected none, all, every_K or .* 0 to 4"):
        recomputed_layers(choice, 5)


def test_probabilities_cannot_be_asked_of_recomputed_layers():
    with pytest.raises(ValueError, match="recompute: cannot be combined with attention_probs"):
        bert_encoder(CONFIG, attention_probs=True, recompute="all")


def test_the_choice_is_serialised_and_every_model_takes_it():
    for kind, head in HEADS.items():
        labels = {"num_labels": 3} if head.has_labels else {}
        model = head.make(
            dataclasses.replace(CONFIG, num_hidden_layers=1), recompute="all", **labels
        )
        assert model.get_layer("bert").encoder.recompute == (0,), kind
    assert keras.models.clone_model(model).get_layer("bert").encoder.recompute == (0,)


def step_function(model, mode):
    """Gradients of one step, as float32 arrays by path."""

    def step():
        with tf.GradientTape() as tape:
            logits = model(INPUTS, training=True)
            loss = tf.reduce_sum(tf.square(logits - 1.0))
        return loss, tape.gradient(loss, [v.value for v in model.trainable_variables])

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla")
    return step


def results(recompute, mode, policy):
    """Losses and gradients of two steps, whose masks differ."""
    keras.utils.set_random_seed(3)
    model = bert_classifier(CONFIG, 3, recompute=recompute, dtype=policy)
    rng = np.random.default_rng(8)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(variable.name == "gamma", 0.3, variable.shape))
    step = step_function(model, mode)
    return [
        [np.asarray(tf.convert_to_tensor(x)) for x in tf.nest.flatten(step())] for _ in range(2)
    ]


@pytest.fixture
def as_written():
    """Leave graphs as they are: what TensorFlow fuses depends on what else reads a tensor."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False, **before})


@pytest.mark.parametrize(
    ("mode", "policy"),
    [
        ("eager", "float32"),
        ("graph", "mixed_bfloat16"),
        pytest.param("eager", "mixed_float16", marks=pytest.mark.slow),
        pytest.param("graph", "float32", marks=pytest.mark.slow),
        pytest.param("xla", "float32", marks=pytest.mark.slow),
        pytest.param("xla", "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_gradients_equal_those_without(mode, policy, as_written):
    plain, recomputed = results("none", mode, policy), results("all", mode, policy)
    assert plain[0][0] != plain[1][0]
    for expected, found in zip(plain, recomputed, strict=True):
        for a, b in zip(expected, found, strict=True):
            if mode == "xla":  # fuses, and so rounds, otherwise
                tolerance = 3e-6 if policy == "float32" else 3e-2
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max())
            else:
                np.testing.assert_array_equal(a, b)


def count_of_softmax(recompute, training):
    model = bert_encoder(CONFIG, pooled_output=False, recompute=recompute)

    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(inputs, training=training)["sequence_output"])
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    graph = tf.function(step).get_concrete_function(
        {name: tf.TensorSpec(value.shape, tf.int32) for name, value in INPUTS.items()}
    )
    return sum(node.op == "Softmax" for node in graph.graph.as_graph_def().node)


def test_the_chosen_layers_run_twice_in_training_and_only_then():
    assert count_of_softmax("1", True) == 3
    assert count_of_softmax("all", False) == 2
