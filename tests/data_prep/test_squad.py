import importlib.util
import json
import os
import pathlib
import random

import numpy as np
import pytest

from bert_tf.tasks.answer_decoding import AnswerRule, decode_answers
from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tokenization.vocabulary import SPECIAL_TOKENS
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import squad
from tests.support.languages import LANGUAGES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "squad"


def _load_make_golden():
    spec = importlib.util.spec_from_file_location("make_golden_squad", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load_make_golden()
OWN = json.loads((GOLDEN / "own.json").read_text(encoding="utf-8"))
DIGESTS = json.loads((GOLDEN / "digests.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def original():
    checkout = os.environ.get("BERT_TF_ORIGINAL")
    if not checkout:
        pytest.skip("set BERT_TF_ORIGINAL to a checkout of google-research/bert")
    return golden.load_original(checkout)


@pytest.fixture(scope="module")
def tokenizer():
    return FullTokenizer(GOLDEN / "vocab_uncased.txt")


# Against the original.


def read_all(path, case):
    return list(
        squad.read_squad(
            path, version_2_with_negative=case.version_2, is_training=case.is_training, on_skip=str
        )
    )


def canonical_features(examples, case, tokenizer):
    """Ours in the form of golden.canonical_feature, and the windows."""
    rule = WindowRule(*case.lengths)
    windows = squad.question_windows(examples, tokenizer, rule)
    arrays = squad.make_features(examples, tokenizer, rule, is_training=case.is_training)
    features = []
    for row, window in enumerate(windows):
        columns = {name: values[row].tolist() for name, values in arrays.items()}
        features.append(
            {
                "unique_id": columns["unique_ids"][0],
                "example": window.example_index,
                "tokens": " ".join(tokenizer.convert_ids_to_tokens(window.input_ids)),
                "input_ids": columns["input_ids"],
                "input_mask": columns["input_mask"],
                "segment_ids": columns["segment_ids"],
                "doc_offset": window.doc_offset,
                "words": window.words,
                "is_max_context": window.is_max_context.astype(int).tolist(),
                "start_position": columns["start_positions"][0],
                "end_position": columns["end_positions"][0],
                "is_impossible": columns["is_impossible"][0],
            }
        )
    assert all(len(values) == len(windows) for values in arrays.values())
    return features, windows


def decode(examples, windows, case, tokenizer, seed, logits=golden.logits):
    starts, ends = logits([len(w.input_ids) for w in windows], case.lengths[0], seed)
    return decode_answers(
        examples,
        windows,
        starts,
        ends,
        tokenizer,
        AnswerRule(
            n_best_size=case.n_best_size,
            max_answer_length=case.max_answer_length,
            version_2_with_negative=case.version_2,
            null_score_diff_threshold=case.threshold,
        ),
    )


def canonical_answers(examples, predictions):
    return [
        golden.canonical_answer(
            predictions.answers[e.qas_id],
            predictions.nbest[e.qas_id],
            predictions.null_odds.get(e.qas_id),
        )
        for e in examples
    ]


def assert_answers_equal(examples, predictions, expected, form):
    """Equal where the original answers; where it fails, a clean answer of ours."""
    assert list(predictions.answers) == [e.qas_id for e in examples]
    ours = canonical_answers(examples, predictions)
    for answer, known in zip(ours, expected, strict=True):
        if known is None:
            text, score = answer["nbest"][0][0], answer["null_odds"]
            assert text == "" and len(answer["nbest"]) == 1
            assert score > 0 and isinstance(answer["answer"], str)
        else:
            assert form(answer) == known


@pytest.mark.parametrize("name", golden.OWN_CASES)
def test_own_text_equals_the_original(name):
    case, known = golden.OWN_CASES[name], OWN[name]
    tokenizer = FullTokenizer(GOLDEN / f"vocab_{case.casing}.txt", case.casing == "uncased")
    examples = read_all(GOLDEN / case.data, case)
    assert known["examples"] == [
        [e.qas_id, e.orig_answer_text, e.start_position, e.end_position, e.is_impossible]
        for e in examples
    ]
    features, windows = canonical_features(examples, case, tokenizer)
    form = golden.compact if case.is_training else golden.digest
    assert len(features) == len(known["features"])
    for feature, expected in zip(features, known["features"], strict=True):
        assert form(feature) == expected
    predictions = decode(examples, windows, case, tokenizer, golden.case_seed(name))
    form = (lambda answer: answer) if case.is_training else golden.digest
    assert_answers_equal(examples, predictions, known["answers"], form)


@pytest.mark.parametrize("name", golden.REAL_CASES)
def test_real_text_equals_the_original(name, shared_data, tmp_path):
    case, known = golden.REAL_CASES[name], DIGESTS[name]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(golden.select(case.data, shared_data / "squad")), "utf-8")
    vocab = shared_data / "vocab" / f"bert-base-{case.casing}-vocab.txt"
    tokenizer = FullTokenizer(vocab, case.casing == "uncased")
    examples = read_all(path, case)
    features, windows = canonical_features(examples, case, tokenizer)
    assert [golden.digest(feature) for feature in features] == known["features"]
    predictions = decode(examples, windows, case, tokenizer, golden.case_seed(name))
    assert len(examples) == known["examples"]
    assert_answers_equal(examples, predictions, known["answers"], golden.digest)


def random_content(rng):
    """Make a file of SQuAD of what separates, vanishes, changes its length, or is a piece."""
    alphabet = ["a", "the", "##er", "Smith", "1895", "(", ").", "-", "\u00e9", "e\u0301", "\u5317"]
    alphabet += ["\u0130", "\u200b", "\u00a0", "\u2003", "[SEP]", "\ufffd", "q" * 201, "ﬁ", "Ö"]
    spaces = ["", " ", " ", "\u202f", "\n", "\t", "  "]
    paragraphs = []
    for number in range(3):
        parts = [rng.choice(alphabet) + rng.choice(spaces) for _ in range(rng.randrange(60))]
        context = rng.choice(spaces) + "".join(parts)
        qas = []
        for i in range(4 if context.split() else 0):
            start = rng.randrange(len(context))
            text = context[start : start + rng.randrange(1, 25)]
            if not text.strip():
                continue
            if rng.random() < 0.2:
                start = rng.randrange(len(context) - len(text) + 1)
            impossible = rng.random() < 0.3
            answers = [] if impossible else [{"text": text, "answer_start": start}]
            question = " ".join(rng.choices(alphabet, k=rng.randrange(9)))
            qas.append({"id": f"{number}-{i}", "question": question, "answers": answers})
            qas[-1]["is_impossible"] = impossible
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]}


def test_random_text_equals_the_original(original, tmp_path):
    rng = random.Random(41)
    compared = 0
    for seed in range(60):
        content = random_content(rng)
        if not any(paragraph["qas"] for paragraph in content["data"][0]["paragraphs"]):
            continue
        casing = rng.choice(["uncased", "cased"])
        lengths = (rng.randrange(29, 71), rng.randrange(1, 31), rng.randrange(1, 23))
        case = golden.Case("", casing, lengths, rng.random() < 0.5, True, rng.randrange(1, 23))
        path = tmp_path / "squad.json"
        path.write_text(json.dumps(content), "utf-8")
        vocab = GOLDEN / f"vocab_{casing}.txt"
        _, features, answers = golden.run_original(original, case, path, vocab, seed)
        tokenizer = FullTokenizer(vocab, casing == "uncased")
        examples = read_all(path, case)
        ours, windows = canonical_features(examples, case, tokenizer)
        assert ours == [golden.canonical_feature(feature) for feature in features]
        predictions = decode(examples, windows, case, tokenizer, seed)
        assert_answers_equal(examples, predictions, answers, lambda answer: answer)
        compared += len(ours)
    assert compared > 500


# Reading.


def qa(**changes):
    content = {
        "id": "q1",
        "question": "Who?",
        "answers": [{"text": "Ann", "answer_start": 4}],
        "is_impossible": False,
    }
    content.update(changes)
    return {key: value for key, value in content.items() if value is not ...}


def write(tmp_path, *questions, context="It, Ann said."):
    """Write a file in which a good paragraph stands before the one under test."""
    good = {"context": "It, Ann said.", "qas": [qa(id="good")]}
    paragraph = {"context": context, "qas": list(questions)}
    path = tmp_path / "squad.json"
    content = {"data": [{"paragraphs": [good]}, {"paragraphs": [good | {"qas": []}, paragraph]}]}
    path.write_text(json.dumps(content), "utf-8")
    return path


def read(path, version_2=True, is_training=True, **callbacks):
    return list(
        squad.read_squad(
            path, version_2_with_negative=version_2, is_training=is_training, **callbacks
        )
    )


def test_example_says_where_it_lies(tmp_path):
    path = write(tmp_path, qa())
    first, second = read(path)
    assert (second.qas_id, second.article, second.paragraph) == ("q1", 1, 1)
    assert second.location == f"{path}: data[1].paragraphs[1], question 'q1'"
    assert second.doc_tokens == ("It,", "Ann", "said.") and second.answers == ("Ann",)
    assert (second.start_position, second.end_position, second.orig_answer_text) == (1, 1, "Ann")


def test_prediction_needs_no_answers_and_keeps_all_of_them(tmp_path):
    many = [{"text": "Ann", "answer_start": 4}, {"text": "Anne", "answer_start": 99}]
    path = write(tmp_path, qa(answers=...), qa(id="q2", answers=many, is_impossible=True))
    _, without, several = read(path, is_training=False)
    assert without.answers == () and several.answers == ("Ann", "Anne")
    for example in (without, several):
        assert example.start_position is example.end_position is example.orig_answer_text is None
        assert example.is_impossible is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": ...}, "expected text as id, got None"),
        ({"id": 7}, "expected text as id, got 7"),
        ({"question": ...}, "expected text as question, got None"),
        ({"answers": ...}, "expected a list as answers, got None"),
        ({"answers": ["Ann"]}, "expected answers with text, got 'Ann'"),
        ({"answers": [{"answer_start": 4}]}, "expected answers with text"),
        ({"answers": [{"text": "Ann"}]}, "expected a number as answer_start, got None"),
        ({"answers": [{"text": "Ann", "answer_start": "4"}]}, "as answer_start, got '4'"),
        ({"answers": []}, "expected exactly 1 answer for training, got 0; questions without"),
        ({"answers": qa()["answers"] * 2}, "expected exactly 1 answer for training, got 2"),
        ({"is_impossible": ...}, "expected true or false as is_impossible, got None"),
        ({"is_impossible": "no"}, "expected true or false as is_impossible, got 'no'"),
    ],
)
def test_bad_questions_are_named_or_reported(tmp_path, changes, said):
    path = write(tmp_path, qa(**changes), qa(id="after"))
    with pytest.raises(ValueError) as error:
        read(path)
    assert said in str(error.value) and "\n" not in str(error.value)
    name = changes.get("id", "q1")
    location = "" if name is ... else f", question {name!r}"
    assert str(error.value).startswith(f"{path}: data[1].paragraphs[1]{location}: ")
    messages = []
    examples = read(path, on_bad=messages.append)
    assert messages == [str(error.value)]
    assert [example.qas_id for example in examples] == ["good", "after"]


@pytest.mark.parametrize(
    ("article", "said"),
    [
        ({}, "data[1]: expected a list of paragraphs"),
        ("no", "data[1]: expected a list of paragraphs"),
        ({"paragraphs": [{"qas": []}]}, "data[1].paragraphs[0]: expected a paragraph with text"),
        ({"paragraphs": [{"context": "a"}]}, "data[1].paragraphs[0]: expected a paragraph with"),
        ({"paragraphs": [3]}, "data[1].paragraphs[0]: expected a paragraph with"),
        ({"paragraphs": [{"context": "a", "qas": [5]}]}, "[0]: expected a question with id"),
    ],
)
def test_bad_articles_and_paragraphs_are_named_or_reported(tmp_path, article, said):
    good = {"paragraphs": [{"context": "It, Ann said.", "qas": [qa(id="good")]}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [good, article, good]}), "utf-8")
    with pytest.raises(ValueError) as error:
        read(path)
    assert said in str(error.value) and str(path) in str(error.value)
    messages = []
    assert len(read(path, on_bad=messages.append)) == 2
    assert messages == [str(error.value)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected the JSON of SQuAD, got an empty file"),
        (b"{", "expected the JSON of SQuAD, got Expecting property name"),
        (b"\xff{}", "expected JSON in UTF-8"),
        (b"[]", "an object whose `data` is a list of articles"),
        (b'{"version": "1.1"}', "an object whose `data` is a list of articles"),
        (b'{"data": []}', "an object whose `data` is a list of articles"),
        (b'{"data": [{"paragraphs": []}]}', "expected questions in data[].paragraphs[].qas, got"),
        (b'{"data": [{"paragraphs": [{"qas": [{"id": "1"}]}]}]}', "no question has answers or is_"),
    ],
)
def test_files_that_are_not_squad_are_errors_always(tmp_path, content, said):
    path = tmp_path / "squad.json"
    path.write_bytes(content)
    for on_bad in (None, str):
        with pytest.raises(ValueError) as error:
            read(path, on_bad=on_bad)
        assert str(error.value).startswith(f"{path}: ") and said in str(error.value)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.json")


def test_version_1_cannot_be_trained_on_as_version_2(tmp_path):
    path = tmp_path / "squad.json"
    content = {"data": [{"paragraphs": [{"context": "Ann", "qas": [qa(is_impossible=...)]}]}]}
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match="no question has is_impossible: version 1.1 has none"):
        read(path, on_bad=str)
    assert len(read(path, is_training=False)) == 1


@pytest.mark.parametrize(
    ("text", "start", "said"),
    [
        ("Ann", 0, "'Ann' is not in the words 'It,' at its place"),
        ("Bob", 4, "'Bob' is not in the words 'Ann' at its place"),
        ("Ann", 11, "at characters 11 to 14 is not within its context of 13"),
        ("Ann", -9, "at characters -9 to -6 is not within"),
        ("", 4, "the answer '' has no text"),
        (" ", 3, "the answer ' ' has no text"),
    ],
)
def test_answers_that_do_not_stand_there_are_skipped(tmp_path, caplog, text, start, said):
    answers = [{"text": text, "answer_start": start}]
    path = write(tmp_path, qa(answers=answers), qa(id="after"))
    skipped = []
    examples = read(path, on_skip=skipped.append)
    assert [example.qas_id for example in examples] == ["good", "after"]
    (message,) = skipped
    assert message.startswith(f"{path}: data[1].paragraphs[1], question 'q1': skipped: ")
    assert said in message
    assert len(read(path)) == 2 and caplog.messages == skipped
    assert len(read(path, is_training=False)) == 3


def test_white_space_around_an_answer_belongs_to_the_word_before_it(tmp_path):
    answers = [
        [{"text": text, "answer_start": start}] for text, start in [("It, ", 0), (" Ann", 3)]
    ]
    path = write(tmp_path, *(qa(id=str(i), answers=a) for i, a in enumerate(answers)))
    found = [(example.start_position, example.end_position) for example in read(path)[1:]]
    assert found == [(0, 0), (0, 1)]


# Features.


def pieces_at_positions(tokenizer, arrays, row):
    first, last = arrays["start_positions"][row, 0], arrays["end_positions"][row, 0]
    return tokenizer.convert_ids_to_tokens(arrays["input_ids"][row, first : last + 1].tolist())


@pytest.mark.parametrize(
    ("context", "answer", "pieces"),
    [
        ("x (b) y", "b", ["b"]),
        ("x (b y", "b", ["b"]),
        ("x b) y", "b", ["b"]),
        ("x (b c) y", "b c", ["b", "c"]),
        ("x (b-b) y", "b", ["b"]),
        ("x y b", "b", ["b"]),
        ("x (cb) y", "b", ["(", "c", "##b", ")"]),  # no piece of its own: the whole word
    ],
)
def test_answers_are_freed_of_what_their_words_carry(tmp_path, tokenizer, context, answer, pieces):
    answers = [{"text": answer, "answer_start": context.index(answer)}]
    (example,) = read(write(tmp_path, qa(answers=answers), context=context))[1:]
    rule = WindowRule(67, 23, 17)
    arrays = squad.make_features([example], tokenizer, rule, is_training=True)
    assert pieces_at_positions(tokenizer, arrays, 0) == pieces


def test_positions_are_set_in_every_window_that_holds_the_answer(tmp_path, tokenizer):
    context = "b c d e f g h i j k l m n o p q"
    rule = WindowRule(14, 2, 3)
    for size in (1, 2, 5, 9):
        for start in range(0, len(context) - 2 * size + 2, 2):
            answer = context[start : start + 2 * size - 1]
            answers = [{"text": answer, "answer_start": start}]
            path = write(tmp_path, qa(answers=answers, question="x y z"), context=context)
            (example,) = read(path)[1:]
            arrays = squad.make_features([example], tokenizer, rule, is_training=True)
            windows = squad.question_windows([example], tokenizer, rule)
            assert [w.doc_start for w in windows] == [0, 2, 4, 6, 8]
            for row, window in enumerate(windows):
                words = set(range(start // 2, start // 2 + size))
                held = words <= set(window.words)
                expected = answer.split() if held else ["[CLS]"]
                assert pieces_at_positions(tokenizer, arrays, row) == expected
                assert bool(arrays["start_positions"][row, 0]) == held


def test_arrays_have_their_shapes_and_types(tokenizer, tmp_path):
    examples = read(GOLDEN / "v2.json", on_skip=str)
    arrays = squad.make_features(
        examples, tokenizer, WindowRule(41, 11, 13), is_training=True, first_unique_id=7
    )
    rows = len(arrays["unique_ids"])
    assert {name: values.shape for name, values in arrays.items()} == {
        "unique_ids": (rows, 1),
        "input_ids": (rows, 41),
        "input_mask": (rows, 41),
        "segment_ids": (rows, 41),
        "start_positions": (rows, 1),
        "end_positions": (rows, 1),
        "is_impossible": (rows, 1),
    }
    assert all(values.dtype.kind == "i" for values in arrays.values())
    assert arrays["unique_ids"][:, 0].tolist() == list(range(7, 7 + rows))
    assert 0 < arrays["is_impossible"].sum() < rows


def test_windows_do_not_depend_on_what_is_made_with_them(tokenizer):
    examples = read(GOLDEN / "v1.json", version_2=False, on_skip=str)
    rule = WindowRule(67, 23, 17)
    whole = squad.make_features(examples, tokenizer, rule, is_training=True)
    parts = [
        squad.make_features([example], tokenizer, rule, is_training=True) for example in examples
    ]
    for name in set(whole) - {"unique_ids"}:
        np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))


def test_no_windows_give_no_rows(tokenizer):
    rule = WindowRule(41, 11, 13)
    arrays = squad.make_features([], tokenizer, rule, is_training=False)
    assert arrays["input_ids"].shape == (0, 41) and arrays["start_positions"].shape == (0, 1)


def test_training_needs_examples_that_were_read_for_it(tokenizer):
    examples = read(GOLDEN / "v1.json", is_training=False)
    with pytest.raises(ValueError, match="question 'long-1': no answer was read; read it with is_"):
        squad.make_features(examples, tokenizer, WindowRule(), is_training=True)


# Scripts without spaces.


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_answer_at_its_place_can_be_learned(tmp_path, code):
    """Without spaces a document is one word, which holds the answer twice; the second is meant."""
    text = "".join(LANGUAGES[code].paragraph.split())
    context, answer = 2 * text, text[:3]
    characters = sorted(set(context))
    pieces = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    tokenizer = FullTokenizer.from_vocab({piece: i for i, piece in enumerate(pieces)}, False)
    answers = [{"text": answer, "answer_start": len(text)}]
    (example,) = read(write(tmp_path, qa(answers=answers), context=context))[1:]
    rule = WindowRule(len(context) + 12, 128, 8)
    learned, spans = [], tokenizer.tokenize_with_offsets(context)[1]
    for at_start in (False, True):
        arrays = squad.make_features(
            [example], tokenizer, rule, is_training=True, answers_at_start=at_start
        )
        (window,) = squad.question_windows([example], tokenizer, rule)
        first, last = (
            int(arrays[f"{side}_positions"][0, 0]) - window.doc_offset for side in ("start", "end")
        )
        learned.append((spans[first][0], spans[last][1]))
    assert learned[1] == (len(text), len(text) + 3)
    # As in the original: the first one, or where a mark parts it from what follows, all words.
    assert learned[0] in ((0, 3), (0, len(context)))
    assert squad.count_answers([example], tokenizer) == {"answers": 1, "answers_elsewhere": 1}


@pytest.mark.parametrize(
    ("context", "answer", "pieces", "elsewhere"),
    [
        ("x (cb) y", "b", ["##b"], 1),  # the original learns the whole word
        ("x (b-b) y", "b", ["b"], 0),
        ("x (b c) y", "b c", ["b", "c"], 0),
        ("x b c y", " b", ["b"], 0),  # a space before it is of the word before
        ("x \u200bcb y", "\u200b", ["c", "##b"], 0),  # of no piece: all of its words
    ],
)
def test_answers_at_their_place_in_text_with_spaces(
    tmp_path, tokenizer, context, answer, pieces, elsewhere
):
    answers = [{"text": answer, "answer_start": context.index(answer)}]
    (example,) = read(write(tmp_path, qa(answers=answers), context=context))[1:]
    arrays = squad.make_features(
        [example], tokenizer, WindowRule(67, 23, 17), is_training=True, answers_at_start=True
    )
    assert pieces_at_positions(tokenizer, arrays, 0) == pieces
    assert squad.count_answers([example], tokenizer)["answers_elsewhere"] == elsewhere
