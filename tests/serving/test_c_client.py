"""Each SavedModel answers without Python: a C program runs it, on TensorFlow's C API alone."""

import os
import pathlib
import re
import shutil
import struct
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text
from tensorflow.core.protobuf import saved_model_pb2

from bert_tf.models.task_models import HEADS
from bert_tf.serving.load import SERVED
from bert_tf.serving.saved_model import export_saved_model
from bert_tf.tasks.document_windows import WindowRule
from bert_tf.tokenization.graph_tokenizer import TextToIds
from tests.support import synthetic_records as synthetic

pytestmark = pytest.mark.serving

TENSORFLOW = pathlib.Path(tf.sysconfig.get_lib())
CLIENT = pathlib.Path(__file__).with_name("saved_model_client.c")
INVALID_ARGUMENT = 3
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the list of items is empty ##ed ##s return , . ( ) - caf ##e a"
).split()
LENGTH = 23
CONFIG = synthetic.small_config(
    vocab_size=len(WORDS), num_hidden_layers=1, max_position_embeddings=29, initializer_range=0.9
)
TEXTS = [
    "The café is empty.",
    "",
    "\U0001f600 the cafe\u0301s, a [MASK] is [MASK]ed",
    b"items\xff of \xc3( list \xed\xa0\x80 [MASK]",
    "the (list) of items is empty . " * 13,  # several windows, where there are windows
]
OTHERS = ["the café\U0001f600", "Items.", "", "is empty " * 9, b"\x80return"]
LONG = "the café, \U0001f600 is " * 6250
LABELS = ("no", "maybe", "yes")
TAGS = ("O", "B-LOC", "I-LOC", "I-PER", "S-PER", "E-LOC")
# What each task is made with: outputs of the model, where it does not have its own, and options.
TASKS = {
    "fill_mask": (None, {"top_k": 3}),
    "classification": (3, {"labels": LABELS}),
    "classification_of_pairs": (3, {"labels": LABELS, "has_pairs": True}),
    "multi_label": (3, {"labels": LABELS}),
    "regression": (1, {"has_pairs": True}),
    "question_answering": (None, {"rule": WindowRule(LENGTH, 11, 5), "n_best_size": 7}),
    "token_classification": (len(TAGS), {"labels": TAGS}),
    "multiple_choice": (None, {}),
    "next_sentence": (None, {}),
    "embeddings": (None, {}),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Return the program, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = TENSORFLOW / "libtensorflow_cc.so.2"
    if not library.exists():
        pytest.skip(f"needs TensorFlow's library for C, which is not at {library}")
    folder = tmp_path_factory.mktemp("client")
    # Linkers take 20 s to read TensorFlow: a library of its name and these functions does as well.
    functions = sorted(set(re.findall(r"\bTF_\w+(?=\()", CLIENT.read_text())))
    source, stub = folder / "stub.c", folder / library.name
    source.write_text("".join(f"void {function}(void) {{}}\n" for function in functions))
    name = f"-Wl,-soname,{library.name}"
    subprocess.run([compiler, "-shared", "-fPIC", name, source, "-o", stub], check=True)
    program = folder / "client"
    headers, place = f"-I{tf.sysconfig.get_include()}", f"-Wl,-rpath,{TENSORFLOW}"
    command = [compiler, "-std=c99", "-Wall", headers, CLIENT, stub, place, "-o", program]
    subprocess.run(command, check=True)
    return program


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(word + "\n" for word in WORDS))
    return path


def made(name, vocab_file):
    count, options = TASKS[name]
    keras.utils.set_random_seed(7)
    task = SERVED[name.removesuffix("_of_pairs")]
    model = HEADS[task.head].make(CONFIG, *([] if count is None else [count]))
    text_to_ids = TextToIds(vocab_file, max_seq_length=LENGTH, parse_mask=name == "fill_mask")
    return task.make(model, text_to_ids, **options)


def columns(served, rows):
    """Return a request of (text, other) for each row."""
    texts, others = ([row[i] for row in rows] for i in (0, 1))
    values = {"text": texts, "text_b": others, "question": others, "context": texts}
    values["choices"] = np.array([[other, text, "a list"] for text, other in rows], object).reshape(
        -1, 3
    )
    names = [spec.name for spec in served.answer.input_signature]
    return {name: np.array(values[name], object) for name in names}


def encoded(array):
    """Return a tensor of strings or int32 as the program reads it."""
    if array.dtype == np.int32:
        kind, parts = tf.int32, [array.tobytes()]
    else:
        kind = tf.string
        values = [v if isinstance(v, bytes) else v.encode() for v in array.reshape(-1)]
        parts = [struct.pack("=q", len(value)) + value for value in values]
    head = (kind.as_datatype_enum, array.ndim, *array.shape)
    return struct.pack(f"={len(head)}q", *head) + b"".join(parts)


def decoded(line):
    """Return an output as the program prints it."""
    kind, rank, *rest = line.split()
    shape, values = [int(size) for size in rest[: int(rank)]], rest[int(rank) :]
    if kind == "string":
        values = np.array([bytes.fromhex(value[1:]) for value in values], object)
    else:
        number = float if kind == "float32" else int
        values = np.array([number(value) for value in values], kind)
    return values.reshape(shape)


def run(client, folder, requests, name="serving_default"):
    """Answers of the program: outputs, or (code, message) of what is refused.

    Args:
        client: the program.
        folder: the SavedModel.
        requests: input -> array.
        name: of the signature.
    """
    (meta,) = saved_model_pb2.SavedModel.FromString(
        (folder / "saved_model.pb").read_bytes()
    ).meta_graphs
    signature = meta.signature_def[name]
    outputs = sorted(signature.outputs)
    text_ops = pathlib.Path(tensorflow_text.__file__).parent / "python" / "ops"
    command = [client, folder, *sorted(text_ops.glob("*.so"))]
    command += ["--", *(signature.inputs[name].name for name in requests[0])]
    command += ["--", *(signature.outputs[name].name for name in outputs)]
    done = subprocess.run(
        command,
        input=b"".join(encoded(array) for request in requests for array in request.values()),
        capture_output=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr.decode()
    lines = iter(done.stdout.decode().splitlines())
    answers = []
    for line in lines:
        if line.startswith("error "):
            _, code, message = line.split(" ", 2)
            answers.append((int(code), message))
        else:
            rest = [next(lines) for _ in outputs[1:]]
            answers.append(dict(zip(outputs, map(decoded, [line, *rest]), strict=True)))
    assert len(answers) == len(requests)
    return answers


def check(found, answer, request):
    """Check that the outputs are the Keras model's, and the texts equal."""
    expected = answer(**{name: tf.constant(array) for name, array in request.items()})
    assert set(found) == set(expected)
    for name, value in expected.items():
        value = value.numpy()
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def bad_requests(request):
    """Return requests with an input of another rank, or fewer rows: what is said of it, request."""
    first = next(iter(request))
    for name, array in request.items():
        for rank in {0, 1, 2, 3} - {array.ndim}:
            sizes = {0: (), 1: (-1,), 2: (len(array), -1), 3: (len(array), 1, -1)}[rank]
            other = array.flat[:1].reshape(()) if rank == 0 else array.reshape(sizes)
            message = f"[{name}: expected rank {array.ndim}, got rank] [{rank}]"
            yield message, {**request, name: other}
        if name != first:
            for count in (0, 1, 3):
                rows = f"which are] [{len(array)}] [got] [{count}]"
                message = f"[{name}: expected rows as many as of {first}, {rows}"
                yield message, {**request, name: array[:count]}


# One in the default tests; to export them all takes minutes.
@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        name if name == "classification_of_pairs" else pytest.param(name, marks=pytest.mark.slow)
        for name in TASKS
    ],
)
def test_the_same_answers_in_c(client, vocab_file, tmp_path, name):
    served = made(name, vocab_file)
    folder = export_saved_model(served, tmp_path / name)
    rows = list(zip(TEXTS, OTHERS, strict=True))
    parts = (rows, rows[:1], [], [(LONG, LONG), rows[0]])
    good = [columns(served, part) for part in parts]
    bad = list(bad_requests(good[0]))
    # What is refused harms no request after it.
    answers = run(client, folder, [*(request for _, request in bad), *good])
    for (expected, _), (code, message) in zip(bad, answers, strict=False):
        assert code == INVALID_ARGUMENT and expected in message
    for request, answer in zip(good, answers[len(bad) :], strict=True):
        check(answer, served.answer, request)
    assert all(value.size for value in answers[len(bad)].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification_of_pairs", "regression"])
def test_ids_and_examples_in_c(client, vocab_file, tmp_path, name):
    """The other signatures: token ids, and the tf.Example of TF Serving's own APIs."""
    served = made(name, vocab_file)
    folder = export_saved_model(served, tmp_path / name)
    ids = np.array([[2, 7, 9, 3, 6, 3], [2, 3, 8, 3, 0, 0]], np.int32)
    request = {"input_ids": ids, "input_mask": np.int32(ids > 0)}
    request["segment_ids"] = np.int32([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0]])
    (answer,) = run(client, folder, [request], "ids")
    check(answer, served.ids, request)

    def example(text, other):
        values = {"text": text, "text_b": other}
        features = {
            key: tf.train.Feature(
                bytes_list=tf.train.BytesList(
                    value=[value if isinstance(value, bytes) else value.encode()]
                )
            )
            for key, value in values.items()
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    rows = [example(*row) for row in zip(TEXTS, OTHERS, strict=True)]
    request = {"inputs": np.array(rows, object)}
    signature = "regress" if name == "regression" else "classify"
    good, bad = run(client, folder, [request, {"inputs": np.array([b"x"], object)}], signature)
    check(good, served.from_examples, request)
    assert bad[0] == INVALID_ARGUMENT
