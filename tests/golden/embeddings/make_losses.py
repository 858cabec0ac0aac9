"""Makes losses.npz: the losses of sentence-transformers and their gradients, on random vectors.

    python tests/golden/embeddings/make_losses.py      (sentence-transformers 6.2.0, torch 2.13.0)

MultipleNegativesRankingLoss (scale 20, cosines) of pairs and of triplets, CosineSimilarityLoss, and
SimCSE's equation 1 at temperature 0.05, written out with torch. Figures of a search are those of
InformationRetrievalEvaluator.
"""

import pathlib

import numpy as np
import torch
from sentence_transformers import losses
from sentence_transformers.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim

BATCH, TEXTS, SIZE = 7, 3, 11
QUERIES, DOCUMENTS = 13, 37


class Given(torch.nn.Module):
    """A model whose vectors are its input."""

    def forward(self, features):
        return features


def gradient(loss, vectors):
    value = loss(vectors)
    (found,) = torch.autograd.grad(value, vectors)
    return value.detach().numpy(), found.numpy()


def main():
    rng = np.random.default_rng(5)
    array = rng.normal(size=(BATCH, TEXTS, SIZE)).astype(np.float32)
    scores = rng.uniform(-0.2, 1, BATCH).astype(np.float32)
    vectors = torch.tensor(array, requires_grad=True)
    ranking = losses.MultipleNegativesRankingLoss(Given(), scale=20.0)
    cosine = losses.CosineSimilarityLoss(Given())

    def named(rows):
        return [{"sentence_embedding": rows[:, i]} for i in range(rows.shape[1])]

    def simcse(rows):
        first, second = (torch.nn.functional.normalize(rows[:, i], dim=-1) for i in range(2))
        return -torch.log_softmax(first @ second.T / 0.05, dim=-1).diagonal().mean()

    made = {"vectors": array, "scores": scores}
    for name, loss in {
        "pairs": lambda rows: ranking(named(rows[:, :2]), None),
        "triplets": lambda rows: ranking(named(rows), None),
        "cosine": lambda rows: cosine(named(rows[:, :2]), torch.tensor(scores)),
        "simcse": simcse,
    }.items():
        made[name], made[f"{name}_gradient"] = gradient(loss, vectors)
    queries = rng.normal(size=(QUERIES, SIZE)).astype(np.float32)
    documents = rng.normal(size=(DOCUMENTS, SIZE)).astype(np.float32)
    documents[:QUERIES] += queries  # the partner of each is found more often than not
    relevant = {q: {q, *rng.choice(DOCUMENTS, q % 3).tolist()} for q in range(QUERIES)}
    evaluator = InformationRetrievalEvaluator(
        {str(q): str(q) for q in range(QUERIES)},
        {str(d): str(d) for d in range(DOCUMENTS)},
        {str(q): set(map(str, found)) for q, found in relevant.items()},
        mrr_at_k=[10],
        ndcg_at_k=[10],
        precision_recall_at_k=[1, 10],
        accuracy_at_k=[1],
        map_at_k=[10],
        score_functions={"cosine": cos_sim},
    )

    class Stored:
        """A model that knows the vectors of the texts by their numbers."""

        def encode(self, sentences, **_):
            table = queries if len(sentences) == QUERIES else documents
            return torch.tensor(table[list(map(int, sentences))])

        encode_query = encode_document = encode

    found = evaluator.compute_metrices(Stored())["cosine"]
    made |= {
        "queries": queries,
        "documents": documents,
        "relevant": np.array(
            [[d in relevant[q] for d in range(DOCUMENTS)] for q in range(QUERIES)]
        ),
        "mrr_at_10": found["mrr@k"][10],
        "ndcg_at_10": found["ndcg@k"][10],
        "recall_at_1": found["recall@k"][1],
        "recall_at_10": found["recall@k"][10],
    }
    np.savez_compressed(pathlib.Path(__file__).with_name("losses.npz"), **made)


if __name__ == "__main__":
    main()
