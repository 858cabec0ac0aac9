"""Dtype policies and quantization: what works does so everywhere, the rest is refused."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from bert_tf.models.feature_extraction import TokenWindow, encoder_features
from bert_tf.models.task_models import HEADS
from bert_tf.models.variables import to_numpy
from bert_tf.serving.predictor import Predictor
from bert_tf.weights.load import load_bert, load_checkpoint, load_model
from bert_tf.weights.save import save_hf, save_keras, save_model_directory, save_tf1
from tests.support import policy_checks
from tests.support.policy_checks import HALF_PRECISION_WEIGHTS, POLICIES
from tests.test_layering import REPOSITORY

pytestmark = [
    # Of all layers that have nothing to quantize.
    pytest.mark.filterwarnings("ignore:.*does not have a `quantize`:UserWarning"),
    # Keras 3.15 writes its files by way of np.array(variable), which NumPy 2 warns about.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.mark.parametrize("is_global", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", [*HEADS, "tagger"])
def test_policies(kind, policy, is_global):
    if kind == "tagger" and policy in HALF_PRECISION_WEIGHTS:
        assert policy in policy_checks.refusal(kind, policy)
    else:
        policy_checks.check_policy(kind, policy, is_global)


def test_refused_policies():
    policy_checks.check_refusals()


@pytest.mark.parametrize(
    ("kind", "mode", "policy"),
    [
        ("encoder", "int8", "float32"),
        pytest.param("pretraining", "int8", "float32", marks=pytest.mark.thorough),
        # Their layers are those of these two, and of one kind of dense layer.
        *(
            pytest.param(kind, "int8", "float32", marks=pytest.mark.slow)
            for kind in HEADS
            if kind not in ("encoder", "pretraining")
        ),
        pytest.param("encoder", "int8", "mixed_bfloat16", marks=pytest.mark.thorough),
        pytest.param("encoder", "int4", "float32", marks=pytest.mark.thorough),
    ],
)
def test_quantized_models_come_back_as_they_were(kind, mode, policy):
    policy_checks.check_quantized(kind, mode, policy)


@pytest.mark.thorough
def test_features_are_those_of_the_quantized_encoder():
    encoder = policy_checks.make_model("encoder")
    texts = [TokenWindow((2, 3, 5, 7))]
    (before,) = encoder_features(encoder, texts, [2])
    encoder.quantize("int8")
    (after,) = encoder_features(encoder, texts, [2])
    assert (after != before).any()
    ids = np.array([[2, 3, 5, 7]], np.int32)
    inputs = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": 0 * ids}
    expected = encoder(inputs)["sequence_output"][0]
    np.testing.assert_allclose(after[:, 0], expected, atol=1e-5)


@pytest.mark.thorough(traced=True)
def test_files_of_quantized_and_half_precision_models(tmp_path):
    half = policy_checks.make_model("classification", dtype="bfloat16")
    model = policy_checks.make_model("classification")
    model.quantize("int8")
    save_keras(tmp_path / "q.keras", model)
    save_keras(tmp_path / "q" / "model.weights.h5", model)
    for name, reader in (("q.keras", "keras.saving.load_model"), ("q", "load_weights")):
        for load in (load_model, load_bert, Predictor, partial(load_checkpoint, half)):
            with pytest.raises(ValueError, match="holds a quantized model .* Keras alone") as error:
                load(tmp_path / name)
            assert f"reads, with {reader}(path)" in str(error.value)
            assert "save the model before model.quantize" in str(error.value)
    for load in (load_model, load_bert, partial(load_checkpoint, half)):
        with pytest.raises(ValueError, match="model: is quantized, .* keras.saving.load_model"):
            load(model)
    with pytest.raises(ValueError, match="model: is quantized"):
        load_checkpoint(model, half)
    for save, path in ((save_hf, "hf"), (save_model_directory, "tf")):
        with pytest.raises(ValueError, match="model: is quantized, .* model.save keeps it"):
            save(tmp_path / path, model)
    with pytest.raises(ValueError, match="model: is quantized"):
        save_tf1(tmp_path / "x.ckpt", model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bert_config.json", "q", "q.keras"]
    for save, path in ((save_hf, "hf"), (save_model_directory, "tf")):
        save(tmp_path / path, half)
        again = load_model(tmp_path / path, dtype="bfloat16").model
        for weight, other in zip(half.weights, again.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(weight), to_numpy(other))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "backend",
    [pytest.param("jax", marks=pytest.mark.jax), pytest.param("torch", marks=pytest.mark.torch)],
)
def test_other_backends(backend):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    subprocess.run(
        [sys.executable, "-m", "tests.support.policy_checks"],
        check=True,
        cwd=REPOSITORY,
        env={**os.environ, "KERAS_BACKEND": backend},
        timeout=600,
    )
