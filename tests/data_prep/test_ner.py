import ast
import collections
import importlib.util
import json
import os
import pathlib
import random

import numpy as np
import pytest

from bert_tf.records.encoding import encode_examples
from bert_tf.records.schema import FeatureSpec
from bert_tf.tasks.entity_metrics import chunks, entity_scores
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.finetuning import ner
from data_prep.finetuning.ner import (
    Sentence,
    collect_tags,
    make_features,
    read_sentences,
    sentence_windows,
)

TESTS = pathlib.Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "ner"
TINY_CONLL = GOLDEN / "tiny.conll"
TINY_VOCAB = TESTS / "golden" / "tokenization" / "tiny_vocab.txt"
WNUT17 = {  # file: sentences, words
    "wnut17train.conll": (3394, 62730),
    "emerging.dev.conll": (1009, 15733),
    "emerging.test.annotated": (1287, 23394),
}
CLS, SEP, UNK = 3, 4, 2  # of the tiny vocabulary
LENGTHS = (3, 4, 5, 7, 11, 13, 29, 64)


@pytest.fixture(scope="module")
def tokenizer():
    return FullTokenizer(TINY_VOCAB, do_lower_case=False)


@pytest.fixture
def write(tmp_path):
    def to_file(text: str | bytes) -> str:
        path = tmp_path / "tags.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return to_file


def words_and_tags(sentences):
    return [(" ".join(s.words), " ".join(s.tags)) for s in sentences]


def sentence(text, document=0, path="f"):
    words = tuple(text.split())
    return Sentence(words, ("O",) * len(words), document, path, 1)


# Reading


def test_the_form_of_conll_2003():
    sentences = list(read_sentences(TINY_CONLL))
    assert [s.document for s in sentences] == [0, 0, 1, 1]
    assert [s.line for s in sentences] == [3, 13, 25, 48]
    assert sentences[1].location == f"{TINY_CONLL}, line 13"
    assert words_and_tags(sentences)[1] == (
        "Ida Hagen Bert Egger met at Ghent Bank .",
        "I-PER B-PER I-PER I-PER O O I-LOC I-ORG O",
    )
    chunked = read_sentences(TINY_CONLL, tag_column=2)
    assert next(chunked).tags[:3] == ("I-NP", "I-NP", "I-PP")


@pytest.mark.parametrize(
    "text",
    [
        "Ida\tB-PER\nran\tO\n\nIt\tO\n",
        "Ida\tB-PER\nran\tO\n\nIt\tO",
        "\ufeffIda\tB-PER\r\nran\tO\r\n\r\nIt\tO\r\n",
        "\n\t\nIda\tB-PER\nran\tO\n\t\n \n\nIt\tO\n\n\n",  # blank lines of WNUT-17 hold a tab
        "Ida B-PER\nran  O \n\nIt O",
        "Ida\tB-PER\nran\tO\n-DOCSTART-\tO\nIt\tO\n",
        "-DOCSTART-\nIda B-PER\nran O\n\nIt O\n",
    ],
)
def test_ends_of_lines_and_of_sentences(write, text):
    assert words_and_tags(read_sentences(write(text))) == [("Ida ran", "B-PER O"), ("It", "O")]


def test_columns_are_counted_from_either_end(write):
    path = write("1 Ida x B-PER 7\n2 ran y O 8\n")
    (found,) = read_sentences(path, token_column=1, tag_column=-2)
    assert (found.words, found.tags) == (("Ida", "ran"), ("B-PER", "O"))
    (found,) = read_sentences(path, token_column=-4, tag_column=3)
    assert (found.words, found.tags) == (("Ida", "ran"), ("B-PER", "O"))


def test_words_without_tags(write, tmp_path):
    path = write("\ufeff-DOCSTART-\n\n \nIda\nran\n\nIt\n")
    assert not ner.has_tags(path)
    found = list(read_sentences(path, tag_column=None))
    assert words_and_tags(found) == [("Ida ran", "O O"), ("It", "O")]
    with pytest.raises(ValueError, match="got 1 parted by spaces"):
        list(read_sentences(path))
    ner.write_conll(tmp_path / "out", found, [["B-X", "O"], ["O"]], with_true=False)
    assert (tmp_path / "out").read_text() == "Ida B-X\nran O\n\nIt O\n\n"
    path = write("\nIda\tx\tO\n")
    assert ner.has_tags(path) and ner.has_tags(path, 2, 0)
    assert not ner.has_tags(path, 0, 3) and not ner.has_tags(path, 2)
    (found,) = read_sentences(path, token_column=1, tag_column=None)
    assert found.words == ("x",)
    with pytest.raises(ValueError, match=r"line 2: expected column 3 \(words\), got 3 columns"):
        list(read_sentences(path, token_column=3, tag_column=None))
    assert ner.has_tags(write(""))  # refused by the reader


def test_odd_words_stay_whole(write):
    words = [
        "a b",
        "\u00a0",
        "\u2028",
        "\u200b",
        "\u0085x",
        "\x0b",
        "#",
        '"',
        "-DOCSTART-s",
        "\ufeff",
    ]
    (found,) = read_sentences(write("".join(f"{word}\tO\n" for word in words)))
    assert list(found.words) == words
    (found,) = read_sentences(write("".join(f"{word} O\n" for word in words[1:])))
    assert list(found.words) == words[1:]


def test_documents_without_sentences_and_before_the_first_line_of_one(write):
    text = "It O\n\n-DOCSTART- O\n\nIt O\n\nIt O\n\n-DOCSTART- O\n\n-DOCSTART- O\n\nIt O\n"
    numbers = [s.document for s in read_sentences(write(text))]
    assert numbers[:3] == [0, 1, 1] and numbers[3] > 1 and len(numbers) == 4


GOOD = "It O\n\n"
BAD_LINES = {
    "Ida x B-PER\n": "expected 2 columns parted by spaces as in the first line, got 3",
    "Ida\n": "expected 2 columns .*, got 1",
    "Ida V-PER\n": "expected a tag, O, or a form and a type such as B-PER .*, got 'V-PER'",
    "Ida B-\n": "got 'B-'",
    "Ida PER\n": "got 'PER'",
    "Ida o\n": "got 'o'",
    b"\xff\xfe O\n": "not UTF-8",
    "\u00a0\n": "expected 2 columns .*, got 1",
}


@pytest.mark.parametrize("line, message", BAD_LINES.items())
def test_bad_lines_are_named_or_their_sentences_left_out(write, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(GOOD.encode() + b"Ida I-PER\n" + line + b"worse and worse\nran O\n\n" + b"we O\n")
    with pytest.raises(ValueError, match=f"{path}, line 4: .*{message}"):
        list(read_sentences(path))
    told = []
    kept = list(read_sentences(path, on_bad=told.append))
    assert words_and_tags(kept) == [("It", "O"), ("we", "O")]
    assert len(told) == 1 and told[0].startswith(f"{path}, line 4: ")


def test_empty_columns_between_tabs_are_bad(write):
    with pytest.raises(ValueError, match="line 2: expected a word, got an empty column"):
        list(read_sentences(write("It\tO\n\tO\n")))
    with pytest.raises(ValueError, match="line 2: expected a tag, which is one word, got ''"):
        list(read_sentences(write("It\tO\nIda\t\n")))


def test_a_bad_first_line_does_not_decide_the_columns(write):
    told = []
    path = write(b"\xff x y O\n\nIt O\n")
    assert words_and_tags(read_sentences(path, on_bad=told.append)) == [("It", "O")]
    assert len(told) == 1
    path = write(b"\xff x y O\n\nIda PER\nran O\n")
    assert words_and_tags(read_sentences(path, on_bad=told.append)) == [("Ida ran", "PER O")]


@pytest.mark.parametrize("text", ["", "\n \n", "-DOCSTART- -X- O O\n\n", "Ida I-PER\nran PER\n"])
def test_a_file_without_sentences_is_an_error_in_any_case(write, text):
    path = write(text)
    with pytest.raises(ValueError, match=f"{path}: expected lines of a word and its tag, got no"):
        list(read_sentences(path, on_bad=lambda message: None))


@pytest.mark.parametrize(
    "text, columns, message",
    [
        ("Ida\nran\n", (0, -1), "expected a column of words and another of tags, got 1"),
        ("Ida O\n", (0, 2), r"expected columns 0 \(words\) and 2 \(tags\), got 2 columns"),
        ("Ida\tO\n", (-3, -1), "got 2 columns parted by tabs"),
        ("Ida O\n", (1, -1), "and another of tags"),
    ],
)
def test_a_missing_column_is_an_error_in_any_case(write, text, columns, message):
    path = write(text)
    with pytest.raises(ValueError, match=f"{path}, line 1: .*{message}"):
        list(
            read_sentences(
                path, token_column=columns[0], tag_column=columns[1], on_bad=lambda message: None
            )
        )


def test_a_missing_file():
    with pytest.raises(FileNotFoundError, match="absent"):
        list(read_sentences("absent.conll"))


def test_reading_streams(write):
    sentences = read_sentences(write(GOOD + "Ida\n"))
    assert next(sentences).words == ("It",)
    with pytest.raises(ValueError, match="line 3"):
        next(sentences)


def test_a_sentence_needs_as_many_tags_as_words():
    for words, tags in (((), ()), (("a",), ("O", "O"))):
        with pytest.raises(ValueError, match="f, line 7: expected words and as many tags"):
            Sentence(words, tags, 0, "f", 7)


# Tags


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("I-PER I-PER O I-PER", "B-PER I-PER O B-PER"),
        ("I-PER B-PER I-PER I-LOC", "B-PER B-PER I-PER B-LOC"),
        ("O B-PER I-PER", "O B-PER I-PER"),
        ("B-PER E-PER S-LOC S-LOC O", "B-PER I-PER B-LOC B-LOC O"),
        ("I-a-b I-a-b I-a", "B-a-b I-a-b B-a"),
        ("B-PER L-PER U-LOC U-LOC O", "B-PER I-PER B-LOC B-LOC O"),
        ("B_PER M_PER E_PER S_LOC O", "B-PER I-PER I-PER B-LOC O"),
        ("PER PER O LOC PER", "B-PER I-PER O B-LOC B-PER"),
        ("B M E S", "B-_ I-_ I-_ B-_"),
        ("NOUN NOUN VERB", "B-NOUN B-NOUN B-VERB"),
    ],
)
def test_to_bio(tags, expected):
    assert ner.to_bio(tags.split()) == tuple(expected.split())
    assert ner.TAG_SCHEMES["bio"](tags.split()) == tuple(expected.split())
    assert ner.TAG_SCHEMES["original"](tags.split()) == tuple(tags.split())


@pytest.mark.parametrize("seed", range(20))
def test_to_bio_keeps_the_entities_of_any_tags(seed):
    generator = random.Random(seed)
    forms = [f"{form}-{name}" for form in "BIES" for name in ("A", "B-c")]
    tags = generator.choices(["O", *forms], k=50)
    converted = ner.to_bio(tags)
    assert chunks(converted) == chunks(tags)
    assert {tag[0] for tag in converted} <= set("OBI")
    assert ner.to_bio(converted) == converted


def test_to_bio_refuses_other_tags():
    with pytest.raises(ValueError, match="got 'PER'"):
        ner.to_bio(["B-LOC", "PER"])


def test_label_names():
    assert ner.label_names(read_sentences(TINY_CONLL)) == (
        ["O", "B-LOC", "B-PER", "I-LOC", "I-ORG", "I-PER"]
    )
    assert ner.label_names([Sentence(("a",), ("B-X",))]) == ["O", "B-X"]
    assert ner.label_names([Sentence(("a", "b"), ("X", "O"))]) == ["O", "X"]
    # Of parts of speech, none is O.
    assert ner.label_names([Sentence(("a", "b"), ("X", "A"))]) == ["A", "X"]
    with pytest.raises(ValueError, match="tags: .* got 'PER', among B-PER PER"):
        ner.label_names([Sentence(("a", "b"), ("PER", "B-PER"))])


@pytest.mark.parametrize("tags", ["U-PER O", "B_PER O", "PER O", "NOUN VERB", "B I", "S B"])
def test_files_of_other_tag_schemes_are_read(write, tags):
    first, second = tags.split()
    (sentence,) = read_sentences(write(f"Ida {first}\nran {second}\n"))
    assert sentence.tags == (first, second)


# Windows


def random_sentences(generator, count, letters="abcdefghABCDEFGH", longest=30):
    sentences = []
    labels = ["O", "B-A", "I-A", "B-B", "I-B"]
    document = 0
    for _ in range(count):
        document += generator.random() < 0.3
        length = generator.randint(1, longest)
        words = tuple(
            generator.choice(["\u200b", "\u4e2d", "..", ""])
            + "".join(generator.choices(letters, k=generator.choice([1, 1, 2, 3, 9])))
            for _ in range(length)
        )
        tags = tuple(generator.choices(labels, k=length))
        sentences.append(Sentence(words, tags, document, "f", 1))
    return sentences, labels


def check_every_word_once(sentences, windows):
    counted = [pair[:2] for window in windows for pair in window.words]
    assert counted == [(i, w) for i, s in enumerate(sentences) for w in range(len(s.words))]


@pytest.mark.parametrize("document_context", [False, True])
@pytest.mark.parametrize("max_seq_length", LENGTHS)
def test_every_word_counts_once_and_comes_back(tokenizer, max_seq_length, document_context):
    generator = random.Random(max_seq_length)
    sentences, labels = random_sentences(generator, 40)
    arrays, windows = make_features(sentences, tokenizer, labels, max_seq_length, document_context)
    check_every_word_once(sentences, windows)
    names = ("input_ids", "input_mask", "segment_ids", "label_ids", "label_mask")
    schema = [FeatureSpec(name, "int64", max_seq_length) for name in names]
    assert len(encode_examples(schema, arrays)) == len(windows)
    for values in arrays.values():
        assert values.shape == (len(windows), max_seq_length) and values.dtype == np.int32
    for row, window in enumerate(windows):
        size = len(window.input_ids)
        assert window.input_ids[0] == CLS and window.input_ids[-1] == SEP
        assert arrays["input_ids"][row].tolist() == [*window.input_ids] + [0] * (
            max_seq_length - size
        )
        assert arrays["input_mask"][row].tolist() == [1] * size + [0] * (max_seq_length - size)
        positions = [position for *_, position in window.words]
        assert np.flatnonzero(arrays["label_mask"][row]).tolist() == positions
        for index, word, position in window.words:
            pieces = tokenizer.encode(sentences[index].words[word])
            assert window.input_ids[position] == (pieces or [UNK])[0]
            shown = window.input_ids[position : position + len(pieces)]
            assert list(shown) == pieces or len(pieces) > max_seq_length - 2
    assert not arrays["segment_ids"].any()
    assert not arrays["label_ids"][arrays["label_mask"] == 0].any()

    tags = collect_tags(windows, arrays["label_ids"], labels)
    assert tags == [list(s.tags) for s in sentences]
    assert entity_scores([s.tags for s in sentences], tags).f1 == 100
    # Predictions where nothing counts are not looked at.
    noise = np.where(arrays["label_mask"] == 1, arrays["label_ids"], -1)
    assert collect_tags(windows, noise, labels) == tags


def test_windows_show_the_pieces_of_transformers(tokenizer):
    rows = json.loads((GOLDEN / "pieces.json").read_text(encoding="utf-8"))
    sentences = list(read_sentences(TINY_CONLL))
    windows = sentence_windows(sentences, tokenizer, 128)
    assert len(rows) == len(windows) == 4
    for index, (row, window) in enumerate(zip(rows, windows, strict=True)):
        assert list(window.input_ids) == row["input_ids"]
        words = range(len(sentences[index].words))
        assert window.words == tuple((index, w, row["word_ids"].index(w)) for w in words)


@pytest.mark.parametrize("word", ["\ufeff", "\u200b\u200d", "\x07", "\u00a0", "\ufffd", "\x00"])
def test_words_that_vanish_are_unknown(tokenizer, word):
    assert not tokenizer.encode(word)
    found = Sentence(("a", word, "b"), ("O", "I-A", "O"))
    arrays, windows = make_features([found], tokenizer, ["O", "I-A"], 8)
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert windows[0].input_ids == (CLS, *a, UNK, *b, SEP)
    assert arrays["label_ids"].tolist() == [[0, 0, 1, 0, 0, 0, 0, 0]]
    assert arrays["label_mask"].tolist() == [[0, 1, 1, 1, 0, 0, 0, 0]]


def test_a_word_larger_than_a_window_shows_its_first_pieces(tokenizer):
    pieces = tokenizer.encode("abcdefgh")
    windows = sentence_windows([sentence("a abcdefgh b")], tokenizer, 6)
    check_every_word_once([sentence("a abcdefgh b")], windows)
    assert len(pieces) == 8
    (window,) = [w for w in windows if any(word == 1 for _, word, _ in w.words)]
    assert window.input_ids == (CLS, *pieces[:4], SEP)


@pytest.fixture(scope="module")
def original_choice():
    """Which window google-research/bert gives a position to, by its own function."""
    checkout = os.environ.get("BERT_TF_ORIGINAL")
    if not checkout:
        pytest.skip("set BERT_TF_ORIGINAL to a checkout of google-research/bert")
    source = pathlib.Path(checkout, "run_squad.py").read_text(encoding="utf-8")
    (function,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "_check_is_max_context"
    ]
    scope = {}
    exec(compile(ast.Module([function], []), "run_squad.py", "exec"), scope)  # noqa: S102
    span = collections.namedtuple("DocSpan", ["start", "length"])

    def choose(starts_and_lengths, position):
        spans = [span(*pair) for pair in starts_and_lengths]
        numbers = range(len(spans))
        return [n for n in numbers if scope["_check_is_max_context"](spans, n, position)]

    return choose


@pytest.mark.parametrize("length, max_seq_length", [(41, 13), (37, 12), (100, 7), (17, 18), (9, 3)])
def test_a_word_counts_where_the_original_would_have_it(
    tokenizer, original_choice, length, max_seq_length
):
    text = sentence(" ".join("abcdefgh"[i % 8] for i in range(length)))  # one piece a word
    windows = sentence_windows([text], tokenizer, max_seq_length)
    spans = []
    for window in windows:
        _, word, position = window.words[0]
        spans.append((word - (position - 1), len(window.input_ids) - 2))
    for number, window in enumerate(windows):
        for _, word, _ in window.words:
            assert original_choice(spans, word) == [number]


@pytest.mark.parametrize("max_seq_length", [11, 17, 23])
def test_words_count_where_most_is_shown_around_them(tokenizer, max_seq_length):
    sentences, _ = random_sentences(random.Random(max_seq_length), 200, longest=20)
    for text in sentences:
        offsets = [0]
        for word in text.words:
            pieces = tokenizer.encode(word)[: max_seq_length - 2] or [UNK]
            offsets.append(offsets[-1] + len(pieces))
        windows = sentence_windows([text], tokenizer, max_seq_length)
        spans = []
        for window in windows:
            _, word, position = window.words[0]
            start = offsets[word] - position + 1
            spans.append((start, start + len(window.input_ids) - 2))
        for number, window in enumerate(windows):
            for _, word, _ in window.words:
                start, end = offsets[word], offsets[word + 1]
                scores = [
                    (min(start - low, high - end), high - low) if low <= start < high else (-1, 0)
                    for low, high in spans
                ]
                assert scores.index(max(scores)) == number


@pytest.mark.parametrize("document_context", [False, True])
def test_every_word_of_a_long_sentence_sees_both_sides(tokenizer, document_context):
    room, length = 20, 97
    before, after = sentence("a " * 10), sentence("b " * 10)
    text = sentence(" ".join("cdefgh"[i % 6] for i in range(length)))
    windows = sentence_windows([before, text, after], tokenizer, room + 2, document_context)
    assert all(len(w.input_ids) == room + 2 for w in windows[1:-1])
    assert len(windows) <= 2 + 2 * (length + room) // room
    for window in windows[1:-1]:
        for _, word, position in window.words:
            around = room // 4 - 1
            left = around if document_context else min(word, around)
            right = around if document_context else min(length - 1 - word, around)
            assert position - 1 >= left and room - position >= right


def test_without_context_a_window_shows_its_sentence_alone(tokenizer):
    windows = sentence_windows([sentence("a b"), sentence("c"), sentence("d e")], tokenizer, 32)
    assert [len(w.input_ids) - 2 for w in windows] == [2, 1, 2]


def shown_text(tokenizer, window):
    return " ".join(tokenizer.convert_ids_to_tokens(window.input_ids[1:-1]))


@pytest.mark.parametrize(
    "texts, max_seq_length, expected",
    [
        ("a b c d e f g", 3, "a,b,c,d,e,f,g"),
        ("a,b,c,d,e,f,g", 3, "a,b,c,d,e,f,g"),
        ("a,b,c,d,e,f,g", 5, "a b c,a b c,b c d,c d e,d e f,e f g,e f g"),
        ("a,b,c,d,e,f,g", 6, "a b c d,a b c d,b c d e,c d e f,d e f g,d e f g,d e f g"),
        ("a,b,c d e,f g", 6, "a b c d,a b c d,c d e f,d e f g"),  # the odd word follows
        ("a b,c,d,e f g", 8, "a b c d e f,a b c d e f,b c d e f g,b c d e f g"),
        ("a b,c,d,e f g", 11, "a b c d e f g,a b c d e f g,a b c d e f g,a b c d e f g"),
    ],
)
def test_context_is_of_the_document_and_alike_on_both_sides(
    tokenizer, texts, max_seq_length, expected
):
    own = [sentence(text, 1) for text in texts.split(",")]
    before, others = sentence("h h h"), [sentence("h h", 2), sentence("i", 2, "another file")]
    windows = sentence_windows([before, *own, *others], tokenizer, max_seq_length, True)
    check_every_word_once([before, *own, *others], windows)
    found = [shown_text(tokenizer, w) for w in windows if 1 <= w.words[0][0] <= len(own)]
    assert ",".join(found) == expected
    assert "i" not in shown_text(tokenizer, windows[-2])
    assert shown_text(tokenizer, windows[-1]) == "i"


@pytest.mark.parametrize("seed", range(10))
def test_context_fills_windows_as_far_as_there_is_text(tokenizer, seed):
    sentences, _ = random_sentences(random.Random(seed), 30, longest=9)
    max_seq_length = 40
    windows = sentence_windows(sentences, tokenizer, max_seq_length, True)
    size_of: collections.Counter[int] = collections.Counter()  # pieces of each document
    for s in sentences:
        size_of[s.document] += sum(len(tokenizer.encode(word) or [UNK]) for word in s.words)
    longest_word = 11
    for window in windows:
        shown = len(window.input_ids) - 2
        whole = size_of[sentences[window.words[0][0]].document]
        # What is missing is less than the words that would come next.
        assert shown == whole or shown > max_seq_length - 2 - longest_word


def test_chunks_of_whole_documents_make_the_same_windows(tokenizer):
    sentences, _ = random_sentences(random.Random(5), 40)
    whole = sentence_windows(sentences, tokenizer, 32, True)
    parts = [w for d in ner.documents(sentences) for w in sentence_windows(d, tokenizer, 32, True)]
    assert [w.input_ids for w in parts] == [w.input_ids for w in whole]
    assert [s for d in ner.documents(sentences) for s in d] == sentences


def test_lower_case_is_the_tokenizers(tokenizer):
    uncased = FullTokenizer(TINY_VOCAB)
    (cased_window,) = sentence_windows([sentence("HAB")], tokenizer, 8)
    (uncased_window,) = sentence_windows([sentence("HAB")], uncased, 8)
    assert uncased_window.input_ids[1:-1] == tuple(tokenizer.encode("hab"))
    assert cased_window.input_ids[1:-1] == tuple(tokenizer.encode("HAB"))


def test_bad_arguments_of_features(tokenizer):
    texts = [Sentence(("a", "b"), ("O", "I-A"), 0, "f", 7)]
    with pytest.raises(ValueError, match="max_seq_length must be at least 3, got 2"):
        sentence_windows(texts, tokenizer, 2)
    with pytest.raises(ValueError, match="f, line 7: .*labels O B-A, got 'I-A' for word 1, 'b'"):
        make_features(texts, tokenizer, ["O", "B-A"], 8)
    with pytest.raises(ValueError, match="expected distinct names, got O O"):
        make_features(texts, tokenizer, ["O", "O"], 8)
    with pytest.raises(ValueError, match=r"has no \[SEP\]"):
        vocab = {p: i for p, i in tokenizer.vocab.items() if p != "[SEP]"}
        sentence_windows(texts, FullTokenizer.from_vocab(vocab), 8)


def test_bad_predictions_are_refused(tokenizer):
    texts = [sentence("a b c d e f g"), sentence("a")]
    windows = sentence_windows(texts, tokenizer, 6)
    ids = np.zeros((len(windows), 6), int)
    assert collect_tags(windows, ids, ["O"]) == [["O"] * 7, ["O"]]
    with pytest.raises(ValueError, match=rf"expected shape \[{len(windows)}, L\], got \[1, 6\]"):
        collect_tags(windows, ids[:1], ["O"])
    with pytest.raises(ValueError, match="expected ids below 1, got 3 for word 0 of sentence 0"):
        collect_tags(windows, ids + 3, ["O"])
    with pytest.raises(ValueError, match="expected each word once"):
        collect_tags(windows[1:], ids[1:], ["O"])
    with pytest.raises(ValueError, match="expected each word once"):
        collect_tags([windows[0], *windows], np.zeros((len(windows) + 1, 6), int), ["O"])


# Writing


def load_make_golden():
    spec = importlib.util.spec_from_file_location("make_ner_golden", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_written_is_what_conlleval_evaluates(tmp_path):
    sentences, predicted = load_make_golden().odd_sentences()
    path = tmp_path / "odd.txt"
    ner.write_conll(path, sentences, predicted)
    report = entity_scores([s.tags for s in sentences], predicted).report()
    assert report == (GOLDEN / "odd_report.txt").read_text(encoding="utf-8")
    lines = path.read_bytes().decode().split("\n")
    assert lines[:3] == ["_ B-PER B-PER", "Ida_van_Gogh I-PER I-PER", "_ O O"]
    assert all(len(line.split()) in (0, 3) for line in lines)


def test_what_is_written_can_be_read(tmp_path, tokenizer):
    sentences = list(read_sentences(TINY_CONLL))
    path = tmp_path / "out.txt"
    predicted = [ner.to_bio(s.tags) for s in sentences]
    ner.write_conll(path, sentences, predicted)
    assert [s.words for s in read_sentences(path)] == [s.words for s in sentences]
    assert [s.tags for s in read_sentences(path, tag_column=1)] == [s.tags for s in sentences]
    assert [s.tags for s in read_sentences(path)] == predicted


def test_writing_refuses_other_numbers_of_tags(tmp_path):
    with pytest.raises(ValueError, match="expected the tags of 1 sentences, got 0"):
        ner.write_conll(tmp_path / "x", [sentence("a")], [])
    with pytest.raises(ValueError, match="f, line 1: expected 2 predicted tags, got 1"):
        ner.write_conll(tmp_path / "x", [sentence("a b")], [["O"]])
    assert not (tmp_path / "x").exists()


# Real data


@pytest.mark.parametrize("name", WNUT17)
def test_wnut_17(shared_data, name):
    cased = FullTokenizer(shared_data / "vocab" / "bert-base-cased-vocab.txt", do_lower_case=False)
    sentences = list(read_sentences(shared_data / "ner" / "wnut17" / name))
    num_sentences, num_words = WNUT17[name]
    assert len(sentences) == num_sentences
    assert sum(len(s.words) for s in sentences) == num_words
    labels = ner.label_names(sentences)
    types = ["corporation", "creative-work", "group", "location", "person", "product"]
    assert labels == ["O", *(f"B-{t}" for t in types), *(f"I-{t}" for t in types)]
    true = [list(s.tags) for s in sentences]
    for max_seq_length, document_context in ((3, False), (17, True), (64, False), (128, True)):
        arrays, windows = make_features(sentences, cased, labels, max_seq_length, document_context)
        check_every_word_once(sentences, windows)
        assert arrays["label_mask"].sum() == num_words
        predicted = collect_tags(windows, arrays["label_ids"], labels)
        assert predicted == true
    scores = entity_scores(true, predicted)
    assert (scores.f1, scores.accuracy, scores.num_tokens) == (100, 100, num_words)
