import pathlib
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.training import optimizers
from bert_tf.training.optimizers import (
    AdamWeightDecay,
    Lamb,
    TwoPhases,
    WarmupLinearDecay,
    clip_by_global_norm,
    create_optimizer,
    first_match,
    global_norm,
    layer_wise_rules,
)
from bert_tf.training.state import training_variables
from bert_tf.weights.layouts import TRAINING_STATE
from tests.golden.optimization import make_golden
from tests.models.test_encoder import run_on_backend
from tests.support.optimizer_slots import slot_variables

EMBEDDING = make_golden.EMBEDDING
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "optimization" / "original.npz"
LAMB_GOLDEN = GOLDEN.with_name("lamb.npz")


# === An independent rendering of the original in NumPy ===


def numpy_rate(step, init_lr, num_train_steps, num_warmup_steps):
    rate = init_lr * (1 - min(step, num_train_steps) / num_train_steps)
    if step < num_warmup_steps:
        rate = init_lr * step / num_warmup_steps
    return rate


def numpy_gradients(coefficients, ids, rows):
    gradients = {name: value.astype(np.float64) for name, value in coefficients.items()}
    np.add.at(gradients[EMBEDDING], ids, rows)
    return gradients


def numpy_training(weights, steps, rates, clip_norm=1.0, decay=0.01, lamb=False):
    """Yield {name: value} with moments after each step, in float64; of LAMB by its paper's text."""
    excluded = ("LayerNorm", "layer_norm", "bias")
    p = {name: value.astype(np.float64) for name, value in weights.items()}
    m = {name: np.zeros(value.shape) for name, value in weights.items()}
    v = {name: np.zeros(value.shape) for name, value in weights.items()}
    slots = ("lamb_m", "lamb_v") if lamb else ("adam_m", "adam_v")
    for t, (step, rate) in enumerate(zip(steps, rates, strict=True), start=1):
        gradients = numpy_gradients(*step)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, g in gradients.items():
            if clip_norm is not None:
                g = g * clip_norm / max(norm, clip_norm)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            correction = (1 - 0.9**t, 1 - 0.999**t) if lamb else (1, 1)
            update = m[name] / correction[0] / (np.sqrt(v[name] / correction[1]) + 1e-6)
            if not any(word in name for word in excluded):
                update = update + decay * p[name]
                if lamb:
                    norms = np.linalg.norm(p[name]), np.linalg.norm(update)
                    update = update * (norms[0] / norms[1] if all(norms) else 1)
            p[name] = p[name] - rate * update
        state = dict(p)
        for name in weights:
            state[f"{name}/{slots[0]}"], state[f"{name}/{slots[1]}"] = m[name], v[name]
        yield state


def rates():
    return [
        numpy_rate(
            step,
            make_golden.INIT_LR,
            make_golden.NUM_TRAIN_STEPS,
            make_golden.NUM_WARMUP_STEPS,
        )
        for step in range(make_golden.NUM_STEPS)
    ]


def test_numpy_rendering_equals_the_original():
    """The rendering that other tests trust, against values the original code gave."""
    with np.load(GOLDEN) as golden:
        states = list(numpy_training(*make_golden.make_problem(), rates()))
        names = {key.split(":", 1)[1] for key in golden.files}
        assert names == set(states[0])
        for step in make_golden.KEPT_STEPS:
            for name, value in states[step - 1].items():
                expected = golden[f"{step}:{name}"]
                np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)


# === Ours ===


def scoped_variable(path, value):
    """Make a Keras variable with a path, as layers do."""
    *scopes, name = path.split("/")
    if scopes:
        with keras.name_scope(scopes[0]):
            return scoped_variable("/".join([*scopes[1:], name]), value)
    return keras.Variable(value, name=name)


def make_variables(weights):
    variables = {name: scoped_variable(name, value) for name, value in weights.items()}
    assert all(variable.path == name for name, variable in variables.items())
    return variables


def make_step(optimizer, variables):
    """Return a function that takes one step of the problem, with IndexedSlices for the table."""
    optimizer.build(list(variables.values()))

    def step(coefficients, ids, rows):
        values = {name: variable.value for name, variable in variables.items()}
        with tf.GradientTape() as tape:
            looked_up = tf.gather(values[EMBEDDING], ids)
            loss = tf.reduce_sum(looked_up * rows)
            for name, value in values.items():
                if name == EMBEDDING:  # By lookups alone, so that its gradient stays sparse.
                    value = tf.gather(value, tf.range(value.shape[0]))
                loss += tf.reduce_sum(value * coefficients[name])
        gradients = tape.gradient(loss, list(values.values()))
        assert isinstance(gradients[0], tf.IndexedSlices)
        optimizer.apply(gradients, list(variables.values()))

    return step


def state(optimizer, variables):
    values = {name: variable.numpy() for name, variable in variables.items()}
    values.update({name: slot.numpy() for name, slot in slot_variables(optimizer).items()})
    return values


def original_optimizer():
    return create_optimizer(
        make_golden.INIT_LR, make_golden.NUM_TRAIN_STEPS, make_golden.NUM_WARMUP_STEPS
    )


@pytest.mark.parametrize("mode", ["eager", "graph", "xla", "operations"])
def test_fifty_steps_equal_the_numpy_rendering_and_the_original(mode, monkeypatch):
    if mode == "operations":  # as on backends without TensorFlow's kernels
        monkeypatch.setattr(optimizers, "adam_kernel", None)
    weights, steps = make_golden.make_problem()
    variables, optimizer = make_variables(weights), original_optimizer()
    step_function = make_step(optimizer, variables)
    if mode in ("graph", "xla"):
        step_function = tf.function(step_function, jit_compile=mode == "xla")
    expected = numpy_training(weights, steps, rates())
    with np.load(GOLDEN) as golden:
        for number, (step, values) in enumerate(zip(steps, expected, strict=True), start=1):
            step_function(*tf.nest.map_structure(tf.constant, step))
            for name, value in state(optimizer, variables).items():
                np.testing.assert_allclose(value, values[name], rtol=0, atol=1e-6, err_msg=name)
                if number in make_golden.KEPT_STEPS:
                    np.testing.assert_allclose(
                        value, golden[f"{number}:{name}"], rtol=0, atol=1e-6, err_msg=name
                    )
    assert int(optimizer.iterations) == make_golden.NUM_STEPS


def test_the_problem_clips_some_steps_and_not_others():
    _, steps = make_golden.make_problem()
    norms = [np.sqrt(sum((g**2).sum() for g in numpy_gradients(*step).values())) for step in steps]
    assert min(norms) < 1 < max(norms)
    assert all(len(np.unique(ids)) < len(ids) for _, ids, _ in steps)


def test_rate_is_zero_first_and_jumps_after_warmup():
    schedule = WarmupLinearDecay(0.5, 20, 8)
    values = [float(schedule(step)) for step in range(23)]
    np.testing.assert_allclose(values, [numpy_rate(step, 0.5, 20, 8) for step in range(23)], 1e-6)
    assert values[0] == 0
    assert values[7] > values[8] + 0.1  # 0.4375, then 0.3.
    assert values[20:] == [0, 0, 0]
    assert float(WarmupLinearDecay(0.5, 20)(0)) == 0.5


def test_a_second_phase_has_a_schedule_of_its_own():
    first, second = WarmupLinearDecay(0.5, 20, 8), WarmupLinearDecay(0.3, 11, 3)
    schedule = create_optimizer(0.5, 20, 8, then=second)._learning_rate
    for made in (schedule, TwoPhases.from_config(schedule.get_config())):
        for step in range(20):
            assert float(made(step)) == pytest.approx(float(first(step)))
        for step in range(15):
            assert float(made(20 + step)) == pytest.approx(float(second(step)))


def test_without_warm_up_the_second_phase_begins_at_its_peak():
    """The first has come to 0 by then, as a warm-up begins with: only without one does it show."""
    schedule = TwoPhases(WarmupLinearDecay(0.5, 20), WarmupLinearDecay(0.25, 11))
    assert float(schedule(19)) == pytest.approx(0.5 / 20)
    assert float(schedule(20)) == 0.25
    assert float(schedule(21)) == pytest.approx(0.25 * 10 / 11)


def test_warm_up_longer_than_training_is_warned_of(caplog):
    create_optimizer(0.5, 20, 20, then=WarmupLinearDecay(0.3, 11, 11))
    assert not caplog.records
    create_optimizer(0.5, 20, 40)
    assert "num_warmup_steps: 40 is more than the 20 steps" in caplog.text
    assert "reaches only 0.237 of 0.5" in caplog.text  # 0.5 * 19 / 40
    create_optimizer(0.5, 20, 8, then=WarmupLinearDecay(0.3, 11, 12))
    assert "num_warmup_steps: 12 is more than the 11 steps" in caplog.text


@pytest.mark.parametrize("arguments", [(0, 5, 1), (0.1, 0, 1), (0.1, 5, -1)])
def test_schedule_checks_its_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        WarmupLinearDecay(*arguments)
    assert float(WarmupLinearDecay(0.25, 1, 0)(0)) == 0.25  # one step is enough


# === Clipping ===


@pytest.mark.parametrize("scale", [0.0, 0.1, 10.0, np.inf, np.nan])
def test_clip_equals_that_of_tensorflow(scale):
    rng = np.random.default_rng(0)
    tensors = [tf.constant(scale * rng.normal(size=n), tf.float32) for n in (3, 7)]
    ours, norm = clip_by_global_norm(tensors, 1.0)
    theirs, their_norm = tf.clip_by_global_norm(tensors, 1.0)
    np.testing.assert_allclose(norm, their_norm, rtol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    if not np.isfinite(scale):
        assert all(np.isnan(t).all() for t in ours)


def test_global_norm():
    assert float(global_norm([tf.constant([3.0]), tf.constant([[4.0]], tf.float16)])) == 5.0


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_one_gradient_that_is_not_finite_makes_all_nan(bad):
    """Scaled by 1 / infinity the others would become 0, and the step would be lost in silence."""
    tensors = [tf.constant([1.0, 2.0]), tf.constant([[3.0, bad]]), tf.constant([0.5])]
    clipped, norm = clip_by_global_norm(tensors, 1.0)
    assert not np.isfinite(norm)
    for tensor in clipped:
        assert np.isnan(tensor).all()


def test_without_clipping():
    weights, steps = make_golden.make_problem()
    variables = make_variables(weights)
    optimizer = AdamWeightDecay(0.01, clip_norm=None)
    make_step(optimizer, variables)(*steps[0])
    expected = next(numpy_training(weights, steps[:1], [0.01], clip_norm=None))
    for name, value in state(optimizer, variables).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_step_of_fit_is_traced_once_and_is_that_of_an_optimizer_built_before(jit_compile):
    traces, weights = [], []

    class Counted(keras.Model):
        def train_step(self, data):
            traces.append(self)
            return super().train_step(data)

    for build in (False, True):
        x = keras.Input((3,))
        output = keras.layers.Dense(2, kernel_initializer="ones", name="dense")(x)
        model = Counted(x, output)
        optimizer = Lamb(0.1, gradient_accumulation_steps=2)
        if build:
            optimizer.build(model.trainable_variables)
        model.compile(optimizer, "mse", jit_compile=jit_compile)
        model.fit(np.eye(4, 3), np.ones((4, 2)), batch_size=1, shuffle=False, verbose=0)
        weights.append([variable.numpy() for variable in (*model.weights, *optimizer.variables)])
        assert {type(v.value) for v in optimizer.variables} == {type(model.weights[0].value)}
        assert [v.path for v in optimizer.variables if "lamb_m" in v.name] == [
            "lamb/dense_kernel_lamb_m",
            "lamb/dense_bias_lamb_m",
        ]
    assert len(traces) == 2
    assert np.abs(weights[0][0] - 1).max() > 0.01
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_loss_scaling_clips_after_unscaling():
    """The same steps, with gradients scaled up by 2**15 and more and back."""
    weights, steps = make_golden.make_problem()
    variables, inner = make_variables(weights), original_optimizer()
    optimizer = keras.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=7)
    optimizer.build(list(variables.values()))
    for coefficients, ids, rows in steps[:20]:
        scale = float(optimizer.scale_loss(1.0))
        gradients = {name: tf.constant(scale * value) for name, value in coefficients.items()}
        values = [variable.value for variable in variables.values()]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(values[0], ids) * rows * scale)
            loss += tf.reduce_sum(tf.gather(values[0], tf.range(11)) * gradients[EMBEDDING])
            for value, name in zip(values[1:], list(gradients)[1:], strict=True):
                loss += tf.reduce_sum(value * gradients[name])
        optimizer.apply(tape.gradient(loss, values), list(variables.values()))
    *_, expected = numpy_training(weights, steps[:20], rates()[:20])
    for name, value in state(inner, variables).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_loss_scaling_skips_infinite_gradients():
    variable = scoped_variable("a/kernel", np.ones(3, np.float32))
    inner = AdamWeightDecay(0.1)
    optimizer = keras.optimizers.LossScaleOptimizer(inner)
    optimizer.apply([tf.constant([1.0, np.inf, 1.0])], [variable])
    np.testing.assert_array_equal(variable.numpy(), [1, 1, 1])
    assert int(inner.iterations) == 0
    optimizer.apply([tf.constant([1.0, 2.0, 1.0])], [variable])
    assert (variable.numpy() < 1).all()


def test_nan_gradients_show():
    variables = [scoped_variable(f"{x}/kernel", np.ones(3, np.float32)) for x in "ab"]
    AdamWeightDecay(0.1).apply([tf.constant([1.0, np.nan, 1.0]), tf.ones(3)], variables)
    assert all(np.isnan(variable.numpy()).all() for variable in variables)


# === Rules ===


def test_first_match_wins_and_an_uncovered_path_raises():
    rules = [("LayerNorm", 1), ("bert/", 2)]
    assert first_match(rules, "bert/embeddings/LayerNorm/gamma") == 1
    assert first_match(rules, "bert/pooler/dense/kernel") == 2
    with pytest.raises(ValueError, match="no rule covers variable 'cls/x'.*'LayerNorm', 'bert/'"):
        first_match(rules, "cls/x")


def decayed(optimizer):
    """Which paths decay, found out by updates without gradients."""
    variables = [
        scoped_variable(path, np.ones(3, np.float32))
        for path in (*make_golden.SHAPES, "other/layer_norm/gamma")
    ]
    optimizer.apply([tf.zeros(3)] * len(variables), variables)
    return {v.path for v in variables if (v.numpy() != 1).all()}


def test_decay_exclusion_goes_by_path():
    """gamma and output_bias are spared by what stands before the last part of their path."""
    assert decayed(AdamWeightDecay(0.1)) == {
        EMBEDDING,
        "bert/encoder/layer_0/attention/self/query/kernel",
        "cls/seq_relationship/output_weights",
    }


def test_decay_rules():
    rules = [("embeddings", 0.0), ("kernel$", 0.5), ("", 0.0)]
    assert decayed(AdamWeightDecay(0.1, decay_rules=rules)) == {
        "bert/encoder/layer_0/attention/self/query/kernel"
    }
    with pytest.raises(ValueError, match="no rule covers variable 'bert/embeddings/LayerNorm"):
        decayed(AdamWeightDecay(0.1, decay_rules=[("word_embeddings", 0.1)]))
    assert decayed(AdamWeightDecay(0.1, weight_decay_rate=0)) == set()


def test_keras_own_ways_to_decay_and_clip_are_refused():
    for argument in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm"):
        with pytest.raises(ValueError, match=argument):
            AdamWeightDecay(0.1, **{argument: 0.1})
    with pytest.raises(ValueError, match="matches variable.path"):
        AdamWeightDecay(0.1).exclude_from_weight_decay(var_names=["bias"])
    with pytest.raises(ValueError, match="clip_norm"):
        AdamWeightDecay(0.1, clip_norm=0)
    with pytest.raises(ValueError, match="weight_decay_rate"):
        AdamWeightDecay(0.1, weight_decay_rate=-1)


# === The rest of being an optimizer ===


def test_serialisation():
    optimizer = AdamWeightDecay(
        WarmupLinearDecay(0.1, 7, 3),
        weight_decay_rate=0.2,
        decay_rules=[("a", 0.5)],
        clip_norm=None,
    )
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert copy.get_config() == optimizer.get_config()
    assert copy.decay_rules == (("a", 0.5),)
    assert copy.clip_norm is None


def test_slots_have_the_names_of_the_original():
    variable = scoped_variable("bert/pooler/dense/kernel", np.ones((2, 3), np.float32))
    optimizer = AdamWeightDecay(0.1)
    assert slot_variables(optimizer) == {}
    optimizer.build([variable])
    assert {name: tuple(slot.shape) for name, slot in slot_variables(optimizer).items()} == {
        "bert/pooler/dense/kernel/adam_m": (2, 3),
        "bert/pooler/dense/kernel/adam_v": (2, 3),
    }


def test_gradient_accumulation_clips_the_mean():
    """With Keras' own accumulation two halves make one step."""
    weights, steps = make_golden.make_problem()
    variables = make_variables(weights)
    optimizer = AdamWeightDecay(0.01, gradient_accumulation_steps=2)
    step = make_step(optimizer, variables)
    coefficients, ids, rows = steps[0]
    zeros = {name: 0 * value for name, value in coefficients.items()}
    step({name: 2 * value for name, value in coefficients.items()}, ids, 0 * rows)
    step(zeros, ids, 2 * rows)
    expected = next(numpy_training(weights, steps[:1], [0.01]))
    for name, value in state(optimizer, variables).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_missing_gradients_are_left_out():
    variables = [scoped_variable(f"{x}/kernel", np.ones(3, np.float32)) for x in "ab"]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        AdamWeightDecay(0.1).apply([tf.ones(3), None], variables)
    assert (variables[0].numpy() < 1).all()
    np.testing.assert_array_equal(variables[1].numpy(), [1, 1, 1])


# === Bias correction and rates of layers ===


def run_bias_correction(optimizer, weights, gradients):
    """Return the variable after each step."""
    variable = scoped_variable("dense/kernel", weights)
    optimizer.build([variable])
    values = []
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [variable])
        values.append(variable.numpy())
    return np.array(values)


@pytest.mark.parametrize("beta_2", [0.999, 0.98])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_with_bias_correction_it_is_adamw_of_torch(beta_2, decay):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(5, 3)).astype(np.float32)
    # The smallest gradients are of the size of epsilon, whose place so matters.
    scales = 10.0 ** rng.uniform(-7, 0, (5, 3))
    gradients = (scales * rng.normal(size=(7, 5, 3))).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(weights.copy()))
    theirs = torch.optim.AdamW([parameter], 3e-2, (0.9, beta_2), 1e-6, weight_decay=decay)
    expected = []
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        expected.append(parameter.detach().numpy().copy())
    found = run_bias_correction(
        AdamWeightDecay(
            3e-2, decay, beta_2=beta_2, epsilon=1e-6, clip_norm=None, bias_correction=True
        ),
        weights,
        gradients,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    plain = run_bias_correction(
        AdamWeightDecay(3e-2, decay, beta_2=beta_2, epsilon=1e-6, clip_norm=None),
        weights,
        gradients,
    )
    assert np.abs(plain - found).max() > 1e-2


def test_the_first_corrected_step_is_the_gradients_sign():
    # 1 - 0.999 in float32 would give 1.0000064.
    gradient = np.array([0.5, -3, 1e-2], np.float32)
    optimizer = AdamWeightDecay(1.0, 0.0, epsilon=0.0, clip_norm=None, bias_correction=True)
    (found,) = run_bias_correction(optimizer, np.zeros(3, np.float32), [gradient])
    np.testing.assert_allclose(found, -np.sign(gradient), rtol=3e-7)


def test_bias_correction_without_moments():
    gradient = np.array([0.5, -3, 1e-2], np.float32)
    optimizer = AdamWeightDecay(
        1.0, 0.0, beta_1=0.0, beta_2=0.0, epsilon=0.0, clip_norm=None, bias_correction=True
    )
    found = run_bias_correction(optimizer, np.zeros(3, np.float32), [gradient, gradient])
    np.testing.assert_allclose(found, [-np.sign(gradient), -2 * np.sign(gradient)], rtol=1e-6)


def test_accumulated_steps_are_corrected_as_one():
    gradients = np.array([[1, 2], [3, 5], [7, 11], [13, 17]], np.float32)
    weights = np.ones(2, np.float32)
    arguments = {"clip_norm": None, "bias_correction": True}
    accumulated = run_bias_correction(
        AdamWeightDecay(0.1, gradient_accumulation_steps=2, **arguments), weights, gradients
    )
    whole = run_bias_correction(
        AdamWeightDecay(0.1, **arguments), weights, gradients.reshape(2, 2, 2).mean(1)
    )
    np.testing.assert_allclose(accumulated[1::2], whole, rtol=1e-6)


def test_rates_are_multiplied_by_the_factor_of_the_first_match():
    paths = ("bert/embeddings/w", "bert/encoder/layer_1/w", "bert/encoder/layer_11/w", "head/w")
    rules = layer_wise_rules(12, 0.5)
    factors = [0.5**13, 0.5**11, 0.5, 1]
    assert [first_match(rules, path) for path in paths] == factors
    paths, factors, rules = (*paths, "new/w"), [*factors, 2], (("new/", 2.0), *rules)
    variables = [scoped_variable(path, np.ones(3, np.float32)) for path in paths]
    gradients = [tf.constant([1.0, -2.0, 3.0])] * 5
    changes = {}
    for given in (None, rules):
        for variable in variables:
            variable.assign(np.ones(3))
        AdamWeightDecay(0.1, 0.3, learning_rate_rules=given).apply(gradients, variables)
        changes[given is None] = np.array([v.numpy() - 1 for v in variables])
    expected = changes[True] * np.array(factors)[:, None]  # of the decay too
    np.testing.assert_allclose(changes[False], expected, atol=2e-7)


def test_rates_must_cover_every_variable():
    variable = scoped_variable("head/kernel", np.ones(3, np.float32))
    for rules in ([("bert/", 0.5)], []):
        with pytest.raises(ValueError, match="no rule covers variable 'head/kernel'"):
            AdamWeightDecay(learning_rate_rules=rules).build([variable])


@pytest.mark.parametrize("decay", [0, -0.5, 1.1, float("nan")])
def test_decay_of_layers_is_checked(decay):
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
        layer_wise_rules(3, decay)
    assert set(dict(layer_wise_rules(3, 1)).values()) == {1}


def test_serialisation_of_bias_correction_and_rates():
    rules = layer_wise_rules(2, 0.7)
    optimizer = create_optimizer(0.1, 7, 2, bias_correction=True, learning_rate_rules=rules)
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(restored, AdamWeightDecay) and restored.bias_correction
    config = restored.get_config()
    assert config["learning_rate_rules"] == [list(rule) for rule in rules]
    assert config == optimizer.get_config()
    variable = scoped_variable("bert/encoder/layer_1/w", np.ones(3, np.float32))
    restored.build([variable])
    assert restored._rate_factors == [0.7]
    assert AdamWeightDecay().get_config()["learning_rate_rules"] is None


# === LAMB ===


def test_the_paper_in_numpy_equals_model_garden():
    """The rendering that other tests trust, against values the code of others gave."""
    with np.load(LAMB_GOLDEN) as golden:
        states = list(numpy_training(*make_golden.make_problem(), rates(), lamb=True))
        assert {key.split(":", 1)[1] for key in golden.files} == set(states[0])
        for key in golden.files:
            step, name = key.split(":", 1)
            value = states[int(step) - 1][name]
            np.testing.assert_allclose(value, golden[key], rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_lamb_equals_the_paper_in_numpy_and_model_garden(mode):
    weights, steps = make_golden.make_problem()
    schedule = WarmupLinearDecay(
        make_golden.INIT_LR, make_golden.NUM_TRAIN_STEPS, make_golden.NUM_WARMUP_STEPS
    )
    variables, optimizer = make_variables(weights), Lamb(schedule)
    step_function = make_step(optimizer, variables)
    step_function = tf.function(step_function, jit_compile=mode == "xla")
    expected = numpy_training(weights, steps, rates(), lamb=True)
    with np.load(LAMB_GOLDEN) as golden:
        for number, (step, values) in enumerate(zip(steps, expected, strict=True), start=1):
            step_function(*tf.nest.map_structure(tf.constant, step))
            for name, value in state(optimizer, variables).items():
                np.testing.assert_allclose(value, values[name], rtol=0, atol=2e-6, err_msg=name)
                if number in make_golden.KEPT_STEPS:
                    stored = golden[f"{number}:{name}"]
                    np.testing.assert_allclose(value, stored, rtol=1e-5, atol=1e-5, err_msg=name)


def lamb_step(value, gradient, **arguments):
    """Return what one step of rate 0.5 without clipping makes of a variable."""
    path = arguments.pop("path", "dense/kernel")
    variable = scoped_variable(path, np.array(value, np.float32))
    Lamb(0.5, clip_norm=None, **arguments).apply([tf.constant(gradient, tf.float32)], [variable])
    return variable.numpy()


def test_the_ratio_is_one_where_a_norm_is_zero():
    # The first corrected update without decay is the gradient's sign.
    np.testing.assert_allclose(lamb_step([0, 0], [2, -3]), [-0.5, 0.5], rtol=2e-6)
    np.testing.assert_array_equal(lamb_step([3, 4], [0, 0], weight_decay_rate=0), [3, 4])
    np.testing.assert_array_equal(lamb_step([0, 0], [0, 0]), [0, 0])


def test_decay_lies_inside_the_ratio():
    """With nothing but decay the update is the variable itself, times its norm over its norm."""
    np.testing.assert_allclose(lamb_step([3, 4], [0, 0], weight_decay_rate=0.01), [1.5, 2], 1e-6)


def test_excluded_variables_are_not_adapted():
    for path in ("bert/embeddings/LayerNorm/gamma", "a/dense/bias"):
        found = lamb_step([3, 4], [1, -1], path=path)
        np.testing.assert_allclose(found, [2.5, 4.5], rtol=1e-6)
    adapted = lamb_step([3, 4], [1, -1], path="a/bias", exclude_from_layer_adaptation=())
    np.testing.assert_allclose(adapted, np.array([3, 4]) - 2.5 / np.sqrt(2) * np.array([1, -1]))
    spared = lamb_step([3, 4], [1, -1], exclude_from_layer_adaptation=["kernel"])
    np.testing.assert_allclose(spared, [3 - 0.5 * 1.03, 4 + 0.5 * 0.96], rtol=1e-6)


def test_the_ratio_is_computed_in_float32():
    """The squares of these weights are beyond the largest float16."""
    with keras.name_scope("dense"):
        variable = keras.Variable(np.full(5, 300, np.float16), name="kernel", dtype="float16")
    optimizer = Lamb(0.5, weight_decay_rate=0, clip_norm=None, epsilon=1e-3)
    optimizer.apply([tf.ones(5, tf.float16)], [variable])
    np.testing.assert_allclose(variable.numpy(), 150, rtol=5e-3)


def test_serialisation_of_lamb():
    optimizer = create_optimizer(
        0.1, 7, 2, optimizer="lamb", exclude_from_layer_adaptation=["a"], bias_correction=False
    )
    assert isinstance(optimizer, Lamb)
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(restored, Lamb) and not restored.bias_correction
    assert restored.get_config() == optimizer.get_config()
    assert restored.get_config()["exclude_from_layer_adaptation"] == ["a"]
    assert Lamb().get_config()["exclude_from_layer_adaptation"] is None and Lamb().bias_correction
    variable = keras.Variable(np.ones(2, np.float32), name="a")
    optimizer.build([variable])
    slots = list(optimizer.variables)
    optimizer.build([variable])  # as Keras may, again
    assert optimizer.variables == slots
    for given in ([variable], None):
        with pytest.raises(ValueError, match="grads: expected 1, one for each variable, got 2"):
            optimizer.apply([tf.ones(2), tf.ones(2)], given)
    with pytest.raises(ValueError, match="optimizer must already be built"):
        Lamb().apply([tf.ones(2)])
    with pytest.raises(ValueError, match="optimizer: expected one of adamw, lamb, got 'adam'"):
        create_optimizer(0.1, 7, 2, optimizer="adam")
    with pytest.raises(ValueError, match="not an argument of Lamb"):
        Lamb(clipnorm=1.0)


def test_slots_of_lamb_go_into_checkpoints_and_out_of_the_way_of_weights():
    variable = scoped_variable("bert/pooler/dense/kernel", np.ones((2, 3), np.float32))
    optimizer = Lamb(0.1)
    optimizer.build([variable])
    names = {"bert/pooler/dense/kernel/lamb_m", "bert/pooler/dense/kernel/lamb_v"}
    assert set(slot_variables(optimizer)) == names
    stored = training_variables(
        SimpleNamespace(weights=[variable], variables=[variable]), optimizer
    )
    assert names < set(stored)
    assert all(re.search(TRAINING_STATE, name) for name in names)


JAX_SCRIPT = """
import sys
import numpy as np
import jax
import keras
from bert_tf.training.optimizers import create_optimizer
from tests.golden.optimization import make_golden

assert keras.backend.backend() == sys.argv[2]


def scoped_variable(path, value):
    scope, _, rest = path.partition("/")
    if not rest:
        return keras.Variable(value, name=path)
    with keras.name_scope(scope):
        return scoped_variable(rest, value)


weights, steps = make_golden.make_problem()
variables = [scoped_variable(name, value) for name, value in weights.items()]
optimizer = create_optimizer(
    make_golden.INIT_LR, make_golden.NUM_TRAIN_STEPS, make_golden.NUM_WARMUP_STEPS
)
optimizer.build(variables)
update = jax.jit(optimizer.stateless_apply)
values, state = [v.value for v in variables], [v.value for v in optimizer.variables]
for coefficients, ids, rows in steps:
    gradients = list(coefficients.values())
    np.add.at(gradients[0], ids, rows)
    values, state = update(state, gradients, values)
np.savez(sys.argv[1] + "/results.npz", **dict(zip(weights, map(np.asarray, values))))
"""


@pytest.mark.jax
def test_stateless_on_jax(tmp_path):
    pytest.importorskip("jax", reason="jax is not installed")
    run_on_backend(JAX_SCRIPT, tmp_path, "jax")
    with np.load(tmp_path / "results.npz") as results, np.load(GOLDEN) as golden:
        for name in make_golden.SHAPES:
            np.testing.assert_allclose(results[name], golden[f"50:{name}"], atol=1e-6)
