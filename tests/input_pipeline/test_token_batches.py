"""Batches of so many tokens: what they hold, how many an epoch has, and their gradients."""

import collections
import dataclasses
import itertools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule
from bert_tf.input_pipeline.pretraining import pretraining_dataset
from bert_tf.input_pipeline.token_batches import LengthCounts, TokenBatches, count_lengths
from bert_tf.models.task_models import bert_pretrainer
from bert_tf.training.objectives import PretrainingObjective
from tests.support import synthetic_records as synthetic
from tests.support.resuming import assert_same
from tests.support.synthetic_records import LENGTH, PREDICTIONS, RECORD_COUNTS, VOCAB

TOKENS, BINS = 127, 4


def take(files, count, **changes):
    settings = {
        "batch_tokens": TOKENS,
        "max_seq_length": LENGTH,
        "max_predictions_per_seq": PREDICTIONS,
        "is_training": True,
        "seed": 7,
        "length_bins": BINS,
        **changes,
    }
    return list(pretraining_dataset(files, **settings).take(count).as_numpy_iterator())


def count(files, masking=None):
    return count_lengths(
        files, max_seq_length=LENGTH, max_predictions_per_seq=PREDICTIONS, masking=masking
    )


def real_rows(batch):
    return batch[2]["next_sentence_logits"] > 0


def padded(batch):
    """The records of a batch alone, with zeros at the ends of inputs and predictions."""
    widths = {"next_sentence_logits": None, "masked_lm_logits": PREDICTIONS}
    widths["masked_lm_positions"] = PREDICTIONS

    def pad(name, array):
        array, width = array[real_rows(batch)], widths.get(name, LENGTH)
        return array if width is None else np.pad(array, ((0, 0), (0, width - array.shape[1])))

    return tuple({name: pad(name, array) for name, array in part.items()} for part in batch)


def some_counts(records, predictions=None):
    """Counts of records of 0, 1, ... tokens, of at most half as many predictions."""
    if predictions is None:
        predictions = [-(-length // 2) for length in range(len(records))]
    return LengthCounts(tuple(records), tuple(predictions), -(-len(records) // 2))


# === Counts and shapes ===


def test_records_are_counted_by_length(files, unmasked):
    both = [synthetic.make_arrays(n, seed) for n, seed in zip(RECORD_COUNTS, (1, 2), strict=True)]
    lengths = np.concatenate([arrays["input_mask"].sum(axis=1) for arrays in both])
    predictions = np.concatenate([arrays["masked_lm_weights"].sum(axis=1) for arrays in both])
    found = count(files)
    assert found.records == tuple(np.bincount(lengths, minlength=LENGTH + 1))
    assert found.max_predictions_per_seq == PREDICTIONS
    for length, most in enumerate(found.predictions):
        assert most == max(predictions[lengths == length], default=0)
    rule = MaskingRule(VOCAB, masked_lm_prob=0.1)
    lengths = synthetic.make_arrays(59, 4, masked=False)["input_mask"].sum(axis=1)
    of_rule, causal = count(unmasked, rule), count(unmasked, NextPieceRule())
    assert of_rule.records == causal.records == tuple(np.bincount(lengths, minlength=LENGTH + 1))
    assert causal.max_predictions_per_seq == LENGTH - 1
    for length in set(lengths):
        assert causal.predictions[length] == length - 1
        assert of_rule.predictions[length] == round(0.1 * length)


def test_widths_rows_and_predictions():
    batches = TokenBatches(some_counts([0] * 13 + [1], [0] * 3 + [6] + [0] * 10), 3, 40, 2)
    assert batches.widths == (3, 6, 9, 12, 13)
    assert batches.rows == (12, 6, 4, 2, 2)  # 13, 6, 4, 3 and 3 would fit
    # Of 7 predictions the width's share, or what a record of three tokens needs, which may come
    # to wider rows.
    assert batches.predictions == (6, 6, 6, 7, 7)
    assert TokenBatches(some_counts([0] * 12 + [1]), 4, 12).widths == (4, 8, 12)
    assert TokenBatches(some_counts([0] * 12 + [1]), 12, 12).rows == (1,)


def test_the_last_batches_of_an_epoch_are_not_of_a_few():
    def last(records, tokens=12):
        found = TokenBatches(some_counts([0, *records]), 1, tokens)
        full, last = found._full, found._last
        assert found.num_batches == sum(full) + len(last) == sum(found.batches_of_width)
        assert found.num_shapes == np.count_nonzero(found.batches_of_width)
        for number, begin, end in last:
            assert 0 < end - begin <= found.rows[number]
        rows = found.rows
        assert sum(n * m for n, m in zip(rows, full, strict=True)) + last[0][2] == sum(records)
        return full, [end - begin for _, begin, end in last]

    # Rows of 12, 6, 4 and 3. The fullest wide bin keeps its last full batch.
    assert last([0, 0, 0, 7]) == ((0, 0, 0, 1), [2, 2])
    assert last([0, 0, 0, 6]) == ((0, 0, 0, 1), [3])
    assert last([0, 0, 0, 1]) == ((0, 0, 0, 0), [1])  # where there are no others
    # Of the longest 3, then of the others 2 and 10: those of 2 tokens pad one of 1.
    assert last([23, 2, 0, 3]) == ((1, 0, 0, 0), [3, 6, 7])
    assert last([12, 1, 0, 0]) == ((0, 0, 0, 0), [6, 7])
    for records in itertools.product((0, 1, 5, 13), repeat=3):
        if sum(records):
            _, sizes = last(records)
            assert len(sizes) == 1 or min(sizes) > 1 or sum(records) < 8, (records, sizes)


# === The stream ===


def test_each_epoch_has_every_record_once_in_batches_as_counted(files):
    batches = TokenBatches(count(files), BINS, TOKENS)
    found = take(files, 3 * batches.num_batches)
    both = [synthetic.make_arrays(n, seed) for n, seed in zip(RECORD_COUNTS, (1, 2), strict=True)]
    whole = {name: np.concatenate([arrays[name] for arrays in both]) for name in both[0]}
    every = collections.Counter(row.astype(np.int32).tobytes() for row in whole["input_ids"])
    orders = []
    for begin in range(0, len(found), batches.num_batches):
        epoch = found[begin : begin + batches.num_batches]
        rows = [row.tobytes() for x in epoch for row in padded(x)[0]["input_ids"]]
        assert collections.Counter(rows) == every
        orders.append(rows)
        widths = [x[0]["input_ids"].shape[1] for x in epoch]
        assert tuple(map(widths.count, batches.widths)) == batches.batches_of_width
    assert orders[0] != orders[1] != orders[2]
    shapes = {(*x[0]["input_ids"].shape, x[0]["masked_lm_positions"].shape[1]) for x in found}
    all_shapes = zip(batches.rows, batches.widths, batches.predictions, strict=True)
    assert shapes == {
        shape for shape, n in zip(all_shapes, batches.batches_of_width, strict=True) if n
    }
    assert len(shapes) == batches.num_shapes > 4
    for x in found:
        assert x[0]["input_ids"].size <= TOKENS
        synthetic.assert_rows_are(whole, *padded(x))
        # What is no record weighs nothing.
        assert not x[0]["input_mask"][~real_rows(x)].any()
        assert not x[2]["masked_lm_logits"][~real_rows(x)].any()
    full = sum(real_rows(x).all() for x in found)
    assert len(found) - 6 <= full < len(found)


def test_short_sequences_share_a_batch_of_more(files):
    sizes = collections.defaultdict(set)
    for x in take(files, 40):
        sizes[x[0]["input_ids"].shape[1]].add(len(x[0]["input_ids"]))
    assert dict(sorted(sizes.items())) == {w: {TOKENS // w} for w in (12, 16, 20, 24, 28, 31)}


def test_the_rows_of_a_batch_are_a_multiple_and_its_records_spread(files):
    batches = TokenBatches(count(files), BINS, TOKENS, 2)
    found = take(files, batches.num_batches, batch_multiple=2)
    assert not any(len(x[0]["input_ids"]) % 2 for x in found)
    for x in found:
        halves = np.split(real_rows(x), 2)
        assert abs(int(halves[0].sum()) - int(halves[1].sum())) <= 1
    assert any(not real_rows(x).all() for x in found)


def test_rows_without_a_record_are_spread():
    batches = TokenBatches(some_counts([0, 0, 0, 5]), 3, 24, 4)
    left = tf.constant([2, 3, 5, 7, 11])
    places, widths = batches._last_batches(left, tf.zeros(5, tf.int32), tf.constant(13), (1, 2))
    np.testing.assert_array_equal(places, [[2, 3, 13, 5, 7, 13, 11, 13]])
    np.testing.assert_array_equal(widths, [0])


def test_batches_come_when_they_are_full(files, monkeypatch):
    """Whatever the number of records that are sorted together."""
    expected = take(files, 40)
    for at_once in (13, 29):
        monkeypatch.setattr("bert_tf.input_pipeline.token_batches._AT_ONCE", at_once)
        assert_same(take(files, 40), expected, f"{at_once} at once")


KINDS = {
    "masked": {},
    "dynamic": {"masking": MaskingRule(VOCAB, masked_lm_prob=0.1, whole_word=True)},
    "causal": {"masking": NextPieceRule()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_padded_rows_of_the_records_alone(files, unmasked, kind):
    """Those of a batch's records padded to the end, without the rows that hold none."""
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
    number = TokenBatches(count(records, KINDS[kind].get("masking")), BINS, TOKENS).num_batches
    cut, whole = (take(records, number, pad_to_max=pad, **KINDS[kind]) for pad in (False, True))
    assert {x[0]["input_ids"].shape[1] for x in whole} == {LENGTH}
    is_full = [real_rows(x).all() for x in cut]
    some = [is_full.index(False), is_full.index(True)]
    for batch, other in ((cut[i], whole[i]) for i in some):
        other = tuple({n: x[real_rows(other)] for n, x in part.items()} for part in other)
        (figures, found), (expected_figures, expected) = gradients(batch), gradients(other)
        for name, pair in expected_figures.items():
            np.testing.assert_allclose(figures[name], pair, rtol=1e-6, err_msg=name)
        for variable, one, two in zip(model.trainable_variables, found, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-6, err_msg=variable.path)
        assert max(np.abs(gradient).max() for gradient in expected) > 1e-2


def test_each_shape_can_be_measured(files):
    batches = TokenBatches(count(files), BINS, TOKENS)
    (whole,) = take(files, 1, batch_tokens=None, batch_size=max(batches.rows), length_bins=0)
    whole = tf.nest.map_structure(tf.constant, whole)
    met = {}
    for inputs, labels, weights in batches.batches_of_each_shape(whole):
        rows, width = inputs["input_ids"].shape
        assert inputs["input_mask"].shape == inputs["segment_ids"].shape == (rows, width)
        assert int(tf.reduce_max(inputs["masked_lm_positions"])) < width
        assert labels["next_sentence_logits"].shape == weights["next_sentence_logits"].shape
        assert labels["masked_lm_logits"].shape == weights["masked_lm_logits"].shape
        met[width] = rows, inputs["masked_lm_positions"].shape[1]
    assert met == {
        width: (rows, predictions)
        for width, rows, predictions, number in zip(
            *(batches.widths, batches.rows, batches.predictions, batches.batches_of_width),
            strict=True,
        )
        if number
    }
    assert len(met) == batches.num_shapes


# === What is refused ===


def test_what_does_not_go_together_is_refused(files):
    for changes, message in (
        ({"batch_size": 7}, "batch_size, batch_tokens: expected one of them, got 7 and 127"),
        ({"batch_tokens": None}, "batch_size, batch_tokens: expected one of them, got neither"),
        ({"length_bins": 0}, "batch_tokens: 127 needs length_bins above 0, .* got length_bins 0"),
        ({"is_training": False}, "batch_tokens: expected batch_size in evaluation, .* got 127"),
        ({"sequences_per_row": 3}, "length_bins, sequences_per_row: expected one of them"),
        ({"batch_tokens": 30}, "batch_tokens: expected at least 31, max_seq_length 31, got 30"),
        (
            {"batch_multiple": 5},
            "batch_tokens: expected at least 155, max_seq_length 31 x batch_multiple 5, got 127",
        ),
        ({"batch_multiple": 0}, "batch_multiple: expected at least 1, got 0"),
        (
            {"length_counts": some_counts([0, 3])},
            "length_counts: expected records of lengths 0 to 31, got 3 of 0 to 1",
        ),
        ({"length_counts": some_counts([0] * 32)}, "length_counts: .* got 0 of 0 to 31"),
    ):
        with pytest.raises(ValueError, match=message):
            take(files, 1, **changes)


def test_records_that_are_not_those_counted_are_an_error(files, unmasked):
    counts = count(files[:1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="not those that were counted"):
        take(files, 40, length_counts=counts)
    fewer = dataclasses.replace(counts, predictions=(0,) * len(counts.predictions))
    with pytest.raises(tf.errors.InvalidArgumentError, match="more tokens or predictions than"):
        take(files[:1], 40, length_counts=fewer)
    bad = pathlib.Path(files[0]).with_name("bad.tfrecord")
    bad.write_bytes(pathlib.Path(files[0]).read_bytes() + pathlib.Path(unmasked[0]).read_bytes())
    with pytest.raises(ValueError, match=r"bad.tfrecord: records do not fit: .*masked_lm"):
        count([str(bad)])
