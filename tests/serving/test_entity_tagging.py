"""Entities found inside the graph: tags, chunks and places as the tagging script has them."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.models.task_models import bert_token_classifier
from bert_tf.serving.entity_tagging import EntityTagger
from bert_tf.serving.load import load_served_model
from bert_tf.tasks.entity_metrics import chunks
from bert_tf.tasks.tag_schemes import tag_scheme
from bert_tf.tokenization.graph_tokenizer import TextToIds
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.save import save_hf
from data_prep.finetuning import ner
from tests.support import synthetic_records as synthetic

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the list of items is empty ##ed ##s return , . ( ) - caf ##e a"
).split()
LABELS = ("O", "B-LOC", "I-LOC", "I-PER", "S-PER", "E-LOC")
LENGTH = 29
PARTS = ["the", "List", "items,", "(empty)", "cafés", "cafe\u0301", "is-is", "\U0001f600", "A."]
PARTS += ["emptyed", "un\u200bknown", "returns", "-", "(a", "of."]


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(word + "\n" for word in WORDS))
    return path


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(13)
    config = synthetic.small_config(
        vocab_size=len(WORDS),
        num_hidden_layers=1,
        max_position_embeddings=31,
        initializer_range=0.9,
    )
    return bert_token_classifier(config, len(LABELS))


def tagger(model, vocab_file, **options):
    text_to_ids = TextToIds(vocab_file, max_seq_length=LENGTH)
    return EntityTagger(model, text_to_ids, LABELS, **options)


def found_in(text, row, answer):
    """Entities of a row as (type, text), after a look at their places."""
    count = answer["entity_count"][row]
    assert not answer["entity_text"][row, count:].any()
    entities = []
    for i in range(count):
        place = slice(answer["entity_char_start"][row, i], answer["entity_char_end"][row, i])
        entity = answer["entity_text"][row, i].decode()
        assert text[place] == entity
        first, last = answer["entity_byte_start"][row, i], answer["entity_byte_end"][row, i]
        assert text.encode()[first:last].decode() == entity
        assert 0 < answer["entity_score"][row, i] <= 1
        entities.append((answer["entity_type"][row, i].decode(), entity))
    return entities


def check_entities(sentences, served, vocab_file, length):
    """Compare what is served of sentences, joined by spaces, with what the script's tags give.

    Returns:
        Number of entities, and all tags that were seen.
    """
    windows = ner.sentence_windows(sentences, FullTokenizer(vocab_file), length)
    assert len(windows) == len(sentences)  # none is cut
    ids, mask = np.zeros((2, len(windows), length), np.int32)
    for row, window in enumerate(windows):
        ids[row, : len(window.input_ids)] = window.input_ids
        mask[row, : len(window.input_ids)] = 1
    inputs = {"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(ids)}
    best = served.model.predict(inputs, batch_size=64, verbose=0).argmax(-1)
    tags = ner.collect_tags(windows, best, LABELS)
    texts = [" ".join(sentence.words) for sentence in sentences]
    answer = {n: v.numpy() for n, v in served.answer(tf.constant(texts)).items()}
    seen = set()
    for row, (text, sentence) in enumerate(zip(texts, sentences, strict=True)):
        expected = [
            (name, " ".join(sentence.words[first:last])) for name, first, last in chunks(tags[row])
        ]
        assert found_in(text, row, answer) == expected
        seen.update(tags[row])
    return int(answer["entity_count"].sum()), seen


def test_words_that_stand_apart_are_tagged_as_by_the_script(model, vocab_file):
    random = np.random.default_rng(3)
    sentences = [
        ner.Sentence(words, ("O",) * len(words))
        for words in (tuple(random.choice(PARTS, n)) for n in random.integers(1, 9, 61))
    ]
    served = tagger(model, vocab_file, words="white_space")
    _, seen = check_entities(sentences, served, vocab_file, LENGTH)
    assert seen == set(LABELS)


@pytest.mark.slow
def test_real_sentences(shared_data):
    """1,000 tweets and comments with emoji and accents; random weights tag them anyhow."""
    vocab_file = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    tokenizer = FullTokenizer(vocab_file)
    path = shared_data / "ner" / "wnut17" / "emerging.dev.conll"
    sentences = list(itertools.islice(ner.read_sentences(path), 1_000))
    # A word of a variation selector alone is [UNK] to the script, and nothing in a running text.
    kept = [s for s in sentences if all(tokenizer.tokenize(word) for word in s.words)]
    assert len(sentences) == 1_000 and len(kept) == 997
    keras.utils.set_random_seed(19)
    config = synthetic.small_config(
        vocab_size=30_522,
        num_hidden_layers=1,
        max_position_embeddings=128,
        initializer_range=0.9,
    )
    model = bert_token_classifier(config, len(LABELS))
    text_to_ids = TextToIds(vocab_file, max_seq_length=128)
    served = EntityTagger(model, text_to_ids, LABELS, words="white_space")
    count, seen = check_entities(kept, served, vocab_file, 128)
    assert count > 5_000 and seen == set(LABELS)


def test_marks_around_words_are_words(model, vocab_file):
    served = tagger(model, vocab_file)
    texts = ["(cafés, is-is). (-", "...", "", "a,the\u00a0list"]
    pieces = served.text_to_ids.tokenize_with_offsets(tf.constant(texts))
    rows = tf.cast(pieces.ids.value_rowids(), tf.int32)
    first, last = served.word_bounds(pieces, rows)
    found = [[] for _ in texts]
    for start, end in zip(first.numpy(), last.numpy(), strict=True):
        row = rows[start].numpy()
        begin, stop = pieces.char_starts.flat_values[start], pieces.char_ends.flat_values[end]
        found[row].append(texts[row][begin:stop])
    assert found == [
        ["(", "cafés", ",", "is-is", ")", ".", "(", "-"],
        [".", ".", "."],
        [],
        ["a,the\u00a0list"],
    ]
    answer = {n: v.numpy() for n, v in served.answer(tf.constant(texts)).items()}
    for row, text in enumerate(texts):
        found_in(text, row, answer)


@pytest.mark.parametrize(
    "labels",
    [
        "O B-LOC I-LOC L-LOC U-PER U-LOC",
        "O B_LOC M_LOC E_LOC S_PER S_LOC",
        "O LOC PER ORG MISC DATE",
        "NOUN VERB ADJ X PUNCT DET",
        "O B I E S M",
        "[CLS] [SEP] X O B-PER I-PER",
    ],
)
def test_chunks_of_other_tag_schemes(model, vocab_file, labels):
    labels = labels.split()
    text_to_ids = TextToIds(vocab_file, max_seq_length=LENGTH)
    served = EntityTagger(model, text_to_ids, labels, words="white_space")
    ids = np.random.default_rng(2).integers(0, len(labels), 61)
    begins, inside = (v.numpy() for v in served._chunks(tf.constant(ids), tf.zeros_like(ids)))
    expected = chunks([labels[i] for i in ids], tag_scheme(labels))
    assert np.flatnonzero(begins).tolist() == [first for _, first, _ in expected]
    words = [word for _, first, last in expected for word in range(first, last)]
    assert np.flatnonzero(inside).tolist() == words
    types = [
        served._types.numpy()[served._type_of.numpy()[ids[f]]].decode() for _, f, _ in expected
    ]
    assert types == [name for name, _, _ in expected]


def test_a_tagger_of_transformers_with_other_labels(model, vocab_file, tmp_path):
    labels = ("[CLS]", "X", "B_PER", "L_PER", "U_LOC", "O")
    save_hf(tmp_path, model, FullTokenizer(vocab_file), labels)
    served = load_served_model(tmp_path)
    assert served.label_names == labels
    text = "the list of items is empty"
    found = found_in(text, 0, {n: v.numpy() for n, v in served.answer(tf.constant([text])).items()})
    assert {kind for kind, _ in found} <= {"PER", "LOC"}


def test_the_label_of_each_piece(model, vocab_file):
    served, tokenizer = tagger(model, vocab_file), FullTokenizer(vocab_file)
    texts = ["The cafés, (emptyed) list.", "", "A"]
    found = {name: value.numpy() for name, value in served.pieces(tf.constant(texts)).items()}
    cls, sep = tokenizer.vocab["[CLS]"], tokenizer.vocab["[SEP]"]
    for row, text in enumerate(texts):
        ids = np.array([[cls, *tokenizer.encode(text), sep]], np.int32)
        inputs = {"input_ids": ids, "input_mask": ids * 0 + 1, "segment_ids": ids * 0}
        logits = model.predict_on_batch(inputs)[0, 1:-1]
        scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        count = found["piece_count"][row]
        assert count == len(logits)
        labels = [LABELS[i] for i in logits.argmax(-1)]
        assert [label.decode() for label in found["labels"][row, :count]] == labels
        np.testing.assert_allclose(found["scores"][row, :count], scores.max(-1), atol=1e-5)
    assert len({*found["labels"].ravel()}) > 2  # one of them is the padding


def test_a_long_text_is_tagged_to_its_end(model, vocab_file):
    served = tagger(model, vocab_file)
    text = "the list of items is empty " * 67
    probabilities = served._probabilities(
        served.text_to_ids.tokenize_with_offsets(tf.constant([text, "the list"]))
    )
    assert probabilities.shape == (6 * 67 + 2, len(LABELS))
    np.testing.assert_allclose(tf.reduce_sum(probabilities, 1), 1, atol=1e-5)
    # Far from both ends a window looks like the one a multiple of both lengths before it.
    middle = probabilities.numpy()[60:-60]
    np.testing.assert_allclose(middle[: -13 * 6], middle[13 * 6 :], atol=1e-4)


def test_what_does_not_fit_is_refused(model, vocab_file):
    text_to_ids = TextToIds(vocab_file, max_seq_length=LENGTH)
    with pytest.raises(ValueError, match="labels: the model has 6, got 2: O, B-LOC"):
        EntityTagger(model, text_to_ids, LABELS[:2])
    with pytest.raises(ValueError, match="labels: expected a tag, O, or a form .* got 'PER'"):
        EntityTagger(model, text_to_ids, (*LABELS[:5], "PER"))
    with pytest.raises(
        ValueError, match="words: expected one of punctuation, white_space, got 'x'"
    ):
        tagger(model, vocab_file, words="x")
