"""Classifiers of documents in windows against the classifier of one sequence, pooled with NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from bert_tf.config import WINDOW_POOLINGS, BertConfig
from bert_tf.models.heads import WindowPooling
from bert_tf.models.task_models import bert_classifier, parts_of_windows
from bert_tf.models.variables import to_numpy, weights_by_name
from bert_tf.weights.load import load_checkpoint, load_model
from bert_tf.weights.save import save_hf, save_keras, save_model_directory

# Of Keras' variables, where it writes its files.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONFIG = BertConfig(
    vocab_size=31,
    hidden_size=10,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=13,
    max_position_embeddings=11,
    initializer_range=0.5,
)
LABELS, LENGTH = 3, 7
COUNTS = (3, 1, 2)  # windows of each document


def documents(seed=0, counts=COUNTS, width=None):
    """Return inputs [B, W, F], padded to `width` windows."""
    random = np.random.default_rng(seed)
    shape = (len(counts), width or max(counts), LENGTH)
    inputs = {
        "input_ids": random.integers(1, CONFIG.vocab_size, shape),
        "input_mask": np.ones(shape, int),
        "segment_ids": random.integers(0, 2, shape),
    }
    for row, count in enumerate(counts):
        inputs["input_mask"][row, count - 1, 5:] = 0  # the last window is shorter
        for value in inputs.values():
            value[row, count:] = 0
    return {name: value.astype("int32") for name, value in inputs.items()}


def tensors(inputs):
    return {name: ops.convert_to_tensor(value) for name, value in inputs.items()}


def models(pooling, **arguments):
    """Return a model of windows, whose query is not zero, and the plain one of its weights."""
    keras.utils.set_random_seed(2)
    windows = bert_classifier(CONFIG, LABELS, window_pooling=pooling, **arguments)
    plain = bert_classifier(CONFIG, LABELS, **arguments)
    values = weights_by_name(windows)
    if pooling == "attention":
        query = values["window_pooling/query"]
        assert not np.any(to_numpy(query)), "begins as the mean"
        query.assign(np.random.default_rng(3).normal(0, 3, query.shape))
    for name, weight in weights_by_name(plain).items():
        weight.assign(values[name])
    return windows, plain


def pooled_by_numpy(pooling, vectors, query):
    """Pool the vectors [w, D] of the real windows of one document, in float64."""
    vectors = vectors.astype(np.float64)
    if pooling == "first":
        return vectors[0]
    if pooling == "max":
        return vectors.max(axis=0)
    shares = np.ones(len(vectors))
    if pooling == "attention":
        shares = np.exp(vectors @ query)
    return (shares[:, None] * vectors).sum(axis=0) / shares.sum()


@pytest.mark.parametrize("pooling", WINDOW_POOLINGS)
def test_logits_are_those_of_pooled_windows(pooling):
    windows, plain = models(pooling)
    # The pooled output of each window by itself, and the head, are the plain classifier's.
    bert = plain.get_layer("bert")
    weights = {n: to_numpy(w) for n, w in weights_by_name(windows).items()}
    inputs = documents()
    expected = []
    for row, count in enumerate(COUNTS):
        encoded = bert(tensors({n: value[row, :count] for n, value in inputs.items()}))
        vectors = ops.convert_to_numpy(encoded["pooled_output"])
        vector = pooled_by_numpy(pooling, vectors, weights.get("window_pooling/query"))
        kernel, bias = weights["classifier/output_weights"], weights["classifier/output_bias"]
        expected.append(kernel.astype(np.float64) @ vector + bias)
    logits = ops.convert_to_numpy(windows(tensors(inputs)))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    # Windows of padding count nowhere, however many and whatever their ids are.
    more = documents(width=5)
    more["input_ids"][more["input_mask"].sum(-1) == 0] = 9
    for name in ("input_ids", "input_mask", "segment_ids"):
        more[name][:, :3] = np.where(inputs["input_mask"].any(-1, keepdims=True), inputs[name], 0)
    padded = ops.convert_to_numpy(windows(tensors(more)))
    np.testing.assert_allclose(padded, logits, rtol=1e-6, atol=1e-6)
    # Taken apart, as for serving.
    encode, decide = parts_of_windows(windows)
    rows = encode([value.reshape(-1, LENGTH) for value in inputs.values()])
    apart = decide([rows, tensors(inputs)["input_mask"]])
    np.testing.assert_allclose(ops.convert_to_numpy(apart), logits, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="takes gradients by a tape")
@pytest.mark.parametrize(
    "pooling",
    ["max", "attention", *(pytest.param(p, marks=pytest.mark.slow) for p in ("mean", "first"))],
)
def test_documents_of_one_window_learn_as_plain_texts(pooling):
    import tensorflow as tf

    windows, plain = models(pooling, dropout_rate=0.0)
    inputs, labels = documents(counts=(1, 1, 1)), np.array([2, 0, 1])
    losses, gradients = [], []
    for model, squeeze in ((windows, False), (plain, True)):
        batch = {n: value[:, 0] if squeeze else value for n, value in inputs.items()}
        with tf.GradientTape() as tape:
            loss = keras.losses.sparse_categorical_crossentropy(
                labels, model(tensors(batch)), from_logits=True
            )
            loss = ops.mean(loss)
        losses.append(float(loss))
        paths = [weight.path for weight in model.trainable_weights]
        values = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
        gradients.append(dict(zip(paths, map(tf.convert_to_tensor, values), strict=True)))
    assert abs(losses[0] - losses[1]) < 1e-6
    ours, theirs = gradients
    assert set(ours) - set(theirs) == (
        {"window_pooling/query"} if pooling == "attention" else set()
    )
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    if pooling == "attention":
        np.testing.assert_allclose(ours["window_pooling/query"], 0, atol=1e-6)


def test_half_precision_keeps_float32_logits_and_a_batch_of_padding_stays_finite():
    model = bert_classifier(CONFIG, LABELS, window_pooling="max", dtype="mixed_bfloat16")
    inputs = documents(counts=(2, 0))
    logits = model(tensors(inputs))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert np.isfinite(ops.convert_to_numpy(logits)).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="writes TensorFlow's files")
@pytest.mark.parametrize(
    "save",
    [
        save_model_directory,
        "h5",
        pytest.param(save_hf, marks=pytest.mark.slow),
        pytest.param("keras", marks=pytest.mark.slow),
    ],
)
def test_files_bring_the_model_back(save, tmp_path):
    windows, _ = models("attention")
    expected = ops.convert_to_numpy(windows(tensors(documents())))
    path = tmp_path
    if isinstance(save, str):
        path = tmp_path / ("model.keras" if save == "keras" else "model.weights.h5")
        save_keras(path, windows)
    else:
        save(path, windows)
    loaded = load_model(path)
    assert loaded.kind == "classification" and loaded.config.window_pooling == "attention"
    logits = ops.convert_to_numpy(loaded.model(tensors(documents())))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    # Its encoder is what any other fine-tuning may begin with.
    transfer = load_checkpoint(bert_classifier(CONFIG, 2), path, heads=False)
    assert set(transfer.missing) == {"classifier/output_weights", "classifier/output_bias"}


@pytest.mark.parametrize("pooling", ["min", "", 3])
def test_refuses_another_pooling(pooling):
    with pytest.raises(ValueError, match="window_pooling must be one of mean, max, first, attent"):
        bert_classifier(CONFIG, LABELS, window_pooling=pooling)


def test_a_layer_pools_as_its_configuration_says():
    with pytest.raises(ValueError, match="window_pooling: the configuration has none"):
        WindowPooling(CONFIG)
