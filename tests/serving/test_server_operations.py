"""What the released TF Serving has of what exported graphs need; the graphs in its TensorFlow."""

import json
import os
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from bert_tf.serving import server_operations
from bert_tf.serving.options import MODEL_CARD_NAME, SERVERS, TOLERANCES
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.serving.server_operations import first_lacking, nodes_of, operations_of
from experiments.conversion.options import ExportOptions
from tests.serving.test_c_client import OTHERS, TASKS, TEXTS, columns, made, vocab_file

__all__ = ["vocab_file"]  # a fixture
TEXT_OPERATION = "FastWordpieceTokenizeWithOffsets"
WEIGHTS = tuple(TOLERANCES["saved_model"])
# All tasks in float32; what half precision adds is the same in each of them.
CHOICES = [(name, "float32") for name in TASKS] + [("regression", w) for w in WEIGHTS[1:]]
FAST = ("regression", "bfloat16")


def test_lists_of_servers():
    # As many as the C API of the wheels counts: of 2.20, TensorFlow's 1798 and TF Text's 38.
    counts = [len(operations_of(server)) for server in SERVERS]
    assert counts == [1810, 1821, 1823, 1822, 1836]
    old, new = operations_of("2.16"), operations_of("2.20")
    assert "DecodeWebP" in new and "DecodeWebP" not in old
    assert set(new["GatherNd"]) - set(old["GatherNd"]) == {"bad_indices_policy"}
    assert TEXT_OPERATION in old and TEXT_OPERATION in new
    assert "DT_BFLOAT16" in new["MatMul"]["T"] and "DT_STRING" not in new["MatMul"]["T"]
    assert new["Conv2D"]["data_format"] == {"NHWC", "NCHW"}
    with pytest.raises(ValueError, match="for_server: expected one of 2.16, .*, got '2.1'"):
        operations_of("2.1")


@pytest.mark.skipif(not tf.__version__.startswith("2.21."), reason="compares with 2.21's own list")
def test_the_list_reads_as_this_tensorflow_says():
    """Of most operations 2.20's line is what this TensorFlow has registered."""
    same = 0
    for name, attributes in operations_of("2.20").items():
        if (op := op_def_registry.get(name)) is None:
            continue
        expected = {}
        for attr in op.attr:
            allowed = attr.allowed_values.list
            types = {types_pb2.DataType.Name(t) for t in allowed.type}
            expected[attr.name] = types | {s.decode() for s in allowed.s}
        same += expected == attributes
    assert same > 1700


@pytest.mark.thorough(traced=True)
@pytest.mark.parametrize(
    ("name", "weights"),
    [pytest.param(*c, marks=[] if c == FAST else pytest.mark.slow) for c in CHOICES],
)
def test_operations_of_exports_are_in_servers(name, weights, vocab_file, tmp_path):
    served = made(name, vocab_file)
    folder = export_saved_model(served, tmp_path / name, weights=weights, for_server="2.20")
    assert {"MatMul", "VarHandleOp", TEXT_OPERATION} <= {node.op for node in nodes_of(folder)}
    assert {server: first_lacking(folder, server) for server in SERVERS} == dict.fromkeys(SERVERS)
    card = (folder / MODEL_CARD_NAME).read_text()
    assert "TF Serving 2.16 and later have all its operations." in card


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """SavedModel of a few operations: one in a function of the graph, all in functions."""

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
        def answer(self, x):
            return {"y": tf.linalg.matmul(x, x, transpose_b=True)}

    module, folder = Module(), tmp_path_factory.mktemp("plain")
    tf.saved_model.save(module, folder, signatures=module.answer)
    return folder


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        (None, None),
        ({"op": "MatMulV9"}, "the operation MatMulV9"),
        ({"op": "DecodeWebP"}, "the operation DecodeWebP"),
        ({"b": True}, "the attribute grad_c of the operation MatMul"),
        ({"type": types_pb2.DT_STRING}, "the operation MatMul with T=STRING"),
    ],
)
def test_what_a_server_lacks_is_named(plain, tmp_path, change, lacking):
    model = saved_model_pb2.SavedModel.FromString((plain / "saved_model.pb").read_bytes())
    functions = model.meta_graphs[0].graph_def.library.function
    (node,) = [node for f in functions for node in f.node_def if node.op == "MatMul"]
    for key, value in (change or {}).items():
        if key == "op":
            node.op = value
            node.attr.clear()
        else:
            setattr(node.attr["grad_c" if key == "b" else "T"], key, value)
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    assert first_lacking(tmp_path, "2.16") == lacking
    if lacking is None:
        server_operations.check_server(tmp_path, "2.16")
        return
    with pytest.raises(ValueError) as error:
        server_operations.check_server(tmp_path, "2.16")
    assert str(error.value) == f"for_server: TF Serving 2.16 does not have {lacking}"
    note = server_operations.server_note(tmp_path)
    assert note == (
        "TF Serving 2.20 and later have all its operations."
        if "WebP" in lacking
        else "It needs operations that TF Serving 2.20 does not have."
    )


def test_nothing_is_left_of_what_a_server_lacks(vocab_file, tmp_path, monkeypatch):
    served = made("embeddings", vocab_file)
    with pytest.raises(ValueError, match="for_server: expected one of"):
        export_saved_model(served, tmp_path / "none", for_server="1.0")
    assert not (tmp_path / "none").exists()
    known = {name: value for name, value in operations_of("2.20").items() if name != "Erf"}
    known.pop("Tanh")
    monkeypatch.setattr(server_operations, "operations_of", lambda server: known)
    with pytest.raises(
        ValueError, match="for_server: TF Serving 2.19 does not have the operation Tanh$"
    ):
        export_saved_model(served, tmp_path, ids_only=True, for_server="2.19")
    assert not list(tmp_path.iterdir())


def test_the_option_is_for_saved_models():
    with pytest.raises(ValueError, match="for_server: is for --format=saved_model, got onnx"):
        ExportOptions("model", "exported", format="onnx", for_server="2.20")


# === The oldest TensorFlow that is supported, in an environment of its own ===

OLDEST = "2.20"
VERSIONS = """
import tensorflow as tf, tensorflow_text
for version in (tf.__version__, tensorflow_text.__version__):
    assert version.startswith(sys.argv[1] + "."), version
"""
ANSWERS = """
import sys, numpy as np
{VERSIONS}
with np.load("inputs.npz", allow_pickle=True) as inputs:
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
answer = tf.saved_model.load("1").signatures["serving_default"]
np.savez("found.npz", **{name: value.numpy() for name, value in answer(**inputs).items()})
"""
OPERATIONS = """
import json, sys
{VERSIONS}
from tensorflow.python.client import pywrap_tf_session
from tensorflow.core.framework import op_def_pb2
content = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
with open("operations.json", "w") as file:
    json.dump({op.name: sorted(a.name for a in op.attr)
        for op in op_def_pb2.OpList.FromString(content).op}, file)
"""


def run_on_oldest(script, folder):
    """Run a script in the environment of the oldest TensorFlow, or skip the test."""
    python = os.environ.get("BERT_TF_OLDEST_PYTHON")
    if python is None:
        pytest.skip(
            "set BERT_TF_OLDEST_PYTHON to the Python of an environment with tensorflow and "
            f"tensorflow-text {OLDEST}"
        )
    subprocess.run(
        [python, "-c", script.replace("{VERSIONS}", VERSIONS), OLDEST],
        check=True,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights"), CHOICES)
def test_the_oldest_tensorflow_gives_the_same_answers(name, weights, vocab_file, tmp_path):
    served = made(name, vocab_file)
    export_saved_model(served, tmp_path, weights=weights, for_server=OLDEST)
    inputs = columns(served, list(zip(TEXTS, OTHERS, strict=True)))
    np.savez(tmp_path / "inputs.npz", **inputs)
    run_on_oldest(ANSWERS, tmp_path)
    expected = served.answer(**{key: tf.constant(value) for key, value in inputs.items()})
    with np.load(tmp_path / "found.npz", allow_pickle=True) as found:
        assert set(found) == set(expected)
        for key, value in expected.items():
            if value.dtype.is_floating:
                np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
            else:
                np.testing.assert_array_equal(found[key], value.numpy(), err_msg=key)


@pytest.mark.slow
def test_the_list_is_what_the_oldest_tensorflow_has(tmp_path):
    run_on_oldest(OPERATIONS, tmp_path)
    # Python's has more, of TensorFlow's own tests.
    found = json.loads((tmp_path / "operations.json").read_text())
    for name, attributes in operations_of(OLDEST).items():
        assert found[name] == sorted(attributes), name
