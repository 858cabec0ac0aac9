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
