import json
import math
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from bert_tf.tasks import metrics
from bert_tf.tasks.entity_metrics import ChunkScores, chunks, entity_scores
from bert_tf.tasks.metrics import METRICS
from bert_tf.tasks.tag_schemes import tag_scheme

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "metrics"
MULTI_LABEL = ("multi_label_micro_f1", "multi_label_macro_f1", "multi_label_subset_accuracy")
CORRELATIONS = ("pearson_correlation", "spearman_correlation")


# Each figure by its textbook formula.


def binary_counts(predictions, labels):
    pairs = list(zip(predictions, labels, strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]  # tp, fp, fn, tn


def plain_f1(predictions, labels):
    tp, fp, fn, _ = binary_counts(predictions, labels)
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def plain_matthews(predictions, labels):
    tp, fp, fn, tn = binary_counts(predictions, labels)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / root if root else 0.0


def plain_pearson(x, y):
    x, y = np.subtract(x, np.mean(x)), np.subtract(y, np.mean(y))
    return np.dot(x, y) / math.sqrt(np.dot(x, x) * np.dot(y, y))


def mean_ranks(values):
    """Ranks from 1; equal values share the mean of theirs."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


@pytest.mark.parametrize("seed", range(20))
def test_two_classes_by_formula(seed):
    generator = np.random.default_rng(seed)
    labels = (generator.random(41) < 0.6).astype(int)
    predictions = np.where(generator.random(41) < 0.7, labels, 1 - labels)
    lists = predictions.tolist(), labels.tolist()
    assert METRICS["accuracy"](predictions, labels) == sum(map(int.__eq__, *lists)) / 41
    assert METRICS["f1"](predictions, labels) == pytest.approx(plain_f1(*lists), abs=1e-12)
    assert METRICS["matthews_correlation"](predictions, labels) == pytest.approx(
        plain_matthews(*lists), abs=1e-12
    )


def test_f1_is_that_of_class_1_and_tells_predictions_from_labels():
    assert metrics.f1([1, 0, 0, 0], [1, 1, 1, 0]) == pytest.approx(0.5)
    assert metrics.f1([0, 0, 0], [0, 0, 0]) == 0.0
    assert metrics.f1([1, 1, 0], [True, True, False]) == 1.0
    # Three classes: the labels lack class 2, which is predicted; class 3 is nowhere.
    assert metrics.macro_f1([0, 1, 2, 1], [0, 1, 1, 1]) == pytest.approx((1 + 0.8 + 0) / 3)


def test_matthews_of_several_classes_and_of_one():
    assert metrics.matthews_correlation([0, 1, 2, 0], [0, 1, 2, 0]) == pytest.approx(1.0)
    assert metrics.matthews_correlation([0, 1, 0, 1], [1, 0, 1, 0]) == pytest.approx(-1.0)
    for predictions, labels in (([1, 1, 1], [1, 0, 1]), ([1, 0, 1], [0, 0, 0]), ([1, 1], [1, 1])):
        assert metrics.matthews_correlation(predictions, labels) == 0.0


@pytest.mark.parametrize("seed", range(10))
def test_correlations_by_formula(seed):
    generator = np.random.default_rng(seed)
    labels = np.round(generator.random(37) * 5, 1)  # with ties
    predictions = np.float32(np.round(labels**2 + generator.normal(size=37), 1))
    assert METRICS["pearson_correlation"](predictions, labels) == pytest.approx(
        plain_pearson(predictions.astype(float), labels), abs=1e-12
    )
    assert METRICS["spearman_correlation"](predictions, labels) == pytest.approx(
        plain_pearson(mean_ranks(predictions), mean_ranks(labels)), abs=1e-12
    )
    assert metrics.spearman_correlation(np.exp(labels), labels) == pytest.approx(1.0)
    assert metrics.pearson_correlation(-labels, labels) == pytest.approx(-1.0)


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize(
    "predictions, labels",
    [
        ([2.5] * 5, [0.0, 1.0, 2.0, 3.0, 4.0]),
        ([0.0, 1.0, 2.0, 3.0, 4.0], [5.0] * 5),
        ([0.1] * 3, [0.1] * 3),
        ([1e308, 1.5e308, 1.7e308], [1.0, 2.0, 4.0]),
    ],
)
def test_correlation_with_what_does_not_vary_is_a_number(name, predictions, labels):
    value = METRICS[name](predictions, labels)  # warnings are errors
    assert -1 <= value <= 1
    if len(set(predictions)) == 1 or len(set(labels)) == 1:
        assert value == 0.0


@pytest.mark.parametrize("name", CORRELATIONS)
def test_one_pair_has_no_correlation(name):
    with pytest.raises(ValueError, match="a correlation needs at least two examples, got one"):
        METRICS[name]([3.0], [2.0])


@pytest.mark.parametrize("name", CORRELATIONS)
def test_scores_that_hardly_vary_give_no_warning(name):
    predictions = 1e3 + np.array([1, 2, 3, 4]) * 1e-13
    assert METRICS[name](predictions, [1.0, 2.0, 3.0, 4.0]) > 0.8


def test_multi_label_figures():
    labels = np.float32([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
    predictions = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    # Of the labels: 2 right and 1 wrong; 1 right and 1 missed; neither true nor predicted.
    assert METRICS["multi_label_micro_f1"](predictions, labels) == pytest.approx(6 / 8)
    assert METRICS["multi_label_macro_f1"](predictions, labels) == pytest.approx((0.8 + 2 / 3) / 3)
    assert METRICS["multi_label_subset_accuracy"](predictions, labels) == 0.5
    # One label is not two classes: its zeros have no F1 of their own.
    for name in MULTI_LABEL[:2]:
        assert METRICS[name](predictions[:, :1], labels[:, :1]) == pytest.approx(0.8)
        assert METRICS[name](0 * predictions, 0 * labels) == 0.0


def well_shaped(name):
    values = [[1, 0], [0, 1]] if name in MULTI_LABEL else [1, 0]
    return values, values


@pytest.mark.parametrize("name", METRICS)
def test_a_figure_is_a_float_between_its_bounds(name):
    values = well_shaped(name)
    result = METRICS[name](*values)
    assert type(result) is float and result == pytest.approx(1.0)
    assert METRICS[name].__name__ == name


@pytest.mark.parametrize("name", METRICS)
def test_empty_and_misshapen_input_is_refused(name):
    figure = METRICS[name]
    values, _ = well_shaped(name)
    empty = np.zeros((0, 2) if name in MULTI_LABEL else 0, int)
    with pytest.raises(ValueError, match="expected at least one example"):
        figure(empty, empty)
    with pytest.raises(ValueError, match=r"expected one shape, got \[.*\] and \[.*\]"):
        figure(values, values * 2)
    with pytest.raises(ValueError, match=r"predictions: expected shape \[N.*\], got \[1, "):
        figure([values], [values])
    with pytest.raises(ValueError, match="labels: expected numbers"):
        figure(values, np.asarray(values).astype(str))


@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "matthews_correlation"])
def test_scores_in_the_place_of_classes_are_refused(name):
    with pytest.raises(ValueError, match="predictions: expected classes"):
        METRICS[name]([0.2, 0.9], [0, 1])


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="labels: expected 0 or 1 each, got 2"):
        metrics.f1([0, 1, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"predictions: expected 0 or 1 each, got 0\.5"):
        metrics.multi_label_micro_f1([[0.5, 1]], [[0, 1]])
    for name in CORRELATIONS:
        with pytest.raises(
            ValueError, match="predictions: expected finite scores, got nan at row 1"
        ):
            METRICS[name]([0.0, math.nan], [1.0, 2.0])


def test_neither_library_is_loaded_before_it_is_needed():
    code = (
        "import sys, bert_tf.tasks.metrics as m, bert_tf.tasks.entity_metrics as e\n"
        "m.accuracy([1], [1]); e.entity_scores([['O']], [['O']])\n"
        "print(sorted({'sklearn', 'scipy', 'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Named entities


def golden_cases(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", ["conlleval_pl", "conlleval_py"])
def test_reports_are_those_of_the_scripts(script):
    cases = golden_cases(script)
    assert len(cases) == 40
    for number, case in enumerate(cases):
        true, predicted = ([line.split() for line in case[key]] for key in ("true", "predicted"))
        expected = case["report"]
        report = entity_scores(true, predicted).report()
        if script == "conlleval_pl":
            assert report == expected, number
        else:  # its figures are rounded after another order of operations
            assert len(report.split()) == len(expected.split())
            for ours, theirs in zip(report.split(), expected.split(), strict=True):
                if ours != theirs:
                    assert float(ours.rstrip("%;")) == pytest.approx(
                        float(theirs.rstrip("%;")), abs=0.0101
                    ), number


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("I-A I-A O I-A", [("A", 0, 2), ("A", 3, 4)]),
        ("I-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),  # IOB1: B- parts neighbours
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),
        ("O B-A B-A O", [("A", 1, 2), ("A", 2, 3)]),
        ("B-A I-A E-A I-A", [("A", 0, 3), ("A", 3, 4)]),
        ("S-A S-A E-A E-A", [("A", 0, 1), ("A", 1, 2), ("A", 2, 3), ("A", 3, 4)]),
        ("B-A E-A B-A E-A", [("A", 0, 2), ("A", 2, 4)]),
        ("B-A S-A I-A", [("A", 0, 1), ("A", 1, 2), ("A", 2, 3)]),
        ("B-a-b I-a-b I-a-c", [("a-b", 0, 2), ("a-c", 2, 3)]),
        ("O O", []),
        ("", []),
    ],
)
def test_chunks(tags, expected):
    assert chunks(tags.split()) == expected


def test_a_chunk_counts_only_whole_and_within_its_sentence():
    true = [["B-PER", "I-PER"], ["I-PER", "O"]]
    scores = entity_scores(true, [["B-PER", "O"], ["I-PER", "O"]])
    assert (scores.num_true, scores.num_predicted, scores.num_correct) == (2, 2, 1)
    assert (scores.precision, scores.recall, scores.f1, scores.accuracy) == (50, 50, 50, 75)
    scores = entity_scores(true, [["B-PER", "I-PER"], ["B-PER", "O"]])
    assert scores.f1 == 100 and scores.accuracy == 75  # another tag for the same chunk
    assert scores.by_type == {"PER": ChunkScores(2, 2, 2)}


def test_no_chunks_at_all_is_zero_without_warnings():
    scores = entity_scores([["O", "O"]], [["O", "O"]])
    assert (scores.precision, scores.recall, scores.f1, scores.accuracy) == (0, 0, 0, 100)
    assert scores.report() == (
        "processed 2 tokens with 0 phrases; found: 0 phrases; correct: 0.\n"
        "accuracy: 100.00%; precision:   0.00%; recall:   0.00%; FB1:   0.00\n"
    )


def test_types_that_are_only_true_or_only_predicted_are_in_the_table():
    scores = entity_scores([["B-B", "O"]], [["O", "B-A"]])
    assert list(scores.by_type) == ["A", "B"]
    assert scores.by_type["A"] == ChunkScores(0, 1, 0)
    assert scores.by_type["B"] == ChunkScores(1, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_scores_change_sides_with_their_arguments(seed):
    generator = random.Random(seed)
    tags = ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"]
    first, second = (
        [[generator.choice(tags) for _ in range(7)] for _ in range(11)] for _ in range(2)
    )
    there, back = entity_scores(first, second), entity_scores(second, first)
    assert there.precision == back.recall and there.f1 == pytest.approx(back.f1)
    assert entity_scores(first, first).f1 == 100


@pytest.mark.parametrize("tag", ["B", "", "B-", "PER", "V-PER", "b-PER", "O-PER", "B-A B"])
def test_unknown_tags_are_refused(tag):
    with pytest.raises(ValueError, match=f"expected a tag, .* got '{tag}'"):
        entity_scores([["O"], ["O", "B-A", "O"]], [["O"], ["O", "O", tag]])
    with pytest.raises(ValueError, match=f"word 1: expected a tag, .* got '{tag}'"):
        chunks(["O", tag], tag_scheme(["B-A", "I-A"]))


def test_entity_scores_refuse_what_does_not_match():
    with pytest.raises(ValueError, match="expected the tags of 2 sentences, got 1"):
        entity_scores([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="expected 2 tags of sentence 1, got 1"):
        entity_scores([["O"], ["O", "O"]], [["O"], ["O"]])
    for empty in ([], [[]]):
        with pytest.raises(ValueError, match="at least one word"):
            entity_scores(empty, empty)
