"""Tests of what a vocabulary says of its model's casing."""

import pytest

from bert_tf.tokenization.vocabulary import casing_of, load_vocab, vocabulary_doubts


@pytest.mark.parametrize(
    ("name", "casing"),
    [
        ("bert-base-uncased", "uncased"),
        ("bert-base-cased", "cased"),
        ("bert-base-chinese", "caseless"),  # its model is uncased: see `_UNCASED_MODELS`
        ("bert-base-multilingual-cased", "cased"),
    ],
)
def test_casing_is_told_from_the_released_vocabularies(shared_data, name, casing):
    vocab = load_vocab(shared_data / "vocab" / f"{name}-vocab.txt")
    assert casing_of(vocab) == casing


def test_capitals_of_special_tokens_do_not_make_a_vocabulary_cased():
    assert casing_of({"[PAD]": 0, "[unused1]": 1, "a": 2, "##é": 3, "中": 4}) == "uncased"
    assert casing_of({"[PAD]": 0, "<S>": 1, "a": 2}) == "uncased"
    assert casing_of({"[PAD]": 0, "a": 1, "##A": 2}) == "cased"
    assert casing_of({"[PAD]": 0, "É": 1}) == "cased"


def test_a_vocabulary_with_few_letters_that_have_cases():
    assert casing_of({"[PAD]": 0, "中": 1, "文": 2, "a": 3}) == "caseless"
    assert casing_of({"[PAD]": 0, "中": 1, "a": 2}) == "uncased"
    assert casing_of({"[PAD]": 0, "中": 1, "A": 2}) == "cased"


@pytest.mark.parametrize(
    ("name", "do_lower_case", "vocab_size", "doubts"),
    [
        ("bert-base-uncased", True, 30_522, []),
        ("bert-base-uncased", True, 30_528, []),  # rounded up to a multiple of 8
        ("bert-base-uncased", True, 30_720, []),
        ("bert-base-cased", False, 28_996, []),
        ("bert-base-chinese", True, 21_128, []),
        ("bert-base-chinese", False, 21_128, []),
        ("bert-base-cased", False, 30_522, ["has 28,996 pieces, the model embeddings for 30,522"]),
        ("bert-base-cased", True, None, ["29% of the vocabulary's pieces have capital letters"]),
        ("bert-base-multilingual-cased", True, 119_547, ["16% of the vocabulary's pieces"]),
        ("bert-base-uncased", False, None, ["every word with a capital becomes [UNK]"]),
        ("bert-base-cased", True, 30_522, ["has 28,996 pieces", "do_lower_case=False"]),
    ],
)
def test_doubts(shared_data, name, do_lower_case, vocab_size, doubts):
    vocab = load_vocab(shared_data / "vocab" / f"{name}-vocab.txt")
    found = vocabulary_doubts(vocab, do_lower_case, vocab_size)
    assert len(found) == len(doubts)
    for message, part in zip(found, doubts, strict=True):
        assert part in message


def test_one_piece_in_fifty_may_have_a_capital():
    pieces = ["A", *(f"w{i}" for i in range(49))]
    assert not vocabulary_doubts({piece: i for i, piece in enumerate(pieces)}, True, None)
    (doubt,) = vocabulary_doubts({piece: i for i, piece in enumerate(pieces[:49])}, True, None)
    assert "2% of the vocabulary's pieces have capital letters" in doubt
