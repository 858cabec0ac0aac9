"""Figures of a search are those of sentence-transformers and of scikit-learn."""

import pathlib

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from bert_tf.tasks.retrieval_metrics import retrieval_scores

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "embeddings" / "losses.npz"
NAMES = ("mrr_at_10", "ndcg_at_10", "recall_at_1", "recall_at_10")


def test_figures_are_those_of_sentence_transformers():
    golden = np.load(GOLDEN)
    relevant = [set(np.flatnonzero(row)) for row in golden["relevant"]]
    found = retrieval_scores(golden["queries"], golden["documents"], relevant)
    assert tuple(found) == NAMES
    for name in NAMES:
        assert found[name] == pytest.approx(float(golden[name]), rel=1e-6), name
    assert 0.3 < found["recall_at_1"] < 0.95


def test_ndcg_is_that_of_scikit_learn():
    rng = np.random.default_rng(7)
    queries, documents = rng.normal(size=(5, 3)), rng.normal(size=(43, 3))
    gains = rng.random((5, 43)) < 0.4  # more than ten for some
    found = retrieval_scores(queries, documents, [set(np.flatnonzero(row)) for row in gains])
    unit = documents / np.linalg.norm(documents, axis=-1, keepdims=True)
    expected = ndcg_score(gains.astype(float), queries @ unit.T, k=10)
    assert found["ndcg_at_10"] == pytest.approx(expected, rel=1e-9)


def test_vectors_that_are_all_alike_gain_nothing():
    found = retrieval_scores(np.ones((2, 3)), np.ones((17, 3)), [{0}, {3, 5}])
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_find_nothing(value):
    good = np.eye(3)
    bad = np.full((3, 3), value)
    for queries, documents in ((bad, bad), (bad, good), (good, bad), (bad[:1], bad[:1])):
        relevant = [{i} for i in range(len(queries))]
        assert set(retrieval_scores(queries, documents, relevant).values()) == {0.0}
    # One such document comes before those of other queries.
    documents = np.where(np.arange(3)[:, None] == 1, value, good)
    found = retrieval_scores(good, documents, [{0}, {1}, {2}])
    assert found["recall_at_1"] == 0 and found["recall_at_10"] == pytest.approx(2 / 3)
    assert found["mrr_at_10"] == pytest.approx(2 / 3 / 2)


def test_a_document_that_a_query_is_not_compared_with_is_no_rival():
    queries = np.eye(3)[:2]
    documents = np.array([[1, 0, 0], [1, 0.1, 0], [0, 1, 0]])
    found = retrieval_scores(queries, documents, [{1}, {2}], [{0}, ()])
    assert set(found.values()) == {1.0}
    assert retrieval_scores(queries, documents, [{1}, {2}])["recall_at_1"] == 0.5
    # What is relevant counts all the same.
    assert retrieval_scores(queries, documents, [{0}, {2}], [{0}, ()])["recall_at_1"] == 1
    with pytest.raises(ValueError, match="left_out: expected one for each of 2 queries, got 1"):
        retrieval_scores(queries, documents, [{1}, {2}], [()])


@pytest.mark.parametrize(
    ("relevant", "message"),
    [
        ([{0}], "expected a set of documents for each query, .* got 1 for 2"),
        ([{0}, set()], r"query 1: expected numbers of 0 to 2, got \[\]"),
        ([{3}, {0}], r"query 0: expected numbers of 0 to 2, got \[3\]"),
    ],
)
def test_what_is_refused(relevant, message):
    with pytest.raises(ValueError, match=message):
        retrieval_scores(np.ones((2, 5)), np.ones((3, 5)), relevant)
