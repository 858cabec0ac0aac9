import json
import math
import random
import types

import numpy as np
import pytest

from bert_tf.tasks.answer_decoding import (
    NULL_ODDS_WITHOUT_SPAN,
    AnswerRule,
    _AnswerText,
    best_indexes,
    decode_answers,
    write_predictions,
)
from bert_tf.tasks.document_windows import (
    TextRule,
    WindowRule,
    WordPieces,
    _max_context,
    encode_words,
    make_windows,
    pack_windows,
    split_words,
    window_spans,
)
from bert_tf.tokenization.wordpiece import FullTokenizer

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] who is it ? steve smith ##ies ' s ( 1895 - 1943 ) . , cafe".split()
)
VOCAB = {piece: i for i, piece in enumerate([*PIECES, *"abcdefghijklm"])}
DEFAULTS = WindowRule()


@pytest.fixture(scope="module")
def tokenizer():
    return FullTokenizer.from_vocab(VOCAB)


def question(text, qas_id="q"):
    return types.SimpleNamespace(qas_id=qas_id, doc_tokens=split_words(text)[0])


def windows_of(text, tokenizer, rule=DEFAULTS, index=0, asked="who is it?"):
    document = encode_words(split_words(text)[0], tokenizer)
    return make_windows(asked, document, tokenizer, rule, index)


def logits_of(windows, length, **peaks):
    """Logits [N, L] that are -10 but for `row_position=value` in peaks, as in s0_5=3.0."""
    starts = np.full((len(windows), length), -10.0, np.float32)
    ends = starts.copy()
    for name, value in peaks.items():
        row, position = map(int, name[1:].split("_"))
        (starts if name[0] == "s" else ends)[row, position] = value
    return starts, ends


# Words and windows.


def test_words_are_cut_at_five_characters_only():
    words, starts = split_words(" a\u202fb\tc\r\nd\u00a0e\u2003f\x0bg  h ")
    assert words == ("a", "b", "c", "d\u00a0e\u2003f\x0bg", "h")
    assert starts == [1, 3, 5, 8, 17]
    assert split_words("\u202f \n") == ((), [])


def test_words_without_pieces_keep_their_place(tokenizer):
    pieces = encode_words(["\u200b", "smithies", "\u200b", "(1895)", "\u200b"], tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["smith", "##ies", "(", "1895", ")"])
    assert pieces == WordPieces(ids=ids, words=[1, 1, 3, 3, 3], first_piece=[0, 0, 2, 2, 5])


def test_windows_overlap_and_share_the_context(tokenizer):
    windows = windows_of("a b c d e f g h i j k l m", tokenizer, WindowRule(12, 3, 4), index=5)
    assert [w.doc_start for w in windows] == [0, 3, 6, 9]
    assert [w.words for w in windows] == [
        list(range(0, 5)),
        list(range(3, 8)),
        list(range(6, 11)),
        list(range(9, 13)),
    ]
    # Where contexts are equal the longer window wins, and of equally long ones the earlier.
    shown = ["".join("01"[int(value)] for value in w.is_max_context) for w in windows]
    assert shown == ["11110", "01110", "01110", "0111"]
    for window in windows:
        assert window.example_index == 5 and window.doc_offset == 6
        pieces = tokenizer.convert_ids_to_tokens(window.input_ids)
        assert pieces[:6] == ["[CLS]", "who", "is", "it", "?", "[SEP]"] and pieces[-1] == "[SEP]"
        assert pieces[6:-1] == ["abcdefghijklm"[i] for i in window.words]


def test_every_piece_has_the_most_context_in_one_window():
    rng = random.Random(3)
    for _ in range(200):
        count, width, stride = rng.randrange(1, 90), rng.randrange(1, 25), rng.randrange(1, 30)
        spans = window_spans(count, width, stride)
        assert spans[0][0] == 0 and spans[-1][1] == count
        total = np.zeros(count, int)
        covered = np.zeros(count, int)
        for (start, end), flags in zip(spans, _max_context(spans), strict=True):
            assert 0 < end - start <= width and len(flags) == end - start
            total[start:end] += flags
            covered[start:end] += 1
        assert total.tolist() == [1] * count and covered.min() >= 1
        # A stride beyond the window's width is cut to it: nothing is left out.


def test_much_longer_windows_win_over_a_little_more_context():
    first, second = _max_context([(0, 300), (250, 400)])
    # At piece 275 the contexts are 24 and 25, and the lengths count 3.0 and 1.5.
    assert first[274:277].tolist() == [True, True, False]
    assert second[24:27].tolist() == [False, False, True]


def test_questions_are_cut_and_empty_documents_have_no_windows(tokenizer):
    (window,) = windows_of("a", tokenizer, WindowRule(7, 1, 3), asked="who is it ? ? ?")
    pieces = tokenizer.convert_ids_to_tokens(window.input_ids)
    assert pieces == ["[CLS]", "who", "is", "it", "[SEP]", "a", "[SEP]"]
    assert windows_of(" \u200b ", tokenizer) == []
    (window,) = windows_of("a", tokenizer, asked="")
    assert window.doc_offset == 2


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ((67, 1, 64), "max_seq_length must be greater than max_query_length \\+ 3 = 67, got 67"),
        ((384, 0, 64), "doc_stride must be at least 1, got 0"),
        ((384, 128, 0), "max_query_length must be at least 1, got 0"),
    ],
)
def test_rules_that_leave_no_room_are_refused(lengths, said):
    with pytest.raises(ValueError, match=said):
        WindowRule(*lengths)


@pytest.mark.parametrize("name", ["doc_stride", "max_windows", "max_query_length"])
def test_windows_of_texts_are_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TextRule(**{name: 0})


def test_packing_pads_and_marks(tokenizer):
    windows = windows_of("a b c d", tokenizer, WindowRule(10, 2, 4)) + windows_of("e", tokenizer)
    arrays = pack_windows(windows, 11)
    assert {values.dtype for values in arrays.values()} == {np.dtype(np.int32)}
    lengths = [10, 9, 8]
    for row, (window, length) in enumerate(zip(windows, lengths, strict=True)):
        rest = [0] * (11 - length)
        assert arrays["input_ids"][row].tolist() == window.input_ids + rest
        assert arrays["input_mask"][row].tolist() == [1] * length + rest
        assert arrays["segment_ids"][row].tolist() == [0] * 6 + [1] * (length - 6) + rest
    with pytest.raises(ValueError, match="expected at least 10, the length of window 0, got 9"):
        pack_windows(windows, 9)
    assert pack_windows([], 7)["input_ids"].shape == (0, 7)


# Best indexes.


def test_best_indexes_are_a_stable_sort():
    rng = np.random.RandomState(7)
    for _ in range(300):
        rows, length = rng.randint(1, 5), rng.randint(1, 40)
        count, levels = rng.randint(1, 45), rng.randint(1, 9)
        logits = rng.randint(-levels, levels, (rows, length)) / 2
        logits[rng.rand(rows, length) < 0.1] = -0.0
        expected = [
            sorted(range(length), key=lambda i: row[i], reverse=True)[:count]  # noqa: B023
            for row in logits
        ]
        assert best_indexes(logits, count).tolist() == expected


# Answers.


def decode(text, windows, starts, ends, tokenizer, **options):
    predictions = decode_answers(
        [question(text)], windows, starts, ends, tokenizer, AnswerRule(**options)
    )
    return predictions.answers["q"], predictions.nbest["q"], predictions.null_odds.get("q")


def test_answer_keeps_the_writing_of_the_document(tokenizer):
    text = "It is Steve  Smith's Caf\u00e9 (1895-1943)."
    windows = windows_of(text, tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(windows[0].input_ids)
    for first, last, expected in [
        ("steve", "smith", "Steve Smith"),
        ("smith", "'", "Smith'"),
        ("cafe", "cafe", "Caf\u00e9"),
        ("1895", "1895", "1895"),
        ("cafe", "1943", "Caf\u00e9 (1895-1943"),
    ]:
        peaks = {f"s0_{pieces.index(first)}": 1.0, f"e0_{pieces.index(last)}": 1.0}
        starts, ends = logits_of(windows, 40, **peaks)
        assert decode(text, windows, starts, ends, tokenizer)[0] == expected


def test_whole_words_are_given_where_letters_cannot_be_aligned(tokenizer):
    projection = _AnswerText(tokenizer)
    assert projection.project("a", ["a\u00a0b"]) == "a\u00a0b"  # the no-break space became a space
    assert projection.project("c", ["b\u200bc"]) == "b\u200bc"  # a letter vanished
    assert projection.project("x", ["abc", "d"]) == "abc d"  # not there, as with [UNK]
    assert projection.project("", ["(a)"]) == "(a)"
    assert projection.project("a", ["(a)", "(a)"]) == "a"
    assert projection.project(") (", ["(a)", "(a)"]) == ") ("


def test_spans_that_do_not_count_are_left_out(tokenizer):
    text = "a b c d e f g h"
    rule = WindowRule(12, 3, 4)  # pieces 0-4 and 3-7
    windows = windows_of(text, tokenizer, rule)
    offset = windows[0].doc_offset
    assert len(windows) == 2 and offset == 6
    low = {f"s1_{offset + 2}": -5.0, f"e1_{offset + 2}": -5.0}  # "f", which counts
    for peaks in (
        {"s0_1": 9.0, "e0_3": 9.0},  # in the question
        {"s0_0": 9.0, "e0_0": 9.0},  # [CLS]
        {f"s0_{offset + 5}": 9.0, f"e0_{offset + 5}": 9.0},  # the last [SEP]
        {"s0_12": 9.0, "e0_12": 9.0},  # padding
        {f"s0_{offset + 4}": 9.0, f"e0_{offset + 4}": 9.0},  # e has more context in the other
    ):
        starts, ends = logits_of(windows, 13, **low, **peaks)
        assert decode(text, windows, starts, ends, tokenizer, n_best_size=2)[0] == "f", peaks
    # The end alone may lie where another window has more context.
    starts, ends = logits_of(windows, 13, **low, **{f"s0_{offset}": 9.0, f"e0_{offset + 4}": 9.0})
    assert decode(text, windows, starts, ends, tokenizer, n_best_size=2)[0] == "a b c d e"
    answer = decode(text, windows, starts, ends, tokenizer, n_best_size=2, max_answer_length=5)[0]
    assert answer == "a b c d e"
    answer = decode(text, windows, starts, ends, tokenizer, n_best_size=2, max_answer_length=4)[0]
    assert answer != "a b c d e"
    # An end before its start.
    starts, ends = logits_of(windows, 13, **low, **{f"s0_{offset + 2}": 9.0, f"e0_{offset}": 9.0})
    answer = decode(text, windows, starts, ends, tokenizer, n_best_size=1)[0]
    assert answer == "f"


def slow_decode(text, windows, starts, ends, n_best, max_length, null_allowed, threshold):
    """Apply the rules once more, one by one, for documents whose words are pieces."""
    words = text.split()
    spans = []
    for row, window in enumerate(windows):
        stop = window.doc_offset + len(window.words)
        position = range(starts.shape[1])
        for start in sorted(position, key=lambda i: -float(starts[row, i]))[:n_best]:  # noqa: B023
            for end in sorted(position, key=lambda i: -float(ends[row, i]))[:n_best]:  # noqa: B023
                if (
                    window.doc_offset <= start <= end < stop
                    and end - start < max_length
                    and window.is_max_context[start - window.doc_offset]
                ):
                    answer = words[
                        window.doc_start + start - window.doc_offset : window.doc_start
                        + end
                        - window.doc_offset
                        + 1
                    ]
                    both = float(starts[row, start]), float(ends[row, end])
                    spans.append((" ".join(answer), *both))
    null = min(
        (("", float(s[0]), float(e[0])) for s, e in zip(starts, ends, strict=True)),
        key=lambda entry: entry[1] + entry[2],
        default=("", 0.0, 0.0),
    )
    entries = sorted(spans + [null] * null_allowed, key=lambda x: x[1] + x[2], reverse=True)
    unique = list({entry[0]: entry for entry in reversed(entries)}.values())[::-1]
    unique.sort(key=entries.index)
    nbest = unique[:n_best]
    if null_allowed and null not in nbest:
        nbest.append(null)
    if not nbest:
        nbest = [("empty", 0.0, 0.0)]
    if not null_allowed:
        return nbest[0][0], nbest, None
    best = next((entry for entry in entries if entry[0]), None)
    if best is None:
        return "", nbest, NULL_ODDS_WITHOUT_SPAN
    odds = null[1] + null[2] - best[1] - best[2]
    return "" if odds > threshold else best[0], nbest, odds


def test_random_logits_follow_the_rules(tokenizer):
    rng = random.Random(11)
    nulls = 0
    for seed in range(400):
        text = " ".join(rng.choices("abcdefghijklm", k=rng.randrange(1, 25)))
        rule = WindowRule(rng.randrange(9, 29), rng.randrange(1, 9), rng.randrange(1, 6))
        windows = windows_of(text, tokenizer, rule)
        random_state = np.random.RandomState(seed)
        levels = rng.choice([2, 5, 1000])
        shape = (len(windows), rule.max_seq_length)
        starts = (random_state.randint(-levels, levels + 1, shape) / 4).astype(np.float32)
        ends = (random_state.randint(-levels, levels + 1, shape) / 4).astype(np.float32)
        n_best, longest = rng.choice([1, 2, 5, 20, 50]), rng.choice([1, 3, 30])
        null_allowed, threshold = rng.random() < 0.7, rng.choice([-1.0, 0.0, 0.5])
        answer, nbest, odds = decode(
            text,
            windows,
            starts,
            ends,
            tokenizer,
            n_best_size=n_best,
            max_answer_length=longest,
            version_2_with_negative=null_allowed,
            null_score_diff_threshold=threshold,
        )
        expected = slow_decode(
            text, windows, starts, ends, n_best, longest, null_allowed, threshold
        )
        found = [(row["text"], row["start_logit"], row["end_logit"]) for row in nbest]
        assert (answer, found, odds) == expected, seed
        total = sum(row["probability"] for row in nbest)
        assert math.isclose(total, 1.0)
        nulls += answer == ""
    assert 30 < nulls < 300


def test_null_score_is_the_lowest_of_all_windows(tokenizer):
    text = "a b c d e f g h"
    windows = windows_of(text, tokenizer, WindowRule(12, 3, 4))
    peaks = {"s0_0": 4.0, "e0_0": 4.0, "s1_0": 2.0, "e1_0": 2.5, "s0_6": 1.0, "e0_6": 2.0}
    starts, ends = logits_of(windows, 12, **peaks)
    options = {"version_2_with_negative": True}
    answer, nbest, odds = decode(text, windows, starts, ends, tokenizer, **options)
    assert (answer, odds) == ("", 1.5)
    assert [nbest[0]["text"], nbest[0]["start_logit"]] == ["", 2.0]
    assert nbest[0]["probability"] == pytest.approx(1 / (1 + math.exp(-1.5)), abs=1e-4)
    for threshold, expected in ((1.5, "a"), (1.4, "")):
        options["null_score_diff_threshold"] = threshold
        assert decode(text, windows, starts, ends, tokenizer, **options)[0] == expected


def test_a_span_of_the_score_of_no_answer_comes_before_it(tokenizer):
    """Equal scores, of the null entry and at the threshold: the original answers."""
    text = "a b c"
    windows = windows_of(text, tokenizer)
    (start,) = [windows[0].doc_offset]
    peaks = {"s0_0": 3.0, "e0_0": 1.0, f"s0_{start}": 2.0, f"e0_{start}": 2.0}
    starts, ends = logits_of(windows, 12, **peaks)
    options = {"version_2_with_negative": True, "n_best_size": 3}
    answer, nbest, odds = decode(text, windows, starts, ends, tokenizer, **options)
    assert (answer, odds) == ("a", 0.0)
    assert [entry["text"] for entry in nbest][:2] == ["a", ""]
    options["null_score_diff_threshold"] = np.nextafter(0.0, -1)
    assert decode(text, windows, starts, ends, tokenizer, **options)[0] == ""


def test_null_entry_alone_is_no_failure(tokenizer):
    text = "a b c"
    windows = windows_of(text, tokenizer)
    peaks = {"s0_0": 5.0, "e0_0": 5.0, "s0_2": 4.0, "e0_2": 4.0}
    starts, ends = logits_of(windows, 12, **peaks)
    options = {"version_2_with_negative": True, "n_best_size": 2}
    starts[0, 1] = ends[0, 1] = 4.0
    answer, nbest, odds = decode(text, windows, starts, ends, tokenizer, **options)
    assert (answer, odds) == ("", NULL_ODDS_WITHOUT_SPAN)
    assert nbest == [{"text": "", "probability": 1.0, "start_logit": 5.0, "end_logit": 5.0}]
    options["null_score_diff_threshold"] = 2 * NULL_ODDS_WITHOUT_SPAN  # nothing else to answer
    assert decode(text, windows, starts, ends, tokenizer, **options)[0] == ""


def test_documents_without_windows_are_answered(tokenizer):
    nothing = np.zeros((0, 9), np.float32)
    assert decode(" ", [], nothing, nothing, tokenizer) == (
        "empty",
        [{"text": "empty", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}],
        None,
    )
    answer, nbest, odds = decode(" ", [], nothing, nothing, tokenizer, version_2_with_negative=True)
    assert (answer, len(nbest), nbest[0]["text"], odds) == ("", 1, "", NULL_ODDS_WITHOUT_SPAN)


def test_questions_are_answered_from_their_own_windows(tokenizer):
    texts = ["a b", "c d", "e f"]
    order = [2, 0, 1]  # windows need not lie in the order of the questions
    windows = [windows_of(texts[i], tokenizer, index=i)[0] for i in order]
    starts, ends = logits_of(
        windows, 12, s0_7=2.0, e0_7=2.0, s1_6=2.0, e1_6=2.0, s2_6=1.0, e2_7=1.0
    )
    questions = [question(text, f"q{i}") for i, text in enumerate(texts)]
    predictions = decode_answers(questions, windows, starts, ends, tokenizer, AnswerRule())
    assert predictions.answers == {"q0": "a", "q1": "c d", "q2": "f"}
    assert list(predictions.answers) == ["q0", "q1", "q2"] and predictions.null_odds == {}


def test_bad_input_is_named(tokenizer):
    windows = windows_of("a b", tokenizer)
    good = np.zeros((1, 12), np.float32)
    bad = good.copy()
    bad[0, 3] = np.nan
    one = [question("a b")]
    for arguments, options, said in [
        ((one, windows, good[:, :8], good), {}, r"start_logits: expected shape \[1, at least 9\]"),
        ((one, windows, good, good[0]), {}, r"end_logits: .* got \[12\]"),
        ((one, windows, good, np.zeros((2, 12))), {}, r"end_logits: .* got \[2, 12\]"),
        ((one, windows, good, good[:, :10]), {}, r"expected shape \[1, 12\] as start_logits"),
        ((one, windows, good, bad), {}, "end_logits: row 0 has a value that is not finite"),
        ((one * 2, windows, good, good), {}, "questions: id 'q' comes twice"),
        (([], windows, good, good), {}, "window 0 is of question 0, expected one of the 0"),
        ((one, windows, good, good), {"n_best_size": 0}, "n_best_size must be at least 1, got 0"),
        ((one, windows, good, good), {"max_answer_length": 0}, "max_answer_length must be at"),
    ]:
        with pytest.raises(ValueError, match=said):
            decode_answers(*arguments, tokenizer, AnswerRule(**options))


def test_defaults_are_the_flags_of_run_squad():
    assert WindowRule() == WindowRule(max_seq_length=384, doc_stride=128, max_query_length=64)
    expected = {"n_best_size": 20, "max_answer_length": 30, "version_2_with_negative": False}
    assert AnswerRule() == AnswerRule(**expected, null_score_diff_threshold=0.0)


def test_files_have_the_original_format(tokenizer, tmp_path):
    text = "Caf\u00e9 b"
    windows = windows_of(text, tokenizer)
    starts, ends = logits_of(windows, 12, s0_6=2.0, e0_6=2.5)
    options = {"n_best_size": 1}
    predictions = decode_answers(
        [question(text)], windows, starts, ends, tokenizer, AnswerRule(**options)
    )
    paths = write_predictions(predictions, tmp_path)
    assert [p.rsplit("/")[-1] for p in paths] == ["predictions.json", "nbest_predictions.json"]
    assert (tmp_path / "predictions.json").read_text() == '{\n    "q": "Caf\\u00e9"\n}\n'
    assert (tmp_path / "nbest_predictions.json").read_text() == (
        '{\n    "q": [\n        {\n            "text": "Caf\\u00e9",\n'
        '            "probability": 1.0,\n            "start_logit": 2.0,\n'
        '            "end_logit": 2.5\n        }\n    ]\n}\n'
    )
    options["version_2_with_negative"] = True
    predictions = decode_answers(
        [question(text)], windows, starts, ends, tokenizer, AnswerRule(**options)
    )
    assert len(write_predictions(predictions, tmp_path)) == 3
    assert json.loads((tmp_path / "null_odds.json").read_text()) == {"q": -24.5}
