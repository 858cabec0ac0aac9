import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.models import encoder as encoder_module
from bert_tf.models import functional, layers
from bert_tf.models.encoder import Bert, bert_encoder, layer_outputs

CONFIG = BertConfig(
    vocab_size=37,
    hidden_size=14,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=19,
    max_position_embeddings=13,
    type_vocab_size=5,
)
BATCH, LENGTH = 5, 11
# Keras 3.15 writes its files by way of np.array(variable), which NumPy 2 warns about.
saves = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def inputs():
    rng = np.random.default_rng(4)
    lengths = np.array([11, 7, 3, 9, 10])
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    return {
        "input_ids": rng.integers(0, 37, (BATCH, LENGTH)).astype(np.int32) * mask,
        "input_mask": mask,
        "segment_ids": rng.integers(0, 5, (BATCH, LENGTH)).astype(np.int32) * mask,
    }


@pytest.fixture
def encoder():
    keras.utils.set_random_seed(8)
    model = bert_encoder(CONFIG, hidden_states=True, attention_probs=True)
    rng = np.random.default_rng(8)
    for variable in model.trainable_variables:  # Far enough from 0 for attention to matter.
        center = 1.0 if variable.name == "gamma" else 0.0
        variable.assign(rng.normal(center, 0.3, variable.shape))
    return model


def test_outputs(encoder, inputs):
    outputs = encoder(inputs)
    assert set(outputs) == {
        "sequence_output",
        "pooled_output",
        *(f"hidden_states_{n}" for n in range(4)),
        *(f"attention_probs_{n}" for n in range(3)),
    }
    states, attention = (layer_outputs(outputs, n) for n in ("hidden_states", "attention_probs"))
    assert outputs["sequence_output"].shape == (BATCH, LENGTH, 14)
    assert outputs["pooled_output"].shape == (BATCH, 14)
    assert [state.shape for state in states] == [(BATCH, LENGTH, 14)] * 4
    assert [p.shape for p in attention] == [(BATCH, 2, LENGTH, LENGTH)] * 3
    np.testing.assert_array_equal(states[-1], outputs["sequence_output"])
    for probabilities in attention:
        assert probabilities.dtype == tf.float32
        np.testing.assert_allclose(np.sum(probabilities, -1), 1, rtol=1e-6)


def test_every_output_is_one_of_an_exported_model(encoder, inputs, tmp_path):
    encoder.export(tmp_path / "x", verbose=False)
    signature = tf.saved_model.load(tmp_path / "x").signatures["serving_default"]
    found, expected = signature(**{k: tf.constant(v) for k, v in inputs.items()}), encoder(inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def test_symbolic_outputs_say_what_comes(encoder, inputs):
    for spec, value in zip(
        keras.tree.flatten(encoder.output), keras.tree.flatten(encoder(inputs)), strict=True
    ):
        assert len(spec.shape) == len(value.shape)
        assert all(s in (None, v) for s, v in zip(spec.shape, value.shape, strict=True))
        assert spec.dtype == keras.backend.standardize_dtype(value.dtype)


def test_plain_encoder_has_two_outputs(inputs):
    assert set(bert_encoder(CONFIG)(inputs)) == {"sequence_output", "pooled_output"}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_graph_and_xla_equal_eager(encoder, inputs, jit_compile):
    expected = encoder(inputs)
    result = tf.function(lambda x: encoder(x), jit_compile=jit_compile)(inputs)
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(result), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_free_sizes_in_one_graph(encoder, inputs):
    spec = {name: tf.TensorSpec((None, None), tf.int32) for name in inputs}
    function = tf.function(lambda x: encoder(x)["sequence_output"], input_signature=[spec])
    for batch, length in [(5, 11), (3, 7), (1, 2)]:
        part = {name: value[:batch, :length] for name, value in inputs.items()}
        np.testing.assert_allclose(function(part), encoder(part)["sequence_output"], atol=2e-5)


def test_padding_changes_nothing(encoder, inputs):
    """A sequence alone and the same among longer ones, padded, have the same states."""
    outputs = encoder(inputs)
    for row, length in enumerate([11, 7, 3, 9, 10]):
        alone = encoder({name: value[row : row + 1, :length] for name, value in inputs.items()})
        np.testing.assert_allclose(
            alone["sequence_output"][0], outputs["sequence_output"][row, :length], atol=2e-5
        )
        np.testing.assert_allclose(
            alone["pooled_output"][0], outputs["pooled_output"][row], atol=2e-5
        )


def test_both_directions_are_seen(encoder, inputs):
    changed = {**inputs, "input_ids": inputs["input_ids"].copy()}
    changed["input_ids"][0, 6] = (changed["input_ids"][0, 6] + 1) % 37
    difference = np.abs(
        encoder(inputs)["sequence_output"][0] - encoder(changed)["sequence_output"][0]
    ).max(-1)
    assert (difference > 1e-4).all()


def test_left_to_right_does_not_see_the_future(encoder, inputs):
    keras.utils.set_random_seed(8)
    config = BertConfig.from_dict({**CONFIG.to_dict(), "left_to_right": True})
    model = bert_encoder(config, attention_probs=True)
    model.set_weights(encoder.get_weights())
    base = model(inputs)
    future = np.triu(np.ones((LENGTH, LENGTH)), 1).astype(bool)
    for probabilities in layer_outputs(base, "attention_probs"):
        assert (probabilities.numpy()[:, :, future] == 0).all()
    for position in range(LENGTH):
        changed = {name: value.copy() for name, value in inputs.items()}
        changed["input_ids"][0, position] = (changed["input_ids"][0, position] + 1) % 37
        changed["segment_ids"][0, position] = (changed["segment_ids"][0, position] + 1) % 5
        sequence = model(changed)["sequence_output"]
        np.testing.assert_array_equal(sequence[0, :position], base["sequence_output"][0, :position])
        difference = np.abs(sequence[0, position:] - base["sequence_output"][0, position:])
        assert (difference.max(-1) > 1e-4).all()


def test_left_to_right_pools_the_last_token(encoder, inputs):
    """The first sees nothing but itself."""
    config = BertConfig.from_dict({**CONFIG.to_dict(), "left_to_right": True})
    model = bert_encoder(config)
    model.set_weights(encoder.get_weights())
    mask = inputs["input_mask"]
    outputs = {name: np.array(value) for name, value in model(inputs).items()}
    last = outputs["sequence_output"][np.arange(len(mask)), mask.sum(1) - 1]
    kernel, bias = (w.numpy() for w in model.weights if "/pooler/" in w.path)
    np.testing.assert_allclose(outputs["pooled_output"], np.tanh(last @ kernel + bias), atol=1e-5)
    # Padding has no part in it.
    longer = {name: np.pad(value, ((0, 0), (0, 2))) for name, value in inputs.items()}
    np.testing.assert_allclose(model(longer)["pooled_output"], outputs["pooled_output"], atol=1e-5)


def test_a_row_of_padding_alone_pools_its_first_token(encoder, inputs):
    config = BertConfig.from_dict({**CONFIG.to_dict(), "left_to_right": True})
    model = bert_encoder(config)
    model.set_weights(encoder.get_weights())
    mask = inputs["input_mask"].copy()
    mask[2] = 0
    outputs = model({**inputs, "input_mask": mask})
    kernel, bias = (w.numpy() for w in model.weights if "/pooler/" in w.path)
    expected = np.tanh(outputs["sequence_output"].numpy()[2, 0] @ kernel + bias)
    np.testing.assert_allclose(outputs["pooled_output"][2], expected, atol=1e-5)


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_every_site_of_dropout_in_every_layer_has_a_key_of_its_own(inputs, monkeypatch, recompute):
    """Were two keys one, two sites would drop the same positions: worse, and not seen elsewhere."""
    keys = []

    def dropout(x, rate, key):
        keys.append(tuple(np.array(key).tolist()))
        return x

    for module in (layers, functional):
        monkeypatch.setattr(module, "dropout", dropout)
    for _ in range(2):
        bert_encoder(CONFIG, recompute=recompute)(inputs, training=True)
    sites = 1 + 3 * CONFIG.num_hidden_layers
    assert len(keys) == len(set(keys)) == 2 * sites


def test_the_keys_of_a_pass_are_as_many_as_its_sites(inputs, monkeypatch):
    drawn = []

    def dropout_keys(seed, count):
        drawn.append(count)
        return layers.dropout_keys(seed, count)

    monkeypatch.setattr(encoder_module, "dropout_keys", dropout_keys)
    bert_encoder(CONFIG)(inputs, training=True)
    assert drawn == [1 + 3 * CONFIG.num_hidden_layers]


def test_dropout_is_on_in_training_only(encoder, inputs):
    first, second = (encoder(inputs)["sequence_output"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    first, second = (encoder(inputs, training=True)["sequence_output"] for _ in range(2))
    assert np.abs(first - second).max() > 1e-2
    assert np.abs(first - encoder(inputs)["sequence_output"]).max() > 1e-2


def test_dropout_rates_are_separate(inputs):
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, name: 0.5}
        keras.utils.set_random_seed(8)
        model = bert_encoder(
            BertConfig.from_dict({**CONFIG.to_dict(), **rates}), hidden_states=True
        )
        train, test = (
            layer_outputs(model(inputs, training=flag), "hidden_states") for flag in (True, False)
        )
        embeddings_differ = np.abs(train[0] - test[0]).max() > 0
        assert embeddings_differ == (name == "hidden_dropout_prob")
        assert np.abs(train[-1] - test[-1]).max() > 0


def test_no_dropout_draws_no_seed(inputs):
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = bert_encoder(BertConfig.from_dict({**CONFIG.to_dict(), **rates}))
    state = [v for v in model.variables if "seed" in v.path][0]
    before = state.numpy()
    model(inputs, training=True)
    np.testing.assert_array_equal(state.numpy(), before)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_dropout_follows_the_state_of_its_seed(encoder, inputs, jit_compile):
    """Graph, XLA and eager draw the same masks; the state, put back, repeats them."""
    (state,) = (v for v in encoder.variables if "seed" in v.path)
    start = state.numpy()
    expected = [encoder(inputs, training=True)["sequence_output"] for _ in range(2)]
    assert (state.numpy() != start).any()
    state.assign(start)
    function = tf.function(
        lambda x: encoder(x, training=True)["sequence_output"], jit_compile=jit_compile
    )
    for values in expected:
        np.testing.assert_allclose(function(inputs), values, atol=2e-5)


def test_random_seed_fixes_weights_and_dropout(inputs):
    results = []
    for _ in range(2):
        keras.utils.set_random_seed(17)
        results.append(bert_encoder(CONFIG)(inputs, training=True)["sequence_output"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", -5, "input_ids: expected integers of 0 to 36, got -5 to "),
        ("input_ids", 37, "input_ids: expected integers of 0 to 36, got 0 to 37"),
        ("segment_ids", 5, "segment_ids: expected integers of 0 to 4, got 0 to 5"),
    ],
)
def test_ids_without_embeddings_are_refused_outside_of_graphs(
    encoder, inputs, name, value, message
):
    inputs[name][3, 2] = value
    for rows in (inputs, {name: x[3:4] for name, x in inputs.items()}):
        with pytest.raises(ValueError, match=message):
            encoder(rows)


def test_too_long_sequences_are_refused(encoder):
    ids = np.zeros((2, 17), np.int32)
    inputs = dict.fromkeys(("input_ids", "input_mask", "segment_ids"), ids)
    with pytest.raises(ValueError, match="17 positions.*max_position_embeddings.*13"):
        encoder(inputs)
    with pytest.raises(ValueError, match="17 positions"):
        tf.function(lambda x: encoder(x))(inputs)
    fixed = {name: keras.Input((17,), dtype="int32") for name in inputs}
    with pytest.raises(ValueError, match="17 positions"):
        Bert(CONFIG)(fixed)


def test_positions_beyond_512():
    config = BertConfig.from_dict({**CONFIG.to_dict(), "max_position_embeddings": 521})
    ids = np.ones((1, 521), np.int32)
    inputs = dict.fromkeys(("input_ids", "input_mask", "segment_ids"), ids)
    assert bert_encoder(config)(inputs)["sequence_output"].shape == (1, 521, 14)


def test_config_is_checked():
    with pytest.raises(ValueError, match="BertConfig, got dict"):
        bert_encoder(CONFIG.to_dict())


# === Saving ===


@saves
def test_keras_file(encoder, inputs, tmp_path):
    encoder(inputs, training=True)
    encoder.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in loaded.variables] == [v.path for v in encoder.variables]
    for training in (False, True):  # With dropout: the state of the seed is in the file.
        for a, b in zip(
            keras.tree.flatten(encoder(inputs, training=training)),
            keras.tree.flatten(loaded(inputs, training=training)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_from_config(encoder):
    copy = keras.Model.from_config(encoder.get_config())
    assert [v.path for v in copy.variables] == [v.path for v in encoder.variables]
    assert copy.get_layer("bert").config == CONFIG


@saves
def test_weights_file(encoder, inputs, tmp_path):
    encoder.save_weights(tmp_path / "model.weights.h5")
    other = bert_encoder(CONFIG)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(
        other(inputs)["sequence_output"], encoder(inputs)["sequence_output"]
    )


# === Precision ===


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_bfloat16", 0.1), ("mixed_float16", 0.01)]
)
def test_mixed_precision(encoder, inputs, policy, tolerance):
    model = bert_encoder(CONFIG, hidden_states=True, attention_probs=True, dtype=policy)
    model.set_weights(encoder.get_weights())
    outputs, expected = model(inputs), encoder(inputs)
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert keras.backend.standardize_dtype(outputs["sequence_output"].dtype) == policy[6:]
    assert outputs["attention_probs_0"].dtype == tf.float32
    difference = np.abs(
        np.asarray(outputs["sequence_output"], np.float32) - expected["sequence_output"]
    )
    assert 0 < difference.max() < tolerance


def test_global_policy_is_followed(inputs):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = bert_encoder(CONFIG)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model(inputs)["pooled_output"].dtype == tf.bfloat16


# === Other backends ===

SCRIPT = """
import json, sys
import numpy as np
import keras
from bert_tf.config import BertConfig
from bert_tf.models.encoder import bert_encoder

folder = sys.argv[1]
arrays = dict(np.load(folder + "/arrays.npz"))
with open(folder + "/config.json") as file:
    model = bert_encoder(BertConfig.from_dict(json.load(file)))
for variable in model.variables:
    variable.assign(arrays[variable.path])
inputs = {name: arrays[name] for name in ("input_ids", "input_mask", "segment_ids")}
results = {}
for training in (False, True):
    for name, value in model(inputs, training=training).items():
        results[f"{name}:{training}"] = keras.ops.convert_to_numpy(value)
np.savez(folder + "/results.npz", **results)
assert keras.backend.backend() == sys.argv[2]
"""


def run_on_backend(script, folder, backend):
    """Run a script in a process of its own on another backend of Keras."""
    path = pathlib.Path(folder) / "script.py"
    path.write_text(script, encoding="utf-8")
    root = pathlib.Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, str(path), str(folder), backend],
        check=True,
        cwd=root,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(root)},
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    "backend",
    [pytest.param("jax", marks=pytest.mark.jax), pytest.param("torch", marks=pytest.mark.slow)],
)
def test_other_backends_give_the_same_with_the_same_dropout(encoder, inputs, tmp_path, backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    model = bert_encoder(CONFIG)
    model.set_weights(encoder.get_weights())
    arrays = {v.path: v.numpy() for v in model.variables}
    np.savez(tmp_path / "arrays.npz", **arrays, **inputs)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()), encoding="utf-8")
    run_on_backend(SCRIPT, tmp_path, backend)
    results = np.load(tmp_path / "results.npz")
    for training in (False, True):
        for name, value in model(inputs, training=training).items():
            np.testing.assert_allclose(results[f"{name}:{training}"], value, atol=2e-5)
