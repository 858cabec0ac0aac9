"""Questions answered inside the graph: windows, spans and texts as `span_decoding` has them."""

import dataclasses
import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.models.task_models import bert_span_labeler
from bert_tf.serving.question_answering import QuestionAnswerer
from bert_tf.serving.windows import windows_in_graph
from bert_tf.tasks import document_windows
from bert_tf.tasks.answer_decoding import NULL_ODDS_WITHOUT_SPAN, AnswerRule, decode_answers
from bert_tf.tasks.document_windows import WindowRule, encode_words, pack_windows, split_words
from bert_tf.tokenization.graph_tokenizer import TextToIds
from bert_tf.tokenization.wordpiece import FullTokenizer
from tests.support import synthetic_records as synthetic

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the list of items is empty ##ed ##s return , . ( ) - caf ##e a"
).split()
RULE = WindowRule(max_seq_length=23, doc_stride=7, max_query_length=5)
# Words and what stands between them: accents, unknown words, marks, vanishing and odd spaces.
PARTS = ["the", "List", "items,", "(empty)", "cafés", "cafe\u0301", "is-is", "\U0001f600", "A."]
PARTS += ["emptyed", "un\u200bknown", "of\u00a0the", "\u200b", "\u1e9b\u0323", "returns", "\u00ad"]
SPACES = [" ", "  ", "\n", "\t", " \r\n", "\u202f", " "]
N_BEST, LONGEST = 7, 5


@dataclasses.dataclass
class Question:
    qas_id: str
    doc_tokens: tuple[str, ...]


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(word + "\n" for word in WORDS))
    return path


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(11)
    config = synthetic.small_config(
        vocab_size=len(WORDS),
        num_hidden_layers=1,
        max_position_embeddings=29,
        initializer_range=0.9,
    )
    return bert_span_labeler(config)


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(5)

    def text(count):
        words, spaces = random.choice(PARTS, count), random.choice(SPACES, count)
        return "".join(f"{word}{space}" for word, space in zip(words, spaces, strict=True))

    lengths = random.integers(0, 61, 41)
    return [text(int(n)) for n in random.integers(0, 9, 41)], [text(int(n)) for n in lengths]


def windows_of(texts, vocab_file, rule=RULE):
    tokenizer = FullTokenizer(vocab_file)
    questions, windows = [], []
    for number, (question, context) in enumerate(zip(*texts, strict=True)):
        words, _ = split_words(context)
        questions.append(Question(str(number), words))
        pieces = encode_words(words, tokenizer)
        windows += document_windows.make_windows(question, pieces, tokenizer, rule, number)
    return questions, windows, tokenizer


def test_windows(texts, vocab_file):
    _, expected, _ = windows_of(texts, vocab_file)
    text_to_ids = TextToIds(vocab_file, max_seq_length=RULE.max_seq_length)
    query = text_to_ids(tf.constant(texts[0]))[:, : RULE.max_query_length]
    cls, sep = (tf.fill([query.nrows(), 1], i) for i in (text_to_ids.cls_id, text_to_ids.sep_id))
    found = windows_in_graph(
        text_to_ids(tf.constant(texts[1])),
        tf.concat([cls, query, sep], axis=1),
        sep_id=text_to_ids.sep_id,
        pad_id=text_to_ids.pad_id,
        max_seq_length=RULE.max_seq_length,
        stride=RULE.doc_stride,
        segment=1,
    )
    real = np.flatnonzero(found.lengths)  # ours has one for a text without pieces too
    assert len(real) == len(expected) > 100
    without = np.flatnonzero(found.lengths == 0)
    assert len(without)
    for row in without:
        head = [text_to_ids.cls_id, *query[found.rows[row]].numpy(), text_to_ids.sep_id]
        used = found.inputs["input_mask"][row].numpy() > 0
        ids = found.inputs["input_ids"][row].numpy()[used].tolist()
        assert ids == [*head, text_to_ids.sep_id]
    length = found.inputs["input_ids"].shape[1]
    for name, value in pack_windows(expected, length).items():
        np.testing.assert_array_equal(found.inputs[name].numpy()[real], value, err_msg=name)
    for row, window in zip(real, expected, strict=True):
        assert found.rows[row] == window.example_index and found.starts[row] == window.doc_start
        place = slice(window.doc_offset, window.doc_offset + len(window.words))
        np.testing.assert_array_equal(found.is_max_context[row, place], window.is_max_context)
        assert found.shows[row].numpy().sum() == found.lengths[row] == len(window.words)


def check_answers(texts, vocab_file, model, rule, *, n_best_size, max_answer_length, version_2):
    """Compare all that is served with `span_decoding`.

    Returns:
        The answerer, and what it answered, as arrays.
    """
    questions, windows, tokenizer = windows_of(texts, vocab_file, rule)
    packed = pack_windows(windows, rule.max_seq_length)
    logits = model.predict(packed, batch_size=64, verbose=0)
    padding = packed["input_mask"] == 0
    options = {"n_best_size": n_best_size, "max_answer_length": max_answer_length}
    options |= {"version_2_with_negative": version_2}
    starts, ends = (np.where(padding, -1e30, logits[f"{name}_logits"]) for name in ("start", "end"))

    def decode():
        return decode_answers(questions, windows, starts, ends, tokenizer, AnswerRule(**options))

    if version_2:  # such that half of the answers are refused, where they are not all alike
        odds = [x for x in decode().null_odds.values() if x != NULL_ODDS_WITHOUT_SPAN]
        options["null_score_diff_threshold"] = float(np.median(odds))
    expected = decode()
    text_to_ids = TextToIds(vocab_file, max_seq_length=rule.max_seq_length)
    served = QuestionAnswerer(model, text_to_ids, rule, **options)
    found = {n: v.numpy() for n, v in served.answer(*map(tf.constant, texts)).items()}
    seen = set()
    for row, context in enumerate(texts[1]):
        count = found["n_best_count"][row]
        # The null entry and what the original says where there is no span have no logits or text.
        nbest = [e for e in expected.nbest[str(row)] if e["text"] and (e["start_logit"] or count)]
        assert [x.decode() for x in found["n_best_answers"][row, :count]] == [
            entry["text"] for entry in nbest
        ]
        assert not any(found["n_best_answers"][row, count:])
        scores = [entry["probability"] for entry in nbest]
        np.testing.assert_allclose(found["n_best_scores"][row, :count], scores, atol=1e-5)
        answer = expected.answers[str(row)] if count else ""
        assert found["answer"][row].decode() == answer
        if version_2:
            assert found["null_score"][row] == pytest.approx(expected.null_odds[str(row)], abs=1e-4)
        place = slice(found["char_start"][row], found["char_end"][row])
        assert " ".join(split_words(context[place])[0]) == answer
        raw = context.encode()[found["byte_start"][row] : found["byte_end"][row]]
        assert raw.decode() == context[place]
        seen.add((bool(answer), count == n_best_size))
    assert (True, True) in seen and (not version_2 or {(False, True), (False, False)} & seen)
    return served, found


@pytest.mark.parametrize("version_2", [False, True])
def test_answers(texts, vocab_file, model, version_2):
    served, found = check_answers(
        texts,
        vocab_file,
        model,
        RULE,
        n_best_size=N_BEST,
        max_answer_length=LONGEST,
        version_2=version_2,
    )
    # Rows do not depend on one another, nor on how many there are.
    alone = served.answer(tf.constant(texts[0][7:8]), tf.constant(texts[1][7:8]))
    assert alone["answer"][0].numpy() == found["answer"][7]
    none = served.answer(tf.constant([], tf.string), tf.constant([], tf.string))
    assert {name: value.shape[0] for name, value in none.items()} == dict.fromkeys(found, 0)


def test_spans_of_the_score_of_no_answer(texts, vocab_file, model):
    """A model whose logits are all 0: every span, and no answer, is as good as any other."""
    weights = model.get_weights()
    model.set_weights(
        [w * (v.path.split("/")[0] != "cls") for w, v in zip(weights, model.weights, strict=True)]
    )
    try:
        _, found = check_answers(
            texts,
            vocab_file,
            model,
            RULE,
            n_best_size=N_BEST,
            max_answer_length=LONGEST,
            version_2=True,
        )
    finally:
        model.set_weights(weights)
    assert set(found["null_score"][found["n_best_count"] > 0]) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("version_2", [False, True])
def test_real_questions(shared_data, version_2):
    """300 of them, most in several windows; random weights, so that spans are anywhere."""
    data = json.loads((shared_data / "squad" / "dev-v1.1.subset.json").read_text(encoding="utf-8"))
    pairs = [
        (question["question"], paragraph["context"])
        for article in data["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    pairs = pairs[:: len(pairs) // 300][:300]
    vocab_file = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    keras.utils.set_random_seed(17)
    config = synthetic.small_config(
        vocab_size=30_522,
        num_hidden_layers=1,
        max_position_embeddings=131,
        initializer_range=0.9,
    )
    rule = WindowRule(max_seq_length=128, doc_stride=48, max_query_length=64)
    texts = [question for question, _ in pairs], [context for _, context in pairs]
    assert len(windows_of(texts, vocab_file, rule)[1]) > 2 * len(pairs) == 600
    check_answers(
        texts,
        vocab_file,
        bert_span_labeler(config),
        rule,
        n_best_size=20,
        max_answer_length=30,
        version_2=version_2,
    )


def test_more_windows_than_are_run_at_once(vocab_file, model):
    text_to_ids = TextToIds(vocab_file, max_seq_length=RULE.max_seq_length)
    served = QuestionAnswerer(model, text_to_ids, RULE)
    context = "the list of items is empty . " * 71
    found = served.answer(tf.constant(["items"] * 2), tf.constant([context, "the list of items"]))
    alone = served.answer(tf.constant(["items"]), tf.constant(["the list of items"]))
    assert found["answer"][1] == alone["answer"][0]
    assert found["n_best_count"][0] > alone["n_best_count"][0] > 0


def test_what_does_not_fit_is_refused(vocab_file, model):
    text_to_ids = TextToIds(vocab_file, max_seq_length=19)
    with pytest.raises(ValueError, match="rule: expected max_seq_length 19 .*, got 23"):
        QuestionAnswerer(model, text_to_ids, RULE)
    rule = dataclasses.replace(RULE, max_seq_length=19)
    with pytest.raises(ValueError, match="n_best_size must be at least 1, got 0"):
        QuestionAnswerer(model, text_to_ids, rule, n_best_size=0)


def test_defaults_are_those_of_spans_that_python_reads():
    parameters = inspect.signature(QuestionAnswerer).parameters
    expected = dataclasses.asdict(AnswerRule())
    assert {name: parameters[name].default for name in expected} == expected


def test_pieces_and_how_likely_the_answer_begins_and_ends_there(texts, vocab_file, model):
    """By hand from the model's logits: of each piece that of the window which shows most around."""
    texts = [["the list", *part[:6]] for part in texts]
    texts[1][0] = ""
    questions, windows, tokenizer = windows_of(texts, vocab_file)
    packed = pack_windows(windows, RULE.max_seq_length)
    logits = model.predict(packed, verbose=0)
    text_to_ids = TextToIds(vocab_file, max_seq_length=RULE.max_seq_length)
    served = QuestionAnswerer(model, text_to_ids, RULE)
    found = {n: v.numpy() for n, v in served.span_pieces(*map(tf.constant, texts)).items()}
    several = 0
    for row in range(len(questions)):
        pieces, places = tokenizer.tokenize_with_offsets(texts[1][row])
        assert found["piece_count"][row] == len(pieces)
        assert [piece.decode() for piece in found["pieces"][row, : len(pieces)]] == pieces
        shown = zip(found["char_starts"][row], found["char_ends"][row], strict=True)
        assert list(shown)[: len(pieces)] == places
        own = [(i, window) for i, window in enumerate(windows) if window.example_index == row]
        several += len(own) > 1
        for side in ("start", "end"):
            expected = np.zeros(len(pieces))
            for i, window in own:
                for k, is_max in enumerate(window.is_max_context):
                    if is_max:
                        value = logits[f"{side}_logits"][i, window.doc_offset + k]
                        expected[window.doc_start + k] = np.exp(value)
            scores = found[f"{side}_scores"][row]
            expected /= max(expected.sum(), 1e-30)
            np.testing.assert_allclose(scores[: len(pieces)], expected, rtol=1e-5)
            assert not scores[len(pieces) :].any()
    assert several > 1 and not found["piece_count"][0]
