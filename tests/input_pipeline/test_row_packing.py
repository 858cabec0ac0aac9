"""Rows of several sequences: what they hold, and that losses and gradients are those of each."""

import collections
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.input_pipeline import row_packing
from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.input_pipeline.row_packing import count_rows, first_fit
from bert_tf.records.schema import pretraining_features
from bert_tf.training.objectives import PretrainingObjective
from tests.support import packed_rows
from tests.support import synthetic_records as synthetic
from tests.support.packed_rows import LENGTH, PREDICTIONS, SEQUENCES, unpack
from tests.support.synthetic_records import VOCAB
from tests.test_layering import REPOSITORY

COUNTS = (101, 53)
BATCH = 3
KINDS = {
    "masked": {},
    "dynamic": {"masking": MaskingRule(VOCAB, masked_lm_prob=0.2, whole_word=True)},
    "causal": {"masking": NextPieceRule()},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the files of each kind."""
    folder = tmp_path_factory.mktemp("records")
    masked = [
        packed_rows.write(folder / "a.tfrecord", COUNTS[0], 1),
        packed_rows.write(folder / "b.tfrecord.gz", COUNTS[1], 2),
    ]
    unmasked = [packed_rows.write(folder / "u.tfrecord", 59, 4, masked=False)]
    return {"masked": masked, "dynamic": unmasked, "causal": unmasked}


def settings(**changes):
    return {"max_seq_length": LENGTH, "max_predictions_per_seq": PREDICTIONS, **changes}


def take(files, count, **changes):
    changes = {"batch_size": BATCH, "is_training": True, "seed": 7, **changes}
    changes = settings(**{"sequences_per_row": SEQUENCES, **changes})
    return list(pretraining_dataset(files, **changes).take(count).as_numpy_iterator())


def test_first_fit():
    """Against the rule in plain Python, in windows of which the last is short."""
    random = np.random.default_rng(5)
    demands = np.stack([random.integers(1, 32, 53), random.integers(1, 4, 53), np.ones(53)], 1)
    room, window = [31, 7, 4], 13
    expected, first = [], 0
    for begin in range(0, len(demands), window):
        part = demands[begin : begin + window]
        free, rows = np.tile(room, (window, 1)), np.zeros(len(part), int)
        for thing in np.argsort(-part[:, 0], kind="stable"):
            rows[thing] = next(row for row in range(window) if (free[row] >= part[thing]).all())
            free[rows[thing]] -= part[thing].astype(int)
        expected += [*(first + rows)]
        first += window
    found = first_fit(tf.constant(demands, tf.int64), room, window).numpy()
    np.testing.assert_array_equal(found, expected)
    assert max(collections.Counter(expected).values()) == 4 and len(set(expected)) < 40


def test_every_record_comes_once_an_epoch_as_it_is(files):
    both = [
        packed_rows.make_arrays(count, seed) for count, seed in zip(COUNTS, (1, 2), strict=True)
    ]
    arrays = {name: np.concatenate([x[name] for x in both]) for name in both[0]}
    rows = count_rows(files["masked"], **settings(sequences_per_row=SEQUENCES))
    found = take(files["masked"], 2 * sum(rows), batch_size=1)
    orders, sizes = [], collections.Counter()
    for epoch in (found[: sum(rows)], found[sum(rows) :]):
        seen = []
        for batch in epoch:
            assert {x.shape[1] for x in batch[0].values()} == {LENGTH, PREDICTIONS, SEQUENCES}
            single = unpack(batch)
            synthetic.assert_rows_are(arrays, *single)
            sizes[len(single[0]["input_ids"])] += 1
            seen += [row.tobytes() for row in single[0]["input_ids"]]
        assert len(set(seen)) == len(seen) == sum(COUNTS)
        orders.append(seen)
    assert orders[0] != orders[1] and set(orders[0]) == set(orders[1])
    assert {*sizes} == {1, 3, 4, 5}
    # First-fit alone: what remains is little.
    assert arrays["input_mask"].sum() / (sum(rows) * LENGTH) > 0.9


def test_rows_follow_from_the_file_window_by_window(files, monkeypatch):
    """And not from the seed."""
    monkeypatch.setattr(row_packing, "_WINDOW_RECORDS", 7)
    path = files["masked"][0]
    order = [row.tobytes() for row in packed_rows.make_arrays(COUNTS[0], 1)["input_ids"]]
    order = {
        np.frombuffer(row, np.int64).astype(np.int32).tobytes(): i for i, row in enumerate(order)
    }
    (count,) = count_rows(path, **settings(sequences_per_row=SEQUENCES))
    members = []
    for seed in (1, 2):
        batches = take(path, count, batch_size=1, seed=seed, shuffle_buffer_records=1)
        rows = [[order[x.tobytes()] for x in unpack(batch)[0]["input_ids"]] for batch in batches]
        assert all(row == sorted(row) and row[0] // 7 == row[-1] // 7 for row in rows)
        assert rows != sorted(rows)  # rows of many sequences do not come first
        members.append(rows)
    assert members[0] == members[1] and sum(map(len, members[0])) == COUNTS[0]


@pytest.fixture(scope="module")
def batches(files):
    """Return kind -> a packed batch."""
    return {kind: take(files[kind], 1, **KINDS[kind])[0] for kind in KINDS}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.thorough] * (k != "masked")) for k in KINDS]
)
def test_losses_and_gradients_are_those_of_each_sequence(batches, kind):
    packed_rows.check_same(batches[kind], kind == "causal")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "backend",
    [pytest.param("jax", marks=pytest.mark.jax), pytest.param("torch", marks=pytest.mark.torch)],
)
def test_losses_and_gradients_on_other_backends(batches, backend, tmp_path):
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    packed_rows.write_batches(tmp_path, {kind: batches[kind] for kind in ("causal", "masked")})
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.packed_rows", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "KERAS_BACKEND": backend},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout.split() == ["causal", backend, "masked", backend]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_the_trainer_is_that_of_each_sequence(batches, kind):
    """Its losses, metrics and sums of weights."""
    causal = kind == "causal"
    batch, single = batches[kind], unpack(batches[kind], causal)
    objective = PretrainingObjective()
    results = [
        objective(packed_rows.make_model(packed, causal)(x[0], training=True), *x[1:])
        for packed, x in ((True, batch), (False, single))
    ]
    for name, pair in results[1][1].items():
        if name != "loss":  # weighs a batch by its rows
            np.testing.assert_allclose(results[0][1][name], pair, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    whole = objective.loss_weights(*batch[1:])
    assert float(whole["nsp_loss"]) == len(single[0]["input_ids"])


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_sequences_of_a_row_do_not_see_each_other(batches, kind):
    inputs, _, weights = batches[kind]
    model = packed_rows.make_model(True, kind == "causal")
    before = model(inputs, training=False)
    ids = inputs["sequence_ids"]
    second = ids == 2
    changed = {
        **inputs,
        "input_ids": np.where(second, (inputs["input_ids"] + 1) % 97, inputs["input_ids"]),
    }
    after = model(changed, training=False)
    of_prediction = np.take_along_axis(second, inputs["masked_lm_positions"], axis=1)
    logits = [x["masked_lm_logits"].numpy() for x in (before, after)]
    np.testing.assert_array_equal(logits[0][~of_prediction], logits[1][~of_prediction])
    assert np.abs(logits[0] - logits[1])[of_prediction].max() > 1e-2
    of_pooled = np.arange(SEQUENCES)[None] == 1
    pooled = [x["next_sentence_logits"].numpy() for x in (before, after)]
    others = ~of_pooled & (weights["next_sentence_logits"] > 0)
    np.testing.assert_array_equal(pooled[0][others], pooled[1][others])
    assert np.abs(pooled[0] - pooled[1])[:, 1].max() > 1e-3


def test_dynamic_masks_are_drawn_anew_at_every_step(files):
    rows = count_rows(files["dynamic"], **settings(sequences_per_row=SEQUENCES, **KINDS["dynamic"]))
    found = take(files["dynamic"], 2 * sum(rows), batch_size=1, **KINDS["dynamic"])
    shown = []
    for epoch in (found[: sum(rows)], found[sum(rows) :]):
        texts, masked = {}, {}
        for batch in epoch:
            inputs, labels, weights = unpack(batch)
            ids = inputs["input_ids"].copy()
            for row, position, label, weight in zip(
                ids,
                inputs["masked_lm_positions"],
                labels["masked_lm_logits"],
                weights["masked_lm_logits"],
                strict=True,
            ):
                row[position[weight > 0]] = label[weight > 0]
                texts[row.tobytes()] = row
                masked[row.tobytes()] = tuple(position[weight > 0])
        original = packed_rows.make_arrays(59, 4, masked=False)["input_ids"].astype(np.int32)
        assert {*texts} == {row.tobytes() for row in original}
        shown.append(masked)
    assert sum(shown[0][text] != shown[1][text] for text in shown[0]) > 50


def test_evaluation_has_a_row_for_each_record_in_order(files):
    counted = {"is_training": False, "batch_size": 20, "fill_last_batch": True}
    found = take(files["dynamic"], -1, sequences_per_row=1, **counted, **KINDS["dynamic"])
    whole = take(files["dynamic"], -1, sequences_per_row=None, **counted, **KINDS["dynamic"])
    assert len(found) == len(whole) == 3
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one[0]["sequence_ids"], one[0]["input_mask"])
        for part, expected in zip(one, other, strict=True):
            for name, array in expected.items():
                np.testing.assert_array_equal(part[name].reshape(array.shape), array, err_msg=name)
    results = [
        PretrainingObjective()(packed_rows.make_model(packed)(x[-1][0]), *x[-1][1:])[1]
        for packed, x in ((True, found), (False, whole))
    ]
    for name, pair in results[1].items():
        np.testing.assert_allclose(results[0][name], pair, rtol=1e-6, err_msg=name)


def test_what_does_not_fit_is_refused(files):
    masked = files["masked"]
    with pytest.raises(ValueError, match="sequences_per_row: expected at least 1, got 0"):
        take(masked, 1, sequences_per_row=0)
    with pytest.raises(ValueError, match="sequences_per_row: expected at least 1, got 0"):
        count_rows(masked, **settings(sequences_per_row=0))
    with pytest.raises(ValueError, match="sequences_per_row: expected 1 in evaluation, .* got 5"):
        take(masked, 1, is_training=False)
    with pytest.raises(ValueError, match="length_bins, sequences_per_row: expected one of them"):
        take(masked, 1, length_bins=4)
    with pytest.raises(ValueError, match="row_counts: expected 2 counts above 0, got \\[9\\]"):
        take(masked, 1, row_counts=[9])
    rule = row_packing.RowPacking(
        pretraining_features(LENGTH + 1, PREDICTIONS), PREDICTIONS, 2, None
    )
    with pytest.raises(ValueError, match="a.tfrecord: records do not fit: .*input_mask"):
        rule.count(masked[0])
