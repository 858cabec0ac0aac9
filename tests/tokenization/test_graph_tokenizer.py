import bisect
import functools
import gzip
import importlib.util
import pathlib
import random
import subprocess
import sys
import unicodedata

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.tasks.document_windows import split_words
from bert_tf.tokenization.graph_tokenizer import PiecesWithOffsets, TextToIds
from bert_tf.tokenization.keras_preprocessor import BertPreprocessor
from bert_tf.tokenization.packing import pack_pair
from bert_tf.tokenization.vocabulary import SPECIAL_TOKENS
from bert_tf.tokenization.wordpiece import FullTokenizer
from tests.support.languages import LANGUAGES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenization"
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
    """Return what `tokenize_with_offsets` should give for one text, by plain Python."""
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
    word_starts = split_words(text.decode("utf-8", "ignore"))[1]
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


def _differences(text_to_ids, tokenizer, *batches, with_offsets=True):
    """Texts whose ids, or pieces with offsets, are not those of the Python tokenizer."""
    ids_of = tf.function(text_to_ids.__call__, reduce_retracing=True)
    pieces_of = tf.function(text_to_ids.tokenize_with_offsets, reduce_retracing=True)
    differences = []
    for batch in batches:
        texts = [_to_bytes(text) for text in batch]
        found = ids_of(tf.constant(texts, tf.string)).to_list()
        differences += [
            text for text, ids in zip(texts, found, strict=True) if ids != tokenizer.encode(text)
        ]
        if with_offsets:
            columns = [column.to_list() for column in pieces_of(tf.constant(texts, tf.string))]
            differences += [
                text
                for text, *row in zip(texts, *columns, strict=True)
                if PiecesWithOffsets(*row) != _expected_pieces(tokenizer, text)
            ]
    return differences


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents"),
    [
        (True, None),
        (False, None),
        pytest.param(True, False, marks=pytest.mark.thorough),
        pytest.param(False, True, marks=pytest.mark.thorough),
    ],
)
def test_hard_and_fuzzed_strings_equal_the_python_tokenizer(do_lower_case, strip_accents):
    text_to_ids = TextToIds(TINY_VOCAB, do_lower_case, strip_accents=strip_accents)
    tokenizer = FullTokenizer(TINY_VOCAB, do_lower_case, strip_accents=strip_accents)
    batches = [
        [*"İẞΣÉ", *(language.paragraph for language in LANGUAGES.values())],
        golden.HARD_STRINGS,
        golden.fuzz_strings(0)[:500],
        _fuzz(["a", "Σ", "σ", "ʼ", "\xad", " ", "", "中", "!", "ͅ"], 300),  # final sigma
        # Marks that stay (Mc) and that do not, of many combining classes, and what parts them.
        _fuzz([*"ab中! \u302e\u302f\u0301\u0323\u1b44\ua953\u034f\u0cc0\u0ccb각\u200d", ""], 500),
        _fuzz([*"é\U0001d160\U0001d165\U0001d16d\U00016ff0\u0f71\u0f73\u1b3b\u302e\n"], 300),
        _random_bytes(500),
        ["no such thing here"],
        [""],
        [],
    ]
    assert not _differences(text_to_ids, tokenizer, *batches)


def _fuzz(alphabet, count):
    rng = random.Random(len(alphabet))
    return ["".join(rng.choices(alphabet, k=rng.randint(0, 9))) for _ in range(count)]


def _random_bytes(count):
    """Bytes of which many are no UTF-8: cut short, overlong, surrogates, beyond U+10FFFF."""
    rng = random.Random(count)
    units = [
        bytes([byte]) for byte in (*b"aA !", 0, 0x80, 0xBF, 0xC0, 0xC3, 0xE0, 0xED, 0xF0, 0xF4)
    ]
    units += ["é".encode(), "中".encode(), "👍".encode(), b"\xe0\x80\x80", b"\xed\xa0\x80"]
    units += [b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xe4\xb8", b"\xf0\x9f\x91"]
    return [
        b"".join(rng.choices(units, k=rng.randint(0, 12)))
        if row % 2
        else bytes(rng.randrange(256) for _ in range(rng.randint(0, 12)))
        for row in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.VOCABULARIES)
@pytest.mark.parametrize("do_lower_case", [True, False])
def test_released_vocabularies_equal_the_python_tokenizer(name, do_lower_case, shared_data):
    vocab_file = shared_data / "vocab" / name
    text_to_ids = TextToIds(vocab_file, do_lower_case)
    tokenizer = FullTokenizer(vocab_file, do_lower_case)
    fuzzed = (golden.fuzz_strings(seed) for seed in range(20))
    assert not _differences(text_to_ids, tokenizer, *fuzzed, _random_bytes(5000))
    for block in range(golden.NUM_CODE_POINTS // golden.BLOCK_SIZE):
        codepoints = range(block * golden.BLOCK_SIZE, (block + 1) * golden.BLOCK_SIZE)
        is_assigned = not {unicodedata.category(chr(c)) for c in codepoints} <= {"Cn", "Co"}
        strings = golden.block_strings(block)
        assert not _differences(text_to_ids, tokenizer, strings, with_offsets=is_assigned)


@pytest.mark.slow
def test_real_text_equals_the_python_tokenizer(shared_data):
    vocab_file = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    with gzip.open(shared_data / "corpus" / "wikipedia_en_extract.txt.gz") as stream:
        lines = stream.read(5_000_000).split(b"\n")
    batches = (lines[start : start + 1000] for start in range(0, len(lines), 1000))
    assert not _differences(TextToIds(vocab_file), FullTokenizer(vocab_file), *batches)


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
    batches = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4).map(text_to_ids.pack)
    assert batches.element_spec["input_ids"].shape.as_list() == [None, 13]
    data = next(iter(batches.unbatch().batch(len(TEXTS))))
    for name, value in packed.items():
        assert value.dtype == tf.int32
        assert value.shape == (len(TEXTS), 13)
        np.testing.assert_array_equal(in_function[name], value)
        np.testing.assert_array_equal(data[name], value)


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


def test_mask_is_one_piece_with_its_span():
    text_to_ids = TextToIds(TINY_VOCAB, parse_mask=True)
    texts = [b"it[MASK]\xcc\x81s [MA\xffSK]", "ΑΣ[MASK][MASK", "[MASK]"]
    pieces = text_to_ids.tokenize_with_offsets(tf.constant(texts))
    assert pieces.ids.to_list() == text_to_ids(tf.constant(texts)).to_list()
    assert pieces.char_starts.to_list()[0] == [0, 2, 9, 11]
    assert pieces.char_ends.to_list()[0] == [2, 8, 10, 17]
    assert pieces.byte_starts.to_list()[0] == [0, 2, 10, 12]
    assert pieces.byte_ends.to_list()[0] == [2, 8, 11, 19]
    assert pieces.word_index.to_list()[0] == [0, 1, 2, 3]
    assert pieces.space_word_index.to_list()[0] == [0, 0, 0, 1]
    assert [row[-1] for row in pieces.char_ends.to_list()] == [17, 13, 6]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("Cafe\u0301\u0301, the", ["Cafe\u0301\u0301", ",", "the"]),  # accents go with their letter
        ("\u0301it", ["it"]),  # but with none before it
        ("中\u0301it!\u0301", ["中", "it", "!\u0301"]),  # an ideograph ends what came before
        ("i\u200bt\u200b\0 \ufeffthe", ["i\u200bt", "the"]),  # what vanishes, only inside
        ("👍\U0001f3fd it", ["👍\U0001f3fd", "it"]),
        ("it\u2028the\u3000now", ["it", "the", "now"]),
        ("İt ΣΑΣ", ["İt", "ΣΑΣ"]),
        ("it" * 100 + "i the", ["it" * 100 + "i", "the"]),
        (b"\xff\xe4i\xfft\xff caf\xc3", [b"i\xfft", b"caf"]),
    ],
)
def test_spans_cut_the_raw_text(text, spans, tmp_path):
    vocab_file = tmp_path / "vocab.txt"  # each of these words is one piece
    words = ["it", "the", "now", "cafe", "caf", ",", "!", "中", "σας"]
    vocab_file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    pieces = TextToIds(vocab_file).tokenize_with_offsets(tf.constant([text]))
    data = _to_bytes(text)
    ends = pieces.byte_ends.to_list()[0]
    found = [data[a:b] for a, b in zip(pieces.byte_starts.to_list()[0], ends, strict=True)]
    assert found == [_to_bytes(span) for span in spans]
    if isinstance(text, str):
        ends = pieces.char_ends.to_list()[0]
        found = [text[a:b] for a, b in zip(pieces.char_starts.to_list()[0], ends, strict=True)]
        assert found == spans


def test_a_sigma_is_final_where_a_word_ends_and_at_the_end_of_all_texts():
    vocab = {piece: i for i, piece in enumerate([*SPECIAL_TOKENS, "οδος", "οδοσ", "σ", "ς", "α"])}
    tokenizer, text_to_ids = FullTokenizer.from_vocab(vocab), TextToIds.from_vocab(vocab)
    for texts in (["ΟΔΟΣ"], ["ΟΔΟΣ", "ΟΔΟΣ Α", "Σ"], ["Α", "ΟΔΟΣ\u00ad"]):
        found = text_to_ids(tf.constant(texts)).to_list()
        assert found == [tokenizer.encode(text) for text in texts]
    assert text_to_ids(tf.constant(["ΟΔΟΣ"])).to_list() == [[vocab["οδος"]]]


def test_words_that_spaces_part_have_the_pieces_that_each_has_alone():
    rng = random.Random(3)
    alphabet = [text for text in golden.fuzz_strings(2) if isinstance(text, str)]
    words = [word for text in alphabet for word in split_words(text)[0]]
    words = [word for word in words if _to_bytes(word) and not word.startswith("\ud800")]
    tokenizer = FullTokenizer(TINY_VOCAB)
    sentences = [rng.choices(words, k=rng.randint(1, 9)) for _ in range(100)]
    texts = [_to_bytes(" ".join(sentence)) for sentence in sentences]
    pieces = TextToIds(TINY_VOCAB).tokenize_with_offsets(tf.constant(texts))
    for row, sentence in enumerate(sentences):
        found = [[] for _ in sentence]
        for number, index in zip(
            pieces.ids[row].numpy(), pieces.space_word_index[row].numpy(), strict=True
        ):
            found[index].append(number)
        assert found == [tokenizer.encode(_to_bytes(word)) for word in sentence]


def test_long_and_short_texts_in_one_batch():
    texts = ["it the " * 15_000, *["now"] * 500, "x" * 100_000, "é" * 100_000]
    pieces = TextToIds(TINY_VOCAB).tokenize_with_offsets(tf.constant(texts))
    assert pieces.ids.row_lengths().numpy().tolist() == [30_000, *[1] * 500, 1, 1]
    assert pieces.char_ends[0, -1] == 7 * 15_000 - 1
    assert pieces.byte_ends[-1].numpy().tolist() == [200_000]


@pytest.mark.parametrize("ragged", [False, True])
def test_pack_choices_equals_pack_pair(ragged):
    texts = ["the unaffable it", "", "now"]
    choices = [["it", "", "unaffable now"], ["the", "it the it the", "x"], ["it"] * 3]
    if ragged:
        choices = [["it"], [], ["the", "it the it"]]
    tokenizer = FullTokenizer(TINY_VOCAB)
    text_to_ids = TextToIds(TINY_VOCAB, max_seq_length=7)
    tensor = tf.ragged.constant(choices) if ragged else tf.constant(choices)
    packed = text_to_ids.pack_choices(tf.constant(texts), tensor)
    special = {"cls_id": tokenizer.vocab["[CLS]"], "sep_id": tokenizer.vocab["[SEP]"]}
    for number, name in enumerate(["input_ids", "input_mask", "segment_ids"]):
        assert isinstance(packed[name], tf.RaggedTensor) == ragged
        assert packed[name].shape.as_list() == [3, None if ragged else 3, 7]
        found = packed[name].to_list() if ragged else packed[name].numpy().tolist()
        assert found == [
            [
                pack_pair(tokenizer.encode(text), tokenizer.encode(choice), 7, **special)[number]
                for choice in row
            ]
            for text, row in zip(texts, choices, strict=True)
        ]
    none = text_to_ids.pack_choices(tf.constant(texts), tf.zeros([3, 0], tf.string))
    assert none["input_ids"].shape == (3, 0, 7)


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
    with pytest.raises(ValueError, match=r"vocab has no \[PAD\]"):
        TextToIds.from_vocab({"a": 0})
    text_to_ids = TextToIds(TINY_VOCAB)
    with pytest.raises(ValueError, match=r"texts: expected strings \[B\], got the shape \(1, 1\)"):
        text_to_ids(tf.constant([["a"]]))
    with pytest.raises(ValueError, match=r"second_texts: expected strings \[B\], got int32"):
        text_to_ids.pack(tf.constant(["a"]), tf.constant([1]))


@pytest.mark.slow
def test_saved_model_carries_its_vocabulary(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_bytes(TINY_VOCAB.read_bytes())
    module = TextToIds(vocab_file, max_seq_length=17, parse_mask=True)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(texts):
        pieces = module.tokenize_with_offsets(texts)
        return {"ends": pieces.byte_ends.to_tensor(-1), **module.pack(texts)}

    tf.saved_model.save(module, str(tmp_path / "model"), signatures=serve)
    vocab_file.unlink()
    texts = ["the [MASK] now", "Hello unaffable café ΑΣ 각"]
    code = f"""if True:
        import tensorflow as tf, tensorflow_text
        model = tf.saved_model.load({str(tmp_path / "model")!r})
        served = model.signatures["serving_default"](tf.constant({texts!r}))
        print(*(served[name].numpy().tolist() for name in ("ends", "input_ids")))"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ends = module.tokenize_with_offsets(tf.constant(texts)).byte_ends.to_tensor(-1)
    ids = module.pack(tf.constant(texts))["input_ids"]
    assert run.stdout.strip() == f"{ends.numpy().tolist()} {ids.numpy().tolist()}"


CHOICES = [["it", "the now"], ["now it the unaffable", ""], ["a", "b"]]


@pytest.fixture(scope="module")
def preprocessor():
    return BertPreprocessor(TINY_VOCAB, max_seq_length=7)


def _equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_layer_takes_texts_pairs_and_choices(preprocessor):
    text_to_ids = TextToIds(TINY_VOCAB, max_seq_length=7)
    first, second = ["the now", "it", ""], ["it", "", "unaffable unaffable"]
    alone = text_to_ids.pack(tf.constant(first))
    for inputs in (first, np.array(first), tf.constant(first), {"text": first}):
        _equal(preprocessor(inputs), alone)
    pairs = text_to_ids.pack(tf.constant(first), tf.constant(second))
    for inputs in ((first, second), (tf.constant(first), tf.constant(second))):
        _equal(preprocessor(inputs), pairs)
    _equal(preprocessor({"text": first, "text_b": second}), pairs)
    chosen = text_to_ids.pack_choices(tf.constant(first), tf.constant(CHOICES))
    data = {"text": first, "choices": CHOICES}
    _equal(preprocessor(data), chosen)
    mapped = tf.data.Dataset.from_tensor_slices(data).batch(3).map(preprocessor)
    assert mapped.element_spec["input_ids"].shape.as_list() == [None, 2, 7]
    _equal(next(iter(mapped)), chosen)
    data = {"text": tf.constant(first), "choices": tf.ragged.constant([["it"], [], ["a", "b"]])}
    ragged = preprocessor(data)
    assert ragged["input_ids"].row_lengths().numpy().tolist() == [1, 0, 2]
    np.testing.assert_array_equal(ragged["input_ids"][2], chosen["input_ids"][2])


def test_layer_takes_one_text_as_it_takes_many(preprocessor):
    first, second = ["the now", "it"], ["it", "unaffable"]
    for single, inputs in (
        ("the now", first),
        (tf.constant("the now"), first),
        ((tf.constant("the now"), tf.constant("it")), (first, second)),
        ({"text": "the now", "text_b": "it"}, (first, second)),
        (
            {"text": "the now", "choices": CHOICES[0]},
            {"text": first, "choices": CHOICES[:2]},
        ),
    ):
        expected = {name: rows[0] for name, rows in preprocessor(inputs).items()}
        _equal(preprocessor(single), expected)
    texts = tf.data.Dataset.from_tensor_slices(first)
    (batch,) = texts.map(preprocessor).batch(2)
    _equal(batch, preprocessor(first))
    pairs = tf.data.Dataset.from_tensor_slices((first, second))
    (batch,) = pairs.map(lambda a, b: preprocessor((a, b))).batch(2)
    _equal(batch, preprocessor((first, second)))


def test_layer_is_saved_with_its_vocabulary(tmp_path):
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("[PAD]\na\n\n[UNK]\n[CLS]\na\n[SEP]\n[MASK]\nclass_name\nconfig\n##b\n")
    layer = BertPreprocessor(
        vocab_file, False, 5, parse_mask=True, strip_accents=True, name="texts"
    )
    text = keras.Input(shape=(), dtype="string", name="text")
    text_b = keras.Input(shape=(), dtype="string", name="text_b")
    outputs = layer({"text": text, "text_b": text_b})
    assert outputs["input_ids"].shape == (None, 5)
    model = keras.Model({"text": text, "text_b": text_b}, outputs)
    model.save(tmp_path / "model.keras")
    vocab_file.unlink()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    texts = {"text": tf.constant(["áb [MASK]", "A"]), "text_b": tf.constant(["", "config"])}
    expected = layer(texts)
    assert expected["input_ids"].numpy().tolist() == [[4, 5, 10, 7, 6], [4, 3, 6, 9, 6]]
    _equal(loaded(texts), expected)
    again = BertPreprocessor.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.name == "texts" and again.text_to_ids.vocab_size == 11


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": "a", "text_b": ["b"]}, r"text_b: expected a string, got the shape \(1,\)"),
        ([["one", "two"], ["three", "four"]], "inputs: .* got a list of lists; join the words"),
        (tf.constant([1.0]), r"text: expected strings \[B\], got float32"),
        ({"text": ["a"], "text_b": [["a"]]}, r"text_b: expected strings \[B\], got the shape"),
        ({"text": ["a"], "choices": ["a"]}, r"choices: expected strings \[B, C\], got the shape"),
        ({"text": ["a"], "context": ["a"]}, "expected the keys text, .* got text context"),
        ({"text_b": ["a"]}, "expected the keys text, .* got text_b"),
        ((["a"], ["b"], ["c"]), r"expected a pair \(text, text_b\), got 3"),
    ],
)
def test_layer_says_what_is_wrong_with_its_inputs(preprocessor, inputs, message):
    with pytest.raises(ValueError, match=message):
        preprocessor(inputs)


def test_layer_says_what_is_wrong_with_an_input_of_a_model(preprocessor):
    with pytest.raises(ValueError, match=r"text: expected strings \[B\], got the shape"):
        preprocessor(keras.Input(shape=(3,), dtype="string"))
    with pytest.raises(ValueError, match=r"text: expected strings \[B\], got int32"):
        preprocessor(keras.Input(shape=(), dtype="int32"))


def test_ends_of_pieces_are_where_utf8_grows(tmp_path):
    """The first characters of two, three and four bytes, and the last before them, end a piece."""
    letters = ["z", "\u00aa", "\u07ff", "\u0800", "\uffdc", "\U00010000", "\U0002fa1d"]
    vocab = tmp_path / "vocab.txt"
    pieces = [*(f"a{x}" for x in letters), *(f"##a{x}" for x in letters), "a", "##a"]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab.write_text("\n".join([*specials, *letters, *pieces]) + "\n", encoding="utf-8")
    texts = [f"a{x} aa{x}a{y}aa{x}" for x in letters for y in letters]
    for lower in (False, True):
        text_to_ids = TextToIds(vocab, do_lower_case=lower, max_seq_length=67)
        tokenizer = FullTokenizer(vocab, do_lower_case=lower)
        assert not _differences(text_to_ids, tokenizer, texts)
