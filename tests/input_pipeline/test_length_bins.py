"""Batches of like length: what they hold, that nothing but padding is cut, and their gradients."""

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.input_pipeline.length_bins import cut_padding, pool_in_graph
from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.input_pipeline.record_order import pool_of
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.training.objectives import PretrainingObjective
from tests.support import synthetic_records as synthetic
from tests.support.resuming import assert_same
from tests.support.synthetic_records import LENGTH, PREDICTIONS, RECORD_COUNTS, VOCAB

BATCH, BINS = 7, 3


def take(files, count, **changes):
    settings = {
        "batch_size": BATCH,
        "max_seq_length": LENGTH,
        "max_predictions_per_seq": PREDICTIONS,
        "is_training": True,
        "seed": 7,
        "length_bins": BINS,
        **changes,
    }
    return list(pretraining_dataset(files, **settings).take(count).as_numpy_iterator())


def padded(batch):
    """The batch with zeros at the ends of rows, of inputs to LENGTH and of predictions."""
    widths = {"next_sentence_logits": None, "masked_lm_logits": PREDICTIONS}
    widths["masked_lm_positions"] = PREDICTIONS

    def pad(name, array):
        width = widths.get(name, LENGTH)
        return array if width is None else np.pad(array, ((0, 0), (0, width - array.shape[1])))

    return tuple({name: pad(name, array) for name, array in part.items()} for part in batch)


def test_pools_hold_whole_batches_of_one_epoch():
    for records, size, most in itertools.product((1, 5, 7, 23, 101), (1, 3, 7), (1, 2, 5, 64)):
        step = 0
        while step * size < 3 * records:
            start, stop = pool_of(step, records, size, most)
            assert start == step < stop <= step + most
            assert all(pool_of(i, records, size, most) == (start, stop) for i in range(start, stop))
            for i in range(start, stop):
                bounds = pool_in_graph(tf.constant(i, tf.int64), records, size, most)
                assert tuple(map(int, bounds)) == (start, stop)
            epochs = {start * size // records, (stop * size - 1) // records}
            assert len(epochs) == 1 or stop == start + 1
            step = stop
    # As few as can be, and as even: 14 batches of the first epoch of 101, then one of two epochs.
    assert [pool_of(i, 101, 7, 5) for i in (0, 5, 10, 14)] == [(0, 5), (5, 10), (10, 14), (14, 15)]


def test_batches_of_a_pool_hold_its_records_sorted_by_length(files):
    steps = sum(RECORD_COUNTS) // BATCH  # of an epoch, exactly: 22 batches in pools of at most 5
    most = {"shuffle_buffer_records": 5 * BATCH}
    found = take(files, 2 * steps, **most)
    drawn = take(files, 2 * steps, length_bins=0, **most)
    rows = [[row.tobytes() for row in padded(batch)[0]["input_ids"]] for batch in found]
    shuffled = [[row.tobytes() for row in batch[0]["input_ids"]] for batch in drawn]
    lengths = [batch[0]["input_mask"].sum(axis=1) for batch in found]
    orders = []
    for start, stop in {pool_of(step, sum(RECORD_COUNTS), BATCH, 5) for step in range(2 * steps)}:
        assert collections.Counter(sum(rows[start:stop], [])) == collections.Counter(
            sum(shuffled[start:stop], [])
        )
        by_length = sorted(lengths[start:stop], key=list)
        assert (np.diff(np.concatenate(by_length)) >= 0).all()
        orders.append([list(x) for x in by_length] == [list(x) for x in lengths[start:stop]])
    assert not all(orders)  # batches come in any order
    for epoch in (rows[:steps], rows[steps:]):
        assert max(collections.Counter(sum(epoch, [])).values()) == 1
    assert sum(x[0]["input_mask"].size for x in found) < 0.8 * steps * 2 * BATCH * LENGTH


def test_only_padding_is_cut_off(files):
    both = [
        synthetic.make_arrays(count, seed)
        for count, seed in zip(RECORD_COUNTS, (1, 2), strict=True)
    ]
    whole = {name: np.concatenate([arrays[name] for arrays in both]) for name in both[0]}
    shapes = set()
    for batch in take(files, 30):
        length = batch[0]["input_ids"].shape[1]
        predictions = batch[0]["masked_lm_positions"].shape[1]
        shapes.add((length, predictions))
        longest = batch[0]["input_mask"].sum(axis=1).max()
        assert length == min(-(-longest // BINS) * BINS, LENGTH)
        assert batch[2]["masked_lm_logits"].sum(axis=1).max() <= predictions
        synthetic.assert_rows_are(whole, *padded(batch))
    assert len({length for length, _ in shapes}) > 4


KINDS = {
    "masked": {},
    "dynamic": {"masking": MaskingRule(VOCAB, masked_lm_prob=0.1, whole_word=True)},
    "causal": {"masking": NextPieceRule()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_padded_rows(files, unmasked, kind):
    """The same batches padded to the end, predictions of weight 0 included."""
    keras.utils.set_random_seed(3)
    # Without dropout, whose masks depend on shapes.
    config = synthetic.small_config(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, left_to_right=kind == "causal"
    )
    model, objective = bert_pretrainer(config), PretrainingObjective()

    def gradients(batch):
        inputs, labels, weights = batch
        with tf.GradientTape() as tape:
            loss, figures = objective(model(inputs, training=True), labels, weights)
        found = tape.gradient(loss, model.trainable_variables)
        return figures, [tf.convert_to_tensor(gradient).numpy() for gradient in found]

    records = files if kind == "masked" else unmasked
    binned, whole = (take(records, 4, pad_to_max=pad, **KINDS[kind]) for pad in (False, True))
    if kind != "causal":
        assert_same([padded(batch) for batch in binned], whole, "padded")
    assert any(batch[0]["input_ids"].shape[1] < LENGTH - BINS for batch in binned)
    if kind == "dynamic":  # others have as many predictions in short rows
        widths = [batch[0]["masked_lm_positions"].shape[1] for batch in binned]
        assert min(widths) < PREDICTIONS
    for batch, other in zip(binned, whole, strict=True):
        (figures, found), (expected_figures, expected) = gradients(batch), gradients(other)
        for name, pair in expected_figures.items():
            np.testing.assert_allclose(figures[name], pair, rtol=1e-6, err_msg=name)
        for variable, one, two in zip(model.trainable_variables, found, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-6, err_msg=variable.path)
        assert max(np.abs(gradient).max() for gradient in expected) > 1e-2


def cut(bins=BINS, **changes):
    """Cut a batch of two rows of 5 and 4 tokens, with 1 and 2 predictions."""
    batch = {
        "input_ids": np.arange(2 * LENGTH).reshape(2, LENGTH),
        "input_mask": np.arange(LENGTH) < np.array([[5], [4]]),
        "segment_ids": np.zeros((2, LENGTH)),
        "masked_lm_positions": np.array([[1, 0, 0, 0, 0], [2, 3, 0, 0, 0]]),
        "masked_lm_ids": np.array([[8, 0, 0, 0, 0], [8, 9, 0, 0, 0]]),
        "masked_lm_weights": np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], np.float32),
        "next_sentence_labels": np.zeros((2, 1)),
        **changes,
    }
    batch = {
        n: tf.constant(x, None if x.dtype == np.float32 else tf.int32) for n, x in batch.items()
    }
    return {name: tensor.numpy() for name, tensor in cut_padding(batch, bins).items()}


def test_widths_of_a_batch():
    def widths(**changes):
        found = cut(**changes)
        return found["input_ids"].shape[1], found["masked_lm_ids"].shape[1]

    # 5 tokens: two bins of 3 or 4, one of 5; of 5 predictions the share of 6, 8 or 5 of 31 tokens,
    # or what two predictions take.
    assert widths() == (6, 2)
    assert widths(bins=4) == (8, 2)
    assert widths(bins=5) == (5, 2)
    assert widths(bins=13) == (13, 3)
    assert widths(bins=LENGTH) == (LENGTH, PREDICTIONS)
    hidden = np.arange(LENGTH) == np.array([[7], [3]])  # a token after hidden ones takes its place
    assert widths(input_mask=hidden) == (9, 2)
    weights = np.zeros((2, PREDICTIONS), np.float32)
    assert widths(masked_lm_weights=weights) == (6, 1)
    weights[1, 4] = 1  # not the first ones
    assert widths(masked_lm_weights=weights) == (6, 5)


def test_predictions_stay_within_what_is_left():
    positions = np.array([[1, 30, 0, 0, 0], [2, 3, 0, 0, 0]])
    found = cut(masked_lm_positions=positions)  # of weight 0
    assert found["input_ids"].shape[1] == 6
    np.testing.assert_array_equal(found["masked_lm_positions"], [[1, 0], [2, 3]])
    weights = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]], np.float32)
    found = cut(masked_lm_positions=positions, masked_lm_weights=weights)
    assert found["input_ids"].shape[1] == LENGTH
    np.testing.assert_array_equal(found["masked_lm_positions"][:, :2], positions[:, :2])


def test_bins_that_do_not_fit_are_refused(files):
    for bins in (-1, LENGTH + 1):
        with pytest.raises(ValueError, match="length_bins: expected 0 to max_seq_length, 31, got"):
            take(files, 1, length_bins=bins)
    with pytest.raises(ValueError, match="length_bins: expected 0 in evaluation, .* got 3"):
        take(files, 1, is_training=False)
