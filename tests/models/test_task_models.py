import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.models import heads
from bert_tf.models.encoder import bert_encoder
from bert_tf.models.heads import (
    BiLstm,
    ClassificationHead,
    MaskedLMHead,
    PretrainingHeads,
    gather_positions,
)
from bert_tf.models.layers import LayerNorm
from bert_tf.models.task_models import HEADS, bert_pretrainer
from bert_tf.training import losses
from bert_tf.training.objectives import pretraining_compile_arguments
from bert_tf.training.optimizers import create_optimizer
from bert_tf.weights.load import load_checkpoint, load_model
from bert_tf.weights.save import save_model_directory
from tests.golden.modeling import make_golden
from tests.models.test_encoder import run_on_backend, saves
from tests.support.optimizer_slots import slot_variables

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "modeling"
CONFIG = BertConfig(**make_golden.SIZES)
NO_DROPOUT = dataclasses.replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
# For what has to be compiled.
SHALLOW = dataclasses.replace(CONFIG, num_hidden_layers=1)
INPUTS = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "pretraining.npz") as file:
        return dict(file)


def part(arrays, prefix):
    return {name[len(prefix) :]: v for name, v in arrays.items() if name.startswith(prefix)}


@pytest.fixture
def batch(golden):
    return part(golden, "batch:")


def element(batch):
    """Return the batch as `Model.fit` takes it."""
    inputs = {name: batch[name] for name in INPUTS}
    labels = {
        "masked_lm_logits": batch["masked_lm_ids"],
        "next_sentence_logits": batch["next_sentence_labels"],
    }
    weights = {
        "masked_lm_logits": batch["masked_lm_weights"],
        "next_sentence_logits": np.ones_like(batch["next_sentence_labels"], np.float32),
    }
    return inputs, labels, weights


def set_weights(model, weights):
    paths = {variable.path for variable in model.trainable_variables}
    assert paths == set(weights)
    for variable in model.trainable_variables:
        variable.assign(weights[variable.path])


def loss_and_gradients(model, batch, training=False):
    with tf.GradientTape() as tape:
        outputs = model({name: batch[name] for name in INPUTS}, training=training)
        masked_lm, masked_lm_weight = losses.masked_lm_loss(
            outputs["masked_lm_logits"], batch["masked_lm_ids"], batch["masked_lm_weights"]
        )
        next_sentence, next_sentence_weight = losses.next_sentence_loss(
            outputs["next_sentence_logits"], batch["next_sentence_labels"]
        )
        result = {
            "masked_lm": masked_lm / masked_lm_weight,
            "next_sentence": next_sentence / next_sentence_weight,
        }
        total = sum(result.values())
    variables = [v.value for v in model.trainable_variables]
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(total, variables)]
    return result, dict(zip([v.path for v in model.trainable_variables], gradients, strict=True))


def assert_agrees(result, gradients, expected_losses, expected_gradients, tolerance=1e-5):
    for name, value in expected_losses.items():
        np.testing.assert_allclose(result[name], value, rtol=tolerance, err_msg=name)
    assert set(gradients) == set(expected_gradients)
    for name, expected in expected_gradients.items():
        scale = np.linalg.norm(expected)
        if name.endswith("key/bias"):
            # 0 by theory: a softmax does not see what is added to all its scores. What either side
            # has is rounding; measure it by the gradient of the query's bias.
            scale = np.linalg.norm(expected_gradients[name.replace("key", "query")])
        difference = np.linalg.norm(np.asarray(gradients[name]) - expected)
        assert difference <= tolerance * scale, (name, difference / scale)


# === Against transformers ===


@pytest.mark.parametrize(
    ("activation", "mode"),
    [
        ("gelu_erf", "eager"),
        ("gelu_tanh", "eager"),
        pytest.param("gelu_tanh", "xla", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_equal_transformers(golden, batch, activation, mode):
    model = bert_pretrainer(dataclasses.replace(NO_DROPOUT, hidden_act=activation))
    set_weights(model, part(golden, "weights:"))
    function = loss_and_gradients
    if mode != "eager":
        tensors = {name: tf.constant(value) for name, value in batch.items()}
        function = tf.function(
            lambda model, _: loss_and_gradients(model, tensors), jit_compile=True
        )
    result, gradients = function(model, batch)
    expected = part(golden, f"{activation}:")
    assert_agrees(result, gradients, part(expected, "loss:"), part(expected, "gradient:"))


def test_activations_are_told_apart(golden, batch):
    """The agreement above is close enough to tell the two forms of gelu from one another."""
    model = bert_pretrainer(dataclasses.replace(NO_DROPOUT, hidden_act="gelu_erf"))
    set_weights(model, part(golden, "weights:"))
    result, gradients = loss_and_gradients(model, batch)
    other = part(golden, "gelu_tanh:")
    with pytest.raises(AssertionError):
        assert_agrees(result, gradients, {}, part(other, "gradient:"), tolerance=1e-4)


def test_loss_and_gradients_equal_live_transformers(activation="gelu_erf"):
    """In float32 on both sides, at other sizes than the golden file, heads 64 wide."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = dict(
        vocab_size=211,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=307,
        max_position_embeddings=53,
        type_vocab_size=2,
    )
    batch = make_golden.make_batch(np.random.default_rng(5), 211, 7, 47, 5)
    theirs = make_golden.hf_model(sizes, activation, torch.float32)
    expected_losses, expected_gradients = make_golden.hf_loss_and_gradients(theirs, batch)
    ours = bert_pretrainer(
        BertConfig(
            **sizes,
            hidden_act=activation,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    set_weights(ours, make_golden.hf_weights(theirs))
    result, gradients = loss_and_gradients(ours, batch)
    assert_agrees(result, gradients, expected_losses, expected_gradients)


def test_forms_of_gelu_in_transformers():
    """gelu_new, gelu_pytorch_tanh and gelu_fast are the tanh form; gelu is the exact one."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    activations = pytest.importorskip("transformers.activations", reason="not installed")
    from bert_tf.models.functional import gelu_erf, gelu_tanh

    x = np.linspace(-5, 5, 997).astype(np.float32)
    for name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        theirs = activations.ACT2FN[name](torch.tensor(x)).numpy()
        np.testing.assert_allclose(gelu_tanh(tf.constant(x)), theirs, atol=2e-6, err_msg=name)
    theirs = activations.ACT2FN["gelu"](torch.tensor(x)).numpy()
    np.testing.assert_allclose(gelu_erf(tf.constant(x)), theirs, atol=2e-6)


# === Names ===


def names_and_shapes(model):
    return {v.path: tuple(v.shape) for v in model.trainable_variables}


def test_variables_have_the_names_of_a_genuine_checkpoint():
    expected = {}
    for line in (GOLDEN / "variable_names.txt").read_text(encoding="utf-8").splitlines():
        name, shape = line.split()
        expected[name] = tuple(int(size) for size in shape.split(","))
    config = BertConfig(
        vocab_size=15,
        hidden_size=4,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    assert names_and_shapes(bert_pretrainer(config)) == expected


def test_variables_and_slots_equal_the_checkpoint_at_hand(shared_data):
    folder = shared_data / "tf1_checkpoint"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    config = BertConfig.from_json_file(folder / "bert_config.json")
    model = bert_pretrainer(config)
    optimizer = create_optimizer(1e-4, 10, 1)
    optimizer.build(model.trainable_variables)
    ours = names_and_shapes(model)
    ours.update({name: tuple(v.shape) for name, v in slot_variables(optimizer).items()})
    theirs = dict(tf.train.list_variables(str(folder / "bert_model.ckpt")))
    del theirs["global_step"]
    assert ours == {name: tuple(shape) for name, shape in theirs.items()}


# === The heads ===


def test_gather_positions():
    rng = np.random.default_rng(0)
    sequence = rng.normal(size=(3, 7, 5)).astype(np.float32)
    positions = rng.integers(0, 7, (3, 2))
    expected = np.stack([sequence[b, p] for b in range(3) for p in positions[b]])
    np.testing.assert_array_equal(gather_positions(tf.constant(sequence), positions), expected)


@pytest.mark.parametrize(
    ("head", "scope"), [(heads.SpanHead, "squad"), (heads.NextSentenceScope, "seq_relationship")]
)
def test_heads_have_their_variables_once_they_are_built(head, scope):
    layer = head(CONFIG, name="cls")
    layer.build()
    assert {v.path: tuple(v.shape) for v in layer.variables} == {
        f"cls/{scope}/output_weights": (2, 14),
        f"cls/{scope}/output_bias": (2,),
    }


def test_logits_by_definition(golden, batch):
    model = bert_pretrainer(NO_DROPOUT)
    set_weights(model, part(golden, "weights:"))
    outputs = model({name: batch[name] for name in INPUTS})
    encoded = model.get_layer("bert")({name: batch[name] for name in INPUTS[:3]})
    weights = part(golden, "weights:")
    pooled = np.asarray(encoded["pooled_output"])
    expected = pooled @ weights["cls/seq_relationship/output_weights"].T
    expected = expected + weights["cls/seq_relationship/output_bias"]
    np.testing.assert_allclose(outputs["next_sentence_logits"], expected, atol=1e-5)
    assert outputs["masked_lm_logits"].shape == (5, 3, 37)
    assert model.output["masked_lm_logits"].shape == (None, None, 37)
    assert model.output["next_sentence_logits"].shape == (None, 2)


def test_masked_positions_see_only_their_own_row():
    keras.utils.set_random_seed(1)
    head = MaskedLMHead(CONFIG)
    head.build()
    rng = np.random.default_rng(0)
    sequence = rng.normal(size=(2, 7, 14)).astype(np.float32)
    table = rng.normal(size=(37, 14)).astype(np.float32)
    positions = np.array([[1, 5], [6, 6]])
    logits = head(sequence, table, positions)
    assert logits.shape == (2, 2, 37)
    np.testing.assert_array_equal(logits[1, 0], logits[1, 1])
    sequence[0, 5] += rng.normal(size=14)
    changed = np.abs(head(sequence, table, positions) - logits).max(-1) > 0
    np.testing.assert_array_equal(changed, [[False, True], [False, False]])


def test_word_embeddings_are_tied(golden, batch):
    """The output layer's share of the gradient reaches word pieces that no input has."""
    model = bert_pretrainer(NO_DROPOUT)
    set_weights(model, part(golden, "weights:"))
    _, gradients = loss_and_gradients(model, batch)
    unseen = np.setdiff1d(np.arange(37), batch["input_ids"])
    assert unseen.size
    rows = np.asarray(gradients["bert/embeddings/word_embeddings"])[unseen]
    assert (np.abs(rows).max(-1) > 1e-4).all()


@pytest.mark.thorough
@saves
def test_without_next_sentence_prediction(batch, tmp_path):
    config = dataclasses.replace(SHALLOW, next_sentence_prediction=False)
    model = bert_pretrainer(config)
    assert list(model.output) == ["masked_lm_logits"]
    assert not [v.path for v in model.variables if "seq_relationship" in v.path]
    assert list(pretraining_compile_arguments(config)["loss"]) == ["masked_lm_logits"]
    # The pooler is there for fine-tuning, but nothing trains it.
    pooler = [v for v in model.variables if "pooler" in v.path]
    assert [v.trainable for v in pooler] == [False, False]
    model.compile(
        create_optimizer(0.1, 10, 0), **pretraining_compile_arguments(config), jit_compile=False
    )
    groups = [
        {name: value for name, value in group.items() if name != "next_sentence_logits"}
        for group in element(batch)
    ]
    model.train_on_batch(*groups)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    assert loaded.train_on_batch(*groups) == model.train_on_batch(*groups)


def test_heads_are_serialisable():
    config = dataclasses.replace(CONFIG, next_sentence_prediction=False)
    copy = keras.layers.deserialize(keras.layers.serialize(PretrainingHeads(config, name="cls")))
    assert copy.config == config
    assert copy.seq_relationship is None
    for whole in (True, False):
        lstm = BiLstm(CONFIG, return_sequences=whole, name="bilstm")
        copy = keras.layers.deserialize(keras.layers.serialize(lstm))
        assert copy.config == CONFIG and copy.return_sequences is whole


# === Training ===


def compiled(config, **kwargs):
    keras.utils.set_random_seed(19)
    model = bert_pretrainer(config)
    model.compile(create_optimizer(0.03, 23, 3), **pretraining_compile_arguments(config), **kwargs)
    return model


def train(model, batch, steps):
    inputs, labels, weights = element(batch)
    return [
        float(model.train_on_batch(inputs, labels, weights, return_dict=True)["loss"])
        for _ in range(steps)
    ]


@pytest.mark.slow
def test_graph_and_xla_train_alike(batch):
    """With dropout: masks are the same, so losses stay together."""
    graph, xla = (train(compiled(SHALLOW, jit_compile=flag), batch, 17) for flag in (False, True))
    np.testing.assert_allclose(graph[:7], xla[:7], rtol=2e-4)
    for history in (graph, xla):
        assert history[-1] < 0.8 * history[0]


@pytest.mark.thorough
def test_fit_and_evaluate_count_padding_out(golden, batch):
    model = compiled(NO_DROPOUT, jit_compile=False)
    set_weights(model, part(golden, "weights:"))
    dataset = tf.data.Dataset.from_tensors(element(batch))
    result = model.evaluate(dataset, return_dict=True, verbose=0)
    weight = batch["masked_lm_weights"].sum()
    expected = golden["gelu_tanh:loss:masked_lm"] * weight / (weight + 1e-5)
    np.testing.assert_allclose(result["masked_lm_logits_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        result["next_sentence_logits_loss"], golden["gelu_tanh:loss:next_sentence"], rtol=1e-5
    )
    logits = model.predict(dataset, verbose=0)["masked_lm_logits"]
    right = (logits.argmax(-1) == batch["masked_lm_ids"]) * batch["masked_lm_weights"]
    np.testing.assert_allclose(result["masked_lm_logits_accuracy"], right.sum() / weight, rtol=1e-6)
    history = model.fit(dataset.repeat(2), epochs=1, verbose=0, shuffle=False).history
    assert history["loss"][0] > 0


@saves
@pytest.mark.slow
def test_keras_file_goes_on_as_if_never_saved(batch, tmp_path):
    model = compiled(SHALLOW, jit_compile=False)
    train(model, batch, 3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inputs, _, _ = element(batch)
    for a, b in zip(*(m(inputs).values() for m in (model, loaded)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert train(loaded, batch, 3) == train(model, batch, 3)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("mixed_float16", marks=pytest.mark.thorough),
    ],
)
def test_mixed_precision_trains(batch, policy):
    config = dataclasses.replace(SHALLOW, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    exact = bert_pretrainer(config)
    model = bert_pretrainer(config, dtype=policy)
    model.set_weights(exact.get_weights())
    optimizer = create_optimizer(0.01, 23, 0)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, **pretraining_compile_arguments(config), jit_compile=False)
    inputs, _, _ = element(batch)
    outputs = model(inputs)
    assert {output.dtype for output in outputs.values()} == {tf.float32}
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    expected, _ = loss_and_gradients(exact, batch)
    history = train(model, batch, 11)
    np.testing.assert_allclose(history[0], sum(expected.values()), rtol=0.01)
    assert history[-1] < 0.9 * history[0]


JAX_SCRIPT = """
import json, sys
import numpy as np
import keras
from bert_tf.config import BertConfig
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.training.objectives import pretraining_compile_arguments
from bert_tf.training.optimizers import create_optimizer

folder = sys.argv[1]
assert keras.backend.backend() == sys.argv[2]
arrays = dict(np.load(folder + "/arrays.npz"))
with open(folder + "/config.json") as file:
    config = BertConfig.from_dict(json.load(file))
model = bert_pretrainer(config)
for variable in model.variables:
    variable.assign(arrays[variable.path])
model.compile(create_optimizer(0.03, 23, 3), **pretraining_compile_arguments(config))
groups = [
    {n[2:]: v for n, v in arrays.items() if n.startswith(prefix)} for prefix in ("x:", "y:", "w:")
]
logs = [model.train_on_batch(*groups, return_dict=True) for _ in range(5)]
np.savez(
    folder + "/results.npz",
    loss=[float(log["loss"]) for log in logs],
    **{v.path: keras.ops.convert_to_numpy(v.value) for v in model.trainable_variables},
)
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "backend",
    [pytest.param("jax", marks=pytest.mark.jax), pytest.param("torch", marks=pytest.mark.slow)],
)
def test_other_backends_train_alike(batch, tmp_path, backend):
    """Five steps with dropout, from the same weights and seed, give the same weights."""
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    model = compiled(SHALLOW, jit_compile=False)
    arrays = {v.path: v.numpy() for v in model.variables}
    for prefix, group in zip(("x", "y", "w"), element(batch), strict=True):
        arrays.update({f"{prefix}:{name}": value for name, value in group.items()})
    np.savez(tmp_path / "arrays.npz", **arrays)
    (tmp_path / "config.json").write_text(json.dumps(SHALLOW.to_dict()), encoding="utf-8")
    run_on_backend(JAX_SCRIPT, tmp_path, backend)
    with np.load(tmp_path / "results.npz") as results:
        np.testing.assert_allclose(train(model, batch, 5), results["loss"], rtol=1e-4)
        for variable in model.trainable_variables:
            if variable.path.endswith("key/bias"):
                continue  # Its gradient is rounding alone, which Adam blows up to whole steps.
            np.testing.assert_allclose(
                variable.numpy(), results[variable.path], atol=2e-4, err_msg=variable.path
            )


# === Heads of tasks ===

LABELS = {"classification": 5, "token_classification": 3}
TASKS = ("next_sentence", "classification", "span", "token_classification", "multiple_choice")
WITH_DROPOUT = ("classification", "token_classification", "multiple_choice")
# What each kind has besides the encoder.
HEAD_SHAPES = {
    "next_sentence": {
        "cls/seq_relationship/output_weights": (2, 14),
        "cls/seq_relationship/output_bias": (2,),
    },
    "classification": {"classifier/output_weights": (5, 14), "classifier/output_bias": (5,)},
    "span": {"cls/squad/output_weights": (2, 14), "cls/squad/output_bias": (2,)},
    "token_classification": {
        "token_classification/output_weights": (3, 14),
        "token_classification/output_bias": (3,),
    },
    "multiple_choice": {
        "multiple_choice/output_weights": (1, 14),
        "multiple_choice/output_bias": (1,),
    },
}


def task_model(kind, config=SHALLOW, **kwargs):
    """Make a model whose weights are far enough from 0 that every part matters."""
    keras.utils.set_random_seed(3)
    if kind in LABELS:
        kwargs = {"num_labels": LABELS[kind], **kwargs}
    model = HEADS[kind].make(config, **kwargs)
    rng = np.random.default_rng(3)
    for weight in model.weights:
        weight.assign(rng.normal(1.0 if weight.name == "gamma" else 0.0, 0.3, weight.shape))
    return model


def task_inputs(kind, rows=5, length=11, choices=3):
    rng = np.random.default_rng(6)
    shape = (rows, choices, length) if kind == "multiple_choice" else (rows, length)
    mask = np.arange(length) < rng.integers(2, length + 1, shape[:-1])[..., None]
    segments = (np.arange(length) >= length // 2) & mask
    inputs = {"input_ids": rng.integers(1, 37, shape) * mask}
    inputs |= {"input_mask": mask, "segment_ids": segments}
    return {name: value.astype(np.int32) for name, value in inputs.items()}


def flatten(outputs):
    """Return the outputs of any kind of model as one list of arrays."""
    return [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]


@pytest.mark.parametrize("kind", TASKS)
def test_variables_of_tasks(kind):
    model = HEADS[kind].make(SHALLOW, **({"num_labels": LABELS[kind]} if kind in LABELS else {}))
    paths = {weight.path: tuple(weight.shape) for weight in model.weights}
    encoder = {w.path: tuple(w.shape) for w in HEADS["encoder"].make(SHALLOW).weights}
    assert paths == {**encoder, **HEAD_SHAPES[kind]}
    values = {weight.path: np.asarray(weight) for weight in model.weights}
    for path in HEAD_SHAPES[kind]:  # The original's initial values.
        if path.endswith("output_bias"):
            assert (values[path] == 0).all()
        else:
            assert 0.003 < values[path].std() < 0.04
            assert np.abs(values[path]).max() <= 0.04


@pytest.mark.parametrize("kind", TASKS)
def test_pooler_is_trainable_where_it_is_read(kind):
    model = task_model(kind)
    reads = kind not in ("span", "token_classification")
    frozen = {weight.path for weight in model.non_trainable_weights}
    poolers = {"bert/pooler/dense/kernel", "bert/pooler/dense/bias"}
    assert frozen == (set() if reads else poolers)
    inputs = task_inputs(kind)
    with tf.GradientTape() as tape:
        outputs = model(inputs)
        total = sum(tf.reduce_sum(tf.square(x)) for x in keras.tree.flatten(outputs))
    gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0, variable.path
    before = flatten(outputs)
    model.get_layer("bert").pooler.dense.kernel.assign(np.ones((14, 14)))
    assert all((a == b).all() for a, b in zip(flatten(model(inputs)), before, strict=True)) != reads


@pytest.mark.parametrize("kind", TASKS)
def test_task_logits_by_definition(kind):
    model, inputs = task_model(kind), task_inputs(kind)
    values = {weight.path: np.asarray(weight) for weight in model.weights}
    (weights,) = (values[path] for path in HEAD_SHAPES[kind] if path.endswith("weights"))
    (bias,) = (values[path] for path in HEAD_SHAPES[kind] if path.endswith("bias"))
    encoder = HEADS["encoder"].make(SHALLOW)
    for weight in encoder.weights:
        weight.assign(values[weight.path])
    encoded = encoder({name: x.reshape(-1, x.shape[-1]) for name, x in inputs.items()})
    sequence, pooled = (np.asarray(encoded[f"{x}_output"]) for x in ("sequence", "pooled"))
    outputs = model(inputs)
    if kind == "span":
        assert set(outputs) == {"start_logits", "end_logits"}
        expected = {
            name: sequence @ weights[i] + bias[i]
            for i, name in enumerate(("start_logits", "end_logits"))
        }
    elif kind == "token_classification":
        expected = {"logits": sequence @ weights.T + bias}
        assert expected["logits"].shape == (5, 11, 3)
    elif kind == "multiple_choice":
        expected = {"logits": (pooled @ weights[0] + bias[0]).reshape(5, 3)}
    else:
        expected = {"logits": pooled @ weights.T + bias}
    outputs = outputs if kind == "span" else {"logits": outputs}
    for name, value in expected.items():
        assert outputs[name].dtype == tf.float32
        assert outputs[name].shape == value.shape
        assert value.std() > 0.1
        np.testing.assert_allclose(outputs[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", TASKS)
def test_symbolic_outputs_of_tasks_say_what_comes(kind):
    model = task_model(kind)
    outputs = keras.tree.flatten(model(task_inputs(kind)))
    for spec, value in zip(keras.tree.flatten(model.output), outputs, strict=True):
        assert len(spec.shape) == len(value.shape)
        assert all(s in (None, v) for s, v in zip(spec.shape, value.shape, strict=True))
        assert spec.dtype == "float32"


def test_any_choices_and_lengths_in_one_model():
    """Each choice is scored alone: rows, choices and padding around it change nothing."""
    model = task_model("multiple_choice")
    inputs = task_inputs("multiple_choice", rows=3, choices=5)
    expected = np.asarray(model(inputs))
    function = tf.function(lambda x: model(x))
    for rows, choices in ((3, 5), (2, 3), (1, 1)):
        part = {name: x[:rows, :choices] for name, x in inputs.items()}
        np.testing.assert_allclose(function(part), expected[:rows, :choices], atol=2e-5)
        length = part["input_mask"].sum(-1).max()
        short = {name: x[..., :length] for name, x in part.items()}
        np.testing.assert_allclose(function(short), expected[:rows, :choices], atol=2e-5)
    swapped = {name: x[:, ::-1] for name, x in inputs.items()}
    np.testing.assert_allclose(model(swapped), expected[:, ::-1], atol=2e-5)
    with pytest.raises(ValueError, match="17 positions"):
        model(task_inputs("multiple_choice", length=17))


@pytest.mark.parametrize("kind", ["span", "token_classification"])
def test_any_length_in_one_model(kind):
    model, inputs = task_model(kind), task_inputs(kind, rows=1)
    inputs["input_mask"] = (np.arange(11) < 7).astype(np.int32)[None]
    short = {name: x[:, :7] for name, x in inputs.items()}
    for a, b in zip(flatten(model(short)), flatten(model(inputs)), strict=True):
        np.testing.assert_allclose(a, b[:, :7], atol=2e-5)


@pytest.mark.parametrize("kind", sorted(LABELS))
@pytest.mark.parametrize("num_labels", [0, -3, 2.0, True, "5", None])
def test_number_of_labels_is_checked(kind, num_labels):
    with pytest.raises(ValueError, match="num_labels must be an integer of at least 1, got"):
        HEADS[kind].make(SHALLOW, num_labels)


def test_one_label_for_regression():
    model = task_model("classification", num_labels=1)
    assert model(task_inputs("classification")).shape == (5, 1)


@pytest.mark.parametrize("kind", TASKS)
def test_task_configs_are_checked(kind):
    with pytest.raises(ValueError, match="BertConfig, got dict"):
        HEADS[kind].make(CONFIG.to_dict(), **({"num_labels": 3} if kind in LABELS else {}))


@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_dropout_before_the_head(kind):
    """The rate is the original's 0.1 whatever the configuration says, on in training only."""
    config = dataclasses.replace(SHALLOW, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, inputs = task_model(kind, config), task_inputs(kind)
    assert model.get_layer("dropout").rate == 0.1
    plain = np.asarray(model(inputs))
    np.testing.assert_array_equal(model(inputs), plain)
    first, second = (np.asarray(model(inputs, training=True)) for _ in range(2))
    assert np.abs(first - plain).max() > 1e-3
    assert np.abs(first - second).max() > 1e-3
    off = task_model(kind, config, dropout_rate=0.0)
    np.testing.assert_array_equal(off(inputs, training=True), plain)


@saves
@pytest.mark.parametrize("kind", TASKS)
def test_task_models_in_keras_files(kind, tmp_path):
    """The file keeps head, labels and the state of every dropout."""
    model, inputs = task_model(kind), task_inputs(kind)
    model(inputs, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in loaded.variables] == [v.path for v in model.variables]
    trainable = [v.path for v in model.trainable_variables]
    assert [v.path for v in loaded.trainable_variables] == trainable
    for training in (False, True, True):
        results = [flatten(m(inputs, training=training)) for m in (model, loaded)]
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)
    if kind == "multiple_choice":
        other = task_inputs(kind, rows=2, length=7, choices=5)
        np.testing.assert_array_equal(loaded(other), model(other))


@pytest.mark.parametrize("kind", ["classification", "span"])
def test_a_bilstm_between_encoder_and_head(kind, tmp_path):
    config = dataclasses.replace(SHALLOW, bilstm=True)
    model, inputs = task_model(kind, config), task_inputs(kind)
    expected = flatten(model(inputs))
    longer = {key: np.pad(value, ((0, 0), (0, 2))) for key, value in inputs.items()}
    for a, b in zip(flatten(model(longer)), expected, strict=True):
        np.testing.assert_allclose(a[:, : b.shape[1]], b, atol=1e-5)
    save_model_directory(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.kind == kind and loaded.config.bilstm
    for a, b in zip(flatten(loaded.model(inputs)), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    # Over a pre-trained encoder it is drawn afresh, like the head.
    save_model_directory(tmp_path / "encoder", bert_encoder(SHALLOW))
    transfer = load_checkpoint(model, tmp_path / "encoder", heads=False)
    assert {name.split("/")[0] for name in transfer.missing} <= {"bilstm", "classifier", "cls"}
    assert any(name.startswith("bilstm/") for name in transfer.missing)


@pytest.mark.parametrize("kind", TASKS)
def test_task_models_in_mixed_precision(kind):
    exact, model = task_model(kind), task_model(kind, dtype="mixed_bfloat16")
    inputs = task_inputs(kind)
    outputs = model(inputs)
    assert {x.dtype for x in keras.tree.flatten(outputs)} == {tf.float32}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.get_layer("bert").compute_dtype == "bfloat16"
    for a, b in zip(flatten(outputs), flatten(exact(inputs)), strict=True):
        assert 0 < np.abs(a - b).max() < 0.15


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", TASKS)
def test_a_global_mixed_policy_leaves_logits_in_float32(kind, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = task_model(kind)
        assert {x.dtype for x in keras.tree.flatten(model.output)} == {"float32"}
        assert {x.dtype for x in keras.tree.flatten(model(task_inputs(kind)))} == {tf.float32}
        layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
        assert {layer.dtype_policy.name for layer in layers} == {policy}
    finally:
        keras.config.set_dtype_policy(before)
    # By argument each layer has the policy, too.
    model = task_model(kind, dtype=policy)
    layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    assert {layer.dtype_policy.name for layer in layers} == {policy}


@pytest.mark.parametrize(
    "kind",
    # tests/test_finetuning.py trains each kind, too.
    [pytest.param(k, marks=[] if k == "span" else pytest.mark.slow) for k in TASKS],
)
def test_task_models_fit(kind):
    """A few steps, compiled, learn a batch by heart; the pooler moves where it is read."""
    config = dataclasses.replace(SHALLOW, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, inputs = task_model(kind, config), task_inputs(kind)
    rng = np.random.default_rng(2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    shapes = {"next_sentence": (2, (5,)), "classification": (5, (5,)), "multiple_choice": (3, (5,))}
    high, shape = {**shapes, "token_classification": (3, (5, 11)), "span": (11, (5,))}[kind]
    if kind == "span":
        names = ("start_logits", "end_logits")
        labels = {name: rng.integers(0, high, shape) for name in names}
        loss = dict.fromkeys(names, loss)
    else:
        labels = rng.integers(0, high, shape)
    model.compile(keras.optimizers.Adam(0.03), loss=loss, run_eagerly=False, jit_compile=False)
    before = {weight.path: np.asarray(weight).copy() for weight in model.weights}
    history = model.fit(inputs, labels, batch_size=5, epochs=13, shuffle=False, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    for weight in model.weights:
        moved = bool((before[weight.path] != np.asarray(weight)).any())
        # A softmax does not see what is added to all choices, nor to all keys.
        if weight.path not in ("multiple_choice/output_bias",) and "key/bias" not in weight.path:
            assert moved == weight.trainable, weight.path
    predictions = model.predict(inputs, batch_size=2, verbose=0)
    for a, b in zip(flatten(predictions), flatten(model(inputs)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_biases_and_linear_heads_are_added_in_float32_under_a_mixed_policy(policy):
    """A bias that the compute type cannot hold reaches the logits whole."""
    bias = np.float32(1 + 2**-14)
    rows = np.zeros((2, 7, 14), np.float32)
    head = MaskedLMHead(CONFIG, name="predictions", dtype=policy)
    head.build()
    head.output_bias.assign(np.full(head.output_bias.shape, bias))
    head.transform.layer_norm.beta.assign(np.zeros(14))
    table = np.zeros((CONFIG.vocab_size, 14), np.float32)
    low = tf.cast(rows, policy.removeprefix("mixed_"))
    logits = head(low, tf.constant(table), np.zeros((2, 3), np.int32))
    np.testing.assert_array_equal(logits, np.full((2, 3, CONFIG.vocab_size), bias))
    linear = ClassificationHead(CONFIG, 3, name="classifier", dtype=policy)
    linear.build()
    weights = np.full((3, 14), bias / 14, np.float32)
    linear.output_weights.assign(weights)
    linear.output_bias.assign([0.0, bias, -bias])
    ones = tf.ones((2, 14), low.dtype)
    np.testing.assert_allclose(linear(ones), [[bias, 2 * bias, 0]] * 2, rtol=1e-6, atol=1e-6)


def test_the_epsilon_of_every_normalisation_is_the_configurations():
    """So large a one cannot be left out anywhere; of the usual 1e-12 nothing would be seen."""
    model = bert_pretrainer(dataclasses.replace(CONFIG, layer_norm_eps=0.5))
    found = [layer for layer in model._flatten_layers() if isinstance(layer, LayerNorm)]
    assert len(found) == 1 + 2 * CONFIG.num_hidden_layers + 1
    x = np.random.default_rng(0).normal(size=(7, CONFIG.hidden_size)).astype(np.float32)
    for layer in found:
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.5)
        np.testing.assert_allclose(layer(x), expected, atol=1e-5)
