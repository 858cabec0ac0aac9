"""Words hidden in held-out sentences by a rule, and the table of answers."""

import pytest

from bert_tf.tokenization.wordpiece import FullTokenizer
from experiments.pretraining.hidden_words import (
    HiddenWord,
    hide_words,
    most_frequent_word,
    rows_of_answers,
)

VOCAB = {"the", "cat", "sat", "on", "mat", "and", "a", "dog"}
LINES = [
    "The cat sat.",  # too short
    "The cat and the dog sat on a mat today",  # the middle word, "sat", is a piece
    "The cat and the quokka's wombat?! dog sat there again",  # nearest to the middle: "dog"
    "x1 x2 x3 x4 x5 x6 x7 x8",  # none is a piece
    " ".join(["the"] * 21),  # too long
    "A dog and a cat and a DOG sat",
    "The cat sat on the mat and the dog sat",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(VOCAB)]))
    return FullTokenizer(path)


def test_the_middle_word_that_is_a_piece_is_hidden(tokenizer):
    hidden = hide_words(LINES, tokenizer, 10, 64)
    assert [(x.word, x.place) for x in hidden] == [("sat", 5), ("dog", 6), ("cat", 4), ("mat", 5)]
    assert hidden[0].text == "The cat and the dog [MASK] on a mat today"
    assert hidden[0].excerpt == "The cat and the dog ____ on a mat today"


def test_sentences_that_the_model_does_not_see_whole_are_passed_over(tokenizer):
    line = "the cat and the dog sat on a mat"  # nine pieces, [CLS] and [SEP]
    assert len(hide_words([line], tokenizer, 1, 11)) == 1
    assert hide_words([line], tokenizer, 1, 10) == []


def test_sentences_stand_at_equal_distances(tokenizer):
    lines = [f"the cat and the {'dog' if i % 2 else 'cat'} sat on a mat" for i in range(10)]
    assert hide_words(lines, tokenizer, 3, 64) == [
        HiddenWord(tuple(lines[i].split()), 4) for i in (0, 3, 6)
    ]
    assert hide_words([], tokenizer, 3, 64) == []


def test_long_sentences_are_cut_around_the_hidden_word():
    words = tuple("a b c d e f g h i j k l m".split())
    assert HiddenWord(words, 6).excerpt == "...b c d e f ____ h i j k l..."


def test_most_frequent_word_is_counted_among_pieces():
    assert most_frequent_word(["The cat", "the dog, xyz xyz xyz"], VOCAB) == ("the", 2 / 3)


def test_rows_mark_the_right_answer():
    hidden = [HiddenWord(("the", "cat", "sat"), 1)]
    answers = [{"tokens": [["dog", "cat", "mat", "a"]], "scores": [[0.5, 0.25, 0.125, 0.1]]}]
    assert rows_of_answers(hidden, answers)[1:] == [
        ("the ____ sat", "cat", "dog 50%  [cat] 25%  mat 12%")
    ]
