"""The SavedModel that fills in [MASK] answers as the Keras model does, from strings alone."""

import json
import logging
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

from bert_tf.models.task_models import HEADS, bert_pretrainer
from bert_tf.serving.options import MODEL_CARD_NAME, TOLERANCES
from bert_tf.serving.saved_model import WARMUP_NAME, export_saved_model
from bert_tf.serving.text_models import Classifier, Embedder, FillMask, MultipleChoice
from bert_tf.tokenization.graph_tokenizer import TextToIds
from bert_tf.tokenization.wordpiece import FullTokenizer
from bert_tf.weights.save import save_model_directory
from experiments import fill_mask
from tests.support import synthetic_records as synthetic

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

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
    # Rows beyond the vocabulary, as where its size was rounded up for speed.
    config = synthetic.small_config(vocab_size=len(WORDS) + 5, initializer_range=0.7)
    return bert_pretrainer(config)


@pytest.fixture(scope="module")
def exported(model, vocab_file, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported") / "fill"
    return export_saved_model(fill_mask_of(model, vocab_file), root, description="made for a test")


def fill_mask_of(model, vocab_file, length=MAX_SEQ_LENGTH, top_k=TOP_K):
    text_to_ids = TextToIds(vocab_file, max_seq_length=length, parse_mask=True)
    return FillMask(model, text_to_ids, top_k=top_k)


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


@pytest.mark.thorough
def test_versions(model, vocab_file, tmp_path, exported, caplog):
    assert exported.name == "1" and exported.parent.name == "fill"
    served = fill_mask_of(model, vocab_file)
    (tmp_path / "3").mkdir()
    with pytest.raises(FileExistsError, match="version"):
        export_saved_model(served, tmp_path, version=3)
    assert [p.name for p in tmp_path.iterdir()] == ["3"]
    with caplog.at_level("INFO", tf.get_logger().name):  # as in a notebook
        assert export_saved_model(served, tmp_path).name == "4"
        assert tf.get_logger().level == logging.INFO
    assert "Assets written" not in caplog.text  # to a folder that has another name by now
    assert fill_mask.newest_version(str(tmp_path)).name == "4"


@pytest.mark.parametrize("top_k", [0, 1000])
def test_more_candidates_than_there_are(model, vocab_file, top_k):
    with pytest.raises(ValueError, match=f"top_k: expected 1 to {len(WORDS)}, got {top_k}"):
        fill_mask_of(model, vocab_file, top_k=top_k)


def test_a_session_finds_the_weights(model, vocab_file, exported):
    """TF Serving runs a SavedModel's graph in a session, without the objects around it."""
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        meta = v1.saved_model.loader.load(session, ["serve"], str(exported))
        signature = meta.signature_def["serving_default"]
        names = {name: info.name for name, info in signature.outputs.items()}
        output = session.run(names, {signature.inputs["text"].name: SENTENCES})
        variables = [op.name for op in session.graph.get_operations() if op.type == "VarHandleOp"]
    check(output, model, vocab_file, SENTENCES)
    assert len(variables) == len(model.variables)  # none is there twice


def test_a_session_is_told_what_is_wrong(exported):
    v1 = tf.compat.v1
    ids = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions")
    with v1.Session(graph=tf.Graph()) as session:
        meta = v1.saved_model.loader.load(session, ["serve"], str(exported))

        def run(name, **given):
            """Run a signature without the look at shapes that Session.run takes by itself."""
            signature = meta.signature_def[name]
            names = [next(iter(signature.outputs.values())).name]
            feed = [signature.inputs[key].name for key in given]
            options = config_pb2.CallableOptions(feed=feed, fetch=names)
            return session._make_callable_from_options(options)(*given.values())

        def odd(number):
            """Ids one of which is another than 0."""
            return np.eye(3, 7, dtype=np.int32)[::-1] * [0, number, 0, 0, 0, 0, 0]

        size = len(WORDS) + 5  # of the model's vocabulary
        good = {name: np.zeros((3, 7), np.int32) for name in ids}
        run("ids", **good)
        run("ids", **{name: np.zeros((0, 7), np.int32) for name in ids})
        run("serving_default", text=np.array(SENTENCES, object))
        for name, given, message in (
            ("serving_default", {"text": [["a"], ["b"]]}, "text: expected rank 1, got rank] [2]"),
            ("serving_default", {"text": "a"}, "text: expected rank 1, got rank] [0]"),
            ("ids", good | {"input_mask": [1]}, "input_mask: expected rank 2, got rank] [1]"),
            (
                "ids",
                good | {"segment_ids": np.zeros((2, 7))},
                "segment_ids: expected rows as many as of input_ids, which are] [3] [got] [2]",
            ),
            ("ids", good | {"input_ids": odd(-5)}, "[got] [-5] [to] [0]"),
            (
                "ids",
                good | {"input_ids": odd(size)},
                f"input_ids: expected integers of 0 to] [{size - 1}] [got] [0] [to] [{size}]",
            ),
            ("ids", good | {"input_mask": odd(2)}, "input_mask: expected integers of 0 to] [1] "),
            ("ids", good | {"segment_ids": odd(7)}, "segment_ids: expected integers of 0 to] [1] "),
            (
                "ids",
                good | {"masked_lm_positions": odd(7)},
                "masked_lm_positions: expected integers of 0 to] [6] [got] [0] [to] [7]",
            ),
            (
                "ids",
                good | {"input_mask": np.ones((3, 1))},
                "input_mask: expected the shape of input_ids] [3 7] [got] [3 1]",
            ),
            (
                "ids",
                {name: np.zeros((3, 600)) for name in ids},
                "input_ids: expected at most 41 positions, got] [600]",
            ),
        ):
            dtype = object if "text" in given else np.int32
            given = {key: np.array(value, dtype) for key, value in given.items()}
            with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
                run(name, **given)


def test_the_model_card_shows_signatures_and_an_answer(exported):
    card = (exported / MODEL_CARD_NAME).read_text()
    assert card.startswith("# fill\n\nTask: fill mask. BERT with 2 layers of 22 units, 28 pieces")
    assert "cut at 17 pieces." in card and "Weights: made for a test." in card
    assert "## Signature `serving_default`" in card and "## Signature `ids`" in card
    assert "| in | `text` | string | [?] | text with any number of [MASK] |" in card
    assert "| out | `scores` | float32 | [?, ?, 3] |" in card
    assert """curl -d '{"inputs": {"text": ["The capital of France is [MASK]."]}}'""" in card
    assert "/v1/models/fill:predict" in card
    example = card[card.index("answers") + 7 :]
    answer = json.loads(example)["outputs"]
    assert answer["mask_count"] == [1] and len(answer["tokens"][0][0]) == TOP_K


@pytest.mark.serving
def test_the_request_to_warm_up_is_tf_servings(exported):
    apis = pytest.importorskip("tensorflow_serving.apis", reason="needs the serving extra")
    log_pb2 = pytest.importorskip(f"{apis.__name__}.prediction_log_pb2")
    (record,) = tf.data.TFRecordDataset(str(exported / WARMUP_NAME)).as_numpy_iterator()
    request = log_pb2.PredictionLog.FromString(record).predict_log.request
    assert request.model_spec.name == "fill"
    assert request.model_spec.signature_name == "serving_default"
    text = tf.make_ndarray(request.inputs["text"])
    assert text.tolist() == [b"The capital of France is [MASK]."]


def rounded(value, dtype):
    return tf.cast(tf.cast(value, dtype), tf.float32)


def half_precision(vocab_file, tmp_path, dtype, **options):
    keras.utils.set_random_seed(3)
    config = synthetic.small_config(
        vocab_size=101 + len(WORDS), num_hidden_layers=1, initializer_range=0.1, hidden_size=64
    )
    text_to_ids = TextToIds(vocab_file, max_seq_length=MAX_SEQ_LENGTH)
    made = HEADS["classification"].make(config, 2)
    served = Classifier(made, text_to_ids, ("no", "yes"))
    # What answers as the file shall: the model with rounded weights.
    expected = HEADS["classification"].make(config, 2)
    for weight, own in zip(expected.weights, made.weights, strict=True):
        weight.assign(rounded(own, dtype))
    return served, expected, export_saved_model(served, tmp_path, weights=dtype, **options)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("variables/*data*"))


@pytest.mark.thorough(traced=True)
def test_weights_in_half_precision(vocab_file, tmp_path):
    served, expected, folder = half_precision(
        vocab_file, tmp_path / "half", "float16", ids_only=True
    )
    card = (folder / MODEL_CARD_NAME).read_text()
    assert "Stored in float16: outputs for sample inputs differ from those of the float32" in card
    ids = np.array([[2, 7, 9, 3], [2, 8, 3, 0]], np.int32)
    inputs = {"input_ids": ids, "input_mask": ids != 0, "segment_ids": ids * 0}
    inputs = {name: np.int32(value) for name, value in inputs.items()}
    reference = expected.predict_on_batch(inputs)
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    loaded = [tf.saved_model.load(str(folder)) for _ in range(2)]
    for each in loaded:  # several in a process do not share what is filled
        np.testing.assert_allclose(
            each.signatures["serving_default"](**tensors)["logits"], reference, 1e-5
        )
    del loaded[0], each
    np.testing.assert_allclose(
        loaded[0].signatures["serving_default"](**tensors)["logits"], reference, 1e-5
    )
    assert np.abs(served.model.predict_on_batch(inputs) - reference).max() > 1e-6
    # A session, as TF Serving's, fills the weights likewise.
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        meta = v1.saved_model.loader.load(session, ["serve"], str(folder))
        signature = meta.signature_def["serving_default"]
        feed = {signature.inputs[name].name: value for name, value in inputs.items()}
        output = session.run(signature.outputs["logits"].name, feed)
        handles = [op for op in session.graph.get_operations() if op.type == "VarHandleOp"]
        halves = session.run(
            [
                tf.raw_ops.ReadVariableOp(resource=handle.outputs[0], dtype=tf.float16)
                for handle in handles
                if handle.get_attr("dtype") == tf.float16
            ]
        )
    np.testing.assert_allclose(output, reference, 1e-5)
    assert halves and not any(value.size for value in halves)  # they take no memory any more
    # What was written is about half the size of the weights.
    weights = sum(4 * np.prod(weight.shape) for weight in served.model.weights)
    assert 0.5 * weights < size_of(folder) < 0.55 * weights
    with pytest.raises(ValueError, match="dtype: choose it before a function of the model is"):
        export_saved_model(served, tmp_path / "half", weights="bfloat16")
    with pytest.raises(ValueError, match="weights: expected one of float32, float16, bfloat16"):
        export_saved_model(served, tmp_path / "half", weights="int8")
    assert [path.name for path in (tmp_path / "half").iterdir()] == ["1"]


def test_half_precision_that_changes_too_much(vocab_file, tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCES["saved_model"], "bfloat16", 1e-6)
    with pytest.raises(RuntimeError, match="weights: bfloat16 changes outputs by .* 1e-06 is too"):
        half_precision(vocab_file, tmp_path, "bfloat16", ids_only=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_strings_of_a_model_in_half_precision(vocab_file, tmp_path):
    """The comparison after writing answers for the rest."""
    *_, folder = half_precision(vocab_file, tmp_path, "bfloat16")
    assert "Stored in bfloat16" in (folder / MODEL_CARD_NAME).read_text()
    assert set(tf.saved_model.load(str(folder)).signatures) == {
        "serving_default",
        "ids",
        "pieces",
        "classify",
    }


@pytest.mark.thorough
def test_ids_alone_need_no_operation_of_text(vocab_file, tmp_path):
    keras.utils.set_random_seed(3)
    config = synthetic.small_config(vocab_size=len(WORDS), num_hidden_layers=1)
    text_to_ids = TextToIds(vocab_file, max_seq_length=MAX_SEQ_LENGTH)
    served = Embedder(HEADS["encoder"].make(config), text_to_ids)
    folder = export_saved_model(served, tmp_path / "ids", ids_only=True)
    code = (
        "import sys, tensorflow as tf\n"
        "f = tf.saved_model.load(sys.argv[1]).signatures['serving_default']\n"
        "ids = tf.constant([[2, 7, 3]])\n"
        "out = f(input_ids=ids, input_mask=ids * 0 + 1, segment_ids=ids * 0)\n"
        "assert not any('tensorflow_text' in m for m in sys.modules)\n"
        "print(out['mean'].numpy().tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    ids = tf.constant([[2, 7, 3]])
    expected = served.ids(ids, tf.ones_like(ids), tf.zeros_like(ids))["mean"]
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-5)


@pytest.mark.slow
def test_choices_are_compared_too(vocab_file, tmp_path, monkeypatch):
    """And nothing is left where the SavedModel does not answer as the model."""
    keras.utils.set_random_seed(3)
    config = synthetic.small_config(
        vocab_size=len(WORDS), num_hidden_layers=1, initializer_range=0.5
    )
    text_to_ids = TextToIds(vocab_file, max_seq_length=MAX_SEQ_LENGTH)
    served = MultipleChoice(HEADS["multiple_choice"].make(config), text_to_ids)
    assert export_saved_model(served, tmp_path / "swag").name == "1"
    classifier = Classifier(HEADS["classification"].make(config, 2), text_to_ids, ("no", "yes"))
    load = tf.saved_model.load

    def change_first(folder):
        for weight in classifier.model.weights:
            weight.assign(weight + 1.0)
        return load(folder)

    monkeypatch.setattr(tf.saved_model, "load", change_first)
    with pytest.raises(RuntimeError, match="label: the SavedModel gives"):
        export_saved_model(classifier, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_filled_sentence():
    assert fill_mask.filled("is[MASK] [MASK].", ["##ed", "a"]) == "ised a."
    assert fill_mask.filled("is [MASK].", ["##ed"]) == "ised."
    assert fill_mask.filled("[MASK] and [MASK]", ["one"]) == "one and [MASK]"


def test_script_takes_a_model_too(model, vocab_file, tmp_path):
    save_model_directory(tmp_path, model, vocab_file)
    answers = fill_mask.answers_of_model(str(tmp_path), SENTENCES[:3])
    for i, sentence in enumerate(SENTENCES[:3]):
        tokens, scores = expected(model, vocab_file, sentence)
        count = answers["mask_count"][i]
        found = [[token.decode() for token in row] for row in answers["tokens"][i, :count]]
        assert [row[:TOP_K] for row in found] == tokens
        np.testing.assert_allclose(answers["scores"][i, :count, :TOP_K], scores, atol=1e-6)


def test_fresh_process_needs_tensorflow_alone(model, vocab_file, exported, tmp_path):
    # A copy of the script outside of the repository cannot import this package by accident.
    script = tmp_path / "fill_mask.py"
    script.write_text((REPOSITORY / "experiments/fill_mask.py").read_text())
    sentences = SENTENCES[:3]
    done = subprocess.run(
        [
            *(sys.executable, "-P", str(script), f"--saved_model={exported.parent}"),
            "--output_file=answers.jsonl",
        ],
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
    answers = [json.loads(x) for x in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["text"] for answer in answers] == sentences
    assert [answer["tokens"] for answer in answers] == [
        expected(model, vocab_file, sentence)[0] for sentence in sentences
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--saved_model=nowhere", "--text=a [MASK]"], "no saved_model.pb in 'nowhere'"),
        (["--saved_model=nowhere", "--text=a"], "expected [MASK] in 'a'"),
        (["--saved_model=nowhere"], "no sentences"),
        (["--text=a [MASK]"], "expected one of --saved_model and --model_dir, got neither"),
        (["--saved_model=a", "--model_dir=b", "--text=a [MASK]"], "and --model_dir, got both"),
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
