"""Losses of sentence encoders: those of sentence-transformers, and what is no negative."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.models.task_models import bert_sentence_encoder
from bert_tf.training import losses
from bert_tf.training.finetuning import make_model
from bert_tf.training.objectives import FineTuningObjective, finetuning_compile_arguments
from tests.support.synthetic_records import small_config

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "embeddings" / "losses.npz"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


LOSSES = {
    "pairs": lambda vectors, _: losses.multiple_negatives_loss(vectors[:, :2]),
    "triplets": lambda vectors, _: losses.multiple_negatives_loss(vectors),
    "simcse": lambda vectors, _: losses.multiple_negatives_loss(vectors[:, :2], scale=1 / 0.05),
    "cosine": lambda vectors, scores: losses.cosine_similarity_loss(vectors[:, :2], scores),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wrap", [lambda f: f, tf.function])
def test_losses_and_gradients_are_those_of_sentence_transformers(golden, name, wrap):
    vectors = tf.Variable(golden["vectors"])

    @wrap
    def step():
        with tf.GradientTape() as tape:
            total, weight = LOSSES[name](vectors, golden["scores"])
            loss = total / weight
        return loss, tf.convert_to_tensor(tape.gradient(loss, vectors))

    loss, gradient = step()
    np.testing.assert_allclose(loss, golden[name], rtol=1e-5)
    np.testing.assert_allclose(gradient, golden[f"{name}_gradient"], rtol=1e-3, atol=1e-6)


def test_vectors_of_half_precision_are_compared_in_float32(golden):
    half = tf.cast(golden["vectors"], tf.float16)
    total, _ = losses.multiple_negatives_loss(half)
    expected, _ = losses.multiple_negatives_loss(tf.cast(half, tf.float32))
    assert total.dtype == tf.float32 and float(total) == float(expected)


def by_definition(vectors, left_out, scale):
    """Losses of each row, in NumPy; left_out: the pairs (row, candidate) that are no negatives."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    candidates = np.concatenate([unit[:, c] for c in range(1, unit.shape[1])])
    scores = scale * unit[:, 0] @ candidates.T
    found = []
    for row, one in enumerate(scores):
        kept = [c for c in range(len(one)) if c == row or (row, c) not in left_out]
        found.append(np.log(np.exp(one[kept] - one[row]).sum()))
    return np.array(found)


def test_what_equals_a_text_or_its_partner_is_no_negative(golden):
    vectors = golden["vectors"].astype(np.float64)
    ids = np.arange(1, 22).reshape(7, 3)
    ids[2, 1] = ids[5, 1]  # two texts with one partner
    ids[4, 0] = ids[0, 0]  # a text with two partners
    ids[3, 2] = ids[6, 1]  # a hard negative that is the partner of another
    ids[1, 1] = ids[6, 0]  # a partner that is another's text
    ids[0, 2] = 0  # a hard negative that is not there
    left_out = {(2, 5), (5, 2), (0, 4), (4, 0), (6, 7 + 3), (6, 1)}
    left_out |= {(row, 7) for row in range(7)}
    expected = by_definition(vectors, left_out, scale=1.0)  # so small that each negative counts
    total, weight = losses.multiple_negatives_loss(golden["vectors"], ids, scale=1.0)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
    assert float(weight) == 7
    everything, _ = losses.multiple_negatives_loss(golden["vectors"], scale=1.0)
    assert float(everything) > float(total) * 1.001


def test_a_row_of_weight_0_is_no_example_and_no_negative(golden):
    weights = np.array([1, 1, 0, 1, 1, 0, 1], np.float32)
    total, weight = losses.multiple_negatives_loss(golden["vectors"], None, weights)
    real = losses.multiple_negatives_loss(golden["vectors"][weights > 0])
    np.testing.assert_allclose(total, real[0], rtol=1e-5)
    assert float(weight) == float(real[1]) == 5
    ids = np.arange(1, 22).reshape(7, 3)
    found = losses.multiple_negatives_accuracy(golden["vectors"], ids, weights)
    expected = losses.multiple_negatives_accuracy(golden["vectors"][weights > 0])
    assert [*map(float, found)] == [*map(float, expected)]


def test_losses_for_compile(golden):
    ids = np.arange(1, 22).reshape(7, 3)
    ids[2, 1] = ids[5, 1]
    weights = np.array([1, 1, 0, 1, 1, 0, 1], np.float32)
    loss = losses.MultipleNegativesLoss(scale=13.0)
    total, weight = losses.multiple_negatives_loss(golden["vectors"], ids, weights, 13.0)
    expected = float(total) / float(weight)
    np.testing.assert_allclose(loss(ids, golden["vectors"], weights), expected, rtol=1e-6)
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    np.testing.assert_allclose(copy(ids, golden["vectors"], weights), expected, rtol=1e-6)
    cosine = losses.CosineSimilarityLoss()
    found = cosine(golden["scores"][:, None], golden["vectors"][:, :2])
    np.testing.assert_allclose(found, golden["cosine"], rtol=1e-5)
    assert float(cosine(golden["scores"], golden["vectors"][:, :2], np.zeros(7))) == 0
    with pytest.raises(ValueError, match="scale: expected a number above 0, got 0"):
        losses.MultipleNegativesLoss(0)


def test_the_objective_has_the_scale_it_is_given(golden):
    ids = np.arange(1, 22).reshape(7, 3)
    objective = FineTuningObjective("retrieval", settings={"scale": 13.0})
    weights = np.ones(7, np.float32)
    loss, figures = objective(golden["vectors"], ids, weights)
    total, weight = losses.multiple_negatives_loss(golden["vectors"], ids, weights, 13.0)
    np.testing.assert_allclose(loss, float(total) / float(weight), rtol=1e-6)
    assert tuple(figures) == objective.metric_names == ("loss", "accuracy")


def test_fit_learns_pairs():
    """Texts of like words find each other, by fit with no more than the loss."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(2)
    config = small_config(num_hidden_layers=1)
    topics = np.arange(48) % 24
    ids = np.stack(
        [5 + 3 * topics[:, None] + rng.integers(0, 3, (48, 5)) for _ in range(2)], axis=1
    )
    inputs = {
        "input_ids": ids.astype(np.int32),
        "input_mask": np.ones_like(ids, np.int32),
        "segment_ids": np.zeros_like(ids, np.int32),
    }
    model = bert_sentence_encoder(config, grouped=True)
    numbers = np.stack([topics + 1, topics + 101], axis=1)
    model.compile(keras.optimizers.Adam(1e-2), **finetuning_compile_arguments("retrieval"))
    history = model.fit(inputs, numbers, batch_size=16, epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.3 * history[0]


def test_the_model_of_the_kinds():
    model = make_model("retrieval", small_config(num_hidden_layers=1), pooling="cls")
    assert model.output_shape == (None, None, small_config().hidden_size)
    with pytest.raises(ValueError, match="num_labels: similarity takes none, got 2"):
        make_model("similarity", small_config(), 2)
