"""Masks drawn in the graph follow the original's rule."""

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.input_pipeline.masking import MaskingRule, NextPieceRule, mask_batch
from data_prep.pretraining.instances import MaskRule

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
    ("##" if i % 3 == 2 else "") + f"p{i}" for i in range(92)
]
VOCAB = {piece: i for i, piece in enumerate(PIECES)}
LENGTH, PREDICTIONS = 37, 7


def make_batch(batch, rng, minimum=5):
    features = {
        name: np.zeros((batch, LENGTH), np.int32)
        for name in ("input_ids", "input_mask", "segment_ids")
    }
    for row in range(batch):
        n = rng.integers(minimum, LENGTH + 1)
        split = rng.integers(2, n - 1)
        ids = rng.integers(5, len(PIECES), n)
        ids[0], ids[split], ids[n - 1] = 2, 3, 3
        features["input_ids"][row, :n] = ids
        features["input_mask"][row, :n] = 1
        features["segment_ids"][row, split + 1 : n] = 1
    features["next_sentence_labels"] = rng.integers(0, 2, (batch, 1)).astype(np.int32)
    return features


def run(features, rule, seed=(3, 5), predictions=PREDICTIONS):
    out = mask_batch(
        {k: tf.constant(v) for k, v in features.items()},
        rule=rule,
        max_predictions_per_seq=predictions,
        seed=tf.constant(seed, tf.int32),
    )
    return {k: v.numpy() for k, v in out.items()}


def words_of(ids):
    """Candidate words of one sequence, found without the graph."""
    words = []
    for position, token in enumerate(ids):
        if token in (2, 3):
            continue
        if words and PIECES[token].startswith("##"):
            words[-1].append(position)
        else:
            words.append([position])
    return words


@pytest.mark.parametrize("whole_word", [False, True])
def test_each_row_obeys_the_rule(whole_word):
    features = make_batch(211, np.random.default_rng(1))
    out = run(features, MaskingRule(VOCAB, whole_word=whole_word))
    for row in range(211):
        n = features["input_mask"][row].sum()
        ids = features["input_ids"][row]
        budget = min(PREDICTIONS, max(1, int(round(n * 0.15))))
        count = int(out["masked_lm_weights"][row].sum())
        positions = out["masked_lm_positions"][row, :count]
        assert (np.diff(positions) > 0).all()
        assert (out["masked_lm_positions"][row, count:] == 0).all()
        assert (out["masked_lm_ids"][row, count:] == 0).all()
        np.testing.assert_array_equal(out["masked_lm_ids"][row, :count], ids[positions])
        assert not np.isin(ids[positions], [2, 3]).any()
        untouched = np.setdiff1d(np.arange(LENGTH), positions)
        np.testing.assert_array_equal(out["input_ids"][row, untouched], ids[untouched])
        if whole_word:
            chosen = set(positions.tolist())
            words = words_of(ids[:n])
            taken = [w for w in words if chosen & set(w)]
            assert chosen == {p for w in taken for p in w}
            assert count <= budget
            # What was left out would not have fitted, for the search goes on to the last word.
            left = [len(w) for w in words if not chosen & set(w)]
            assert not left or count + min(left) > budget or count == budget
        else:
            assert count == min(budget, n - 3)


def test_mix_and_uniform_choice():
    features = {
        k: np.repeat(v, 4001, 0) for k, v in make_batch(1, np.random.default_rng(2), 37).items()
    }
    rule = MaskingRule(VOCAB, mask_prob=0.5, random_prob=0.3, keep_prob=0.2)
    out = run(features, rule)
    weights = out["masked_lm_weights"] > 0
    new = np.take_along_axis(out["input_ids"], out["masked_lm_positions"], 1)[weights]
    old = out["masked_lm_ids"][weights]
    assert abs((new == 4).mean() - (0.5 + 0.3 / len(VOCAB))) < 0.015
    assert abs((new == old).mean() - (0.2 + 0.3 / len(VOCAB))) < 0.015
    # Drawn from the whole vocabulary, specials included, all alike.
    other = new[(new != 4) & (new != old)]
    counts = np.bincount(other, minlength=len(VOCAB))
    assert counts[0] > 0 and counts[1] > 0
    free = counts[5:][~np.isin(np.arange(5, len(VOCAB)), features["input_ids"][0])]
    assert free.std() < 3 * np.sqrt(free.mean())
    # Each candidate is as likely as any other.
    hits = np.bincount(out["masked_lm_positions"][weights], minlength=LENGTH)
    candidates = hits[~np.isin(features["input_ids"][0], [2, 3])]
    assert hits.sum() == candidates.sum()
    assert candidates.std() < 3 * np.sqrt(candidates.mean())


def test_seed_decides_and_graph_agrees():
    features = make_batch(13, np.random.default_rng(3))
    rule = MaskingRule(VOCAB, whole_word=True)
    eager, again, other = run(features, rule), run(features, rule), run(features, rule, (3, 6))
    np.testing.assert_array_equal(eager["input_ids"], again["input_ids"])
    assert (eager["masked_lm_positions"] != other["masked_lm_positions"]).any()
    dataset = (
        tf.data.Dataset.from_tensor_slices(features)
        .batch(13)
        .map(
            lambda f: mask_batch(
                f, rule=rule, max_predictions_per_seq=PREDICTIONS, seed=tf.constant([3, 5])
            )
        )
    )
    for name, value in next(dataset.as_numpy_iterator()).items():
        np.testing.assert_array_equal(value, eager[name])


def test_more_predictions_than_positions():
    features = make_batch(5, np.random.default_rng(4))
    out = run(features, MaskingRule(VOCAB, masked_lm_prob=1.0), predictions=41)
    assert out["masked_lm_positions"].shape == (5, 41)
    np.testing.assert_array_equal(
        out["masked_lm_weights"].sum(1), features["input_mask"].sum(1) - 3
    )


def test_the_next_piece_is_the_label_of_each_position():
    features = make_batch(13, np.random.default_rng(2))
    given = {name: tf.constant(value) for name, value in features.items()}
    seed = tf.constant((0, 0))
    out = NextPieceRule().choose(given, max_predictions_per_seq=PREDICTIONS, seed=seed)
    np.testing.assert_array_equal(out["input_ids"], features["input_ids"])
    for row, length in enumerate(features["input_mask"].sum(1)):
        assert out["masked_lm_weights"][row].numpy().sum() == length - 1
        for place in range(length - 1):
            position = out["masked_lm_positions"][row, place]
            assert position == place
            assert out["masked_lm_ids"][row, place] == features["input_ids"][row, place + 1]


def test_thirds_are_a_mix_here_and_where_records_are_made():
    thirds = dict.fromkeys(("mask_prob", "random_prob", "keep_prob"), 0.3333333)
    MaskingRule(VOCAB, **thirds)
    MaskRule(**thirds)
    less = {**thirds, "keep_prob": 0.3333}
    for refused in (lambda: MaskingRule(VOCAB, **less), lambda: MaskRule(**less)):
        with pytest.raises(ValueError, match="sum to 1, got 0.3333333, 0.3333333, 0.3333"):
            refused()


def test_bad_rules_are_named():
    with pytest.raises(ValueError, match=r"missing \[MASK\]"):
        MaskingRule({p: i for p, i in VOCAB.items() if p != "[MASK]"})
    with pytest.raises(ValueError, match="sum to 1"):
        MaskingRule(VOCAB, mask_prob=0.9)
    with pytest.raises(ValueError, match="masked_lm_prob"):
        MaskingRule(VOCAB, masked_lm_prob=0.0)


def test_sequences_of_any_length_are_refused():
    spec = tf.TensorSpec([None, None], tf.int32)
    mask = tf.function(
        lambda ids: mask_batch(
            {"input_ids": ids},
            rule=MaskingRule(VOCAB),
            max_predictions_per_seq=PREDICTIONS,
            seed=tf.constant([3, 5]),
        ),
        autograph=False,
    )
    with pytest.raises(ValueError, match="expected a static length, got an unknown one"):
        mask.get_concrete_function(spec)
