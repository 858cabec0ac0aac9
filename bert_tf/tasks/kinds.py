"""The kinds of tasks, one row each: all that tells one kind from another.

A new kind is one row of KINDS, one reader (`data_prep.finetuning.kinds`) and one served class
(`serving.load.SERVED`). What needs Keras or TensorFlow is named here by a key of the room that has
it; `tests/tasks/test_kinds.py` names the room that lacks one.

Shapes: N examples, K labels, C choices.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from bert_tf.records.schema import (
    FeatureSpec,
    classification_features,
    multi_label_features,
    multiple_choice_features,
    regression_features,
    retrieval_features,
    similarity_features,
    span_features,
    token_classification_features,
)
from bert_tf.tasks.metrics import METRICS


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a kind of task is.

    Attributes:
        schema: (max_seq_length, number of labels, choices) -> features of a record. Of a document
            in windows the length is that of all of them.
        labels: what an example's label is: one number, a row of K, one for each token, one for each
            of its texts, or a span.
        head: key of `models.HEADS`.
        loss: key of `training.objectives.LOSSES`.
        served_by: key of `serving.load.SERVED`.
        metrics: what a task is scored by, the first for choosing among runs.
        binary_metrics: the same for a task with two labels; None if they do not differ.
        least_labels: how many names of labels a task needs; 0 where labels have no names, or the
            training data name them.
        num_outputs: logits of the head where labels do not say how many; None where they do.
        has_choices: whether an example is C sequences.
        decide: logits [N, ...] -> predictions, as `metrics` takes them.
        probabilities: float64 logits [N, ...] -> what a table of predictions shows.
        constant_figure: (labels [N, ...], metric) -> what the best constant answer has in the
            metric; None where no answer is known to be the best.
    """

    schema: Callable[[int, int, int], tuple[FeatureSpec, ...]]
    labels: Literal["one", "row", "token", "text", "span"]
    head: str
    loss: str
    served_by: str
    metrics: tuple[str, ...]
    decide: Callable[[np.ndarray], np.ndarray]
    probabilities: Callable[[np.ndarray], np.ndarray]
    constant_figure: Callable[[np.ndarray, str], float | None]
    binary_metrics: tuple[str, ...] | None = None
    least_labels: int = 0
    num_outputs: int | None = None
    has_choices: bool = False

    @property
    def per_token(self) -> bool:
        """Whether a model of this kind gives a value for each token."""
        return self.labels in ("token", "span")

    @property
    def takes_windows(self) -> bool:
        """Whether an example may be a document in windows, whose vectors become one."""
        return not self.per_token and not self.has_choices


def _most_likely(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=-1)


def _positive(logits: np.ndarray) -> np.ndarray:
    return (logits > 0).astype(np.int64)


def _only(logits: np.ndarray) -> np.ndarray:
    return logits[:, 0]


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy import special

    return special.softmax(logits, axis=-1)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    from scipy import special

    return special.expit(logits)


def _best_label(labels: np.ndarray, metric: str) -> float:
    answers = [np.full_like(labels, label) for label in np.unique(labels)]
    return max(METRICS[metric](answer, labels) for answer in answers)


def _zero(labels: np.ndarray, metric: str) -> float:
    return 0.0


def _unknown(labels: np.ndarray, metric: str) -> None:
    return None


def _cosine(vectors: np.ndarray) -> np.ndarray:
    first, second = np.moveaxis(vectors[:, :2].astype(np.float64), 1, 0)
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(axis=-1) / np.maximum(norms, 1e-24)


def _needs_documents(logits: np.ndarray) -> np.ndarray:
    raise ValueError("span: logits become answers with their documents: see `decode_answers`")


KINDS: dict[str, Kind] = {
    "classification": Kind(
        schema=lambda length, *_: classification_features(length),
        labels="one",
        head="classification",
        loss="classification",
        served_by="classification",
        metrics=("accuracy", "macro_f1"),
        binary_metrics=("accuracy", "f1"),  # f1 is that of the second label, as in GLUE
        least_labels=2,
        decide=_most_likely,
        probabilities=_softmax,
        constant_figure=_best_label,
    ),
    "regression": Kind(
        schema=lambda length, *_: regression_features(length),
        labels="one",
        head="classification",  # a classifier of one logit, as in the original
        loss="regression",
        served_by="regression",
        metrics=("pearson_correlation", "spearman_correlation"),
        num_outputs=1,
        decide=_only,
        probabilities=lambda logits: logits,
        constant_figure=_zero,
    ),
    "multi_label": Kind(
        schema=lambda length, num_labels, _: multi_label_features(length, num_labels),
        labels="row",
        head="classification",  # whose logits are read each by itself
        loss="multi_label",
        served_by="multi_label",
        metrics=("multi_label_micro_f1", "multi_label_macro_f1", "multi_label_subset_accuracy"),
        least_labels=1,
        decide=_positive,
        probabilities=_sigmoid,
        constant_figure=_unknown,
    ),
    "multiple_choice": Kind(
        schema=lambda length, _, num_choices: multiple_choice_features(length, num_choices),
        labels="one",
        head="multiple_choice",
        loss="classification",
        served_by="multiple_choice",
        metrics=("accuracy",),
        has_choices=True,
        decide=_most_likely,
        probabilities=_softmax,
        constant_figure=_best_label,
    ),
    "token_classification": Kind(
        schema=lambda length, *_: token_classification_features(length),
        labels="token",
        head="token_classification",
        loss="classification",
        served_by="token_classification",
        metrics=("entity_f1",),
        decide=_most_likely,
        probabilities=_softmax,
        constant_figure=_zero,  # "O" everywhere finds no entity
    ),
    # Both give a text a vector: learned from numbers that say how like two texts are, or from pairs
    # that belong together.
    "similarity": Kind(
        schema=lambda length, _, num_texts: similarity_features(length, num_texts),
        labels="one",
        head="encoder",
        loss="cosine_similarity",
        served_by="embeddings",
        metrics=("spearman_correlation", "pearson_correlation"),
        has_choices=True,
        decide=_cosine,
        probabilities=_cosine,
        constant_figure=_zero,
    ),
    "retrieval": Kind(
        schema=lambda length, _, num_texts: retrieval_features(length, num_texts),
        labels="text",
        head="encoder",
        loss="multiple_negatives",
        served_by="embeddings",
        metrics=("mrr_at_10", "ndcg_at_10", "recall_at_1", "recall_at_10"),
        has_choices=True,
        decide=_cosine,
        probabilities=_cosine,
        constant_figure=_unknown,
    ),
    "span": Kind(
        schema=lambda length, *_: span_features(length),
        labels="span",
        head="span",
        loss="span",
        served_by="question_answering",
        metrics=("f1", "exact_match"),
        decide=_needs_documents,
        probabilities=_needs_documents,
        constant_figure=_unknown,
    ),
}


def get_kind(name: str) -> Kind:
    """Look a kind up.

    Raises:
        ValueError: no such kind; the message lists all.
    """
    if not isinstance(name, str) or name not in KINDS:  # what files say may be anything
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]
