"""Whole words by a list, where no space parts them: which they are, and that masks keep to them."""

import hashlib
import pathlib

import numpy as np
import pytest

from bert_tf.records.decoding import read_examples
from bert_tf.tokenization.wordpiece import FullTokenizer
from data_prep.pretraining import listed_words
from data_prep.pretraining.listed_words import WordMarker, read_word_list
from data_prep.pretraining.local_runner import create_pretraining_data
from data_prep.pretraining.options import Options, fingerprint
from tests.support.cluster_records import GOLDEN, VOCABULARY
from tests.support.languages import LANGUAGES

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] 我 们 在 北 京 大 学 读 书 , 。 a ##b 3 ##g 手 机 中 国 x"
WORDS = ("北京", "北京大学", "大学", "读书", "3G手机", "手3", "ab", "中国", "中国北", "我", "龙京")
# Text -> its words by hand: the longest of the list from the left, pieces of a word in one string.
BY_HAND = {
    "我们在北京大学读书。": "我 们 在 北京大学 读书 。",
    "北京大": "北京 大",
    "在中国北京": "在 中国北 京",  # the longest from the left, though 中国 北京 has fewer left over
    "大学大学": "大学 大学",
    "北 京": "北 京",
    "北\u3000京,大学": "北 京 , 大学",
    "北\u200b京": "北京",  # what the tokenizer drops parts nothing
    "北,京": "北 , 京",
    "3g手机 ab": "3##g手机 a##b",
    "手3g": "手 3##g",  # 手3 would cut a word of letters
    "龙京": "[UNK] 京",
    "手 3": "手 3",
}
PARTS = {"[UNK]": ["[UNK]"], "3##g手机": ["3", "##g", "手", "机"], "a##b": ["a", "##b"]}
PARTS["3##g"] = ["3", "##g"]


def _groups(text):
    """Words of a text by hand, as lists of pieces."""
    return [PARTS.get(word) or list(word) for word in BY_HAND[text].split()]


@pytest.fixture
def vocab_file(tmp_path) -> pathlib.Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES.split()) + "\n")
    return path


@pytest.mark.parametrize("text", BY_HAND)
def test_words_are_the_longest_of_the_list_from_the_left(vocab_file, text):
    tokenizer = FullTokenizer(vocab_file)
    marker = WordMarker(tokenizer, WORDS)
    groups = _groups(text)
    pieces = [tokenizer.inv_vocab[i % marker.offset] for i in marker.encode(text)]
    assert pieces == tokenizer.tokenize(text) == [piece for group in groups for piece in group]
    begins = [
        i < marker.offset and not piece.startswith("##")
        for i, piece in zip(marker.encode(text), pieces, strict=True)
    ]
    assert begins == [place == 0 for group in groups for place in range(len(group))]


def test_what_cannot_be_found_is_counted(vocab_file):
    marker = WordMarker(FullTokenizer(vocab_file), WORDS)
    assert (marker.num_words, marker.num_unknown) == (9, 1)  # 我 is one piece, 龙京 unknown
    assert marker.dtype == np.uint16


@pytest.mark.parametrize("lower", [True, False])
def test_ids_are_those_of_the_tokenizer(lower):
    """For any text, whatever its white space, so that only the marks are new."""
    tokenizer = FullTokenizer(VOCABULARY, lower)
    strange = "a\u0085b\tc\u00a0d\u2028e\x1ff \x00g\ufffdh\u3000  ΑΣ\u200b ΑΣ\r\n"
    texts = [*LANGUAGES.values(), strange]
    marker = WordMarker(tokenizer, ["the cat", "中国", *"".join(map(str, texts)).split()])
    for text in map(str, texts):
        plain = tokenizer.encode(text)
        assert [i % marker.offset for i in marker.encode(text)] == plain
        assert WordMarker(tokenizer, []).encode(text.encode()) == plain


def test_ids_beyond_two_bytes_take_four(monkeypatch, vocab_file):
    tokenizer = FullTokenizer(vocab_file)
    monkeypatch.setattr(listed_words, "mark_offset", lambda ids: 1 << 15)
    assert WordMarker(tokenizer, []).dtype == np.uint16
    monkeypatch.setattr(listed_words, "mark_offset", lambda ids: (1 << 15) + 1)
    assert WordMarker(tokenizer, []).dtype == np.uint32


def test_a_list_may_hold_counts_as_that_of_jieba(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeff北京 34488 ns\n\n  大学\n")
    assert read_word_list(path) == ["北京", "大学"]
    path.write_bytes("北京\n".encode() + b"\xff\n")
    with pytest.raises(ValueError, match=r"word_list .*words\.txt, line 2: not UTF-8"):
        read_word_list(path)


def _options(folder, vocab_file, **changes):
    folder.mkdir(exist_ok=True)
    texts = {"text.txt": "\n".join([*BY_HAND, ""] * 5), "words.txt": "\n".join(WORDS)}
    for name, text in texts.items():
        (folder / name).write_text(text)
    values = {
        "input_files": (str(folder / "text.txt"),),
        "output_files": (str(folder / "x.tfrecord"),),
        "vocab_file": str(vocab_file),
        "do_whole_word_mask": True,
        "max_seq_length": 64,
        "max_predictions_per_seq": 30,
        "masked_lm_prob": 0.4,
        "word_list": str(folder / "words.txt"),
        "dupe_factor": 20,
        "mask_prob": 1.0,
        "random_prob": 0.0,
        "keep_prob": 0.0,
    }
    return Options(**{**values, **changes})


def _check_masks(options) -> set[str]:
    """See that each word is masked whole or not at all; return the words that are masked."""
    tokenizer = FullTokenizer(options.vocab_file)
    sentences = {tuple(tokenizer.tokenize(text)): _groups(text) for text in BY_HAND}
    longest_first = sorted(sentences, key=len, reverse=True)
    seen = set()
    for example in read_examples(options.output_files[0], options.features):
        ids = example["input_ids"].copy()
        count = int((example["masked_lm_weights"] > 0).sum())
        masked = set(example["masked_lm_positions"][:count].tolist())
        ids[sorted(masked)] = example["masked_lm_ids"][:count]
        pieces = [tokenizer.inv_vocab[i] for i in ids.tolist()]
        place, end = 0, int(example["input_mask"].sum())
        assert end < options.max_seq_length  # nothing was cut
        while place < end:
            if pieces[place] in ("[CLS]", "[SEP]"):
                assert place not in masked
                place += 1
                continue
            ways = [s for s in longest_first if tuple(pieces[place : place + len(s)]) == s]
            # Sentences that others begin with: any way may be that of the text.
            groups = sentences[ways[0]]
            for group in groups:
                places = set(range(place, place + len(group)))
                assert places <= masked or not places & masked, (pieces, sorted(masked))
                seen |= {"".join(group)} if places <= masked else set()
                place += len(group)
    return seen


@pytest.mark.parametrize("compatible", [False, True])
def test_words_of_the_list_are_masked_whole(tmp_path, vocab_file, compatible):
    # Texts of which one begins as another, or that are one as pieces, would be ambiguous.
    options = _options(tmp_path / "a", vocab_file, compatible=compatible, short_seq_prob=1.0)
    alike = ("北京大", "北 京", "北\u200b京", "手3g", "手 3")
    path = pathlib.Path(options.input_files[0])
    path.write_text("\n".join([*(text for text in BY_HAND if text not in alike), ""] * 5))
    manifest = create_pretraining_data(options, 1, show_progress=False)
    seen = _check_masks(options)
    assert options.word_list is not None
    words = pathlib.Path(options.word_list).read_bytes()
    assert manifest["word_list_sha256"] == hashlib.sha256(words).hexdigest()
    assert {"北京大学", "读书", "大学", "3##g手机", "a##b", "京", "我"} <= seen
    without = _options(tmp_path / "b", vocab_file, compatible=compatible, word_list=None)
    pathlib.Path(without.input_files[0]).write_text(path.read_text())
    create_pretraining_data(without, 1, show_progress=False)
    with pytest.raises(AssertionError):
        _check_masks(without)


@pytest.mark.parametrize("compatible", [False, True])
def test_an_empty_list_changes_no_byte(tmp_path, compatible):
    (tmp_path / "empty.txt").write_text("\n")
    records = []
    for word_list in (None, str(tmp_path / "empty.txt")):
        output = tmp_path / f"{word_list is None}.tfrecord"
        options = Options(
            (str(GOLDEN / "tiny_1.txt"),),
            (str(output),),
            str(VOCABULARY),
            do_whole_word_mask=True,
            word_list=word_list,
            compatible=compatible,
        )
        manifest = create_pretraining_data(options, 1, show_progress=False)
        assert ("word_list" in manifest["flags"]) == (word_list is not None)
        records.append(output.read_bytes())
    assert records[0] == records[1]


def test_another_list_does_not_go_on_with_what_is_unfinished(tmp_path, vocab_file):
    options = _options(tmp_path / "a", vocab_file)
    first = fingerprint(options)
    pathlib.Path(str(options.word_list)).write_text("北京\n")
    assert fingerprint(options) != first


def test_lists_that_find_nothing_and_flags_that_need_another(tmp_path, vocab_file, capsys):
    options = _options(tmp_path / "a", vocab_file)
    pathlib.Path(str(options.word_list)).write_text("龙京\n我\n")
    create_pretraining_data(options, 1, show_progress=False)
    told = capsys.readouterr().err
    assert "no word of several pieces" in told and "1 words have a part that is [UNK]" in told
    for changes, message in (
        ({"do_whole_word_mask": False}, "word_list: is for do_whole_word_mask"),
        ({"dynamic_masking": True}, "word_list: unmasked records"),
    ):
        with pytest.raises(ValueError, match=message):
            _options(tmp_path / "a", vocab_file, **changes)
    with pytest.raises(FileNotFoundError):
        create_pretraining_data(_options(tmp_path / "a", vocab_file, word_list="no"), 1)
