"""Replicas, workers, precisions and accumulation steps against one device in float32."""

import contextlib
import dataclasses
import itertools
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.tasks.kinds import KINDS
from bert_tf.training import distribution
from bert_tf.training.log import METRICS_NAME, read_metrics
from bert_tf.training.objectives import FineTuningObjective, PretrainingObjective
from bert_tf.training.optimizers import AdamWeightDecay
from bert_tf.training.step import TrainStep, _real_tokens
from tests.support import distributed_runs as runs
from tests.support import network
from tests.support import synthetic_records as synthetic
from tests.support.distributed_runs import BATCH, Case

# Losses of 5 steps within the first, relatively, weights within the second; the learning rate is
# 1e-3. Measured: 2e-7 and 1.2e-7, 2e-5 and 1.1e-3, 3e-6 and 9e-5.
TOLERANCES = {
    "float32": (1e-6, 1e-6),
    "mixed_bfloat16": (2e-4, 4e-3),
    "mixed_float16": (3e-5, 4e-4),
}


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("records") / "t.tfrecord", 101, 1)


@pytest.fixture(scope="module")
def expected(records_file, tmp_path_factory):
    """Return what one device finds in float32, in this process."""
    trainer = runs.run(Case(), records_file, tmp_path_factory.mktemp("expected"))
    return runs.result_of(trainer, Case(), records_file)


def assert_close(found, expected, precision="float32"):
    relative, absolute = TOLERANCES[precision]
    assert set(expected) == set(found)
    for name, value in expected.items():
        if "accuracy" in name and precision != "float32":
            continue  # which of two nearly equal logits is higher is a matter of rounding
        tolerance = {"atol": absolute} if name.startswith("weight/") else {"rtol": relative}
        np.testing.assert_allclose(found[name], value, **tolerance, err_msg=name)


def results(folder, cases):
    return {case: dict(np.load(folder / f"{case.name}.npz")) for case in cases}


# === The same figures, however a batch is divided ===


@pytest.mark.thorough
def test_two_replicas_and_accumulation_and_a_restart_on_one(records_file, expected, tmp_path):
    begun = Case(accumulation=2, steps=3, save_steps=3, evaluate=False)
    runs.finish(runs.start("mirrored", records_file, tmp_path, [begun]))
    # What two replicas began, one device ends, with other accumulation steps.
    case = Case(save_steps=3)
    trainer = runs.make_trainer(case, tmp_path / begun.name)
    assert trainer.restore() == 3
    trainer.train(lambda step: runs.dataset_of(case, records_file, step), 5, sequences_per_batch=20)
    assert_close(runs.result_of(trainer, case, records_file), expected)


def test_gradients_of_replicas_and_accumulation_are_summed(records_file, tmp_path):
    case = Case(is_scale_seen=True, evaluate=False)
    expected = runs.result_of(runs.run(case, records_file, tmp_path / "one"), case, records_file)
    divided = dataclasses.replace(case, accumulation=2)
    runs.finish(runs.start("mirrored", records_file, tmp_path, [divided]))
    found = results(tmp_path, [divided])[divided]
    assert_close(found, expected)
    # What the five steps changed is far more than what is tolerated.
    begun = runs.make_trainer(case, tmp_path / "begun").model.weights
    moved = max(np.abs(expected[f"weight/{v.path}"] - v.numpy()).max() for v in begun)
    assert moved > 1e-2


@pytest.mark.thorough
def test_a_strategy_of_one_replica_gives_what_none_does(records_file, expected, tmp_path):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])  # as where there is one GPU
    trainer = runs.run(Case(), records_file, tmp_path, strategy)
    assert_close(runs.result_of(trainer, Case(), records_file), expected)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "strategy", ["mirrored", pytest.param("multi_worker_mirrored", marks=pytest.mark.slow)]
)
def test_batches_of_like_length_are_shared_as_others(records_file, tmp_path, strategy):
    case = Case(length_bins=4, is_scale_seen=True, evaluate=False)
    lengths = {
        batch[0]["input_ids"].shape[1]
        for batch in runs.dataset_of(case, records_file).take(case.steps)
    }
    assert len(lengths) > 2
    expected = runs.result_of(runs.run(case, records_file, tmp_path / "one"), case, records_file)
    divided = dataclasses.replace(case, accumulation=2)
    runs.finish(runs.start(strategy, records_file, tmp_path, [divided]))
    assert_close(results(tmp_path, [divided])[divided], expected)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "strategy", ["mirrored", pytest.param("multi_worker_mirrored", marks=pytest.mark.slow)]
)
def test_batches_of_so_many_tokens_are_shared_as_others(records_file, tmp_path, strategy):
    case = Case(length_bins=4, batch_tokens=700, is_scale_seen=True, evaluate=False)
    batches = runs.dataset_of(case, records_file).take(case.steps)
    rows = [weights["next_sentence_logits"] for _, _, weights in batches]
    assert len({x.shape[0] for x in rows}) > 2 and not all(x.numpy().all() for x in rows)
    expected = runs.result_of(runs.run(case, records_file, tmp_path / "one"), case, records_file)
    divided = dataclasses.replace(case, accumulation=2)
    runs.finish(runs.start(strategy, records_file, tmp_path, [divided]))
    assert_close(results(tmp_path, [divided])[divided], expected)


@pytest.mark.thorough
def test_packed_rows_are_shared_as_others(records_file, tmp_path):
    case = Case(sequences_per_row=3, is_scale_seen=True)
    weights = [batch[2] for batch in runs.dataset_of(case, records_file).take(case.steps)]
    sizes = {int(x) for w in weights for x in w["next_sentence_logits"].numpy().sum(axis=1)}
    assert sizes == {1, 2}
    expected = runs.result_of(runs.run(case, records_file, tmp_path / "one"), case, records_file)
    divided = dataclasses.replace(case, accumulation=2)
    runs.finish(runs.start("mirrored", records_file, tmp_path, [divided]))
    assert_close(results(tmp_path, [divided])[divided], expected)


@pytest.mark.slow
def test_two_workers(records_file, expected, tmp_path):
    case = Case(evaluate=False)
    outputs = runs.finish(runs.start("multi_worker_mirrored", records_file, tmp_path, [case]))
    trained = {k: value for k, value in expected.items() if not k.startswith("evaluation/")}
    assert_close(results(tmp_path, [case])[case], trained)
    assert len(outputs) == 2
    lines = read_metrics(tmp_path / case.name / METRICS_NAME)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]  # of the chief alone


def matrix(layout):
    for precision, accumulation, jit in itertools.product(TOLERANCES, (1, 2), (False, True)):
        yield Case(precision=precision, accumulation=accumulation, jit_compile=jit)


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("layout", ["one_device", "mirrored", "multi_worker_mirrored"])
def test_matrix(records_file, expected, tmp_path, layout, precision):
    cases = [case for case in matrix(layout) if case.precision == precision]
    replicas = 1 if layout == "one_device" else 2
    runs.finish(runs.start(layout, records_file, tmp_path, cases, replicas=replicas), timeout=1800)
    for found in results(tmp_path, cases).values():
        assert found["skipped"] == 0
        assert_close(found, expected, precision)


@pytest.fixture
def two_hosts():
    """Address and entering command of each of two network namespaces that a cable joins."""
    with contextlib.ExitStack() as stack:
        try:
            hosts, _ = stack.enter_context(network.two_hosts())
        except PermissionError as error:
            pytest.skip(str(error))
        yield [(f"{host.address}:2222", host.enter) for host in hosts]


@pytest.mark.slow
def test_two_workers_on_two_hosts(records_file, expected, tmp_path, two_hosts):
    cases = [Case()]
    runs.finish(runs.start("multi_worker_mirrored", records_file, tmp_path, cases, hosts=two_hosts))
    assert_close(results(tmp_path, cases)[Case()], expected)


@pytest.mark.slow
def test_overflow_on_one_replica_skips_the_step_on_all(records_file, tmp_path):
    case = Case(precision="mixed_float16", poison=True, initial_scale=2.0**17)
    harmless = Case(precision="mixed_float16", initial_scale=2.0**17)
    runs.finish(runs.start("mirrored", records_file, tmp_path, [case, harmless]))
    found = results(tmp_path, [case, harmless])
    assert found[harmless]["skipped"] == 0  # so the first replica has nothing that overflows
    found = found[case]
    assert found["skipped"] == 1
    assert all(np.isfinite(value).all() for value in found.values())
    one = runs.run(case, records_file, tmp_path / "one")
    assert_close(found, runs.result_of(one, case, records_file), "mixed_float16")


@pytest.mark.slow
def test_fit_under_a_mirrored_strategy_is_the_trainer_per_replica(records_file, tmp_path):
    cases = [Case(normalization="per_replica"), Case(fit=True)]
    runs.finish(runs.start("mirrored", records_file, tmp_path, cases))
    ours, fit = results(tmp_path, cases).values()
    for name, value in fit.items():
        np.testing.assert_allclose(ours[name], value, atol=2e-6, err_msg=name)


@pytest.mark.slow
def test_replicas_draw_masks_of_their_own_and_resume_to_the_bit(records_file, tmp_path):
    """The state of dropout stays the same on all replicas: the program looks at every variable."""
    whole = Case(dropout=0.1, ema_momentum=0.9)
    begun = Case(dropout=0.1, ema_momentum=0.9, steps=3, save_steps=3)
    rest = Case(dropout=0.1, ema_momentum=0.9, save_steps=3)
    runs.finish(runs.start("mirrored", records_file, tmp_path, [whole, begun]))
    (tmp_path / begun.name).rename(tmp_path / rest.name)
    runs.finish(runs.start("mirrored", records_file, tmp_path, [rest]))
    found = results(tmp_path, [whole, rest])
    for name, value in found[whole].items():
        np.testing.assert_array_equal(found[rest][name], value, err_msg=name)


# === Global batches and their parts ===


def element(count=BATCH):
    random = np.random.default_rng(0)
    labels = {
        "masked_lm_logits": random.integers(0, 7, (count, 3)).astype("int32"),
        "next_sentence_logits": random.integers(0, 2, count).astype("int32"),
    }
    weights = {
        "masked_lm_logits": random.integers(0, 2, (count, 3)).astype("float32"),
        "next_sentence_logits": random.integers(0, 2, count).astype("float32"),
    }
    return {"input_ids": np.arange(count * 2).reshape(count, 2).astype("int32")}, labels, weights


@pytest.mark.parametrize("normalization", distribution.LOSS_NORMALIZATIONS)
def test_workers_have_the_rows_of_one_global_batch(normalization):
    objective = PretrainingObjective()
    data = tf.data.Dataset.from_tensors(element())
    found = []
    for worker in range(2):
        split = distribution.split_batches(
            data,
            batch_size=BATCH,
            loss_weights=objective.loss_weights,
            context=tf.distribute.InputContext(2, worker, 4),
            accumulation_steps=5,
            loss_normalization=normalization,
        )
        assert split.element_spec[0][0]["input_ids"].shape == [5, 1, 2]
        found += list(split.as_numpy_iterator())
    assert len(found) == 4
    rows = np.concatenate([parts[0]["input_ids"].reshape(-1, 2) for parts, _ in found])
    np.testing.assert_array_equal(rows, element()[0]["input_ids"])
    weights = element()[2]["masked_lm_logits"]
    for replica, (_, whole) in enumerate(found):
        of = slice(None) if normalization == "global" else slice(5 * replica, 5 * replica + 5)
        assert whole["mlm_loss"] == weights[of].sum()
        assert whole["sequences"] == len(weights[of])


@pytest.mark.parametrize("normalization", distribution.LOSS_NORMALIZATIONS)
def test_batches_of_different_sizes_are_divided_each(normalization):
    objective = PretrainingObjective()

    def split(count, size, **context):
        data = tf.data.Dataset.from_generator(
            lambda: [element(count)],
            output_signature=tf.nest.map_structure(
                lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), element(count)
            ),
        )
        return distribution.split_batches(
            data,
            batch_size=size,
            loss_weights=objective.loss_weights,
            accumulation_steps=3,
            loss_normalization=normalization,
            **context,
        )

    for worker in range(2):
        context = {"context": tf.distribute.InputContext(2, worker, 4)}
        found = split(24, None, **context)
        assert found.element_spec[0][0]["input_ids"].shape == [3, None, 2]
        found, expected = (list(x.as_numpy_iterator()) for x in (found, split(24, 24, **context)))
        assert len(found) == len(expected) == 2
        for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
            np.testing.assert_array_equal(one, other)
    message = "a batch is not a multiple of 1 replicas x 3 parts"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(split(4, None))


def test_batch_that_cannot_be_divided_is_refused():
    assert distribution.check_batch_size("train_batch_size", 24, 4, 3) == 2
    assert distribution.check_batch_size("train_batch_size", 15, 5) == 3
    for size in (22, 0):
        with pytest.raises(
            ValueError,
            match=f"train_batch_size: {size} is not a multiple of 4 replicas x 3 accumulation",
        ):
            distribution.check_batch_size("train_batch_size", size, 4, 3)
    with pytest.raises(ValueError, match="loss_normalization: expected one of global"):
        distribution.split_batches(
            tf.data.Dataset.from_tensors(element()),
            batch_size=BATCH,
            loss_weights=PretrainingObjective().loss_weights,
            loss_normalization="none",
        )


OBJECTIVES = {
    "pretraining": PretrainingObjective(),
    "mlm": PretrainingObjective(next_sentence=False),
    # The negatives of retrieval are of its batch: parts of it are others.
    **{kind: FineTuningObjective(kind) for kind in KINDS if kind != "retrieval"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_metrics_of_parts_add_up(name):
    objective, random = OBJECTIVES[name], np.random.default_rng(1)

    def integers(high, *shape):
        return random.integers(0, high, shape).astype("int32")

    def ones_and_zeros(*shape):
        return integers(2, *shape).astype("float32")

    def logits(*shape):
        return random.normal(size=shape).astype("float32")

    rows = 12
    if name in ("pretraining", "mlm"):
        outputs = {"masked_lm_logits": logits(rows, 3, 7), "next_sentence_logits": logits(rows, 2)}
        _, labels, weights = element(rows)
    elif name == "span":
        names = ("start_logits", "end_logits")
        outputs = {key: logits(rows, 5) for key in names}
        labels = {key: integers(5, rows) for key in names}
        weights = dict.fromkeys(names, ones_and_zeros(rows))
    elif name == "similarity":
        outputs, labels = logits(rows, 2, 5), random.random(rows).astype("float32")
        weights = ones_and_zeros(rows)
    else:
        shape = {"regression": (1,), "token_classification": (5, 3)}.get(name, (3,))
        outputs = logits(rows, *shape)
        labels, weights = integers(2, rows, *shape[:-1]), ones_and_zeros(rows, *shape[:-1])
        if name in ("regression", "multi_label"):
            labels = ones_and_zeros(rows, *(shape if name == "multi_label" else ()))
    total, found = objective(outputs, labels, weights)
    whole = objective.loss_weights(labels, weights)
    sums = {key: np.zeros(2) for key in objective.metric_names}
    added = 0.0
    for part in (slice(0, 3), slice(3, 12)):
        of = keras.tree.map_structure(lambda x, p=part: x[p], (outputs, labels, weights))
        loss, metrics = objective(*of, whole)
        added += float(loss)
        for key, pair in metrics.items():
            sums[key] += [float(x) for x in pair]
    assert added == pytest.approx(float(total), rel=1e-6)
    for key, pair in found.items():
        assert list(sums[key]) == pytest.approx([float(x) for x in pair], rel=1e-6), key


# === The step ===


def test_step_is_for_a_compiler_of_static_shapes_without_strings(records_file, tmp_path):
    """What a TPU demands; XLA takes the whole step of two accumulated parts."""
    case = Case(accumulation=2, jit_compile=True, dropout=0.1)
    trainer = runs.make_trainer(case, tmp_path)
    make_dataset = lambda _: runs.dataset_of(case, records_file)  # noqa: E731
    batches = trainer.train_step.training_batches(make_dataset, 0, BATCH)
    step = tf.function(trainer.train_step.single_step, jit_compile=True)
    definition = step.get_concrete_function(batches.element_spec).graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    assert len(nodes) > 500
    for node in nodes:
        types = {value.type for value in node.attr.values()}
        types |= {kind for value in node.attr.values() for kind in value.list.type}
        assert tf.string.as_datatype_enum not in types, node
        assert not node.op.startswith(("String", "Regex", "Where", "Unique")), node
    text = step.experimental_get_compiler_ir(next(iter(batches)))(stage="hlo")
    assert text.startswith("HloModule") and "while(" in text


def test_a_replica_shifts_the_seeds_of_dropout_and_puts_them_back(monkeypatch):
    seeds = [keras.random.SeedGenerator(seed).state for seed in (17, 19)]
    before = [seed.numpy() for seed in seeds]
    for replica in (0, 1, 3):
        context = SimpleNamespace(replica_id_in_sync_group=replica)
        with monkeypatch.context() as patch:
            patch.setattr(tf.distribute, "get_replica_context", lambda c=context: c)
            masks = TrainStep._masks_of_replica(SimpleNamespace(num_replicas=4, _seeds=seeds))
            with masks:
                for seed, start in zip(seeds, before, strict=True):
                    np.testing.assert_array_equal(seed.numpy(), start + [7919 * replica, 0])
        for seed, start in zip(seeds, before, strict=True):
            np.testing.assert_array_equal(seed.numpy(), start)


# === Strategies by name ===


def test_strategies_are_found_by_name():
    assert distribution.create_strategy("one_device") is None
    assert distribution.create_strategy("one_device", num_replicas=1) is None
    assert distribution.num_replicas_of(None) == 1 and distribution.is_chief(None)
    assert distribution.value_of_chief(None, 7) == 7


def test_what_a_strategy_cannot_take_is_refused():
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    inputs = keras.Input((3,))
    outside = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    objective = FineTuningObjective("classification")

    def step(model, optimizer, jit_compile=False):
        return TrainStep(
            *(model, optimizer, objective, strategy),
            jit_compile=jit_compile,
            gradient_accumulation_steps=1,
            loss_normalization="global",
        )

    with pytest.raises(ValueError, match="jit_compile: pointwise is for one CPU; use true or"):
        step(outside, keras.optimizers.SGD(), jit_compile="pointwise")
    with pytest.raises(ValueError, match="model: expected one made within strategy.scope.*, but d"):
        step(outside, keras.optimizers.SGD())
    with strategy.scope():
        model, optimizer = keras.Model(inputs, keras.layers.Dense(2)(inputs)), AdamWeightDecay(0.1)
        optimizer.build(model.trainable_variables)
        other = keras.optimizers.SGD()
        other.build(model.trainable_variables)
    with pytest.raises(ValueError, match="optimizer: expected one with the attribute gradients_"):
        step(model, other)
    made = step(model, optimizer)
    batches = tf.data.Dataset.from_tensors((tf.ones([4, 3]), tf.ones([4]), tf.ones([4])))
    with pytest.raises(ValueError, match="dataset: expected batches of one size that is known"):
        made.evaluation_batches(batches.unbatch().batch(4))
    assert int(_real_tokens(tf.ones([4, 3]))) == 0  # no mask
    assert int(_real_tokens({"input_mask": tf.constant([[1, 1, 0], [1, 0, 0]])})) == 3


def test_devices_of_a_machine_with_gpus(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    assert distribution._mirrored_devices(None) == ("GPU:0", "GPU:1")
    assert distribution._mirrored_devices(2) == ("GPU:0", "GPU:1")
    assert distribution._mirrored_devices(1) == ("GPU:0",)
    with pytest.raises(ValueError, match="num_replicas: this machine has 2 GPUs, got 3"):
        distribution._mirrored_devices(3)


class Worker(tf.distribute.MultiWorkerMirroredStrategy):
    """One of a cluster, without the others."""

    def __init__(self, cluster, task_type, task_id):
        self.resolver = SimpleNamespace(
            cluster_spec=lambda: tf.train.ClusterSpec(cluster), task_type=task_type, task_id=task_id
        )

    @property
    def cluster_resolver(self):
        return self.resolver


@pytest.mark.parametrize(
    ("kinds", "task", "expected"),
    [
        (["worker"], ("worker", 0), True),
        (["worker"], ("worker", 1), False),
        (["chief", "worker"], ("chief", 0), True),
        (["chief", "worker"], ("worker", 0), False),
        (["worker", "evaluator"], ("evaluator", 0), False),
    ],
)
def test_one_of_a_cluster_is_its_chief(kinds, task, expected):
    worker = Worker({kind: [f"{kind}{i}:2222" for i in range(2)] for kind in kinds}, *task)
    assert distribution.is_chief(worker) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "two_device"}, "distribution_strategy: expected one of one_device, mirrored"),
        ({"name": "mirrored", "all_reduce_alg": "ring"}, "expected one of nccl, hierarchical_copy"),
        ({"name": "multi_worker_mirrored", "all_reduce_alg": "hierarchical_copy"}, "auto, ring"),
        ({"name": "one_device", "all_reduce_alg": "nccl"}, "all_reduce_alg: expected none"),
        ({"name": "one_device", "num_replicas": 2}, "num_replicas: is for .* mirrored, got 2"),
        ({"name": "mirrored", "num_replicas": 0}, "num_replicas: expected at least 1, got 0"),
        ({"name": "mirrored"}, "num_replicas: this machine has no GPU"),
        ({"name": "mirrored", "num_replicas": 3}, "too late for 3"),
        ({"name": "mirrored", "num_replicas": 1, "all_reduce_alg": "nccl"}, "nccl needs GPUs"),
    ],
)
def test_strategies_that_do_not_fit_are_refused(arguments, message):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("the messages are those of a machine without a GPU")
    tf.constant(0).numpy()  # TensorFlow has started
    with pytest.raises(ValueError, match=message):
        distribution.create_strategy(**arguments)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "TF_CONFIG: multi_worker_mirrored needs this environment variable"),
        ("{", "TF_CONFIG: expected as"),
        ({"cluster": {"worker": ["a:1"]}}, "TF_CONFIG: expected as"),
        (
            {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}},
            "task index 1 is not one of the 1 addresses of worker",
        ),
    ],
)
def test_clusters_that_do_not_fit_are_refused(monkeypatch, config, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config if config == "{" else json.dumps(config))
    with pytest.raises(ValueError, match=message):
        distribution.create_strategy("multi_worker_mirrored")
