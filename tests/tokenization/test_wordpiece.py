import functools
import importlib.util
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import unicodedata

import pytest
import tokenizers

from bert_tf.tokenization.characters import clean
from bert_tf.tokenization.packing import pack_pair, truncate_pair
from bert_tf.tokenization.vocabulary import (
    _CASED_MODELS,
    _UNCASED_MODELS,
    SPECIAL_TOKENS,
    check_special_tokens,
    check_vocab,
    convert_to_unicode,
    load_vocab,
    validate_case_matches_checkpoint,
)
from bert_tf.tokenization.wordpiece import (
    BasicTokenizer,
    FullTokenizer,
    WordpieceTokenizer,
    _Memo,
)
from tests.support.languages import LANGUAGES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenization"
TINY_VOCAB = GOLDEN / "tiny_vocab.txt"


def _load_make_golden():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load_make_golden()
fuzz_strings = functools.cache(golden.fuzz_strings)
HARD_ROWS = json.loads((GOLDEN / "hard_strings.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def vocabularies(shared_data):
    return shared_data / "vocab"


@pytest.fixture(scope="module")
def digests():
    known = json.loads((GOLDEN / "digests.json").read_text(encoding="utf-8"))
    version = unicodedata.unidata_version
    if version not in known:
        pytest.skip(f"no golden digests for Unicode {version}; known: {sorted(known)}")
    return known[version]


@pytest.fixture(scope="module")
def original():
    checkout = os.environ.get("BERT_TF_ORIGINAL")
    if not checkout:
        pytest.skip("set BERT_TF_ORIGINAL to a checkout of google-research/bert")
    return golden.load_original(checkout)


# Against the original.


@pytest.mark.parametrize("casing", ["uncased", "cased"])
def test_hard_strings_equal_the_original(casing):
    tokenizer = FullTokenizer(TINY_VOCAB, do_lower_case=casing == "uncased")
    for text, row in zip(golden.HARD_STRINGS, HARD_ROWS, strict=True):
        assert text == golden.from_json(row["text"])
        assert tokenizer.tokenize(text) == row[casing], repr(text)
        ids = tokenizer.convert_tokens_to_ids(row[casing])
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode(text) == ids  # from the memo now
        assert tokenizer.tokenize_with_offsets(text)[0] == row[casing], repr(text)


# Where a version of Unicode has characters: planes 0 to 3 and the tags. The rest is slow's.
ASSIGNED_BLOCKS = [*range(0x34000 // golden.BLOCK_SIZE), 0xE0000 // golden.BLOCK_SIZE]


def _check_blocks(name, blocks, vocabularies, digests):
    tokenizer = FullTokenizer(vocabularies / name, golden.VOCABULARIES[name])
    expected = digests[name]["blocks"]
    for block in blocks:
        found = golden.digest(tokenizer, golden.block_strings(block))
        assert found == expected[block], f"a code point from {block * golden.BLOCK_SIZE:#x} on"


@pytest.mark.parametrize(
    "name",
    [
        # The others tell little that these two do not.
        pytest.param(
            name,
            marks=[]
            if "-uncased" in name
            else pytest.mark.thorough
            if "multi" in name
            else pytest.mark.slow,
        )
        for name in golden.VOCABULARIES
    ],
)
def test_assigned_code_points_equal_the_original(name, vocabularies, digests):
    _check_blocks(name, ASSIGNED_BLOCKS, vocabularies, digests)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.VOCABULARIES)
def test_other_code_points_equal_the_original(name, vocabularies, digests):
    blocks = set(range(golden.NUM_CODE_POINTS // golden.BLOCK_SIZE)) - set(ASSIGNED_BLOCKS)
    _check_blocks(name, sorted(blocks), vocabularies, digests)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.thorough] * ("uncased" not in name))
        for name in golden.VOCABULARIES
    ],
)
def test_fuzzed_strings_equal_the_original(name, vocabularies, digests):
    for key, do_lower_case in (
        ("fuzz", golden.VOCABULARIES[name]),
        ("fuzz_other_casing", not golden.VOCABULARIES[name]),
    ):
        tokenizer = FullTokenizer(vocabularies / name, do_lower_case)
        found = [
            golden.digest(tokenizer, golden.fuzz_strings(seed)) for seed in range(golden.FUZZ_SEEDS)
        ]
        assert found == digests[name][key]


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.VOCABULARIES)
def test_original_side_by_side(name, vocabularies, original):
    do_lower_case = golden.VOCABULARIES[name]
    theirs = original.FullTokenizer(str(vocabularies / name), do_lower_case)
    ours = FullTokenizer(vocabularies / name, do_lower_case)
    assert list(ours.vocab.items()) == list(theirs.vocab.items())
    assert ours.inv_vocab == theirs.inv_vocab
    assert list(ours.vocab) == list(theirs.vocab.keys())
    differences = []
    for seed in range(100, 112):  # other strings than those of the digests
        for text in fuzz_strings(seed):
            expected = theirs.tokenize(text)
            if (
                ours.tokenize(text) != expected
                or ours.encode(text) != theirs.convert_tokens_to_ids(expected)
                or ours.tokenize_with_offsets(text)[0] != expected
                or ours.basic_tokenizer.tokenize(text) != theirs.basic_tokenizer.tokenize(text)
            ):
                differences.append(text)
    assert not differences
    for block in range(golden.NUM_CODE_POINTS // golden.BLOCK_SIZE):
        for text in golden.block_strings(block):
            if ours.tokenize(text) != theirs.tokenize(text):
                differences.append(text)
    assert not differences


@pytest.mark.slow
def test_case_check_equals_the_original(original):
    names = [*_UNCASED_MODELS, *_CASED_MODELS, "bert", "uncased_L-2"]
    paths = [f"{folder}{name}/bert_model.ckpt" for name in names for folder in ("", "/a/b/", "a.")]
    paths += [
        "bert_model.ckpt",
        "/bert_model.ckpt",
        "cased_L-12_H-768_A-12/bert_modelXckpt-7",
        "cased_L-12_H-768_A-12/uncased_L-12_H-768_A-12/bert_model.ckpt",
        "cased_L-12_H-768_A-12/bert_model.ckpt/uncased_L-12_H-768_A-12/bert_model.ckpt",
        "x\ncased_L-12_H-768_A-12/bert_model.ckpt",
        "cased_L-12_H-768_A-12/model.ckpt",
        "",
        None,
    ]

    def outcome(check, *arguments):
        try:
            check(*arguments)
        except ValueError:
            return "raises"
        return "accepts"

    for path in paths:
        for do_lower_case in (True, False):
            assert outcome(validate_case_matches_checkpoint, do_lower_case, path) == outcome(
                original.validate_case_matches_checkpoint, do_lower_case, path
            ), (path, do_lower_case)


# Offsets.


def _slices(tokenizer, text):
    pieces, offsets = tokenizer.tokenize_with_offsets(text)
    return [(piece, text[start:end]) for piece, (start, end) in zip(pieces, offsets, strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", [("hello", "Hello"), (",", ","), ("world", "world"), ("!", "!")]),
        (" unaffable", [("un", "un"), ("##aff", "aff"), ("##able", "able")]),
        ("un\0af\u200bfable", [("un", "un"), ("##aff", "af\u200bf"), ("##able", "able")]),
        ("the\u00ad.", [("the", "the"), (".", ".")]),
        ("CAFÉ", [("cafe", "CAFÉ")]),
        ("cafe\u0301!", [("cafe", "cafe\u0301"), ("!", "!")]),
        ("\u0301it", [("it", "it")]),
        ("unpqq now", [("un", "un"), ("##p", "p"), ("##q", "q"), ("##q", "q"), ("now", "now")]),
        ("İt now", [("it", "İt"), ("now", "now")]),  # lower-casing makes two characters of İ
        ("ß中it", [("ß", "ß"), ("中", "中"), ("it", "it")]),
        ("각", [("ᄀ", "각"), ("##ᅡ", "각"), ("##ᆨ", "각")]),
        ("a👨b now", [("[UNK]", "a👨b"), ("now", "now")]),
        ("the\u2028it\x85", [("the", "the"), ("it", "it")]),
        ("\u037e\u1fef", [(";", "\u037e"), ("`", "\u1fef")]),
    ],
)
def test_offsets_point_into_raw_text(text, expected, tmp_path):
    words = TINY_VOCAB.read_text(encoding="utf-8").split("\n")
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join([*words, "##ᅡ", "##ᆨ"]), encoding="utf-8")
    assert _slices(FullTokenizer(vocab_file), text) == expected


def test_offsets_of_bytes_count_decoded_characters():
    tokenizer = FullTokenizer(TINY_VOCAB)
    assert tokenizer.tokenize_with_offsets(b"caf\xc3\xa9 \xff it") == (
        ["cafe", "it"],
        [(0, 4), (6, 8)],
    )


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents"),
    [(True, None), (False, None), (True, True), (True, False), (False, True), (False, False)],
)
@pytest.mark.parametrize("code", LANGUAGES)
def test_accents_are_stripped_or_not_as_the_tokenizers_library_does(
    code, do_lower_case, strip_accents
):
    """Every character is a piece, so that the pieces tell what became of the text."""
    text = LANGUAGES[code].paragraph
    forms = [f(text) for f in (str, str.lower, str.upper)]
    forms += [unicodedata.normalize("NFD", form) for form in forms]
    pieces = [*SPECIAL_TOKENS, *sorted({char for char in "".join(forms) if not char.isspace()})]
    pieces += [f"##{piece}" for piece in pieces[len(SPECIAL_TOKENS) :]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = FullTokenizer.from_vocab(vocab, do_lower_case, strip_accents=strip_accents)
    theirs = tokenizers.BertWordPieceTokenizer(
        vocab, lowercase=do_lower_case, strip_accents=strip_accents
    )
    expected = theirs.encode(text, add_special_tokens=False).tokens
    assert tokenizer.tokenize(text) == expected
    assert tokenizer.tokenize_with_offsets(text)[0] == expected
    assert pickle.loads(pickle.dumps(tokenizer)).tokenize(text) == expected


def test_a_tokenizer_with_other_accents():
    vocab = {piece: i for i, piece in enumerate([*SPECIAL_TOKENS, "e", "é"])}
    tokenizer = FullTokenizer.from_vocab(vocab)
    assert tokenizer.strip_accents and tokenizer.tokenize("É") == ["e"]
    assert tokenizer.with_strip_accents(None) is tokenizer
    kept = tokenizer.with_strip_accents(False)
    assert not kept.strip_accents and kept.tokenize("É") == ["é"]


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_offsets_of_fuzzed_strings_fit(do_lower_case):
    tokenizer = FullTokenizer(TINY_VOCAB, do_lower_case)

    def folded(text):  # what the uncased tokenizer does, except for where a word ends
        return unicodedata.normalize("NFD", text.lower()).replace("ς", "σ")

    for text in fuzz_strings(1):
        text = convert_to_unicode(text)
        pieces, offsets = tokenizer.tokenize_with_offsets(text)
        assert pieces == tokenizer.tokenize(text)
        assert offsets == sorted(offsets)
        for piece, (start, end) in zip(pieces, offsets, strict=True):
            assert 0 <= start < end <= len(text)
            if piece == "[UNK]":
                continue
            piece = piece[2:] if piece.startswith("##") and len(piece) > 2 else piece
            source = text[start:end]
            if do_lower_case:
                assert set(folded(piece)) <= set(folded(source)), (text, piece, source)
            else:
                kept = (c for c in source if clean(ord(c)) is not None)
                assert piece == "".join(kept)


# Special tokens.


def test_special_tokens_are_never_parsed_unless_asked():
    text = "the [MASK]the[SEP] [mask] [NO]"
    plain = FullTokenizer(TINY_VOCAB)
    assert not set(plain.tokenize(text)) & {"[MASK]", "[SEP]"}
    parsing = FullTokenizer(TINY_VOCAB, parse_special_tokens=True)
    brackets = ["[", "m", "##a", "##s", "##k", "]"]
    expected = ["the", "[MASK]", "the", "[SEP]", *brackets, "[", "n", "##o", "]"]
    assert parsing.tokenize(text) == expected
    assert parsing.encode(text.encode()) == parsing.convert_tokens_to_ids(expected)
    pieces, offsets = parsing.tokenize_with_offsets(text)
    assert pieces == expected
    assert [text[start:end] for start, end in offsets[:4]] == ["the", "[MASK]", "the", "[SEP]"]
    assert offsets[-1] == (len(text) - 1, len(text))


def test_parsing_asks_only_for_specials_of_the_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[\n]\nmask\n")
    tokenizer = FullTokenizer(tmp_path / "vocab.txt", parse_special_tokens=True)
    assert tokenizer.tokenize("[MASK]") == ["[", "mask", "]"]


def test_check_special_tokens_names_the_missing():
    check_special_tokens(load_vocab(TINY_VOCAB), TINY_VOCAB)
    with pytest.raises(ValueError, match=r"v\.txt has no \[UNK\] \[MASK\]: "):
        check_special_tokens({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2}, "v.txt")


def test_vocabulary_without_unk(tmp_path):
    (tmp_path / "vocab.txt").write_text("the\n")
    tokenizer = FullTokenizer(tmp_path / "vocab.txt")
    assert tokenizer.tokenize("the it") == ["the", "[UNK]"]
    assert tokenizer.encode("the") == [0]
    with pytest.raises(ValueError, match=r"vocab\.txt has no \[UNK\].*the it"):
        tokenizer.encode("the it")


# The memo.


def test_a_small_memo_changes_nothing():
    full = FullTokenizer(TINY_VOCAB)
    strings = fuzz_strings(2)
    expected = [full.encode(text) for text in strings]
    for max_memo_bytes in (0, 1000, 20_011):
        small = FullTokenizer(TINY_VOCAB, max_memo_bytes=max_memo_bytes)
        assert [small.encode(text) for text in strings] == expected
        assert len(small._chunks) + len(small._chunks._older) <= max_memo_bytes // 100


def _bytes_held(memo):
    """Return what a memo holds, to the byte; values that two memos share count twice."""
    entries = [*memo.items(), *memo._older.items()]
    values = {id(value): sys.getsizeof(value) + 16 for _, value in entries}  # 16: GC's header
    tables = sys.getsizeof(memo) + sys.getsizeof(memo._older)
    return tables + sum(sys.getsizeof(key) for key, _ in entries) + sum(values.values())


def test_memo_keeps_within_its_bytes():
    limit = 1_000_003
    tokenizer = FullTokenizer(TINY_VOCAB, max_memo_bytes=limit)
    memos = tokenizer._words, tokenizer._chunks, tokenizer._offset_chunks
    most = 0
    for number in range(10_000):
        text = f"{number} ({number:x}), the{number}"
        assert tokenizer.tokenize_with_offsets(text)[0] == tokenizer.tokenize(text)
        if number % 53 == 0:
            most = max(most, sum(map(_bytes_held, memos)))
    assert limit / 3 < most < limit, most


def test_memo_remembers_what_is_used():
    calls = []

    def function(key):
        calls.append(key)
        return (len(key),)

    memo = _Memo(function, 40_000)
    for number in range(1000):
        assert memo["often"] == (5,)
        assert memo[f"{number}"] == (len(f"{number}"),)
    assert calls.count("often") == 1
    assert len(memo) < 150
    long = "x" * 65
    assert memo[long] == memo[long] == (65,)
    assert calls.count(long) == 2


def test_pickled_copy_is_the_same_without_the_file(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_bytes(TINY_VOCAB.read_bytes())
    tokenizer = FullTokenizer(vocab_file, do_lower_case=False, parse_special_tokens=True)
    expected = tokenizer.encode("Hello [MASK] unaffable")
    vocab_file.unlink()
    data = pickle.dumps(tokenizer)
    assert pickle.loads(data).encode("Hello [MASK] unaffable") == expected
    assert len(data) < 4 * TINY_VOCAB.stat().st_size


# The parts.


def test_text_of_another_type():
    tokenizer = FullTokenizer(TINY_VOCAB)
    for method in (tokenizer.encode, tokenizer.tokenize, tokenizer.tokenize_with_offsets):
        with pytest.raises(ValueError, match="must be str or bytes, got int"):
            method(7)


def test_basic_tokenizer():
    text = "Straße, Müll\u2014ΣΑΣ."
    assert BasicTokenizer().tokenize(text) == ["straße", ",", "mull", "\u2014", "σας", "."]
    cased = ["Straße", ",", "Müll", "\u2014", "ΣΑΣ", "."]
    assert BasicTokenizer(do_lower_case=False).tokenize(text) == cased


def test_wordpiece_tokenizer():
    tokenizer = WordpieceTokenizer({"[UNK]": 0, "un": 1, "##a": 2, "##ab": 3, "##b": 4})
    assert tokenizer.encode_word("unabb") == (1, 3, 4)
    assert tokenizer.encode_word("unabc") == (0,)
    assert tokenizer.tokenize(" unb  x un") == ["un", "##b", "[UNK]", "un"]
    assert tokenizer.encode_word("un" + "a" * 198) == (1, *[2] * 198)
    assert tokenizer.encode_word("un" + "a" * 199) == (0,)


def test_ids_and_pieces():
    tokenizer = FullTokenizer(TINY_VOCAB)
    assert tokenizer.convert_ids_to_tokens([5, 4, 3]) == ["[MASK]", "[SEP]", "[CLS]"]
    assert tokenizer.convert_tokens_to_ids(["[SEP]", "[PAD]"]) == [4, 0]
    with pytest.raises(KeyError, match="tiny_vocab.txt has no piece 'zebra'"):
        tokenizer.convert_tokens_to_ids(["the", "zebra"])
    with pytest.raises(KeyError, match="tiny_vocab.txt has no id 9973"):
        tokenizer.convert_ids_to_tokens([9973])


def test_load_vocab_follows_the_original(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("a\r\nb \n\n\u3000\nc\x85d\na\ne\u2028f\n\rg".encode())
    vocab = load_vocab(path)
    assert list(vocab.items()) == [
        ("a", 5),  # the last line counts, in the first one's place
        ("b", 1),
        ("", 3),
        ("c\x85d", 4),
        ("e\u2028f", 6),
        ("g", 7),
    ]


def test_load_vocab_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="vocab_file: no such file: .*nowhere.txt"):
        load_vocab(tmp_path / "nowhere.txt")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="empty.txt: expected one piece a line, got an empty file"):
        load_vocab(tmp_path / "empty.txt")
    (tmp_path / "latin1.txt").write_bytes(b"a\nb\ncaf\xe9\n")
    with pytest.raises(ValueError, match="latin1.txt, line 3: not UTF-8"):
        load_vocab(tmp_path / "latin1.txt")


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        (None, "expected a mapping from pieces to ids, got NoneType"),
        (["[UNK]", "the"], "expected a mapping from pieces to ids, got list"),
        ({}, "expected a mapping from pieces to ids, got an empty one"),
        ({"[UNK]": 0, 3: 1}, "a piece of the vocabulary must be text, got 3"),
        ({"[UNK]": 0, "the": -1}, "the id of 'the' must be an integer of at least 0, got -1"),
        ({"[UNK]": 0, "the": "1"}, "the id of 'the' must be an integer of at least 0, got '1'"),
        ({"[UNK]": 0, "the": 1.5}, "the id of 'the' must be an integer of at least 0, got 1.5"),
        ({"[UNK]": 0, "the": None}, "the id of 'the' must be an integer of at least 0, got None"),
        ({"[UNK]": 0, "the": True}, "the id of 'the' must be an integer of at least 0, got True"),
        ({"[UNK]": 7, "the": 7}, "'[UNK]' and 'the' both have the id 7"),
    ],
)
def test_a_mapping_that_is_no_vocabulary_is_refused_by_its_entry(vocab, message, tmp_path):
    with pytest.raises(ValueError, match=f"^vocab: {re.escape(message)}$"):
        FullTokenizer.from_vocab(vocab)
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        check_vocab(vocab, path)


def test_a_vocabulary_with_a_piece_on_two_lines_makes_the_same_tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\nof\nthe\n")
    vocab = load_vocab(tmp_path / "vocab.txt")
    assert vocab == {"[UNK]": 0, "the": 3, "of": 2}
    assert FullTokenizer.from_vocab(vocab).encode("of the") == [2, 3]
    assert FullTokenizer(tmp_path / "vocab.txt").encode("of the") == [2, 3]


def test_negative_memo():
    with pytest.raises(ValueError, match="max_memo_bytes must be at least 0, got -1"):
        FullTokenizer.from_vocab({"[UNK]": 0}, max_memo_bytes=-1)
    with pytest.raises(ValueError, match="max_memo_bytes must be at least 0, got -1"):
        FullTokenizer(TINY_VOCAB, max_memo_bytes=-1)


def test_case_check():
    path = "/x/cased_L-12_H-768_A-12/bert_model.ckpt"
    validate_case_matches_checkpoint(False, path)
    with pytest.raises(ValueError, match="do_lower_case: expected False, .*got True"):
        validate_case_matches_checkpoint(True, path)
    path = "/x/chinese_L-12_H-768_A-12/bert_model.ckpt-7"
    validate_case_matches_checkpoint(True, path)
    with pytest.raises(ValueError, match="do_lower_case: expected True, .*got False"):
        validate_case_matches_checkpoint(False, path)
    for other in (None, "", "bert_model.ckpt", "/x/mine/bert_model.ckpt"):
        validate_case_matches_checkpoint(True, other)
        validate_case_matches_checkpoint(False, other)


def test_truncate_pair_pops_the_longer():
    for length_a in range(8):
        for length_b in range(8):
            for most in range(15):
                a, b = list(range(length_a)), list(range(length_b))
                found = truncate_pair(a, b, most)
                while len(a) + len(b) > most:
                    (a if len(a) > len(b) else b).pop()
                assert found == (a, b)
    with pytest.raises(ValueError, match="max_num_tokens must be at least 0, got -1"):
        truncate_pair([], [], -1)


def test_pack_pair():
    ids = {"cls_id": 101, "sep_id": 102}
    assert pack_pair([5, 6, 7], [8, 9], 11, **ids) == (
        [101, 5, 6, 7, 102, 8, 9, 102, 0, 0, 0],
        [1] * 8 + [0] * 3,
        [0] * 5 + [1] * 3 + [0] * 3,
    )
    assert pack_pair([5, 6, 7], [8, 9, 10], 7, pad_id=3, **ids) == (
        [101, 5, 6, 102, 8, 9, 102],
        [1] * 7,
        [0] * 4 + [1] * 3,
    )
    for none in (None, []):
        assert pack_pair([5, 6, 7], none, 5, **ids) == ([101, 5, 6, 7, 102], [1] * 5, [0] * 5)
        assert pack_pair([5, 6, 7], none, 3, **ids) == ([101, 5, 102], [1] * 3, [0] * 3)
    # Nothing is left of B, so it has no [SEP]: run_classifier.py asks after it has cut.
    assert pack_pair([5, 6], [8], 4, pad_id=0, **ids) == ([101, 5, 102, 0], [1, 1, 1, 0], [0] * 4)
    assert pack_pair([5], [8], 3, pad_id=0, **ids) == ([101, 102, 0], [1, 1, 0], [0] * 3)
    assert pack_pair([], [4], 5, pad_id=1, **ids)[0] == [101, 102, 4, 102, 1]
    with pytest.raises(ValueError, match="max_seq_length must be at least 3, got 2"):
        pack_pair([5], [6], 2, **ids)


def test_import_needs_neither_tensorflow_nor_keras():
    code = (
        "import sys, bert_tf.tokenization.wordpiece\n"
        "loaded = {'tensorflow', 'keras', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
