"""The SavedModel that fills in [MASK] answers as the Keras model does, from strings alone."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.export import FillMask, export_fill_mask
from bert_tf.heads import bert_pretrainer
from bert_tf.tokenization import FullTokenizer
from experiments import fill_mask

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

WORDS = (
    "[PAD] [unused0] [UNK] [CLS] [SEP] [MASK] the list of items is empty ##ed ##s return , . [ ] "
    "mask true caf ##e"
).split()
SENTENCES = [
    "Return the [MASK] of items.",
    "[MASK]",
    "the café, is[MASK]ed [MASK]",
    "no mask here [mask] .",
    "",
    "the " * 40 + "[MASK]",  # Cut off before its mask.
]
TOP_K, MAX_SEQ_LENGTH = 3, 17


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(word + "\n" for word in WORDS))
    return path


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(7)
    config = BertConfig(
        vocab_size=len(WORDS) + 5,  # Rows beyond the vocabulary, as rounded up for speed.
        hidden_size=22,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=37,
        max_position_embeddings=41,
        initializer_range=0.7,
    )
    return bert_pretrainer(config)


@pytest.fixture(scope="module")
def exported(model, vocab_file, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported") / "fill"
    return export_fill_mask(model, vocab_file, root, max_seq_length=MAX_SEQ_LENGTH, top_k=TOP_K)


def expected(model, vocab_file, sentence):
    """Tokens and scores by way of the reference tokenizer and the Keras model, one by one."""
    tokenizer = FullTokenizer(str(vocab_file))
    pieces = []
    for part in sentence.split("[MASK]"):
        pieces += [*tokenizer.tokenize(part), "[MASK]"]
    pieces = ["[CLS]", *pieces[:-1][: MAX_SEQ_LENGTH - 2], "[SEP]"]
    positions = [i for i, piece in enumerate(pieces) if piece == "[MASK]"]
    if not positions:
        return [], []
    ids = np.array([tokenizer.convert_tokens_to_ids(pieces)], np.int32)
    logits = model.predict_on_batch(
        {
            "input_ids": ids,
            "input_mask": np.ones_like(ids),
            "segment_ids": np.zeros_like(ids),
            "masked_lm_positions": np.array([positions], np.int32),
        }
    )["masked_lm_logits"][0][:, : len(WORDS)]
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    best = np.argsort(-scores, axis=-1)[:, :TOP_K]
    tokens = [[WORDS[i] for i in row] for row in best]
    return tokens, np.take_along_axis(scores, best, -1)


def check(output, model, vocab_file, sentences):
    for i, sentence in enumerate(sentences):
        tokens, scores = expected(model, vocab_file, sentence)
        count = int(output["mask_count"][i])
        assert count == len(tokens), sentence
        found = [[t.decode() for t in row] for row in np.asarray(output["tokens"])[i].tolist()]
        assert found[:count] == tokens, sentence
        assert all(token == "" for row in found[count:] for token in row)
        np.testing.assert_allclose(
            np.asarray(output["scores"])[i, :count].reshape(-1), np.ravel(scores), rtol=1e-5
        )
        assert not np.asarray(output["scores"])[i, count:].any()


def test_strings_in(model, vocab_file, exported):
    loaded = tf.saved_model.load(str(exported))
    for sentences in (SENTENCES, SENTENCES[:1], SENTENCES[3:5]):
        output = loaded.signatures["serving_default"](text=tf.constant(sentences))
        check(output, model, vocab_file, sentences)
    assert [len(expected(model, vocab_file, s)[0]) for s in SENTENCES] == [1, 1, 2, 0, 0, 0]


def test_ids_in(model, exported):
    rng = np.random.default_rng(3)
    inputs = {
        "input_ids": rng.integers(0, len(WORDS), (3, 13)),
        "input_mask": np.arange(13)[None] < np.array([[13], [7], [5]]),
        "segment_ids": rng.integers(0, 2, (3, 13)),
        "masked_lm_positions": rng.integers(0, 5, (3, 2)),
    }
    inputs = {name: value.astype(np.int32) for name, value in inputs.items()}
    output = tf.saved_model.load(str(exported)).signatures["ids"](
        **{name: tf.constant(value) for name, value in inputs.items()}
    )
    reference = model.predict_on_batch(inputs)
    assert set(output) == set(reference) == {"masked_lm_logits", "next_sentence_logits"}
    for name, value in reference.items():
        np.testing.assert_allclose(output[name], value, rtol=1e-5, atol=1e-6)


def test_versions(model, vocab_file, tmp_path, exported):
    assert exported.name == "1" and exported.parent.name == "fill"
    (tmp_path / "3").mkdir()
    with pytest.raises(FileExistsError, match="version"):
        export_fill_mask(model, vocab_file, tmp_path, version=3)
    assert [p.name for p in tmp_path.iterdir()] == ["3"]
    assert export_fill_mask(model, vocab_file, tmp_path).name == "4"
    assert fill_mask.newest_version(str(tmp_path)).name == "4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k: expected 1"),
        ({"top_k": 1000}, "top_k: expected 1"),
        ({"max_seq_length": 2}, "max_seq_length must be at least 3"),
    ],
)
def test_bad_arguments(model, vocab_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        FillMask(model, vocab_file, **arguments)


def test_vocabulary_that_does_not_fit(model, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in [*WORDS, *"abcdefghij"]))
    with pytest.raises(ValueError, match="ids up to"):
        FillMask(model, path)
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"\[MASK\]"):
        FillMask(model, path, top_k=1)


def test_filled_sentence():
    assert fill_mask.filled("is[MASK] [MASK].", ["##ed", "a"]) == "ised a."
    assert fill_mask.filled("is [MASK].", ["##ed"]) == "ised."
    assert fill_mask.filled("[MASK] and [MASK]", ["one"]) == "one and [MASK]"


def test_fresh_process_needs_tensorflow_alone(model, vocab_file, exported, tmp_path):
    # A copy of the script outside of the repository cannot import this package by accident.
    script = tmp_path / "fill_mask.py"
    script.write_text((REPOSITORY / "experiments/fill_mask.py").read_text())
    sentences = SENTENCES[:3]
    done = subprocess.run(
        [sys.executable, "-P", str(script), f"--saved_model={exported.parent}"],
        input="\n".join(sentences),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for sentence in sentences:
        tokens, scores = expected(model, vocab_file, sentence)
        at = lines.index(sentence)
        assert lines[at + 1].strip() == fill_mask.filled(sentence, [t[0] for t in tokens]).strip()
        for row, row_scores, line in zip(tokens, scores, lines[at + 2 :], strict=False):
            words = line.split()
            assert words[::2] == row
            np.testing.assert_allclose([float(w) for w in words[1::2]], row_scores, atol=6e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--saved_model=nowhere", "--text=a [MASK]"], "no saved_model.pb in 'nowhere'"),
        (["--saved_model=nowhere", "--text=a"], "expected [MASK] in 'a'"),
        (["--saved_model=nowhere"], "no sentences"),
    ],
)
def test_bad_input_of_the_script(arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "experiments/fill_mask.py"), *arguments],
        input="",
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("fill_mask: ") and message in done.stderr
    assert "Traceback" not in done.stderr
