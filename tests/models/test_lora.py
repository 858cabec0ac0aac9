"""Low-rank adapters: what they compute, what learns, merging, files, and runs that go on."""

import json

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from bert_tf.models.lora import PROJECTIONS, add_lora, lora_layers, merge_lora, merged_weights
from bert_tf.training.finetuning import make_model
from bert_tf.training.objectives import FineTuningObjective
from bert_tf.training.optimizers import AdamWeightDecay, create_optimizer
from bert_tf.training.options import TrainerOptions
from bert_tf.training.trainer import Trainer
from bert_tf.weights.adapters import load_adapters, save_adapters
from bert_tf.weights.load import load_model
from bert_tf.weights.save import save_hf, save_model_directory
from tests.support import synthetic_records as synthetic

BATCH, LENGTH, LABELS, RANK, ALPHA = 5, 11, 3, 2, 7.0
EVERY = tuple(PROJECTIONS)


def small_model(kind="classification", **config):
    keras.utils.set_random_seed(4)
    labels = {"num_labels": LABELS} if kind.endswith("classification") else {}
    config = synthetic.small_config(**{"num_hidden_layers": 1, "initializer_range": 0.3, **config})
    return make_model(kind, config, **labels)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "input_ids": tf.constant(rng.integers(0, synthetic.VOCAB_SIZE, (BATCH, LENGTH)), tf.int32),
        "input_mask": tf.constant(np.arange(LENGTH) < rng.integers(3, 12, (BATCH, 1)), tf.int32),
        "segment_ids": tf.constant(rng.integers(0, 2, (BATCH, LENGTH)), tf.int32),
    }


def values(model):
    return {weight.path: weight.numpy() for weight in model.weights}


def train(model, steps=2):
    optimizer = AdamWeightDecay(1e-2)
    for seed in range(steps):
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(model(batch(seed), training=True))
            loss = tf.add_n([tf.reduce_mean(tf.square(x - 2.0)) for x in outputs])
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
    return model


def adapted(kind="classification", targets=EVERY):
    """Return a model whose adapters and head are not as they began."""
    model = small_model(kind)
    add_lora(model, RANK, ALPHA, targets)
    rng = np.random.default_rng(6)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def test_nothing_changes_until_training():
    model = small_model(num_hidden_layers=2)
    expected, weights = model(batch()).numpy(), values(model)
    paths = add_lora(model, RANK, ALPHA, EVERY)
    np.testing.assert_array_equal(model(batch()), expected)
    after = values(model)
    assert set(after) - set(weights) == set(paths)
    assert len(paths) == 2 * 2 * len(EVERY)
    assert "bert/encoder/layer_1/attention/self/query/lora_kernel_a" in paths
    assert all((after[path] == value).all() for path, value in weights.items())
    firsts = [after[path] for path in paths if path.endswith("self/query/lora_kernel_a")]
    width = len(firsts[0])
    assert np.abs(firsts[0] - firsts[1]).max() > 0  # each drawn for itself
    assert 0.7 < np.abs(firsts).max() * np.sqrt(width) <= 1


def test_the_paper_formula():
    """A dense layer with an adapter, in NumPy."""
    model = adapted(targets=["intermediate"])
    (dense,) = lora_layers(model)
    kernel, bias = (w for w in dense.weights if w.name in ("kernel", "bias"))
    a, b = dense.lora_kernel_a.numpy(), dense.lora_kernel_b.numpy()
    assert a.shape == (kernel.shape[0], RANK) and b.shape == (RANK, kernel.shape[1])
    assert np.abs(b).max() > 0
    x = np.random.default_rng(1).normal(size=(13, len(a))).astype(np.float32)
    expected = x @ kernel.numpy() + bias.numpy() + ALPHA / RANK * (x @ a) @ b
    np.testing.assert_allclose(dense(x), expected, atol=2e-6)


def test_adapters_and_head_learn_and_nothing_else():
    model = small_model()
    paths = add_lora(model, RANK, targets=["query", "output"])
    before = values(model)
    optimizer_state = len(model.trainable_variables)
    train(model)
    assert optimizer_state == len(paths) + 2
    changed = {path for path, value in values(model).items() if (value != before[path]).any()}
    assert changed == {*paths, "classifier/output_weights", "classifier/output_bias"}


@pytest.mark.parametrize("kind", ["classification", "span"])
def test_the_merged_model_gives_the_same(kind):
    model = adapted(kind)
    before = values(model)
    merged = merge_lora(model)
    unadapted = small_model(kind)
    assert {w.path for w in merged.weights} == {w.path for w in unadapted.weights}
    assert not lora_layers(merged) and lora_layers(model)
    assert {v.path for v in merged.trainable_weights} == {
        v.path for v in unadapted.trainable_weights
    }
    for x, y in zip(*(tf.nest.flatten(m(batch(9))) for m in (model, merged)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
    weights = merged_weights(model)
    assert all((weights[path] == value).all() for path, value in values(merged).items())
    assert all((before[path] == value).all() for path, value in values(model).items())
    changed = {p for p, v in values(merged).items() if not np.allclose(v, before[p], atol=1e-4)}
    kernels = {dense.path + "/kernel" for dense in lora_layers(model)}
    assert changed == kernels and len(kernels) == 6


def test_mixed_precision_merges_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = adapted()
        merged = merge_lora(model)
    finally:
        keras.config.set_dtype_policy("float32")
    dense = lora_layers(model)[0]
    product = dense.lora_kernel_a.numpy() @ dense.lora_kernel_b.numpy()
    name = "bert/encoder/layer_0/attention/self/query/kernel"
    expected = values(model)[name] + ALPHA / RANK * product
    np.testing.assert_allclose(values(merged)[name], expected, atol=1e-7)
    np.testing.assert_allclose(model(batch()), merged(batch()), atol=0.05)


def test_the_merged_model_is_written_like_any_other(tmp_path):
    model = adapted()
    save_model_directory(tmp_path, merge_lora(model))
    loaded = load_model(tmp_path).model
    np.testing.assert_allclose(loaded(batch()), model(batch()), rtol=0, atol=1e-6)


def test_adapters_come_back_from_their_file(tmp_path):
    model = adapted(targets=["value", "attention_output"])
    save_adapters(tmp_path, model)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 4 * sum(v.numpy().size for v in model.weights) / 2
    fresh = small_model()
    load_adapters(tmp_path, fresh)
    np.testing.assert_array_equal(fresh(batch()), model(batch()))
    assert [v.path for v in fresh.trainable_weights] == [v.path for v in model.trainable_weights]
    again = small_model()  # one that has adapters already
    add_lora(again, RANK, ALPHA, ["value", "attention_output"])
    load_adapters(tmp_path, again)
    np.testing.assert_array_equal(again(batch()), model(batch()))


@pytest.mark.parametrize(
    ("arguments", "differs"),
    [((RANK, ALPHA, ["value"]), "lora"), ((RANK + 1, ALPHA), "lora"), ((RANK, 1.0), "alpha")],
)
def test_adapters_of_another_shape_are_refused(tmp_path, arguments, differs):
    save_adapters(tmp_path, adapted(targets=["query", "value"]))
    model = small_model()
    add_lora(model, *arguments)
    before = values(model)
    with pytest.raises(ValueError, match=f"not of this model, rank and alpha.*{differs}|alpha$"):
        load_adapters(tmp_path, model)
    assert all((before[path] == value).all() for path, value in values(model).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": None}, "r, lora_alpha: expected an integer"),
        ({"r": "2"}, "r, lora_alpha: expected an integer"),
        ({"r": 0}, "r, lora_alpha: expected an integer"),
        ({"lora_alpha": "7"}, "r, lora_alpha: expected an integer"),
        ({"lora_alpha": float("nan")}, "r, lora_alpha: expected an integer"),
        ({"lora_alpha": True}, "r, lora_alpha: expected an integer"),
        ({"lora_alpha": 10**400}, "r, lora_alpha: expected an integer"),
        ({"r": 10**400}, "r, lora_alpha: expected an integer"),
        # No layers of that size are made.
        ({"r": 10**12}, "no adapter there has the rank 1000000000000"),
    ],
)
def test_a_file_of_adapters_with_odd_values_is_refused(tmp_path, changes, message):
    save_adapters(tmp_path, adapted())
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        load_adapters(tmp_path, small_model())


def test_adapters_of_no_layer_of_the_model_are_refused(tmp_path):
    save_adapters(tmp_path, adapted("token_classification", ["query"]))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    others = {name.replace("query", "gate"): tensor for name, tensor in tensors.items()}
    safetensors.numpy.save_file(others, path)
    with pytest.raises(ValueError, match="no adapter there is of a dense layer of this model"):
        load_adapters(tmp_path, small_model("token_classification"))


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_file_of_adapters_that_is_none_is_named(tmp_path, text):
    save_adapters(tmp_path, adapted())
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match="adapter_config.json: (not a JSON file|expected a JSON)"):
        load_adapters(tmp_path, small_model())


def test_other_kinds_of_adapters_are_refused(tmp_path):
    save_adapters(tmp_path, adapted())
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ValueError, match="adapter_config.json: use_dora: expected False, got True"):
        load_adapters(tmp_path, small_model())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank: expected a whole number of at least 1, got 0"),
        ({"rank": True}, "rank: "),
        ({"rank": 2, "alpha": 0.0}, "alpha: expected a positive number"),
        ({"rank": 2, "targets": ()}, "targets: expected some of query.*got none"),
        ({"rank": 2, "targets": ["query", "q"]}, "targets: expected some of query.*got query, q"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    model = small_model()
    with pytest.raises(ValueError, match=message):
        add_lora(model, **arguments)
    assert not lora_layers(model)


def test_twice_is_refused():
    model = small_model()
    with pytest.raises(ValueError, match="expected one with LoRA adapters"):
        save_adapters("nowhere", model)
    add_lora(model, RANK)
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        add_lora(model, RANK)


def test_a_pooler_can_learn_too(tmp_path):
    model = small_model()
    add_lora(model, RANK, also_train=["^classifier/", "^bert/pooler/"])
    assert sum("pooler" in v.path for v in train(model).trainable_weights) == 2
    save_adapters(tmp_path, model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    fresh = small_model()
    load_adapters(tmp_path, fresh)
    np.testing.assert_array_equal(fresh(batch()), model(batch()))


def make_trainer(folder):
    model = small_model(hidden_dropout_prob=0.1)
    add_lora(model, RANK)
    return Trainer(
        model,
        create_optimizer(1e-2, 6, 1),
        FineTuningObjective("classification"),
        folder,
        TrainerOptions(
            jit_compile=False, save_checkpoints_steps=3, tensorboard=False, verbose=False
        ),
    )


def dataset(step):
    def one(index):
        labels = np.random.default_rng(index).integers(0, LABELS, BATCH)
        return batch(index), tf.constant(labels, tf.int32), tf.ones(BATCH)

    parts = [one(index) for index in range(step, 6)]
    stacked = tf.nest.map_structure(lambda *x: tf.stack(x), *parts)
    return tf.data.Dataset.from_tensor_slices(stacked)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_adapters(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.train(dataset, 6, sequences_per_batch=BATCH)
    make_trainer(tmp_path / "parts").train(dataset, 3, sequences_per_batch=BATCH)
    resumed = make_trainer(tmp_path / "parts")
    assert resumed.restore() == 3
    resumed.train(dataset, 6, sequences_per_batch=BATCH)
    expected = values(whole.model)
    assert all((expected[path] == value).all() for path, value in values(resumed.model).items())
    names = set(resumed.keeper.variables)
    assert "bert/encoder/layer_0/attention/self/query/lora_kernel_a/adam_m" in names
    assert not [n for n in names if n.endswith(("query/kernel/adam_m", "gamma/adam_v"))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_peft_loads_what_is_written_here(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = small_model()
    save_hf(tmp_path / "base", model, labels=["a", "b", "c"])
    add_lora(model, RANK, ALPHA, EVERY)
    save_adapters(tmp_path / "adapter", train(model))
    base = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    inputs = {name: torch.tensor(x.numpy(), dtype=torch.long) for name, x in batch().items()}
    with torch.no_grad():
        logits = theirs(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["input_mask"],
            token_type_ids=inputs["segment_ids"],
        ).logits
    np.testing.assert_allclose(logits, model(batch()), atol=2e-5)
