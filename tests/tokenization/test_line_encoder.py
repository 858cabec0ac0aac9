import functools
import importlib.util
import itertools
import pathlib
import pickle

import numpy as np
import pytest

from bert_tf.tokenization import line_encoder
from bert_tf.tokenization.wordpiece import FullTokenizer
from tests.support.languages import LANGUAGES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenization"
TINY_VOCAB = GOLDEN / "tiny_vocab.txt"
VOCABULARIES = {
    "bert-base-uncased-vocab.txt": True,
    "bert-base-cased-vocab.txt": False,
    "bert-base-multilingual-cased-vocab.txt": False,
}
WORDS = "the The, it's a (well-known) co-operation, isn't it? $5.00 ... http://the.it/a_b~c".split()


@functools.cache
def _golden():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _assert_same(tokenizer, lines):
    """Compare with what the tokenizer makes of the lines one by one."""
    ids, counts = tokenizer.encode_lines(lines)
    expected = list(map(tokenizer.encode, lines))
    assert (ids.dtype, counts.dtype) == (np.int32, np.int64)
    assert counts.tolist() == list(map(len, expected))
    assert ids.tolist() == list(itertools.chain.from_iterable(expected))


@pytest.fixture
def small_table(monkeypatch):
    """Eight slots, and batches of a few lines: words come and go all the time."""
    monkeypatch.setattr(line_encoder, "_SLOT_BITS", 3)
    monkeypatch.setattr(line_encoder, "_BATCH_CHARACTERS", 97)


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_lines_are_encoded_as_each_alone(do_lower_case):
    hard = _golden().HARD_STRINGS
    tokenizer = FullTokenizer(TINY_VOCAB, do_lower_case)
    for lines in (hard, _golden().fuzz_strings(3)[:2000], hard[::-1]):
        _assert_same(tokenizer, lines)


def test_every_ascii_character_between_words():
    lines = [f"The{chr(code)}it {chr(code)} a{chr(code)}" for code in range(0x80)]
    for do_lower_case in (True, False):
        tokenizer = FullTokenizer(TINY_VOCAB, do_lower_case)
        _assert_same(tokenizer, lines)
        _assert_same(tokenizer, lines)  # with all words in the table


@pytest.mark.parametrize("length", [*range(1, 19), 199, 200, 201])
def test_words_of_every_length(length):
    tokenizer = FullTokenizer(TINY_VOCAB)
    word = ("theit" * 41)[:length]
    # Words that differ in their last character, or go on behind the bytes that are looked up.
    lines = [f"{word} {word[:-1]}x", f"{word}a", f"{word}e {word}", word]
    _assert_same(tokenizer, lines)
    _assert_same(tokenizer, lines[::-1])


def test_a_longer_word_is_not_the_one_it_begins_with():
    """In the table are up to 16 bytes of a word."""
    word = "sixteencharacter"
    tokenizer = FullTokenizer.from_vocab({"[UNK]": 0, word: 1, "##s": 2, "sixteenc": 3})
    for _ in range(2):
        ids, counts = tokenizer.encode_lines([f"{word} {word}s {word}x", "sixteenc sixteencs"])
        assert ids.tolist() == [1, 1, 2, 0, 3, 3, 2]
        assert counts.tolist() == [4, 3]


def test_words_that_come_and_go(small_table):
    rng = np.random.default_rng(5)
    tokenizer = FullTokenizer(TINY_VOCAB)
    words = [*WORDS, *(f"the{number}" for number in range(53)), "café", "thé,", "的it"]
    for _ in range(7):
        _assert_same(tokenizer, [" ".join(rng.choice(words, 11)) for _ in range(47)])


@pytest.mark.parametrize("name", VOCABULARIES)
def test_lines_of_many_languages(name, shared_data):
    tokenizer = FullTokenizer(shared_data / "vocab" / name, VOCABULARIES[name])
    sentences = [sentence for x in LANGUAGES.values() for sentence in x.sentences]
    english = "The weather is fine today, and nobody knows the reason of it"
    _assert_same(tokenizer, sentences)
    # One word in another language, two, ...
    _assert_same(tokenizer, [f"{english} {sentence}" for sentence in sentences])


def test_lines_that_are_no_single_lines():
    tokenizer = FullTokenizer(TINY_VOCAB)
    lines = ["", "the\nit", "\n", "  the \t it\r", "", "é\nthe", b"the it\xff", "\x00", "the", ""]
    _assert_same(tokenizer, lines)
    _assert_same(tokenizer, [])
    _assert_same(tokenizer, [""])


def test_special_tokens_in_lines():
    lines = ["the [MASK] it", "[mask]", "the[SEP]é", "[the]", "[CLS"]
    for parse in (False, True):
        _assert_same(FullTokenizer(TINY_VOCAB, parse_special_tokens=parse), lines)


def test_a_line_that_needs_what_the_vocabulary_lacks(tmp_path):
    (tmp_path / "vocab.txt").write_text("the\n")
    tokenizer = FullTokenizer(tmp_path / "vocab.txt")
    assert tokenizer.encode_lines(["the", "", "the the"])[0].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"vocab\.txt has no \[UNK\].*'the it'"):
        tokenizer.encode_lines(["the", "", "the it", "the"])
    with pytest.raises(ValueError, match="text must be str or bytes, got int"):
        tokenizer.encode_lines(["the", 5])


def test_a_pickled_tokenizer_leaves_the_table_behind():
    tokenizer = FullTokenizer(TINY_VOCAB)
    _assert_same(tokenizer, WORDS)
    assert len(pickle.dumps(tokenizer)) < 100_000
    _assert_same(pickle.loads(pickle.dumps(tokenizer)), WORDS)


def test_words_in_the_table_are_not_asked_for_again():
    asked = []
    tokenizer = FullTokenizer(TINY_VOCAB)

    def encode_word(word):
        asked.append(word)
        return tokenizer.wordpiece_tokenizer.encode_word(word)

    encode = line_encoder.LineEncoder(True, tokenizer.encode, encode_word)
    lines = ["The it, the", "a (the)"]
    first = encode(lines)
    assert asked == ["the", "it", ",", "the", "a", "(", "the", ")"]
    asked.clear()
    for before, after in zip(first, encode(lines), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not asked
