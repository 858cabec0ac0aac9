"""Figures of a search: how early what belongs to a query comes among documents.

Shapes: Q queries, N documents, D size of a vector.
"""

from collections.abc import Collection, Sequence

import numpy as np

RECALL_PLACES = (1, 10)
_PLACES = 10  # that MRR and nDCG look at
_QUERIES_AT_ONCE = 256


def retrieval_scores(
    queries: np.ndarray,
    documents: np.ndarray,
    relevant: Sequence[Collection[int]],
    left_out: Sequence[Collection[int]] | None = None,
) -> dict[str, float]:
    """Rank documents for each query by cosine, and score where the relevant ones come.

    Of documents with equal cosines a relevant one comes last, so that vectors which are all alike
    gain nothing; nor do those that are not finite, of a model that diverged.

    Args:
        queries: float [Q, D].
        documents: float [N, D].
        relevant: for each query the numbers of the documents that belong to it, at least one.
        left_out: for each query the numbers of those that it is not to be compared with; relevant
            ones count all the same.

    Returns:
        Means over queries, 0 to 1: "mrr_at_10", one over the place of the first relevant document
        if that is at most 10; "ndcg_at_10", with gains of 1; "recall_at_1" and "recall_at_10", the
        part of the relevant documents among so many.

    Raises:
        ValueError: there are no queries, not as many as sets of relevant documents, or a set is
            empty or names no document; left_out is not of as many.

    Reference: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques (2002).
    """
    left_out = [()] * len(queries) if left_out is None else left_out
    _check(queries, documents, relevant, left_out)
    queries, documents = _unit(queries), _unit(documents)
    discounts = 1 / np.log2(np.arange(2, _PLACES + 2))
    sums = dict.fromkeys(("mrr_at_10", "ndcg_at_10"), 0.0)
    sums |= {f"recall_at_{k}": 0.0 for k in RECALL_PLACES}
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        cosines = queries[start : start + _QUERIES_AT_ONCE] @ documents.T
        rows = zip(cosines, relevant[start:], left_out[start:], strict=False)
        for row, wanted, not_compared in rows:
            places = _places(row, wanted, not_compared)
            early = places[places < _PLACES]
            sums["mrr_at_10"] += 1 / (early[0] + 1) if len(early) else 0.0
            best = discounts[: len(wanted)].sum()
            sums["ndcg_at_10"] += discounts[early].sum() / best
            for k in RECALL_PLACES:
                sums[f"recall_at_{k}"] += np.count_nonzero(places < k) / len(wanted)
    return {name: float(total / len(queries)) for name, total in sums.items()}


def _places(cosines: np.ndarray, wanted: Collection[int], left_out: Collection[int]) -> np.ndarray:
    """Return the places, from 0 and ascending, of the wanted among documents [N].

    Those whose cosine is not finite have none.
    """
    own = cosines[list(wanted)]
    own = np.sort(own[np.isfinite(own)])[::-1]
    others = np.delete(cosines, [*wanted, *left_out])
    # Not >=: what is not finite comes before all.
    before = np.count_nonzero(~(others[None] < own[:, None]), axis=1)
    return before + np.arange(len(own))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    with np.errstate(invalid="ignore"):  # of what is not finite
        return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _check(
    queries: np.ndarray,
    documents: np.ndarray,
    relevant: Sequence[Collection[int]],
    left_out: Sequence[Collection[int]],
) -> None:
    if not len(queries) or len(queries) != len(relevant):
        raise ValueError(
            "relevant: expected a set of documents for each query, and at least one query; got "
            f"{len(relevant)} for {len(queries)}"
        )
    if len(left_out) != len(queries):
        raise ValueError(
            f"left_out: expected one for each of {len(queries)} queries, got {len(left_out)}"
        )
    for number, wanted in enumerate(relevant):
        if not wanted or min(wanted) < 0 or max(wanted) >= len(documents):
            raise ValueError(
                f"relevant: query {number}: expected numbers of 0 to {len(documents) - 1}, got "
                f"{sorted(wanted)}"
            )
