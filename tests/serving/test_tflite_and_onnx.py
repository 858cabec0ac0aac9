"""TFLite and ONNX files answer as the Keras model does, or are not written."""

import dataclasses
import json
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_tf.models.task_models import HEADS
from bert_tf.serving import onnx, onnx_int8, tflite
from bert_tf.serving.load import SERVED
from bert_tf.serving.model_card import card_heading
from bert_tf.serving.onnx import export_onnx
from bert_tf.serving.openvino import export_openvino, load_openvino
from bert_tf.serving.options import MODEL_CARD_NAME
from bert_tf.serving.saved_model import sample_ids, worst_difference
from bert_tf.serving.served_model import failing_ids
from bert_tf.serving.tflite import _to_tflite, export_tflite, load_tflite
from bert_tf.tasks.document_windows import TextRule, WindowRule
from bert_tf.tokenization.graph_tokenizer import TextToIds
from bert_tf.tokenization.tflite_tokenizer import LiteTextToIds
from bert_tf.tokenization.vocabulary import SPECIAL_TOKENS, load_vocab
from experiments.benchmarks import serving
from tests.support import synthetic_records as synthetic

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the list of items is empty ##ed ##s return , . ( ) - caf ##e a "
    "who wrote it ? film fine don ' t ask :"
).split()
LENGTH = 13
CONFIG = synthetic.small_config(
    vocab_size=len(WORDS), num_hidden_layers=1, max_position_embeddings=17, initializer_range=0.7
)
LABELS = ("no", "maybe", "yes")
TAGS = ("O", "B-LOC", "I-LOC")
# What each task is made with: outputs of the model, where it does not have its own, and options.
TASKS = {
    "fill_mask": (None, {"top_k": 3}),
    "classification": (3, {"labels": LABELS}),
    "multi_label": (3, {"labels": LABELS, "has_pairs": True}),
    "regression": (1, {}),
    "question_answering": (None, {"rule": WindowRule(LENGTH, 5, 3)}),
    "token_classification": (3, {"labels": TAGS}),
    "multiple_choice": (None, {}),
    "next_sentence": (None, {}),
    "embeddings": (None, {}),
}
TEXTS = ["The café is empty.", "", "items, (a list) of [MASK] unknown", "the list of items " * 9]
OTHERS = ["is it?", "return the list " * 9, "", "of items " * 9]


def made_text_to_ids(length=LENGTH, **options):
    vocab = {word: i for i, word in enumerate(WORDS)}
    return TextToIds.from_vocab(vocab, max_seq_length=length, **options)


def served_model(task, **given):
    keras.utils.set_random_seed(11)
    size, options = TASKS[task]
    model = HEADS[SERVED[task].head].make(CONFIG, *([size] if size else []))
    ids = made_text_to_ids(parse_mask=task == "fill_mask")
    return SERVED[task].make(model, ids, **{**options, **given})


def arrays_of(inputs):
    return {name: value.numpy() for name, value in inputs.items()}


@pytest.mark.parametrize("length", [LENGTH, LENGTH - 1])  # room for two: even, and odd
def test_the_tokenizer_of_tflite(length):
    text_to_ids = made_text_to_ids(length)
    lite = LiteTextToIds(text_to_ids)
    texts = [*TEXTS, "caf\u00e9s don't ask", "中文 list", "x" * 201]
    for columns in ((texts,), (texts[:4], OTHERS), (texts[:1], OTHERS[:1]), (OTHERS, texts[:4])):
        found, expected = lite.pack(*columns), text_to_ids.pack(*columns)
        longest = int(tf.reduce_max(tf.reduce_sum(expected["input_mask"], 1)))
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value[:, :longest], name)
    # And what it does not do as the original.
    for text, pieces in (("a²", 1), ("ΟΔΟΣ", 1), (b"a\xffa", 1)):
        assert int(tf.reduce_sum(text_to_ids.pack([text])["input_mask"])) == pieces + 2


def test_accents_that_the_tokenizer_of_tflite_cannot_keep_are_refused():
    vocab = {piece: i for i, piece in enumerate(SPECIAL_TOKENS)}
    text_to_ids = TextToIds.from_vocab(vocab, strip_accents=False)
    with pytest.raises(ValueError, match="strip_accents: a TFLite file that takes strings"):
        LiteTextToIds(text_to_ids)
    model = HEADS["encoder"].make(CONFIG)
    served = SERVED["embeddings"].make(model, made_text_to_ids(strip_accents=False))
    assert ", uncased, accents kept; texts" in "".join(card_heading(served, "x", "", ()))


def test_strings_in_an_answer_out(tmp_path):
    served = served_model("classification")
    folder = export_tflite(served, tmp_path / "lite", description="made for a test")
    assert folder == tmp_path / "lite" / "1"
    run = load_tflite(folder)
    for texts in (TEXTS, TEXTS[:1], TEXTS[2:]):
        found = run(text=np.array(texts, object))
        expected = served.answer(tf.constant(texts))
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-5)
        assert found["label"].tolist() == expected["label"].numpy().tolist()
        assert set(found) == {"label", "probabilities"}
    with pytest.raises(ValueError, match=r"text: expected at least one text, got \(0,\)"):
        run(text=np.array([], object))
    assert len(run(text=np.array(TEXTS, object))["label"]) == len(TEXTS)  # Still.
    description = json.loads((folder / "model.json").read_text())
    assert description["labels"] == list(LABELS) and description["max_seq_length"] == LENGTH
    assert description["inputs"] == [{"name": "text", "type": "string", "shape": [None]}]
    assert list(load_vocab(folder / "vocab.txt")) == WORDS
    card = (folder / MODEL_CARD_NAME).read_text()
    assert card.startswith("# lite\n\nTask: classification.") and "made for a test." in card
    assert "Stored in float32: outputs for sample inputs differ" in card
    assert "| out | `probabilities` | float32 | [?, 3] |" in card and "no, maybe, yes." in card


def test_differences_are_of_arrays_of_one_shape():
    values = {"a": np.array([1.0, -4.0]), "none": np.zeros((0, 3))}
    assert worst_difference(values, values) == 0
    assert worst_difference({**values, "a": np.array([1.0, -3.0])}, values) == 0.25
    assert np.isnan(worst_difference({**values, "a": np.array([np.nan, -4.0])}, values))
    with pytest.raises(RuntimeError, match=r"a: has the shape \(1,\), of the model \(2,\)"):
        worst_difference({**values, "a": np.array([1.0])}, values)


def test_ids_out_of_range_fail_where_a_table_is_read():
    inputs = {
        "input_ids": tf.constant([[2, 7, 3], [2, -5, 3]]),
        "input_mask": tf.constant([[1, 1, 1], [1, 1, 2]]),
        "masked_lm_positions": tf.constant([[1, 0, 3], [-1, 2, 1]]),
    }
    found = arrays_of(failing_ids(inputs, CONFIG))
    # Beyond the tables: of the pieces, and of the positions of all rows.
    assert found["input_ids"].tolist() == [[2, 7, 3], [2, len(WORDS), len(WORDS)]]
    assert found["masked_lm_positions"].tolist() == [[1, 0, 6], [6, 2, 1]]


def test_what_cannot_be_written_in_a_format_is_said(tmp_path, monkeypatch):
    class Converter:
        target_spec = types.SimpleNamespace()

        def convert(self):
            assert self.optimizations and self.target_spec.supported_types == [tf.float16]
            raise ValueError("\n  no such operation: Foo\n  in a long trace\n")

    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_saved_model", lambda *_, **__: Converter())
    with pytest.raises(
        RuntimeError, match="^format: TFLite cannot hold this model: no such .*Foo$"
    ):
        export_tflite(served_model("embeddings"), tmp_path, ids_only=True, weights="float16")
    for name, module, export in (
        ("onnx", "tf2onnx", export_onnx),
        ("openvino", "openvino", export_openvino),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            ImportError, match=rf"^format: {name} needs pip install 'bert-tf\[{name}"
        ):
            export(served_model("embeddings"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_sample_ids_fit_a_model_of_one_segment():
    model = HEADS["classification"].make(dataclasses.replace(CONFIG, type_vocab_size=1), 3)
    served = SERVED["classification"].make(model, made_text_to_ids(), labels=LABELS)
    assert not sample_ids(served)["segment_ids"].numpy().any()
    served.ids(**sample_ids(served))


def check_ids(served, run, tolerance):
    for rows, length in ((2, 7), (1, LENGTH), (5, 5)):
        inputs = sample_ids(served, rows, length)
        assert worst_difference(run(**arrays_of(inputs)), served.run(inputs)) < tolerance


def test_ids_in(tmp_path):
    served = served_model("question_answering")
    with pytest.raises(ValueError, match="ids_only: a TFLite file of question_answering can only"):
        export_tflite(served, tmp_path)
    assert not list(tmp_path.iterdir())
    run = load_tflite(export_tflite(served, tmp_path, ids_only=True))
    empty = {name: array[:, :0] for name, array in arrays_of(sample_ids(served)).items()}
    with pytest.raises(ValueError, match=r": expected at least one piece a row, got \(2, 0\)"):
        run(**empty)
    check_ids(served, run, 5e-5)  # Still.
    none = {name: array[:0] for name, array in arrays_of(sample_ids(served)).items()}
    assert {len(value) for value in run(**none).values()} == {0}
    check_bad_ids(served, run)


def check_bad_ids(served, run):
    """Ids that the model cannot read are an error, where the runtime would read something else."""
    inputs = arrays_of(sample_ids(served, 3, 5))
    bad = {"input_ids": (-5, len(WORDS)), "segment_ids": (-1, 7), "masked_lm_positions": (-1, 5)}
    for name, array in inputs.items():
        for value in bad.get(name, ()):
            changed = array.copy()
            changed[1, 2] = value
            with pytest.raises(Exception, match="(?i)out of.*bound|must be within"):
                run(**{**inputs, name: changed})
            run(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(set(TASKS) - {"question_answering"}))
def test_ids_of_every_task(task, tmp_path):
    served = served_model(task)
    check_ids(served, load_tflite(export_tflite(served, tmp_path, ids_only=True)), 5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "tolerance"), [("float16", 1e-2), ("int8", 0.25)])
def test_smaller_weights(weights, tolerance, tmp_path):
    config = {**CONFIG.to_dict(), "hidden_size": 128, "intermediate_size": 256}
    config |= {"initializer_range": 0.1, "num_attention_heads": 4}
    keras.utils.set_random_seed(13)
    model = HEADS["classification"].make(type(CONFIG).from_dict(config), 3)
    served = SERVED["classification"].make(model, made_text_to_ids(), labels=LABELS)
    sizes = []
    for given in ("float32", weights):
        folder = export_tflite(served, tmp_path, ids_only=True, weights=given)
        sizes.append((folder / "model.tflite").stat().st_size)
    assert sizes[1] < {"float16": 0.6, "int8": 0.4}[weights] * sizes[0]
    run = load_tflite(folder)
    check_ids(served, run, tolerance)
    inputs = sample_ids(served)
    assert worst_difference(run(**arrays_of(inputs)), served.run(inputs)) > 1e-6
    folder = export_tflite(served, tmp_path, weights=weights)
    assert f"Stored in {weights}" in (folder / MODEL_CARD_NAME).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_label", "regression", "next_sentence", "embeddings"])
def test_strings_of_other_tasks(task, tmp_path):
    served = served_model(task)
    run = load_tflite(export_tflite(served, tmp_path))
    columns = dict(zip(served.texts, (TEXTS, OTHERS), strict=False))
    found = run(**{name: np.array(column, object) for name, column in columns.items()})
    for name, value in served.answer(**columns).items():
        if name != "labels":
            np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def test_nothing_is_left_of_a_file_that_differs(tmp_path, monkeypatch):
    served = served_model("embeddings")
    with pytest.raises(ValueError, match="weights: expected one of float32, float16, int8"):
        export_tflite(served, tmp_path, weights="bfloat16")

    def other(function, module, weights):
        made = convert(function, module, weights)
        for weight in served.model.weights:
            weight.assign(weight * 1.5)
        return made

    convert = _to_tflite
    monkeypatch.setattr(tflite, "_to_tflite", other)
    with pytest.raises(RuntimeError, match="weights: float32 changes outputs by"):
        export_tflite(served, tmp_path, ids_only=True)
    assert not list(tmp_path.iterdir())


def check_windows(served, run, tolerance):
    """Texts of fewer windows than another in the batch have windows of padding."""
    for rows, length in ((3, 7), (1, LENGTH)):
        inputs = arrays_of(sample_ids(served, rows, length))
        inputs["input_mask"][0, 1:] = 0  # as of a text of one window
        inputs = {name: tf.constant(array) for name, array in inputs.items()}
        assert worst_difference(run(**arrays_of(inputs)), served.run(inputs)) < tolerance
        one = {name: tf.constant(array[:1, :1]) for name, array in arrays_of(inputs).items()}
        assert worst_difference(run(**arrays_of(one)), served.run(one)) < tolerance
        alone, beside = served.run(one)["logits"], served.run(inputs)["logits"][:1]
        np.testing.assert_allclose(alone, beside, atol=1e-5)


def served_windows(pooling):
    keras.utils.set_random_seed(11)
    model = HEADS["classification"].make(CONFIG, 3, window_pooling=pooling)
    if pooling == "attention":
        query = model.get_layer("window_pooling").query
        query.assign(np.linspace(-2, 2, query.shape[0]))
    options = {"labels": LABELS, "temperature": 1.5, "windows": TextRule(LENGTH, 5, 3)}
    return SERVED["classification"].make(model, made_text_to_ids(), **options)


POOLINGS = ["max", *(pytest.param(x, marks=pytest.mark.slow) for x in ("mean", "attention"))]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_windows_of_padding_count_for_nothing_in_tflite(pooling, tmp_path):
    served = served_windows(pooling)
    check_windows(served, load_tflite(export_tflite(served, tmp_path, ids_only=True)), 5e-5)


@pytest.mark.openvino
def test_windows_of_padding_count_for_nothing_in_openvino(tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="needs the openvino extra")
    sender = "openvino_telemetry.utils.sender.TelemetrySender.send"
    monkeypatch.setattr(sender, lambda *_: None)
    served = served_windows("attention")
    check_windows(served, load_openvino(export_openvino(served, tmp_path)), 5e-5)


@pytest.mark.onnx
class TestOnnx:
    @pytest.fixture(autouse=True)
    def _needs(self):
        for name in ("tf2onnx", "onnx", "onnxruntime"):
            pytest.importorskip(name, reason="needs the onnx extra")

    def session(self, folder):
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return session, lambda **arrays: dict(zip(names, session.run(names, arrays), strict=True))

    def check(self, task, folder):
        served = served_model(task)
        folder = export_onnx(served, folder)
        session, run = self.session(folder)
        check_ids(served, run, 5e-5)
        if task != "multiple_choice":
            check_bad_ids(served, run)
        shapes = {value.name: value.shape for value in session.get_inputs()}
        assert shapes["input_ids"][-1] == "length" and shapes["input_ids"][0] == "batch"
        return folder

    def test_ids_in(self, tmp_path):
        folder = self.check("classification", tmp_path / "onnx")
        assert json.loads((folder / "model.json").read_text())["format"] == "onnx"
        assert (folder / MODEL_CARD_NAME).read_text().startswith("# onnx\n")

    @pytest.mark.slow
    @pytest.mark.parametrize("pooling", ["attention", "max", "mean"])
    def test_windows_of_padding_count_for_nothing(self, pooling, tmp_path):
        served = served_windows(pooling)
        _, run = self.session(export_onnx(served, tmp_path))
        check_windows(served, run, 5e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("task", sorted(set(TASKS) - {"classification"}))
    def test_every_task(self, task, tmp_path):
        self.check(task, tmp_path)

    def test_products_of_far_ranging_values_stay(self, tmp_path):
        """One value of a hundred times the others leaves 8 bits nothing to tell these apart."""
        from onnx import TensorProto, checker, helper, load, numpy_helper, save

        random = np.random.default_rng(0)
        weights = [random.normal(size=(64, 64)).astype(np.float32) for _ in range(2)]
        nodes = [
            helper.make_node("Tanh", ["x"], ["t"], name="tanh"),
            helper.make_node("MatMul", ["t", "w0"], ["y"], name="near"),
            helper.make_node("Pow", ["y", "nine"], ["z"], name="pow"),
            helper.make_node("MatMul", ["z", "w1"], ["out"], name="far"),
        ]
        made = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
        made.append(numpy_helper.from_array(np.float32(9), "nine"))
        rows = ["rows", 64]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, rows)],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, rows)],
            made,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        checker.check_model(model)
        file = tmp_path / "model.onnx"
        save(model, file)
        x = random.normal(size=(90, 64)).astype(np.float32)
        near = np.tanh(x)
        far = (near @ weights[0]).astype(np.float64) ** 9
        expected = {
            "near": np.ptp(near) / near.std(),
            "far": np.ptp(far) / np.sqrt((far**2).mean()),
        }
        assert onnx_int8.ranges(file, {"x": x}) == pytest.approx(expected, rel=1e-3)
        assert expected["near"] < 4 and expected["far"] > 60
        assert onnx_int8.quantize(file, {"x": x}) == ["far"]
        kinds = [node.op_type for node in load(file).graph.node]
        assert kinds.count("MatMul") == 1 and kinds.count("MatMulInteger") == 1

    @pytest.mark.slow
    def test_the_card_names_products_that_stay(self, tmp_path, monkeypatch):
        served = served_model("classification")
        for far, said in ((60, False), (0, True)):
            monkeypatch.setattr(onnx_int8, "_FAR", far)
            card = (export_onnx(served, tmp_path, weights="int8") / MODEL_CARD_NAME).read_text()
            assert ("Products that stay in float32" in card) is said

    @pytest.mark.slow
    def test_nothing_is_left_of_a_file_that_differs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx, "worst_of_ids", lambda served, run: float("nan"))
        with pytest.raises(RuntimeError, match="float32 changes outputs by nan"):
            export_onnx(served_model("regression"), tmp_path)
        assert not list(tmp_path.iterdir())


def test_what_the_benchmark_compares():
    words = {word.lower().strip(",.") for word in serving.PASSAGE} - {"grain"}
    vocab = {
        word: i for i, word in enumerate([*WORDS[:5], *sorted(words), ",", ".", "gra", "##in"])
    }
    for batch_size, length in ((1, 32), (8, 128)):
        texts = serving.make_texts(vocab, batch_size, length)
        mask = TextToIds.from_vocab(vocab, max_seq_length=length + 5).pack(texts)["input_mask"]
        assert tf.reduce_sum(mask, 1).numpy().tolist() == [length] * batch_size
        assert len(set(texts)) == batch_size
    theirs = np.array([[3.0, 4.0]])
    vectors = {"transformers": theirs, "SavedModel": theirs, "TFLite int8": theirs + [[0.5, 0]]}
    found = serving.compare(vectors)
    assert found == {"transformers": 0.0, "SavedModel": 0.0, "TFLite int8": 0.1}
    with pytest.raises(SystemExit, match="SavedModel differs by 0.1"):
        serving.compare({"transformers": theirs, "SavedModel": theirs + [[0.5, 0]]})
