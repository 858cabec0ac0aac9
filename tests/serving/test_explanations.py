"""Explanations: integrated gradients and attention rollout as torch and transformers give them."""

import json
import logging
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import bert_tf
from bert_tf.models.rollout import attention_rollout
from bert_tf.models.task_models import HEADS
from bert_tf.serving.explanations import NO_ANSWER, explain
from bert_tf.serving.load import load_served_model
from bert_tf.serving.question_answering import QuestionAnswerer
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.serving.text_models import FillMask, Regressor
from bert_tf.tasks.document_windows import TextRule, WindowRule
from bert_tf.tokenization.graph_tokenizer import TextToIds
from tests.support.synthetic_records import small_config

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONTENT = json.loads((GOLDEN / "explanations/explanations.json").read_text())
LABELS = ("awful", "bad", "so-so", "good", "très bon")
CLASSES = {
    "classification": "BertForSequenceClassification",
    "question_answering": "BertForQuestionAnswering",
    "token_classification": "BertForTokenClassification",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Return what loads a golden model, each once."""
    vocab_file = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    vocab_file.write_text("".join(f"{piece}\n" for piece in CONTENT["vocabulary"]))
    loaded = {}

    def load(kind, **options):
        key = (kind, *options.items())
        if key not in loaded:
            loaded[key] = load_served_model(
                GOLDEN / "transformers" / CLASSES[kind],
                vocab_file=str(vocab_file),
                **{"max_seq_length": 19, **options},
            )
        return loaded[key]

    return load


def _text(pieces):
    return pieces.replace(" ##", "")


def _of_words(case, values):
    """Sums of the positions of each word, by input, special tokens left out."""
    sums, position = [], 0
    for pieces in case["texts"]:
        position += 1
        for piece in pieces.split():
            if piece.startswith("##"):
                sums[-1] += values[position]
            else:
                sums.append(values[position])
            position += 1
    return sums


def _check(explanation, case):
    texts = [_text(pieces) for pieces in case["texts"]]
    assert [word.text for word in explanation.words] == " ".join(texts).split()
    scores = [word.score for word in explanation.words]
    np.testing.assert_allclose(scores, _of_words(case, case["scores"]), atol=2e-4)
    attention = [word.attention for word in explanation.words]
    np.testing.assert_allclose(attention, _of_words(case, case["attention"]), atol=1e-6)
    assert explanation.value == pytest.approx(case["value"], abs=1e-5)
    assert explanation.baseline_value == pytest.approx(case["baseline_value"], abs=1e-5)
    assert explanation.completeness_gap <= 0.01
    change = explanation.value - explanation.baseline_value
    assert sum(scores) == pytest.approx(change, rel=0.01)


def _cases(kind):
    return [case for case in CONTENT["cases"] if case["kind"] == kind]


@pytest.mark.parametrize("case", _cases("classification"))
def test_labels_of_texts_and_pairs(served, case):
    texts = [_text(pieces) for pieces in case["texts"] if pieces]
    model = served("classification", labels=LABELS, has_pairs=len(texts) == 2)
    target = LABELS[case["label"]]
    options = {"target": target, "baseline": case["baseline"]}
    (explanation,) = explain(model, [[text] for text in texts], **options)
    assert (explanation.row, explanation.target) == (0, target)
    _check(explanation, case)
    for word in explanation.words:
        text = texts[word.input == "text_b"]
        assert text[word.char_start : word.char_end] == word.text
    if case["is_best"]:
        again = explain(model, [[text] for text in texts], baseline=case["baseline"])
        assert again == [explanation]


def test_spans(served):
    (case,) = _cases("question_answering")
    texts = [_text(pieces) for pieces in case["texts"]]
    (explanation,) = explain(served("question_answering"), [[text] for text in texts])
    _check(explanation, case)
    pieces = ["", *case["texts"][0].split(), "", *case["texts"][1].split()]
    first, last = case["span"]
    assert explanation.target == _text(" ".join(pieces[first : last + 1])).removeprefix("##")
    assert {word.input for word in explanation.words} == {"question", "context"}


@pytest.mark.thorough
def test_no_answer_and_answers_of_long_contexts(served):
    model = served("question_answering")
    never = QuestionAnswerer(
        model.model,
        model.text_to_ids,
        WindowRule(19, 5, 4),
        version_2_with_negative=True,
        null_score_diff_threshold=-1e9,
    )
    (explanation,) = explain(never, [["who ?"], ["the cat"]])
    assert explanation.target == NO_ANSWER and len(explanation.words) == 4
    model = served("question_answering", max_seq_length=11)
    context = "we like the big sun in three home they sat on a mat ."
    (explanation,) = explain(model, [["who ?"], [context]])
    seen = [word for word in explanation.words if word.input == "context"]
    assert 0 < len(seen) < len(context.split())
    assert explanation.target in context[seen[0].char_start : seen[-1].char_end]


def test_entities(served):
    cases = _cases("token_classification")
    text = _text(cases[0]["texts"][0])
    model = served("token_classification", labels=("O", "B-X", "I-X"))
    explanations = explain(model, [["", text]])
    assert {one.row for one in explanations} == {1} and len(explanations) == len(cases)
    for explanation, case in zip(explanations, cases, strict=True):
        _check(explanation, case)
        # The only ## stands in the last word.
        assert explanation.target == f"X: {text.split()[case['places'][0] - 1]}"


def test_one_entity_alone(served):
    model = served("token_classification", labels=("O", "B-X", "I-X"))
    text = _text(_cases("token_classification")[0]["texts"][0])
    found = explain(model, [[text]])
    assert explain(model, [[text]], entity=2) == found[2:3]
    for number in (-1, len(found)):
        with pytest.raises(ValueError, match=f"entity: expected one of the 8 .*, got {number}"):
            explain(model, [[text]], entity=number)
    with pytest.raises(ValueError, match="entity: expected None for classification, got 0"):
        explain(served("classification", labels=LABELS), [["the cat"]], entity=0)


def test_runs_can_be_counted_and_ended(served):
    model, runs = served("classification", labels=LABELS), []
    (explanation,) = explain(model, [["the cat"]], before_run=lambda: runs.append(1))
    # Before the answer; then 16 points a run, of which there are 16, 32 and so on.
    assert len(runs) == 1 + sum(n // 16 for n in (16, 32, 64, 128) if n <= explanation.steps)

    def end():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain(model, [["the cat"]], before_run=end)


def test_as_many_points_at_once_as_there_is_room_for(served, monkeypatch):
    """Fewer of a long text: each takes a run by itself here, and the scores stay."""
    model, runs = served("classification", labels=LABELS), []
    expected = explain(model, [["the cat sat"]], max_steps=16)[0]
    monkeypatch.setattr("bert_tf.serving.explanations._PIECES_AT_ONCE", 3)  # of a text of 5
    alone = explain(model, [["the cat sat"]], max_steps=16, before_run=lambda: runs.append(1))[0]
    assert len(runs) == 1 + 16
    scores = [[word.score for word in one.words] for one in (alone, expected)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


def test_other_kinds_of_classifier(served):
    text = "the cats sat on a mat ."
    one = explain(served("classification", labels=LABELS), [[text]], target="bad")
    several = served("classification", labels=LABELS, task="multi_label")
    assert explain(several, [[text]], target="bad") == one
    cut = explain(served("classification", labels=LABELS, max_seq_length=5), [[text]])
    assert [word.text for word in cut[0].words] == ["the", "cats"]
    assert explain(served("classification", labels=LABELS), [[""]])[0].words == ()


@pytest.mark.parametrize("most", [3, 20])  # below the first number of steps, and the second
def test_a_gap_that_stays_is_told(served, caplog, most):
    model = served("classification", labels=LABELS)
    with caplog.at_level(logging.WARNING, "bert_tf"):
        (explanation,) = explain(model, [["the cat sat"]], tolerance=1e-12, max_steps=most)
    assert explanation.steps == most and explanation.completeness_gap > 1e-12
    assert "the scores sum to" in caplog.text


def _drawn(kind, *size, **options):
    """Return a model of drawn weights and its tokenizer."""
    vocab = {piece: i for i, piece in enumerate(CONTENT["vocabulary"])}
    keras.utils.set_random_seed(3)
    options |= {"num_hidden_layers": 1, "initializer_range": 0.7}
    config = small_config(vocab_size=len(vocab), **options)
    text_to_ids = TextToIds.from_vocab(vocab, max_seq_length=19, parse_mask=kind == "pretraining")
    return HEADS[kind].make(config, *size), text_to_ids


def test_a_number():
    model = Regressor(*_drawn("classification", 1))
    (explanation,) = explain(model, [["the cats sat"]])
    inputs = model.text_to_ids.pack(tf.constant(["the cats sat"]))
    value = model.run(inputs)["logits"].numpy()[0, 0]
    assert explanation.target == "value" and explanation.completeness_gap <= 0.01
    assert explanation.value == pytest.approx(value, abs=1e-5)
    change = explanation.value - explanation.baseline_value
    assert abs(change) > 0.1
    assert sum(word.score for word in explanation.words) == pytest.approx(change, rel=0.01)


def test_what_has_no_scores_of_words_is_refused():
    with pytest.raises(ValueError, match="explain: for classification, .*, not for fill_mask"):
        explain(FillMask(*_drawn("pretraining")), [["the [MASK]"]])
    model, text_to_ids = _drawn("classification", 1, window_pooling="mean")
    windows = Regressor(model, text_to_ids, windows=TextRule(19, 5, 2))
    with pytest.raises(ValueError, match=r"not for one that joins windows \(window_pooling=mean\)"):
        explain(windows, [["the cat"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "zero"}, "baseline: expected pad or mask, got 'zero'"),
        ({"tolerance": 0.0}, "tolerance: expected"),
        ({"max_steps": 0}, "max_steps: expected"),
        ({"target": "fine"}, "target: expected one of awful, bad"),
    ],
)
def test_arguments_out_of_range(served, options, message):
    with pytest.raises(ValueError, match=message):
        explain(served("classification", labels=LABELS), [["the cat"]], **options)


def test_predictor_explains_model_directories_only(tmp_path, served, monkeypatch):
    model = served("classification", labels=LABELS)
    monkeypatch.setattr("bert_tf.serving.predictor.load_served_model", lambda path: model)
    predictor = bert_tf.Predictor(tmp_path)
    assert predictor.explain(["the cat", "a dog"]) == explain(model, [["the cat", "a dog"]])
    with pytest.raises(ValueError, match="expected 1 equally long lists"):
        predictor.explain(["a"], ["b"])
    with pytest.raises(ValueError, match="expected a list of strings"):
        predictor.explain("the cat")
    with pytest.raises(ValueError, match="target: expected None for question_answering"):
        explain(served("question_answering"), [["who"], ["it"]], target="it")
    export_saved_model(model, tmp_path / "saved")
    with pytest.raises(ValueError, match="a SavedModel holds no gradients"):
        bert_tf.Predictor(tmp_path / "saved").explain(["the cat"])


def test_rollout_by_hand():
    # One head each: layer 1 sends all to position 0, layer 2 all to position 1.
    first, second = np.array([[1.0, 0], [1, 0]]), np.array([[0.0, 1], [0, 1]])
    rollout = attention_rollout([layer[None, None] for layer in (first, second)])
    by_hand = [[0.75, 0.25], [0.5, 0.5]]
    np.testing.assert_allclose(np.asarray(rollout)[0], by_hand)
    with pytest.raises(ValueError, match="at least one layer"):
        attention_rollout([])
