"""Batches of fine-tuning records against the arrays they were made of."""

import gc
import gzip
import os
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.input_pipeline import finetuning, record_order
from bert_tf.input_pipeline.finetuning import LENGTHS, TaskRecords, padded_length
from bert_tf.records import schema
from bert_tf.records.encoding import encode_framed_examples, frame_record
from bert_tf.records.files import RecordWriter
from bert_tf.records.schema import (
    classification_features,
    multi_label_features,
)
from bert_tf.tasks.kinds import KINDS as ALL_KINDS
from bert_tf.training.finetuning import make_model
from tests.support import synthetic_records as synthetic

KINDS = tuple(ALL_KINDS)
LENGTH, CHOICES, LABELS, COUNT, BATCH = 37, 3, 5, 101, 7
INPUTS = ("input_ids", "input_mask", "segment_ids")
GROUPS = {"multiple_choice": CHOICES, "similarity": 2, "retrieval": 2}  # sequences of an example
_MARK = 5  # the first of the ids that tell a label
_FIRST_WORD = 13  # the first of those that tell nothing


def schema_of(kind):
    if kind == "multi_label":
        return multi_label_features(LENGTH, LABELS)
    if kind in GROUPS:
        return getattr(schema, f"{kind}_features")(LENGTH, GROUPS[kind])
    return getattr(schema, f"{kind}_features")(LENGTH)


def num_labels_of(kind):
    return LABELS if kind in ("classification", "multi_label", "token_classification") else None


def make_arrays(kind, count=COUNT, seed=0):
    """Arrays of records, mostly short, whose labels a small model can learn."""
    random = np.random.default_rng(seed)
    rows = count * GROUPS.get(kind, 1)
    lengths = np.clip(8 + random.geometric(0.1, rows), None, LENGTH)
    lengths[random.integers(rows)] = LENGTH
    position = np.arange(LENGTH)
    mask = position < lengths[:, None]
    ids = random.integers(_FIRST_WORD, synthetic.VOCAB_SIZE, (rows, LENGTH)) * mask
    ids[:, 0] = 2
    segments = (position >= lengths[:, None] // 2) & mask
    labels = random.integers(0, LABELS, (count, 1))
    every = np.arange(count)
    arrays = {"label_ids": labels}
    if kind == "classification":
        ids[:, 1] = _MARK + labels[:, 0]
    elif kind == "regression":
        ids[:, 1] = _MARK + labels[:, 0]
        arrays["label_ids"] = labels.astype(np.float32) / 2 - 0.75
    elif kind == "multi_label":
        ids[:, 1] = _MARK + labels[:, 0]
        # None of them holds, or one, or two and so on.
        arrays["label_ids"] = (np.arange(LABELS) < labels).astype(np.float32)
    elif kind == "multiple_choice":
        right = random.integers(0, CHOICES, count)
        ids.reshape(count, CHOICES, LENGTH)[every, right, 1] = _MARK
        arrays["label_ids"] = right[:, None]
    elif kind in ("similarity", "retrieval"):
        ids.reshape(count, 2, LENGTH)[:, :, 1] = _MARK + labels
        arrays["label_ids"] = np.arange(2 * count).reshape(count, 2) + 1
        if kind == "similarity":
            arrays["label_ids"] = labels.astype(np.float32) / 5
    elif kind == "token_classification":
        counts = mask & (position > 0) & (random.random((count, LENGTH)) < 0.7)
        counts[:, 1] = True
        ids = np.where(counts, _MARK + random.integers(0, LABELS, (count, LENGTH)), ids)
        arrays = {"label_ids": (ids - _MARK) * counts, "label_mask": counts}
    else:
        start = random.integers(1, lengths - 2)
        end = random.integers(start + 1, lengths - 1)
        ids[every, start], ids[every, end] = _MARK, _MARK + 1
        arrays = {
            "unique_ids": 3_000_000_000 + every[:, None],
            "start_positions": start[:, None],
            "end_positions": end[:, None],
            "is_impossible": random.integers(0, 2, (count, 1)),
        }
    if kind not in ("token_classification", "span"):
        arrays["is_real_example"] = np.ones((count, 1))
    arrays |= {"input_ids": ids, "input_mask": mask, "segment_ids": segments}
    return {
        name: (a if a.dtype == np.float32 else a.astype(np.int64)).reshape(count, -1)
        for name, a in arrays.items()
    }


def write(path, kind, arrays):
    with RecordWriter(path) as writer:
        writer.write_framed(encode_framed_examples(schema_of(kind), arrays))
    return path


def open_records(path, kind, **options):
    return TaskRecords(path, kind, schema_of(kind), num_choices=GROUPS.get(kind), **options)


def make_records(folder, kind, count=COUNT, seed=0, **options):
    """Make records; return the arrays they hold, too."""
    arrays = make_arrays(kind, count, seed)
    return open_records(write(folder / f"{kind}.tfrecord", kind, arrays), kind, **options), arrays


def small_model(kind, **changes):
    changes = {"num_hidden_layers": 1, **changes}
    return make_model(kind, synthetic.small_config(**changes), num_labels_of(kind))


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {kind: make_records(folder, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def classification(all_kinds):
    return all_kinds["classification"][0]


def in_shape(kind, array):
    """Return an input as the model takes it."""
    return array.reshape(-1, GROUPS[kind], LENGTH) if kind in GROUPS else array


def assert_same_elements(first, second):
    first, second = list(first.as_numpy_iterator()), list(second.as_numpy_iterator())
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


# === Elements ===


@pytest.mark.parametrize("pad_to_max", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_elements_hold_the_records(all_kinds, kind, pad_to_max):
    tasks, arrays = all_kinds[kind]
    dataset = tasks.evaluation_dataset(
        batch_size=BATCH, group_by_length=True, pad_to_max=pad_to_max, fill_last_batch=True
    )
    order = tasks.order.evaluation_order(BATCH)
    assert order.shape == (15, BATCH) and (order[-1] == -1).sum() == 15 * BATCH - COUNT == 4
    longest = in_shape(kind, arrays["input_mask"]).sum(-1).reshape(COUNT, -1).max(1)
    for numbers, (inputs, labels, weights) in zip(order, dataset, strict=True):
        real = numbers >= 0
        rows = np.where(real, numbers, numbers[0])
        length = LENGTH if pad_to_max else padded_length(longest[rows].max(), LENGTH)
        for name in INPUTS:
            assert inputs[name].dtype == tf.int32
            expected = in_shape(kind, arrays[name])[rows][..., :length]
            np.testing.assert_array_equal(inputs[name], expected)
        if kind == "span":
            expected = {
                f"{end}_logits": arrays[f"{end}_positions"][rows, 0] for end in ("start", "end")
            }
            assert labels.keys() == weights.keys() == expected.keys()
            for name in expected:
                assert labels[name].dtype == tf.int32
                np.testing.assert_array_equal(labels[name], expected[name])
                np.testing.assert_array_equal(weights[name], real)
            continue
        expected_weights = real.astype(np.float32)
        expected = arrays["label_ids"][rows]
        if kind == "token_classification":
            expected = expected[:, :length]
            expected_weights = real[:, None] * arrays["label_mask"][rows][:, :length]
        elif kind not in ("multi_label", "retrieval"):
            expected = expected[:, 0]
        floats = kind in ("regression", "multi_label", "similarity")
        assert labels.dtype == (tf.float32 if floats else tf.int32)
        assert weights.dtype == tf.float32
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(weights, expected_weights)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_known_but_for_the_length(all_kinds, kind):
    dataset = all_kinds[kind][0].training_dataset(batch_size=BATCH, with_weights=True)
    inputs, labels, weights = dataset.element_spec
    choices = [GROUPS[kind]] if kind in GROUPS else []
    for spec in inputs.values():
        assert spec.shape.as_list() == [BATCH, *choices, None]
    for spec in tf.nest.flatten([labels, weights]):
        assert spec.shape[0] == BATCH


def test_mask_comes_with_the_labels_of_spans_where_asked_for(all_kinds):
    tasks, _ = all_kinds["span"]
    dataset = tasks.training_dataset(
        batch_size=BATCH, with_mask=True, with_weights=True, num_steps=2
    )
    for inputs, labels, weights in dataset:
        np.testing.assert_array_equal(labels["input_mask"], inputs["input_mask"])
        assert set(weights) == {"start_logits", "end_logits"}
    plain = tasks.training_dataset(batch_size=BATCH, num_steps=1)
    assert set(plain.element_spec[1]) == {"start_logits", "end_logits"}
    dataset = all_kinds["classification"][0].training_dataset(
        batch_size=BATCH, with_mask=True, num_steps=1
    )
    assert next(iter(dataset))[1].shape == [BATCH]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_of_the_records_alone_in_the_order_of_the_file(all_kinds, kind):
    tasks, arrays = all_kinds[kind]
    expected = in_shape(kind, arrays["input_ids"])
    for size in (BATCH, COUNT, 1009):
        begin = 0
        for inputs, _, weights in tasks.evaluation_dataset(batch_size=size):
            found = inputs["input_ids"].numpy()
            rows = expected[begin : begin + size]
            assert len(found) == len(rows)
            np.testing.assert_array_equal(found, rows[..., : found.shape[-1]])
            assert not rows[..., found.shape[-1] :].any()
            if kind != "token_classification":
                assert all(w.numpy().tolist() == [1] * len(rows) for w in tf.nest.flatten(weights))
            begin += size
        assert begin >= COUNT


@pytest.mark.parametrize("kind", KINDS)
def test_training_has_weights_where_they_are_needed_or_asked_for(all_kinds, kind):
    options = {"batch_size": BATCH, "num_steps": 3}
    found = all_kinds[kind][0].training_dataset(**options)
    asked = all_kinds[kind][0].training_dataset(**options, with_weights=True)
    if kind != "token_classification":
        asked = asked.map(lambda inputs, labels, weights: (inputs, labels))
    assert_same_elements(found, asked)


def test_training_without_weights_stops_at_a_record_that_is_not_real(tmp_path):
    arrays = make_arrays("classification", 11)
    arrays["is_real_example"][3] = 0
    path = write(tmp_path / "x", "classification", arrays)
    dataset = open_records(path, "classification").training_dataset(batch_size=11)
    with pytest.raises(tf.errors.InvalidArgumentError, match="x: a record only fills a batch up"):
        next(iter(dataset))


def test_records_that_are_not_real_have_no_weight(tmp_path):
    for kind in ("classification", "regression", "multi_label", "multiple_choice"):
        arrays = make_arrays(kind, 11)
        arrays["is_real_example"][[3, 8]] = 0
        tasks = open_records(write(tmp_path / kind, kind, arrays), kind)
        dataset = tasks.evaluation_dataset(batch_size=13, fill_last_batch=True)
        ((_, _, weights),) = dataset
        assert weights.numpy().tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0]


def test_padded_lengths():
    assert [padded_length(n, 512) for n in (0, 1, 16, 17, 128, 129, 385, 512)] == [
        *(16, 16, 16, 24, 128, 192, 512, 512)
    ]
    assert [padded_length(n, 37) for n in (32, 33, 37)] == [32, 37, 37]
    assert padded_length(2049, 4099) == 4099


def test_lengths_rise_in_steps_of_a_third_to_a_half():
    assert all(length % 8 == 0 for length in LENGTHS)
    ratios = np.array(LENGTHS[1:]) / LENGTHS[:-1]
    assert ((ratios >= 4 / 3) & (ratios <= 1.5)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_batches_are_few(all_kinds, kind):
    tasks, _ = all_kinds[kind]
    found = set()
    datasets = (
        tasks.training_dataset(batch_size=BATCH, num_steps=50),
        tasks.training_dataset(batch_size=BATCH, num_steps=50, group_by_length=False),
        tasks.evaluation_dataset(
            batch_size=BATCH, group_by_length=True, pad_to_max=False, fill_last_batch=True
        ),
    )
    for dataset in datasets:
        for inputs, *_ in dataset:
            found.add(inputs["input_ids"].shape[-1])
            assert inputs["input_ids"].shape[0] == BATCH
    assert found <= {n for n in LENGTHS if n < LENGTH} | {LENGTH}
    assert len(found) > 2


# === Order ===


@pytest.mark.parametrize("pool_batches", [2, 3, 64])
@pytest.mark.parametrize("group_by_length", [False, True])
@pytest.mark.parametrize("batch_size", [1, BATCH, 97, COUNT, 211])
def test_each_epoch_has_every_record_once(
    classification, monkeypatch, batch_size, group_by_length, pool_batches
):
    monkeypatch.setattr(record_order, "POOL_BATCHES", pool_batches)
    classification.order._pool.cache_clear()
    batches = [
        classification.order.training_batch(
            step, batch_size=batch_size, seed=3, group_by_length=group_by_length
        )
        for step in range(COUNT)
    ]
    classification.order._pool.cache_clear()
    assert {batch.shape for batch in batches} == {(batch_size,)}
    assert {batch.dtype for batch in batches} == {np.dtype(np.int64)}
    epochs = np.concatenate(batches).reshape(batch_size, COUNT)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(COUNT), (batch_size, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == batch_size


def test_batch_follows_from_its_number_alone(classification, tmp_path):
    def dataset(tasks, start, steps, seed=5, **options):
        return tasks.training_dataset(
            batch_size=BATCH, seed=seed, start_step=start, num_steps=steps, **options
        )

    for options in ({}, {"group_by_length": False}, {"pad_to_max": True}):
        whole = dataset(classification, 0, 97, **options)
        assert whole.cardinality() == 97
        another, _ = make_records(tmp_path, "classification")
        for start in (83, 13, 14):
            assert_same_elements(dataset(another, start, 97 - start, **options), whole.skip(start))
    first, second = (
        [b["input_ids"].numpy().tolist() for b, *_ in dataset(classification, 0, 5, seed)]
        for seed in (5, 6)
    )
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_grouping_saves_padding(tmp_path):
    tasks, _ = make_records(tmp_path, "classification", 1009)
    means, spreads = {}, {}
    for grouped in (False, True):
        batches = [
            tasks.lengths[
                tasks.order.training_batch(i, batch_size=13, seed=0, group_by_length=grouped)
            ]
            for i in range(1009 // 13)
        ]
        means[grouped] = np.mean([padded_length(b.max(), LENGTH) for b in batches])
        longest = [b.max() for b in batches]
        spreads[grouped] = np.corrcoef(longest, np.arange(len(longest)))[0, 1]
    assert means[True] < 0.72 * means[False]
    # Long batches come at any time.
    assert abs(spreads[True]) < 0.4


def test_orders_are_those_of_their_generators():
    """And stay so: a run of an earlier version continues to the same bits."""
    lengths = np.random.default_rng(2).integers(3, 30, 97)
    order = record_order.RecordOrder(lengths)

    def drawn(*numbers):
        return np.random.default_rng([5, *numbers])

    stream = np.concatenate([drawn(0, epoch).permutation(97) for epoch in range(3)])
    for step in range(3 * 97 // 13):
        found = order.training_batch(step, batch_size=13, seed=5, group_by_length=False)
        np.testing.assert_array_equal(found, stream[13 * step : 13 * (step + 1)])
    # The batches of one epoch alone: 0 to 6, 8 to 13, 15 to 21; those between hold two epochs.
    for start, stop in ((0, 7), (8, 14), (15, 22)):
        numbers = stream[13 * start : 13 * stop]
        batches = numbers[np.argsort(lengths[numbers], kind="stable")].reshape(-1, 13)
        batches = drawn(1, start).permutation(batches)
        for step in range(start, stop):
            found = order.training_batch(step, batch_size=13, seed=5)
            np.testing.assert_array_equal(found, batches[step - start])
    for step in (7, 14):
        found = order.training_batch(step, batch_size=13, seed=5)
        np.testing.assert_array_equal(found, stream[13 * step : 13 * (step + 1)])


def test_evaluation_order(classification):
    lengths = classification.lengths
    order = classification.order.evaluation_order(BATCH).ravel()[:COUNT]
    assert (np.diff(lengths[order]) >= 0).all()
    # Of equal lengths in the order of the file.
    np.testing.assert_array_equal(order, sorted(range(COUNT), key=lambda n: (lengths[n], n)))
    order = classification.order.evaluation_order(BATCH, group_by_length=False).ravel()
    np.testing.assert_array_equal(order, [*range(COUNT), -1, -1, -1, -1])
    assert classification.order.evaluation_order(COUNT).shape == (1, COUNT)


def test_datasets_share_their_order(classification):
    first, second = (classification.order.evaluation_order(BATCH) for _ in range(2))
    assert first is second and not first.flags.writeable


def test_an_endless_dataset_says_so(classification):
    endless = classification.training_dataset(batch_size=BATCH)
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    assert len(list(endless.take(2 * COUNT))) == 2 * COUNT


def test_threads_draw_the_same(classification):
    expected = [
        classification.order.training_batch(i, batch_size=BATCH, seed=17) for i in range(53)
    ]
    classification.order._order.cache_clear()
    classification.order._pool.cache_clear()
    found = {}

    def draw(first):
        for i in range(first, 53, 5):
            found[i] = classification.order.training_batch(i, batch_size=BATCH, seed=17)

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal([found[i] for i in range(53)], expected)


@pytest.mark.parametrize(
    "arguments",
    [{"batch_size": 0}, {"batch_size": 3, "seed": -1}, {"batch_size": 3, "start_step": -1}],
)
def test_numbers_out_of_range_are_refused(classification, arguments):
    with pytest.raises(ValueError, match="expected at least 1, 0 and 0"):
        classification.training_dataset(**arguments)


# === Predictions and labels ===


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_come_in_the_order_of_the_file(all_kinds, kind):
    tasks, arrays = all_kinds[kind]
    keras.utils.set_random_seed(3)
    model = small_model(kind, initializer_range=0.5)
    inputs = {name: in_shape(kind, arrays[name]).astype(np.int32) for name in INPUTS}
    expected = model(inputs, training=False)
    expected = expected if isinstance(expected, dict) else {"logits": expected}
    for options in (
        {},
        {"group_by_length": False},
        {"pad_to_max": True},
        {"pad_to_max": True, "group_by_length": False},
    ):
        found = tasks.predict(model, batch_size=BATCH, fill=-17.0, **options)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            assert values.shape == expected[name].shape and values.dtype == np.float32
            rows = slice(None)
            if kind in ("token_classification", "span"):
                rows = arrays["input_mask"] == 1
                assert (values[~rows] == -17).all()
            np.testing.assert_allclose(values[rows], expected[name].numpy()[rows], atol=1e-5)
            assert np.std(values[rows]) > 0.01  # a model that tells records apart


def test_predictions_are_reduced_with_the_model(all_kinds):
    tasks, arrays = all_kinds["span"]
    model = small_model("span", initializer_range=0.5)
    whole = tasks.predict(model, batch_size=BATCH, fill=-1e9)

    # Both are also lengths of batches.
    def some(outputs):
        logits = outputs["start_logits"]
        wide = {f"first{n}": tf.repeat(logits[:, :1], n, 1) for n in (16, LENGTH)}
        return {**wide, "all": logits, "one": logits[:, 0]}

    found = tasks.predict(model, batch_size=BATCH, fill=-1e9, reduce=some)
    assert {name: x.shape for name, x in found.items()} == {
        "first16": (COUNT, 16),
        f"first{LENGTH}": (COUNT, LENGTH),
        "all": (COUNT, LENGTH),
        "one": (COUNT,),
    }
    expected = whole["start_logits"]
    np.testing.assert_allclose(found["all"], expected, atol=1e-6)
    for n in (16, LENGTH):
        repeated = np.repeat(expected[:, :1], n, 1)
        np.testing.assert_allclose(found[f"first{n}"], repeated, atol=1e-6)
    np.testing.assert_allclose(found["one"], expected[:, 0], atol=1e-6)


def test_a_model_is_traced_once_for_each_length(all_kinds):
    tasks, _ = all_kinds["classification"]
    model = small_model("classification")
    traced = []

    def reduce(logits):
        traced.append(logits.shape)
        return logits

    first = tasks.predict(model, batch_size=BATCH, reduce=reduce)
    count = len(traced)
    assert 1 < count <= len(LENGTHS)
    model.trainable_weights[-1].assign_add(tf.ones(LABELS))
    second = tasks.predict(model, batch_size=BATCH, reduce=reduce)
    assert len(traced) == count
    np.testing.assert_allclose(second["logits"], first["logits"] + 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_in_the_order_of_the_file(all_kinds, kind, monkeypatch):
    tasks, arrays = all_kinds[kind]
    monkeypatch.setattr(finetuning, "_READ_AT_ONCE", 17)
    found = tasks.labels()
    if kind in ("token_classification", "span"):
        names = set(arrays) - set(INPUTS)
        assert found.keys() == names
        for name in names:
            np.testing.assert_array_equal(found[name], arrays[name])
            assert found[name].dtype == np.int64
        return
    expected = arrays["label_ids"]
    expected = expected if kind in ("multi_label", "retrieval") else expected[:, 0]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_counted(all_kinds, kind):
    tasks, arrays = all_kinds[kind]
    mask = in_shape(kind, arrays["input_mask"]).reshape(COUNT, -1, LENGTH)
    np.testing.assert_array_equal(tasks.lengths, mask.sum(2).max(1))
    assert len(tasks) == COUNT and tasks.max_seq_length == LENGTH


def test_a_hidden_token_takes_its_place(tmp_path):
    arrays = make_arrays("classification", 3)
    arrays["input_mask"][1, 2:5] = 0
    arrays["input_mask"][2] = 0
    tasks = open_records(write(tmp_path / "x", "classification", arrays), "classification")
    ends = [np.flatnonzero(row).max(initial=-1) + 1 for row in arrays["input_mask"]]
    assert tasks.lengths.tolist() == ends and ends[2] == 0
    assert sum(1 for _ in tasks.evaluation_dataset(batch_size=1)) == 3


# === What is wrong with a file ===


def test_bad_arguments(tmp_path):
    path = write(tmp_path / "x", "classification", make_arrays("classification", 5))
    with pytest.raises(ValueError, match="kind: expected one of classification, .* got 'other'"):
        TaskRecords(path, "other", schema_of("classification"))
    with pytest.raises(ValueError, match="num_choices: .* got 3 for classification"):
        TaskRecords(path, "classification", schema_of("classification"), num_choices=3)
    with pytest.raises(ValueError, match="num_choices: .* got None for multiple_choice"):
        TaskRecords(path, "multiple_choice", schema_of("multiple_choice"))
    with pytest.raises(ValueError, match="x: record 0: feature 'input_ids': expected 31 values"):
        TaskRecords(path, "classification", classification_features(31))
    with pytest.raises(ValueError, match="x: record 0: no feature 'unique_ids'"):
        TaskRecords(path, "span", schema_of("span"))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (np.full(4, 9), r"one for each of the 5 records of .*x, got shape \(4,\)"),
        (np.full((5, 1), 9), r"got shape \(5, 1\)"),
        (np.full(5, 38), r"from 0 to the max_seq_length 37 of .*, got int64 from 38 to 38"),
        (np.array([1, 2, 3, 4, -1]), "from -1 to 4"),
        (np.full(5, 9.0), "expected integers .* got float64"),
    ],
)
def test_lengths_that_cannot_be_the_records(tmp_path, lengths, message):
    path = write(tmp_path / "x", "classification", make_arrays("classification", 5))
    with pytest.raises(ValueError, match=message):
        open_records(path, "classification", lengths=lengths)


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_lengths_of_other_records_lose_no_tokens_unseen(tmp_path, kind):
    arrays = make_arrays(kind, 5)
    path = write(tmp_path / "x", kind, arrays)
    right = open_records(path, kind).lengths
    for lengths in (right, np.full(5, LENGTH)):
        tasks = open_records(path, kind, lengths=lengths)
        assert len(list(tasks.evaluation_dataset(batch_size=2))) == 3
    tasks = open_records(path, kind, lengths=np.full(5, 16))
    with pytest.raises(tf.errors.InvalidArgumentError, match="x: a record is longer than its"):
        list(tasks.evaluation_dataset(batch_size=2))
    assert len(list(tasks.evaluation_dataset(batch_size=2, pad_to_max=True))) == 3


def test_ids_beyond_the_vocabulary_stop_the_stream(tmp_path):
    arrays = make_arrays("classification", 5)
    arrays["input_ids"][3, 4] = synthetic.VOCAB_SIZE
    path = write(tmp_path / "x", "classification", arrays)
    for size in (None, synthetic.VOCAB_SIZE + 1):
        tasks = open_records(path, "classification", vocab_size=size)
        list(tasks.evaluation_dataset(batch_size=2))
    tasks = open_records(path, "classification", vocab_size=synthetic.VOCAB_SIZE)
    message = (
        "x: an id is beyond the vocab_size 97 of the model; were the records made with another"
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(tasks.evaluation_dataset(batch_size=2))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(tasks.training_dataset(batch_size=2, num_steps=4))
    arrays["input_ids"][3, 4] = -1
    path = write(tmp_path / "y", "classification", arrays)
    tasks = open_records(path, "classification", vocab_size=synthetic.VOCAB_SIZE)
    with pytest.raises(tf.errors.InvalidArgumentError, match="y: an id is below 0"):
        list(tasks.evaluation_dataset(batch_size=2))


def test_damaged_files(tmp_path):
    arrays = make_arrays("classification", 5)
    path = write(tmp_path / "x", "classification", arrays)
    data = path.read_bytes()
    lengths = open_records(path, "classification").lengths

    def opened(content, **options):
        path.write_bytes(content)
        return open_records(path, "classification", **options)

    with pytest.raises(ValueError, match="x: no records in this file"):
        opened(b"")
    with pytest.raises(ValueError, match="x: record 4: file is truncated"):
        opened(data[:-1])
    with pytest.raises(ValueError, match="x: is compressed"):
        opened(gzip.compress(data))
    with pytest.raises(FileNotFoundError):
        open_records(tmp_path / "none", "classification")
    # A flipped bit in the data of the second record is found where the record is read.
    size = len(data) - 20
    offset = 12 + int.from_bytes(data[:8], "little") + 4 + 12 + 31
    flipped = bytearray(data)
    flipped[offset] ^= 4
    assert offset < size
    with pytest.raises(ValueError, match="x: record 1: corrupt data"):
        opened(bytes(flipped))
    tasks = opened(bytes(flipped), lengths=lengths)
    with pytest.raises(tf.errors.InvalidArgumentError, match="x: record 1: corrupt data"):
        list(tasks.evaluation_dataset(batch_size=2))
    with pytest.raises(ValueError, match="x: record 1: corrupt data"):
        tasks.labels()
    # A whole record of another schema.
    other = write(tmp_path / "y", "span", make_arrays("span", 1)).read_bytes()
    tasks = opened(data + other, lengths=np.full(6, LENGTH))
    with pytest.raises(ValueError, match="x: records 0 to 5: expected the features label_ids"):
        tasks.labels()
    tasks = opened(data + frame_record(b"\xff\xff"), lengths=np.full(6, LENGTH))
    with pytest.raises(ValueError, match="x: records 0 to 5: .* one is no tf.train.Example"):
        tasks.labels()
    with pytest.raises(ValueError, match="x: record 0: not a serialized tf.train.Example"):
        opened(frame_record(b"\xff\xff"))


def test_file_is_closed_with_the_records(tmp_path):
    tasks, _ = make_records(tmp_path, "classification", 5)
    descriptor = tasks._file._descriptor
    os.fstat(descriptor)
    del tasks
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
