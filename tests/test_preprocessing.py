import bisect
import functools
import importlib.util
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from bert_tf import span_decoding
from bert_tf.preprocessing import PiecesWithOffsets, TextToIds
from bert_tf.tokenization import FullTokenizer, pack_pair

GOLDEN = pathlib.Path(__file__).parent / "golden" / "tokenization"
TINY_VOCAB = GOLDEN / "tiny_vocab.txt"


def _load_make_golden():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load_make_golden()


def _to_bytes(text):
    """UTF-8 as a tensor holds it; it has no way to hold lone surrogates."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "ignore")


def _expected_pieces(tokenizer, text):
    """What `tokenize_with_offsets` should give for one text, by plain Python."""
    pieces, spans = tokenizer.tokenize_with_offsets(text)
    # Each byte that is not UTF-8 becomes a lone surrogate here.
    byte, char_bytes = 0, []
    for char in text.decode("utf-8", "surrogateescape"):
        escaped = "\ud800" <= char <= "\udfff"
        size = 1 if escaped else len(char.encode())
        if not escaped:
            char_bytes.append((byte, byte + size))
        byte += size
    words = tokenizer.basic_tokenizer.tokenize(text)
    word_starts = span_decoding.split_words(text.decode("utf-8", "ignore"))[1]
    return PiecesWithOffsets(
        ids=tokenizer.convert_tokens_to_ids(pieces),
        byte_starts=[char_bytes[start][0] for start, _ in spans],
        byte_ends=[char_bytes[end - 1][1] for _, end in spans],
        char_starts=[start for start, _ in spans],
        char_ends=[end for _, end in spans],
        word_index=[
            index
            for index, word in enumerate(words)
            for _ in tokenizer.wordpiece_tokenizer.encode_word(word)
        ],
        space_word_index=[bisect.bisect_right(word_starts, start) - 1 for start, _ in spans],
    )


def _differences(text_to_ids, tokenizer, strings, with_offsets=True):
    """Texts whose ids, or pieces with offsets, are not those of the Python tokenizer."""
    ids_of = tf.function(text_to_ids.__call__, reduce_retracing=True)
    pieces_of = tf.function(text_to_ids.tokenize_with_offsets, reduce_retracing=True)
    texts = [_to_bytes(text) for text in strings]
    differences = []
    for start in range(0, len(texts), 8192):
        batch = texts[start : start + 8192]
        found = ids_of(tf.constant(batch)).to_list()
        differences += [
            text for text, ids in zip(batch, found, strict=True) if ids != tokenizer.encode(text)
        ]
        if with_offsets:
            columns = [column.to_list() for column in pieces_of(tf.constant(batch))]
            differences += [
                text
                for text, *row in zip(batch, *columns, strict=True)
                if PiecesWithOffsets(*row) != _expected_pieces(tokenizer, text)
            ]
    return differences


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_hard_and_fuzzed_strings_equal_the_python_tokenizer(do_lower_case):
    strings = [*golden.HARD_STRINGS, *golden.fuzz_strings(0), *golden.fuzz_strings(1)]
    text_to_ids = TextToIds(TINY_VOCAB, do_lower_case)
    assert not _differences(text_to_ids, FullTokenizer(TINY_VOCAB, do_lower_case), strings)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.VOCABULARIES)
@pytest.mark.parametrize("do_lower_case", [True, False])
def test_released_vocabularies_equal_the_python_tokenizer(name, do_lower_case, shared_data):
    vocab_file = shared_data / "vocab" / name
    text_to_ids = TextToIds(vocab_file, do_lower_case)
    tokenizer = FullTokenizer(vocab_file, do_lower_case)
    for seed in range(golden.FUZZ_SEEDS):
        assert not _differences(text_to_ids, tokenizer, golden.fuzz_strings(seed))
    for block in range(golden.NUM_CODE_POINTS // golden.BLOCK_SIZE):
        assert not _differences(text_to_ids, tokenizer, golden.block_strings(block))


TEXTS = ["Hello, world! Hello", "", "it, now the it", "unaffable " * 9, "café \u3000", "the " * 40]


def test_same_in_eager_mode_function_and_data_set():
    text_to_ids = TextToIds(TINY_VOCAB, max_seq_length=13)
    texts = tf.constant(TEXTS)
    ids = text_to_ids(texts)
    assert ids.dtype == tf.int32
    tokenizer = FullTokenizer(TINY_VOCAB)
    assert ids.to_list() == [tokenizer.encode(text) for text in TEXTS]
    packed = text_to_ids.pack(texts)
    in_function = tf.function(text_to_ids.pack)(texts)
    data = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4).map(text_to_ids.pack).unbatch()
    data = next(iter(data.batch(len(TEXTS))))
    for name, value in packed.items():
        assert value.dtype == tf.int32
        assert value.shape == (len(TEXTS), 13)
        np.testing.assert_array_equal(in_function[name], value)
        np.testing.assert_array_equal(data[name], value)
    element = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4).map(text_to_ids.pack).element_spec
    assert element["input_ids"].shape.as_list() == [None, 13]


@pytest.mark.parametrize("length", [3, 4, 5, 11, 12, 37])
def test_pack_equals_pack_pair(length):
    rng = random.Random(length)
    words = ["the", "unaffable", "it", "stop", "\u200b", "", "now,"]
    first, second = (
        [" ".join(rng.choices(words, k=rng.randint(0, 15))) for _ in range(101)] for _ in range(2)
    )
    first[0], second[1] = "", ""
    tokenizer = FullTokenizer(TINY_VOCAB)
    text_to_ids = TextToIds(TINY_VOCAB, max_seq_length=length)
    pack = functools.partial(
        pack_pair,
        max_seq_length=length,
        cls_id=tokenizer.vocab["[CLS]"],
        sep_id=tokenizer.vocab["[SEP]"],
        pad_id=tokenizer.vocab["[PAD]"],
    )
    names = ["input_ids", "input_mask", "segment_ids"]
    alone = text_to_ids.pack(tf.constant(first))
    pairs = text_to_ids.pack(tf.constant(first), tf.constant(second))
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        a, b = tokenizer.encode(a), tokenizer.encode(b)
        assert [alone[name][row].numpy().tolist() for name in names] == list(pack(a, None))
        assert [pairs[name][row].numpy().tolist() for name in names] == list(pack(a, b))


def test_padding_is_the_vocabularys(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("a\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n[PAD]\n")
    packed = TextToIds(vocab_file, max_seq_length=5).pack(tf.constant(["a"]))
    assert packed["input_ids"].numpy().tolist() == [[2, 0, 3, 5, 5]]


def test_only_the_mask_is_parsed_and_only_on_request():
    texts = ["the [MASK]the[MASK]", "[MASK]", "", "[SEP] [mask] [MASK", b"[MA\xffSK] it"]
    tokenizer = FullTokenizer(TINY_VOCAB)
    plain = TextToIds(TINY_VOCAB)(tf.constant(texts)).to_list()
    assert plain == [tokenizer.encode(text) for text in texts]
    the, it, mask = (tokenizer.vocab[token] for token in ("the", "it", "[MASK]"))
    parsed = TextToIds(TINY_VOCAB, parse_mask=True)(tf.constant(texts)).to_list()
    assert parsed == [[the, mask, the, mask], [mask], [], tokenizer.encode(texts[3]), [mask, it]]


def test_no_texts():
    text_to_ids = TextToIds(TINY_VOCAB, max_seq_length=5, parse_mask=True)
    packed = text_to_ids.pack(tf.constant([], tf.string), tf.constant([], tf.string))
    assert {tuple(value.shape) for value in packed.values()} == {(0, 5)}


def test_ids_to_tokens():
    text_to_ids = TextToIds(TINY_VOCAB)
    ids = tf.constant([[5, 0], [3, 6]])
    expected = [[b"[MASK]", b"[PAD]"], [b"[CLS]", b"the"]]
    assert text_to_ids.ids_to_tokens(ids).numpy().tolist() == expected


def test_vocabulary_with_lines_that_match_nothing(tmp_path):
    lines = ["[PAD]", "a", "", "[UNK]", "##", "[CLS]", "a", "[SEP]", "\u3000", "[MASK]", "##b", "#"]
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text_to_ids, tokenizer = TextToIds(vocab_file), FullTokenizer(vocab_file)
    assert text_to_ids.vocab_size == 12
    for text in ("a ab ## #b # bb", "[line 2] line", "a" * 200 + "a" * 201):
        assert text_to_ids(tf.constant([text])).to_list() == [tokenizer.encode(text)]
    assert text_to_ids(tf.constant(["ab a"])).to_list() == [[6, 10, 6]]
    found = text_to_ids.ids_to_tokens(tf.range(12)).numpy().tolist()
    assert found[:3] == [b"[PAD]", b"", b""] and found[6] == b"a"


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        TextToIds(tmp_path / "nowhere.txt")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
    with pytest.raises(ValueError, match=r"vocab\.txt has no \[CLS\] \[SEP\] \[MASK\]"):
        TextToIds(tmp_path / "vocab.txt")
    with pytest.raises(ValueError, match="max_seq_length must be at least 3, got 2"):
        TextToIds(TINY_VOCAB, max_seq_length=2)


def test_saved_model_carries_its_vocabulary(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_bytes(TINY_VOCAB.read_bytes())
    module = TextToIds(vocab_file, max_seq_length=17, parse_mask=True)
    signature = tf.function(module.pack, input_signature=[tf.TensorSpec([None], tf.string)])
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=signature)
    vocab_file.unlink()
    texts = ["the [MASK] now", "Hello unaffable café"]
    code = f"""if True:
        import tensorflow as tf, tensorflow_text
        model = tf.saved_model.load({str(tmp_path / "model")!r})
        packed = model.signatures["serving_default"](tf.constant({texts!r}))
        print(packed["input_ids"].numpy().tolist())"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = module.pack(tf.constant(texts))["input_ids"].numpy().tolist()
    assert run.stdout.strip() == str(expected)
