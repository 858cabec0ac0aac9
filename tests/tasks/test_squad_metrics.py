import collections
import importlib.util
import json
import pathlib
import random

import pytest

from bert_tf.tasks.squad_metrics import (
    evaluate_v1,
    evaluate_v2,
    exact_match,
    f1_v1,
    f1_v2,
    normalize_answer,
    read_references,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "squad"


def _load_make_golden():
    spec = importlib.util.spec_from_file_location("make_golden_squad", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load_make_golden()
SCORES = json.loads((GOLDEN / "own.json").read_text(encoding="utf-8"))["scores"]


# Against the official scripts.


def test_version_1_equals_the_official_script():
    answers, _ = golden.odd_predictions(golden.select("v1.json", GOLDEN))
    scores = evaluate_v1(read_references(GOLDEN / "v1.json"), answers)
    assert scores == SCORES["v1"] and list(scores) == list(SCORES["v1"])


@pytest.mark.parametrize(
    ("name", "with_odds", "threshold"),
    [("v2", True, 1.0), ("v2_low", True, -0.5), ("v2_without_odds", False, 1.0)],
)
def test_version_2_equals_the_official_script(name, with_odds, threshold):
    answers, odds = golden.odd_predictions(golden.select("v2.json", GOLDEN))
    references = read_references(GOLDEN / "v2.json")
    scores = evaluate_v2(references, answers, odds if with_odds else None, threshold)
    assert scores == SCORES[name] and list(scores) == list(SCORES[name])


# Texts.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tsat.", "cat sat"),
        ("A.N. Other", "other"),  # the points go first, which makes an article
        ("a-n", ""),
        ("theatre an", "theatre"),
        ("\u00abThe\u00bb \u2013 x", "\u00ab \u00bb \u2013 x"),  # only ASCII punctuation goes
        ("\u00c9t\u00e9 the\u00e9", "\u00e9t\u00e9 the\u00e9"),
        ("a\u00a0b", "b"),
        ("$9.99", "999"),
        ("...", ""),
    ],
)
def test_normalizing(text, expected):
    assert normalize_answer(text) == expected


def test_versions_differ_where_nothing_is_left():
    for prediction, reference, first, second in [
        ("", "", 0.0, 1.0),
        ("the", "", 0.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("the", "cat", 0.0, 0.0),
        ("a big cat", "the cat", 2 / 3, 2 / 3),
        ("cat cat", "cat", 2 / 3, 2 / 3),
        ("dog", "cat", 0.0, 0.0),
    ]:
        assert f1_v1(prediction, reference) == pytest.approx(first)
        assert f1_v2(prediction, reference) == pytest.approx(second)
    assert exact_match("", "the") and not exact_match("a cat", "dog")


def test_f1_is_symmetric_and_bounded():
    rng = random.Random(5)
    words = ["a", "the", "cat", "Cat", "dog.", "x", "", "1,2", "\u00e9"]
    for _ in range(500):
        one, two = (" ".join(rng.choices(words, k=rng.randrange(6))) for _ in range(2))
        for f1 in (f1_v1, f1_v2):
            assert f1(one, two) == pytest.approx(f1(two, one), abs=1e-15)
            assert 0 <= f1(one, two) <= 1
        bags = [collections.Counter(normalize_answer(text).split()) for text in (one, two)]
        assert (f1_v2(one, two) == 1) == (bags[0] == bags[1])
        assert f1_v1(one, two) == (f1_v2(one, two) if all(bags) else 0)
        if exact_match(one, two):
            assert f1_v2(one, two) == 1


# Evaluation.


def test_best_reference_counts():
    scores = evaluate_v1(
        {"q": ("dog", "the big cat"), "p": ("x",)}, {"q": "big", "p": "X", "r": ""}
    )
    assert scores == {"exact_match": 50.0, "f1": pytest.approx(100 * (2 / 3 + 1) / 2)}


def test_unanswered_questions_of_version_1_count_nothing_and_are_told():
    with pytest.warns(UserWarning, match="1 of 2 questions have none and count 0, .* 'p'"):
        scores = evaluate_v1({"q": ("dog",), "p": ("x",)}, {"q": "dog"})
    assert scores == {"exact_match": 50.0, "f1": 50.0}


def test_references_that_normalize_to_nothing():
    # The question counts as one with an answer, but only the empty text equals what is left.
    scores = evaluate_v2({"q": ("the",), "p": ("the", "cat")}, {"q": "", "p": ""})
    assert scores == {
        "exact": 50.0,
        "f1": 50.0,
        "total": 2,
        "HasAns_exact": 50.0,
        "HasAns_f1": 50.0,
        "HasAns_total": 2,
    }


def test_threshold_replaces_predictions():
    references = {"has": ("cat",), "none": (), "kept": ("dog",)}
    predictions = {"has": "cat", "none": "bird", "kept": "dog"}
    odds = {"has": 2.0, "none": 2.0, "kept": 1.0}
    for threshold, exact in ((1.0, 200 / 3), (2.0, 200 / 3), (0.5, 100 / 3)):
        scores = evaluate_v2(references, predictions, odds, threshold)
        assert scores["exact"] == pytest.approx(exact)
        # Equal odds are taken one by one, and has comes before none.
        assert (scores["best_exact"], scores["best_exact_thresh"]) == (100.0, 2.0)
    zero = evaluate_v2(references, predictions, None, -1.0)
    assert (zero["HasAns_exact"], zero["NoAns_exact"]) == (0.0, 100.0) and "best_f1" not in zero


def test_best_threshold_is_the_best_of_all():
    rng = random.Random(9)
    for _ in range(200):
        names = [f"q{i}" for i in range(rng.randrange(1, 12))]
        references = {name: ("cat",) if rng.random() < 0.5 else () for name in names}
        predictions = {name: rng.choice(["cat", "", "a big cat", "dog"]) for name in names}
        odds = {name: value / 4 for value, name in enumerate(rng.sample(names, len(names)))}
        scores = evaluate_v2(references, predictions, odds, 1e9)
        for key in ("exact", "f1"):
            best, threshold = scores[f"best_{key}"], scores[f"best_{key}_thresh"]
            tried = {
                t: evaluate_v2(references, predictions, odds, t)[key] for t in [-1, *odds.values()]
            }
            assert best == pytest.approx(max(tried.values()))
            reached = threshold if tried[-1] < best else -1  # 0.0 stands for answering nothing
            assert tried[reached] == pytest.approx(best)


def test_of_equally_good_thresholds_the_lowest_counts():
    references = {"none": (), "wrong": ("cat",), "right": ("dog",), "last": ("x",)}
    predictions = {"none": "", "wrong": "dog", "right": "dog", "last": "y"}
    odds = {"none": -2.0, "wrong": -1.0, "right": 0.5, "last": 3.0}
    scores = evaluate_v2(references, predictions, odds)
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (50.0, 0.5)
    assert evaluate_v2(references, predictions, {"of another file": -9.0, **odds}) == scores
    predictions["right"] = "cat"
    scores = evaluate_v2(references, predictions, odds)
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (25.0, 0.0)


@pytest.mark.parametrize(
    ("evaluate", "references", "rest", "said"),
    [
        (evaluate_v1, {}, ({},), "references: expected at least one question, got none"),
        (evaluate_v1, {"q": ()}, ({"q": "x"},), "question 'q' has no answer, .* use evaluate_v2"),
        (evaluate_v1, {"q": ("x",)}, ({"q": None},), "expected text for question 'q', got None"),
        (evaluate_v2, {}, ({},), "references: expected at least one question, got none"),
        (evaluate_v2, {"q": (), "p": ()}, ({"q": ""},), "predictions: 1 of 2 .* first is 'p'"),
        (evaluate_v2, {"q": ()}, ({"q": ""}, {"p": 1.0}), "na_probs: 1 of 1 .* first is 'q'"),
        (evaluate_v2, {"q": ()}, ({"q": 3},), "expected text for question 'q', got 3"),
    ],
)
def test_bad_input_is_named(evaluate, references, rest, said):
    with pytest.raises(ValueError, match=said):
        evaluate(references, *rest)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected the JSON of SQuAD"),
        ("[]", "expected the JSON of SQuAD"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "q"}]}]}]}', "lacks 'answers'; to evaluate"),
        ('{"data": []}', "expected questions, got none"),
        (
            '{"data": [{"paragraphs": [{"qas": [{"id": "q", "answers": []},'
            '{"id": "q", "answers": []}]}]}]}',
            "expected distinct question ids, got 'q' 2 times",
        ),
    ],
)
def test_files_that_are_not_squad_are_named(tmp_path, content, said):
    path = tmp_path / "squad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        read_references(path)
    assert str(path) in str(error.value)
