"""What models must do under every dtype policy, and quantized, on any of Keras' backends.

    KERAS_BACKEND=jax python -m tests.support.policy_checks

Imports no TensorFlow, so that a process needs only its own backend.
"""

import functools
import pathlib
import sys
import tempfile

import keras
import numpy as np
from keras import ops

from bert_tf.config import BertConfig
from bert_tf.models.bilstm_tagger import bilstm_tagger
from bert_tf.models.task_models import HEADS

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16")
HALF_PRECISION_WEIGHTS = ("bfloat16", "float16")
CONFIG = BertConfig(
    vocab_size=37,
    hidden_size=14,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=19,
    max_position_embeddings=13,
    type_vocab_size=3,
    initializer_range=0.3,
)


def make_model(kind, config=CONFIG, **arguments):
    """Return a model of `HEADS`, or the tagger of features."""
    keras.utils.set_random_seed(3)
    if kind == "tagger":
        return bilstm_tagger(6, 5, 3, lstm_size=4, **arguments)
    head = HEADS[kind]
    return head.make(config, *([5] if head.has_labels else []), **arguments)


def make_inputs(kind):
    """Return a batch of a model's inputs."""
    random = np.random.default_rng(5)
    mask = (np.arange(7) < [[7], [5], [3]]).astype(np.int32)
    if kind == "tagger":
        return {"features": random.normal(size=(3, 7, 3, 6)).astype(np.float32), "input_mask": mask}
    shape = (3, 2, 7) if kind == "multiple_choice" else (3, 7)
    inputs = {
        "input_ids": random.integers(0, 37, shape),
        "input_mask": np.broadcast_to(mask[:, None] if len(shape) == 3 else mask, shape),
        "segment_ids": random.integers(0, 3, shape),
    }
    if kind == "pretraining":
        inputs["masked_lm_positions"] = random.integers(0, 7, (3, 2))
    return {name: np.array(value, np.int32) for name, value in inputs.items()}


def outputs_of(model, kind):
    """Return name -> (dtype, float32 array) of the outputs, after a look at what they promise."""
    outputs, promised = model(make_inputs(kind)), model.output
    if not isinstance(outputs, dict):
        outputs, promised = {"logits": outputs}, {"logits": promised}
    found = {}
    for name, value in outputs.items():
        dtype = keras.backend.standardize_dtype(value.dtype)
        assert dtype == keras.backend.standardize_dtype(promised[name].dtype), name
        found[name] = dtype, ops.convert_to_numpy(ops.cast(value, "float32"))
    return found


@functools.cache
def of_float32(kind):
    """Return the weights and the outputs of a model under float32."""
    keras.config.set_dtype_policy("float32")
    model = make_model(kind)
    return model.get_weights(), outputs_of(model, kind)


def check_policy(kind, policy, is_global):
    """A model works under a policy: logits are float32 and those of float32, nearly."""
    initial, expected = of_float32(kind)
    if is_global:
        keras.config.set_dtype_policy(policy)
    try:
        model = make_model(kind, **({} if is_global else {"dtype": policy}))
        model.set_weights(initial)  # of half precision other numbers are drawn
        found = outputs_of(model, kind)
    finally:
        keras.config.set_dtype_policy("float32")
    weights = policy if policy in HALF_PRECISION_WEIGHTS else "float32"
    types = {keras.backend.standardize_dtype(w.dtype) for w in model.trainable_weights}
    assert types == {weights}, types
    compute = policy.removeprefix("mixed_")
    for name, (dtype, value) in found.items():
        assert dtype == (compute if kind == "encoder" else "float32"), (name, dtype)
        np.testing.assert_allclose(value, expected[name][1], atol=0.15, err_msg=name)


def refusal(kind, policy, config=CONFIG):
    """Return the message with which a policy is refused at construction."""
    try:
        make_model(kind, config, dtype=policy)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{kind} under {policy}: expected a ValueError")


def check_refusals():
    """What cannot work says so as it is made, and names what does."""
    bilstm = BertConfig(**{**CONFIG.to_dict(), "bilstm": True})
    for policy in HALF_PRECISION_WEIGHTS:
        for kind, config in (("tagger", CONFIG), ("span", bilstm), ("classification", bilstm)):
            assert refusal(kind, policy, config) == (
                f"dtype: expected one of float32, mixed_bfloat16, mixed_float16, got {policy}"
            )
    names = "float32, mixed_bfloat16, mixed_float16, bfloat16, float16"
    assert refusal("encoder", "float64") == f"dtype: expected one of {names}, got float64"
    message = refusal("span", "int8_from_float32")
    assert message.startswith(f"dtype: expected one of {names}, got int8_from_float32; model.quant")


def check_quantized(kind, mode="int8", policy="float32"):
    """A quantized model comes back from its configuration, and from a file with its weights."""
    model = make_model(kind, dtype=policy)
    before = outputs_of(model, kind)
    model.quantize(mode)
    after = outputs_of(model, kind)
    assert any((after[name][1] != before[name][1]).any() for name in after)
    again = type(model).from_config(model.get_config())
    again.set_weights(model.get_weights())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        loaded = keras.saving.load_model(path)
        loaded.save(path)
        twice = keras.saving.load_model(path)
    for other in (again, loaded, twice):
        paths = [(w.path, str(w.dtype)) for w in model.weights]
        assert [(w.path, str(w.dtype)) for w in other.weights] == paths
        for name, (dtype, value) in outputs_of(other, kind).items():
            assert dtype == after[name][0]
            np.testing.assert_array_equal(value, after[name][1], err_msg=name)


def main():
    """Check all there is."""
    for kind in (*HEADS, "tagger"):
        for policy in POLICIES:
            if kind != "tagger" or policy not in HALF_PRECISION_WEIGHTS:
                for is_global in (False, True):
                    check_policy(kind, policy, is_global)
    check_refusals()
    for kind in ("encoder", "pretraining", "classification"):
        check_quantized(kind)


if __name__ == "__main__":
    sys.exit(main())
