"""Figures by length, and the worst errors: by SciPy's and scikit-learn's figures."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import log_loss

from bert_tf.tasks.error_analysis import JUDGED_KINDS, by_length, losses_of, worst

RNG = np.random.default_rng(5)


def test_bins_have_like_numbers_and_the_means_of_scipy():
    lengths, values = RNG.permutation(97), RNG.random(97)
    bins = by_length(lengths, values)
    assert [one.count for one in bins] == [19, 20, 19, 20, 19]
    edges = [-0.5, *(one.longest + 0.5 for one in bins)]
    means = stats.binned_statistic(lengths, values, "mean", edges).statistic
    np.testing.assert_allclose([one.mean for one in bins], means)
    errors = stats.binned_statistic(lengths, values, stats.sem, edges).statistic
    np.testing.assert_allclose([one.standard_error for one in bins], errors)
    assert (bins[0].shortest, bins[-1].longest) == (0, 96)


def test_examples_of_one_length_share_a_bin():
    lengths = [7] * 50 + [3] + [9] * 5
    bins = by_length(lengths, np.arange(56) % 2)
    assert [(one.shortest, one.longest, one.count) for one in bins] == [
        (3, 3, 1),
        (7, 7, 50),
        (9, 9, 5),
    ]
    assert np.isnan(bins[0].standard_error)
    assert len(by_length([5, 5, 5], [1, 0, 1])) == 1


@pytest.mark.parametrize(
    ("lengths", "values", "bins", "message"),
    [
        ([], [], 5, r"not empty; got \[0\] and \[0\]"),
        ([1, 2], [1], 5, r"got \[2\] and \[1\]"),
        ([1], [1], 0, "num_bins: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_cut_into_bins_is_refused(lengths, values, bins, message):
    with pytest.raises(ValueError, match=message):
        by_length(lengths, values, bins)


def test_losses_are_those_of_scikit_learn():
    probabilities = special.softmax(RNG.normal(size=(11, 3)), axis=1)
    labels = RNG.integers(3, size=11)
    each = [log_loss([label], [p], labels=[0, 1, 2]) for label, p in zip(labels, probabilities)]  # noqa: B905
    for kind in ("classification", "multiple_choice"):
        np.testing.assert_allclose(losses_of(kind, probabilities, labels), each)
    held = RNG.integers(2, size=(11, 3))
    each = [
        sum(log_loss([h], [p], labels=[0, 1]) for h, p in zip(row, shares))  # noqa: B905
        for row, shares in zip(held, probabilities)  # noqa: B905
    ]
    np.testing.assert_allclose(losses_of("multi_label", probabilities, held), each)
    np.testing.assert_allclose(losses_of("regression", [[1.5], [-2.0]], [1, 1]), [0.5, 3])


def test_what_is_no_number_is_worst_and_what_is_right_is_left_out():
    losses = losses_of(
        "classification", [[0.9, 0.1], [np.nan, np.nan], [0, 1], [1, 0]], [1, 0, 0, 0]
    )
    assert losses[1] == np.inf and losses[2] > 700 and losses[3] == 0
    assert worst(losses, [True, True, True, False], 9).tolist() == [1, 2, 0]
    assert worst([2, 2, 1, 2], [True] * 4, 2).tolist() == [0, 1]


def test_kinds_without_one_answer_an_example_are_refused():
    assert "span" not in JUDGED_KINDS
    with pytest.raises(ValueError, match="kind: expected one of classification.*got 'span'"):
        losses_of("span", [[1.0]], [0])
    with pytest.raises(ValueError, match=r"expected as many, got \[1, 2\] and \[2\]"):
        losses_of("classification", [[0.5, 0.5]], [0, 1])
