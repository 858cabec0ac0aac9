"""Tag schemes: what tags mean, which go together, and chunks as seqeval has them."""

import json
import pathlib

import pytest

from bert_tf.tasks.entity_metrics import chunks, entity_scores
from bert_tf.tasks.tag_schemes import check_tags, tag_scheme

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "ner" / "seqeval.json"


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ("O B-PER I-PER", "forms"),
        ("O B_PER I_PER", "forms"),
        ("O B-PER L-PER U-PER [CLS] [SEP] X", "forms"),
        ("O S-PER", "forms"),
        ("O", "forms"),
        ("B M E S", "untyped"),
        ("O B I", "untyped"),
        ("O PER LOC", "types"),
        ("O E-MAIL PHONE", "types"),
        ("NOUN VERB X", "words"),
        ("LABEL_0 LABEL_1", "words"),
        ("N S U E", "words"),
    ],
)
def test_kinds(tags, kind):
    assert tag_scheme(tags.split()).kind == kind
    assert check_tags(tags.split(), "labels").kind == kind


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("O B-PER PER", "labels: expected a tag, .* got 'PER', among B-PER O PER"),
        ("O I-PER NOUN", "got 'NOUN'"),
        ("O b-PER i-PER", "labels: expected forms in front .* got b-PER and i-PER"),
        ("O PER-B PER-I", "got PER-B and PER-I"),
        ("PER_B PER_I", "got PER_B and PER_I"),
    ],
)
def test_doubtful_mixtures_are_refused(tags, message):
    with pytest.raises(ValueError, match=message):
        check_tags(tags.split(), "labels")


@pytest.mark.parametrize(("count", "rest"), [(11, "B-10 PER$"), (12, "B-10 B-11 and 1 more$")])
def test_a_message_names_a_dozen_tags(count, rest):
    tags = [f"B-{number:02}" for number in range(count)]
    with pytest.raises(ValueError, match=f"got 'PER', among B-00 B-01 .* {rest}"):
        check_tags([*tags, "PER"], "labels")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-A I-A L-A U-A U-A", [("A", 0, 3), ("A", 3, 4), ("A", 4, 5)]),
        ("B-A M-A E-A S-A W-B", [("A", 0, 3), ("A", 3, 4), ("B", 4, 5)]),
        ("O B_A I_A B_A", [("A", 1, 3), ("A", 3, 4)]),
        ("B-A [SEP] I-A", [("A", 0, 1), ("A", 2, 3)]),
        ("A A O A B", [("A", 0, 2), ("A", 3, 4), ("B", 4, 5)]),
        ("N N V", [("N", 0, 1), ("N", 1, 2), ("V", 2, 3)]),
        ("B M E S B E", [("_", 0, 3), ("_", 3, 4), ("_", 4, 6)]),
    ],
)
def test_chunks(tags, expected):
    assert chunks(tags.split()) == expected


def test_scores_are_those_of_seqeval():
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert {case["scheme"] for case in cases} == {"IOB2", "IOBES", "BILOU", "default"}
    for case in cases:
        scores = entity_scores(case["true"], case["predicted"])
        found = [scores.precision / 100, scores.recall / 100, scores.f1 / 100]
        assert found == pytest.approx([case["precision"], case["recall"], case["f1"]])
        by_type = {name: s.f1 / 100 for name, s in scores.by_type.items()}
        assert by_type == pytest.approx(case["f1_by_type"])


def test_of_parts_of_speech_all_figures_are_the_accuracy():
    scores = entity_scores([["N", "N", "V"], ["V"]], [["N", "V", "V"], ["V"]])
    assert scores.precision == scores.recall == scores.f1 == scores.accuracy == 75


def test_labels_tell_the_scheme_where_the_tags_do_not():
    true, predicted = [["PER", "PER"]], [["PER", "PER"]]
    assert entity_scores(true, predicted).num_true == 2  # words by themselves
    assert entity_scores(true, predicted, ["O", "PER", "LOC"]).num_true == 1
