"""Calibration, thresholds and reports by label: scikit-learn's figures, and some by hand."""

import json
import warnings

import numpy as np
import pytest
from scipy import special
from sklearn import metrics
from sklearn.calibration import calibration_curve

from bert_tf.tasks.calibration import (
    Reliability,
    fit_temperature,
    mean_loss,
    reliability,
    reliability_of,
)
from bert_tf.tasks.class_report import class_report
from bert_tf.tasks.thresholds import best_thresholds

# === Calibration ===


def test_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    sure = np.concatenate([rng.random(211), np.arange(16) / 15])  # the edges themselves too
    right = rng.random(sure.size) < sure**2
    found = reliability(sure, right)
    accuracy, confidence = calibration_curve(right, sure, n_bins=15)  # of bins with answers
    filled = found.count > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], confidence)
    assert found.count.sum() == sure.size
    by_hand = sum(
        found.count[filled][i] / sure.size * abs(accuracy[i] - confidence[i])
        for i in range(len(accuracy))
    )
    assert found.error == pytest.approx(by_hand)


def test_an_error_by_hand():
    # Two bins: 0.2 and 0.4 of which one is right, 0.9 of which none is.
    found = reliability([0.2, 0.4, 0.9], [0, 1, 0], num_bins=2)
    assert found.error == pytest.approx(2 / 3 * abs(0.3 - 0.5) + 1 / 3 * 0.9)
    assert found.count.tolist() == [2, 1]
    assert reliability([1.0, 0.0], [1, 0]).error == 0
    assert Reliability(*np.zeros((3, 2))).error == 0


def test_reliability_of_one_label_and_of_several():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    sure = special.softmax(logits, axis=1).max(axis=1)
    one = reliability_of("classification", logits, [0, 0, 0])
    assert one.error == reliability(sure, [1, 0, 1]).error
    several = reliability_of("multi_label", logits, [[1, 0], [0, 1], [1, 1]])
    expected = reliability(special.expit(logits), [[1, 0], [0, 1], [1, 1]])
    assert several.error == expected.error > 0


@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
def test_the_temperature_of_two_answers_by_formula(share):
    """Where a model says the same score a of all, and is right in a part q: sigmoid(a / T) = q."""
    wrong = round((1 - share) * 100)
    logits = np.tile([4.0, 0.0], (100, 1))
    labels = np.array([1] * wrong + [0] * (100 - wrong))
    expected = 4 / special.logit(share)
    assert fit_temperature("classification", logits, labels) == pytest.approx(expected, rel=1e-4)
    found = fit_temperature("multi_label", np.full((100, 1), 4.0), 1 - labels[:, None])
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_temperature_is_found_again_and_halves_the_error():
    rng = np.random.default_rng(5)
    true = rng.normal(0, 1.5, (3011, 5))
    cumulative = special.softmax(true, axis=1).cumsum(axis=1)
    labels = (rng.random((3011, 1)) > cumulative).sum(axis=1)
    logits = 2.5 * true
    temperature = fit_temperature("classification", logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.06)
    losses = [mean_loss("classification", logits, labels, t) for t in np.linspace(1.5, 4, 101)]
    best = mean_loss("classification", logits, labels, temperature)
    assert best <= min(losses) < mean_loss("classification", logits, labels)
    assert mean_loss("classification", logits, labels) == pytest.approx(
        metrics.log_loss(labels, special.softmax(logits, axis=1))
    )
    before = reliability_of("classification", logits, labels).error
    after = reliability_of("classification", logits / temperature, labels).error
    assert after < before / 2


def test_examples_that_do_not_tell_a_temperature():
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert fit_temperature("classification", logits, [0, 1]) is None  # all right
    assert fit_temperature("classification", logits, [1, 0]) is None  # all wrong


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reliability([0.5], [1, 0]), "expected as many, at least one, got 1 and 2"),
        (lambda: reliability([], []), "expected as many, at least one, got 0 and 0"),
        (lambda: reliability([1.5], [1]), "confidences: expected probabilities"),
        (lambda: reliability([np.nan], [1]), "confidences: expected probabilities"),
        (lambda: reliability([0.5], [1], 0), "num_bins: expected at least 1, got 0"),
        (lambda: fit_temperature("span", [[1.0]], [0]), "kind: expected classification or multi_"),
        (lambda: fit_temperature("classification", [1.0], [0]), "expected .N, K. and .N., not em"),
        (lambda: fit_temperature("multi_label", [[1.0]], [0]), "expected .N, K. and .N, K., not"),
        (lambda: mean_loss("classification", [[np.inf, 0]], [0]), "logits: expected finite"),
        (lambda: best_thresholds([0.5], [1], each=True), "expected one shape .N, K., not empty"),
        (lambda: class_report([0, 2], [0, 1], "ab"), "predictions: expected 0 to 1, got 0 to 2"),
        (lambda: class_report([0], [-1], "ab"), "labels: expected 0 to 1, got -1 to -1"),
        (lambda: class_report([], [], "ab"), "expected one shape, .N. or .N, K., that is not emp"),
        (lambda: class_report([[0, 1]], [[0, 1]], "abc"), "names: expected 2, got 3"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# === Thresholds ===


@pytest.mark.parametrize("each", [True, False])
def test_no_threshold_has_a_better_f1(each):
    rng = np.random.default_rng(2)
    scores = rng.random((19, 3)) ** 2
    labels = (rng.random((19, 3)) < scores * 1.5).astype(int)
    chosen = best_thresholds(scores, labels, each=each)
    average = "macro" if each else "micro"
    best = metrics.f1_score(labels, scores > chosen, average=average)
    if each:  # by label, by trying all
        for k in range(3):
            tried = scores[:, k] - 1e-9
            figures = [metrics.f1_score(labels[:, k], scores[:, k] > x) for x in tried]
            found = metrics.f1_score(labels[:, k], scores[:, k] > chosen[k])
            assert found == pytest.approx(max(figures))
    else:
        assert len(set(chosen)) == 1
        tried = scores.ravel() - 1e-9
        figures = [metrics.f1_score(labels, scores > x, average=average) for x in tried]
        assert best == pytest.approx(max(figures))
    assert best > metrics.f1_score(labels, scores > 0.5, average=average)


def test_thresholds_by_hand():
    scores = np.array([[0.9, 0.2, 0.3], [0.6, 0.1, 0.7], [0.2, 0.4, 0.9], [0.1, 0.8, 1.0]])
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    # Between 0.2 and 0.6 one half is as good as any; between 0.2 and 0.4 the middle; never true.
    assert best_thresholds(scores, labels, each=True) == pytest.approx((0.5, 0.3, 0.5))
    # Of equals, two thirds with one taken and with all four, that nearest to one half.
    equal = best_thresholds([[0.9], [0.55], [0.4], [0.1]], [[1], [0], [0], [1]], each=True)
    assert equal == pytest.approx((0.725,))
    assert best_thresholds([[0.0], [0.0]], [[1], [1]], each=True) == (1e-6,)
    assert best_thresholds([[1.0], [1.0]], [[1], [0]], each=False) == (0.5,)


# === Reports by label ===


def test_a_report_is_that_of_scikit_learn():
    rng = np.random.default_rng(4)
    true, predicted = rng.integers(0, 4, 73), rng.integers(0, 3, 73)
    true[true == 2] = 0  # never true, and 3 never predicted
    names = ("a", "accuracy", "c\nc", "d")
    found = class_report(predicted, true, names)
    theirs = metrics.classification_report(
        true,
        predicted,
        labels=range(4),
        target_names=list("wxyz"),
        output_dict=True,
        zero_division=0,
    )
    rows = found.to_dict()["labels"]
    for name, row, other in zip(names, rows, "wxyz", strict=True):
        assert row["label"] == name
        expected = {
            "precision": theirs[other]["precision"],
            "recall": theirs[other]["recall"],
            "f1": theirs[other]["f1-score"],
            "support": theirs[other]["support"],
        }
        assert {key: row[key] for key in expected} == pytest.approx(expected)
    matrix = metrics.confusion_matrix(true, predicted, labels=range(4))
    assert found.to_dict()["confusion_matrix"] == matrix.tolist()
    json.dumps(found.to_dict())
    lines = found.text().splitlines()
    assert lines[0].split() == ["label", "precision", "recall", "f1", "support"]
    assert lines[3].startswith(json.dumps("c\nc"))
    assert lines[1].split()[1:] == [
        *(f"{rows[0][key]:.4f}" for key in ("precision", "recall", "f1")),
        str(rows[0]["support"]),
    ]
    assert lines[8].split() == ["a", *map(str, matrix[0])]


@pytest.mark.parametrize("count", [1, 3])
def test_a_report_of_several_labels_an_example(count):
    rng = np.random.default_rng(6)
    true, predicted = rng.integers(0, 2, (2, 31, count))
    found = class_report(predicted, true.astype(np.float32), "abc"[:count])
    for k in range(count):
        expected = metrics.precision_recall_fscore_support(
            true[:, k], predicted[:, k], average="binary"
        )
        assert (found.precision[k], found.recall[k], found.f1[k]) == pytest.approx(expected[:3])
        matrix = metrics.confusion_matrix(true[:, k], predicted[:, k])
        assert found.confusion[k].tolist() == matrix.tolist()
        assert found.support[k] == true[:, k].sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = class_report(np.zeros((2, count)), np.zeros((2, count)), "abc"[:count])
    assert empty.f1.tolist() == [0] * count
