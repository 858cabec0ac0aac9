"""Every room knows the keys that the rows of kinds name, and no other."""

import numpy as np
import pytest

from bert_tf.input_pipeline.finetuning import _LABELS
from bert_tf.models.task_models import HEADS
from bert_tf.serving.load import SERVED
from bert_tf.tasks.kinds import KINDS, get_kind
from bert_tf.tasks.metrics import METRICS
from bert_tf.training.objectives import LOSSES
from data_prep.finetuning.kinds import READERS

# Keys of each room, and those of them that are not for a kind of task.
ROOMS = {
    "models.task_models.HEADS": (
        "head",
        set(HEADS),
        {"pretraining", "next_sentence"},
    ),
    "training.objectives.LOSSES": ("loss", set(LOSSES), set()),
    "input_pipeline.finetuning._LABELS": ("labels", set(_LABELS), set()),
    "serving.load.SERVED": (
        "served_by",
        set(SERVED),
        {"fill_mask", "next_sentence"},
    ),
}
# Scores of answers and entities need documents and tags, and those of a search all texts together,
# so they are no functions of predictions and labels.
OTHER_METRICS = {"entity_f1", "exact_match", "f1"}
OTHER_METRICS |= {"mrr_at_10", "ndcg_at_10", "recall_at_1", "recall_at_10"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_knows_the_keys_of_the_kinds(room):
    field, keys, others = ROOMS[room]
    named = {getattr(kind, field) for kind in KINDS.values()}
    assert not named - keys, f"{room} lacks {named - keys}"
    assert keys - named == others, f"{room} has keys that no kind names"


def test_every_kind_has_a_reader():
    assert set(READERS) == set(KINDS), "data_prep.finetuning.kinds.READERS"


@pytest.mark.parametrize("name", KINDS)
def test_rows_agree_with_what_they_name(name):
    kind = KINDS[name]
    assert SERVED[kind.served_by].head == kind.head
    assert {*kind.metrics, *(kind.binary_metrics or ())} <= {*METRICS, *OTHER_METRICS}
    needs_number = HEADS[kind.head].has_labels
    names = {feature.name for feature in kind.schema(5, 3, 2)}
    assert {"input_ids", "input_mask", "segment_ids"} <= names
    assert ("label_ids" in names) == (kind.labels != "span")
    widths = {feature.name: feature.length for feature in kind.schema(5, 3, 2)}
    assert widths["input_ids"] == (10 if kind.has_choices else 5)
    if kind.labels != "span":
        assert widths["label_ids"] == {"one": 1, "row": 3, "token": 5, "text": 2}[kind.labels]
    assert needs_number or kind.num_outputs is None


def test_no_two_kinds_are_served_alike_but_those_of_vectors():
    served = [kind.served_by for kind in KINDS.values()]
    assert served.count("embeddings") == 2
    assert len(set(served)) == len(served) - 1


LOGITS = np.array([[-1.0, 2.0, 0.5], [3.0, -2.0, 0.25]], np.float32)


def test_decisions_and_probabilities():
    for name in ("classification", "multiple_choice", "token_classification"):
        kind = KINDS[name]
        np.testing.assert_array_equal(kind.decide(LOGITS), [1, 0])
        np.testing.assert_allclose(kind.probabilities(LOGITS).sum(axis=-1), 1, rtol=1e-6)
    kind = KINDS["multi_label"]
    np.testing.assert_array_equal(kind.decide(LOGITS), [[0, 1, 1], [1, 0, 1]])
    np.testing.assert_allclose(kind.probabilities(LOGITS), 1 / (1 + np.exp(-LOGITS)), rtol=1e-6)
    vectors = np.array([[[1, 0], [3, 4]], [[2, 0], [0, 0]]], np.float32)
    for name in ("similarity", "retrieval"):
        np.testing.assert_allclose(KINDS[name].decide(vectors), [0.6, 0])
    kind = KINDS["regression"]
    np.testing.assert_array_equal(kind.decide(LOGITS[:, :1]), [-1.0, 3.0])
    np.testing.assert_array_equal(kind.probabilities(LOGITS[:, :1]), LOGITS[:, :1])
    with pytest.raises(ValueError, match="span: .* documents"):
        KINDS["span"].decide(LOGITS)


def test_constant_answers():
    labels = np.array([0, 1, 1, 2, 1])
    assert KINDS["classification"].constant_figure(labels, "accuracy") == 0.6
    assert KINDS["multiple_choice"].constant_figure(labels, "accuracy") == 0.6
    assert KINDS["regression"].constant_figure(labels, "pearson_correlation") == 0.0
    assert KINDS["token_classification"].constant_figure(labels, "entity_f1") == 0.0
    assert KINDS["multi_label"].constant_figure(labels, "multi_label_micro_f1") is None
    assert KINDS["span"].constant_figure(labels, "f1") is None


def test_a_kind_that_is_not_there():
    with pytest.raises(ValueError, match="kind: expected one of classification, .* got 'ner'"):
        get_kind("ner")
