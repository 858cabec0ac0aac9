"""Figures of an exported model on a dev file: what they are, and that they decide."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from bert_tf.input_pipeline.finetuning import TaskRecords
from bert_tf.serving import saved_model
from bert_tf.serving.load import load_served_model
from bert_tf.serving.onnx import export_onnx
from bert_tf.serving.openvino import MOST_SAMPLES, export_openvino, load_openvino
from bert_tf.serving.options import MODEL_CARD_NAME, TOLERANCES
from bert_tf.serving.saved_model import worst_difference
from bert_tf.serving.served_model import ServedModel
from bert_tf.tasks.trained_task import TrainedTask
from data_prep.finetuning import tables
from data_prep.finetuning.kinds import FeatureSettings
from data_prep.finetuning.options import table_task
from data_prep.finetuning.prepare import TokenizerSettings, write_split
from data_prep.finetuning.sources import table_source
from experiments.command_line.exit_status import InputError
from experiments.conversion import export, task_figures
from experiments.conversion.options import ExportOptions
from tests.serving.test_predictor import model_directory
from tests.support import command_options

LABELS = ("no", "yes")
WORDS = ["the", "list", "of", "items", "is", "empty"]


class Records(TaskRecords):
    """Without a file; only what `figures_of` asks for."""

    def __init__(self, kind, label_names, *batches):
        self.kind, self.label_names, self._batches = kind, label_names, batches

    def evaluation_dataset(self, **_):
        for number, (labels, weights) in enumerate(self._batches):
            yield {"input_ids": tf.constant(number)}, labels, weights


def logits_of(answers, size):
    return np.eye(size, dtype=np.float32)[np.asarray(answers)]


def test_figures_of_classes():
    true = [tf.constant([0, 1, 1]), tf.constant([1])]
    records = Records("classification", LABELS, *((labels, None) for labels in true))
    given = [[0, 1, 0], [1]]
    figures = task_figures.figures_of(
        records, lambda input_ids: {"logits": logits_of(given[input_ids], 2)}
    )
    assert figures == {"accuracy": 0.75, "f1": metrics.f1_score([0, 1, 1, 1], [0, 1, 0, 1])}


def test_figures_of_entities_leave_out_tokens_without_labels():
    names = ("O", "B-LOC", "I-LOC")
    labels = tf.constant([[0, 1, 2, 0, 0], [0, 0, 1, 0, 0]])
    weights = tf.constant([[0.0, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
    decided = [[1, 1, 2, 1, 1], [2, 0, 1, 1, 1]]  # one entity too many; the rest does not count
    figures = task_figures.figures_of(
        Records("token_classification", names, (labels, weights)),
        lambda input_ids: {"logits": logits_of(decided, 3)},
    )
    assert figures == pytest.approx({"entity_f1": 2 * 2 / (2 + 3), "token_accuracy": 4 / 5})


def test_figures_of_spans_need_both_ends():
    labels = {"start_logits": tf.constant([1, 2, 0]), "end_logits": tf.constant([3, 3, 0])}
    figures = task_figures.figures_of(
        Records("span", None, (labels, None)),
        lambda input_ids: {
            "start_logits": logits_of([1, 2, 0], 5),
            "end_logits": logits_of([3, 2, 0], 5),
        },
    )
    assert figures == {"span_accuracy": pytest.approx(2 / 3)}


def test_figures_of_several_labels_are_at_the_thresholds_of_the_model():
    labels = tf.constant([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    chances = np.array([[0.3, 0.1], [0.1, 0.8], [0.6, 0.6], [0.1, 0.6]], np.float32)
    logits = np.log(chances / (1 - chances))
    figures = [
        task_figures.figures_of(
            Records("multi_label", LABELS, (labels, None)),
            lambda input_ids: {"logits": logits},
            TrainedTask("multi_label", thresholds=thresholds).decide,
        )["multi_label_micro_f1"]
        for thresholds in ((), (0.2, 0.7))
    ]
    expected = [
        metrics.f1_score(labels.numpy(), chances > least, average="micro")
        for least in (0.5, (0.2, 0.7))
    ]
    assert figures == pytest.approx(expected) and figures[0] != figures[1]


def test_figures_of_vectors():
    texts = {"input_ids": tf.ones([3, 2, 4], tf.int32)}  # three pairs

    class Pairs(Records):
        def evaluation_dataset(self, **_):
            yield texts, tf.constant([0.9, 0.1, 0.5]), None

    def run(input_ids):
        assert input_ids.shape == (6, 4)
        ones = np.array([[1, 0], [1, 0.1], [1, 0], [0, 1], [1, 0], [1, 1]], np.float32)
        return {"mean": np.zeros_like(ones), "embedding": ones}

    figures = task_figures.figures_of(Pairs("similarity", None), run)
    assert figures["spearman_correlation"] == pytest.approx(1)
    assert [x["input_ids"].shape for x in task_figures.inputs_of(Pairs("similarity", None))] == [
        (6, 4)
    ]


@pytest.fixture
def made(tmp_path):
    """Return the folder of a classifier, and records whose labels are its own answers."""
    folder = model_directory(tmp_path / "model", "classification", LABELS, kind="classification")
    generator = np.random.default_rng(7)
    texts = [" ".join(generator.choice(WORDS, size)) for size in (1, 2, 3, 5, 8) * 8]
    served = load_served_model(folder)
    answers = served.answer(text=tf.constant(texts))["label"].numpy()
    assert len(set(answers.tolist())) == 2
    columns = tables.Columns(text="text", label=("label",))
    table = tmp_path / "dev.csv"
    rows = (f"{text},{label.decode()}\n" for text, label in zip(texts, answers, strict=True))
    table.write_text("text,label\n" + "".join(rows))
    task = table_task("classification", columns, table)
    source = table_source(task, table, "dev", columns)
    tokenizer = TokenizerSettings(str(folder / "vocab.txt"), True)
    return folder, write_split(source, FeatureSettings(task, 13), tokenizer, tmp_path).record_file


def run_export(folder, output_dir, **given):
    options = {"model_dir": folder, "saved_model": output_dir, "version": 1, **given}
    export.run(command_options.of(ExportOptions, **options))
    return output_dir / "1" / MODEL_CARD_NAME


def test_a_saved_model_is_judged_by_its_stored_weights(made, tmp_path, monkeypatch):
    folder, dev = made
    card = run_export(folder, tmp_path / "half", weights="float16", ids_only=True, dev_file=dev)
    line = "On the 40 records of dev.tfrecord: accuracy 1.0000 (model: 1.0000), f1 1.0000"
    assert line in card.read_text()

    def spoil(served, dtype):
        for variable in served.model.variables:
            variable.assign(tf.zeros_like(variable))

    monkeypatch.setattr(ServedModel, "store_weights", spoil)
    monkeypatch.setattr(saved_model, "precision_note", lambda *_: "")
    message = r"dev_file: accuracy on dev.tfrecord is 0\.\d+, of the model 1.0000: more than"
    with pytest.raises(RuntimeError, match=message):
        run_export(folder, tmp_path / "bad", weights="float16", ids_only=True, dev_file=dev)
    assert not list((tmp_path / "bad").iterdir())


def test_records_that_are_not_the_models(made, tmp_path):
    folder, dev = made
    encoder = model_directory(tmp_path / "encoder", "encoder")
    with pytest.raises(InputError, match=r"holds records of classification, .* for embeddings"):
        run_export(encoder, tmp_path / "bad", dev_file=dev)
    other = model_directory(tmp_path / "other", "classification", ("a", "b"), kind="classification")
    with pytest.raises(InputError, match=r"dev.tfrecord: has the labels no, yes, the model a, b"):
        run_export(other, tmp_path / "bad", dev_file=dev)
    with pytest.raises(ValueError, match="dev_file: holds ids, and so needs --ids_only"):
        run_export(folder, tmp_path / "bad", dev_file=dev, format="tflite")
    for given in ({"format": "openvino", "weights": "int8"}, {"calibration_file": dev}):
        with pytest.raises(ValueError, match="calibration_file: needed for --format=openvino"):
            run_export(folder, tmp_path / "bad", **given)
    assert not (tmp_path / "bad").exists()


@pytest.mark.onnx
def test_onnx_in_int8(made, tmp_path):
    for name in ("tf2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(name, reason="needs the onnx extra")
    import onnx

    folder, dev = made
    card = run_export(
        folder, tmp_path / "x", format="onnx", weights="int8", dev_file=dev, dev_tolerance=0.1
    )
    assert "Stored in int8: outputs for sample inputs differ" in card.read_text()
    assert "On the 40 records of dev.tfrecord: accuracy" in card.read_text()
    graph = onnx.load(card.with_name("model.onnx")).graph
    kinds = {node.op_type for node in graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= kinds
    assert "MatMul" not in {n.op_type for n in graph.node if _has_weight(graph, n)}
    with pytest.raises(ValueError, match="weights: expected one of float32, int8, got 'float16'"):
        export_onnx(load_served_model(folder), tmp_path / "y", weights="float16")


def _has_weight(graph, node):
    return bool({value.name for value in graph.initializer} & set(node.input))


@pytest.mark.openvino
class TestOpenVINO:
    @pytest.fixture(autouse=True)
    def _needs(self, monkeypatch):
        for name in ("openvino", "nncf"):
            pytest.importorskip(name, reason="needs the openvino extra")
        # They would tell their makers over the network that they are used.
        sender = "openvino_telemetry.utils.sender.TelemetrySender.send"
        monkeypatch.setattr(sender, lambda *_: None)

    @pytest.mark.parametrize("weights", ["float32", "float16"])
    def test_answers_as_the_model_does(self, made, tmp_path, weights):
        folder, dev = made
        card = run_export(folder, tmp_path / "x", format="openvino", weights=weights, dev_file=dev)
        assert "accuracy 1.0000 (model: 1.0000)" in card.read_text()
        run, served = load_openvino(card.parent), load_served_model(folder)
        for inputs in list(task_figures.inputs_of(task_figures.open_records(dev, served)))[:3]:
            expected = served.run({name: tf.constant(value) for name, value in inputs.items()})
            difference = worst_difference(run(**inputs), expected)
            assert difference < (1e-5 if weights == "float32" else 1e-2)

    def test_int8(self, made, tmp_path, monkeypatch):
        folder, dev = made
        # Of random weights, which are larger than those that are learnt.
        monkeypatch.setitem(TOLERANCES["openvino"], "int8", 1.0)
        level = logging.getLogger("nncf").level
        card = run_export(
            folder,
            tmp_path / "x",
            format="openvino",
            weights="int8",
            calibration_file=dev,
            dev_file=dev,
            dev_tolerance=0.2,
        )
        assert logging.getLogger("nncf").level == level
        assert "Stored in int8" in card.read_text()
        graph = card.with_name("model.xml").read_text()
        assert 'type="FakeQuantize"' in graph and 'element_type="i8"' in graph
        served = load_served_model(folder)
        with pytest.raises(ValueError, match="samples: expected inputs to calibrate int8 with"):
            export_openvino(served, tmp_path / "y", weights="int8")
        with pytest.raises(ValueError, match="weights: expected one of float32, float16, int8"):
            export_openvino(served, tmp_path / "y", weights="bfloat16")
        assert not (tmp_path / "y").exists() and MOST_SAMPLES == 300
