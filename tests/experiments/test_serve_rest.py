"""JSON of TF Serving's REST API to arrays and back, and what does not fit."""

import json

import numpy as np
import pytest

for module in ("tensorflow_serving", "prometheus_client"):
    pytest.importorskip(module, reason=f"the extra `serving` is not installed: no {module}")

import tensorflow as tf  # noqa: E402
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo  # noqa: E402

from experiments.model_server import rest  # noqa: E402
from experiments.model_server.status import ServingError, as_serving_error  # noqa: E402

pytestmark = pytest.mark.serving

TEXT = TensorInfo(name="t:0", dtype=tf.string.as_datatype_enum)
IDS = TensorInfo(name="i:0", dtype=tf.int32.as_datatype_enum)


def refused(function, *arguments):
    with pytest.raises(ServingError) as caught:
        function(*arguments)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_paths():
    call = rest.parse_path("POST", "/v1/models/a%20b/versions/12:Predict")
    assert (call.method, call.spec.name, call.spec.version.value) == ("predict", "a b", 12)
    call = rest.parse_path("GET", "/v1/models/m/labels/canary/metadata")
    assert (call.method, call.spec.version_label) == ("metadata", "canary")
    assert not rest.parse_path("GET", "/v1/models/m").spec.HasField("version")
    assert "Failed to convert version" in refused(
        rest.parse_path, "POST", f"/v1/models/m/versions/{2**64 - 1}:regress"
    )
    for version in (2**63, 10**19 - 1):  # of as many digits as the highest
        assert "Failed to convert version" in refused(
            rest.parse_path, "GET", f"/v1/models/m/versions/{version}"
        )
    highest = rest.parse_path("GET", f"/v1/models/m/versions/{2**63 - 1}")
    assert highest.spec.version.value == 2**63 - 1
    message = refused(rest.parse_path, "GET", f"/v1/models/m/versions/{'9' * 5000}")
    assert "Failed to convert version" in message and len(message) < 200
    assert rest.parse_path("GET", f"/v1/models/m/versions/{'0' * 5000}7").spec.version.value == 7
    for method, path in (
        ("POST", "/v1/models/m/version/50:predict"),
        ("POST", "/v1/models/m/versions/HELLO:regress"),
        ("POST", "/v1/models/m/versions/50/labels/x:regress"),
        ("POST", "/v1/models/m:predict/more"),
        ("PUT", "/v1/models/m:predict"),
        ("GET", "/v1/models/m/model_name"),
    ):
        assert "Malformed request" in refused(rest.parse_path, method, path)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (3, tf.float32, np.float32(3)),
        ([1, 2.5, -1e400], tf.float32, np.float32([1, 2.5, -np.inf])),
        ([1e39], tf.float32, np.float32([np.inf])),
        ([[1], [2]], tf.int64, np.array([[1], [2]])),
        ([[]], tf.int32, np.zeros((1, 0), np.int32)),
        ([255, 0], tf.uint8, np.uint8([255, 0])),
        ([2**64 - 1], tf.uint64, np.array([2**64 - 1], np.uint64)),
        ([True, False], tf.bool, np.array([True, False])),
        (["é", "\x00"], tf.string, np.array(["é".encode(), b"\x00"], object)),
        ({"b64": "/wA"}, tf.string, np.array(b"\xff\x00", object)),
    ],
)
def test_values(value, dtype, expected):
    found = rest.tensor_from_json(value, dtype)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([1, "x"], tf.float32, '[1]: not of expected type: float: got a string: "x"'),
        ([True], tf.float32, "[0]: not of expected type: float: got a boolean: true"),
        ([None], tf.string, "[0]: not of expected type: string: got null"),
        ([1.0], tf.int32, "[0]: not of expected type: int32: got a number: 1.0"),
        ([2**31], tf.int32, "[0]: not of expected type: int32"),
        ([-(2**31) - 1], tf.int32, "[0]: not of expected type: int32"),
        ([2**63], tf.int64, "[0]: not of expected type: int64"),
        ([2**64], tf.uint64, "[0]: not of expected type: uint64"),
        ([True], tf.int32, "[0]: not of expected type: int32: got a boolean: true"),
        ([False], tf.uint8, "[0]: not of expected type: uint8: got a boolean: false"),
        ([1], tf.bool, "[0]: not of expected type: bool: got a number: 1"),
        ([-1], tf.uint8, "[0]: not of expected type: uint8"),
        ([10**400], tf.float64, "too large"),
        ([[1, 2], [3]], tf.int32, "[1]: expected a list of 2 as elsewhere, got 1"),
        ([[1], 2], tf.int32, "[1]: expected a list of 1 as elsewhere, got a number: 2"),
        ([1, [2]], tf.int32, "[1]: expected a single value as elsewhere, got a list: [2]"),
        ([{"b64": "???"}], tf.string, "[0]: Unable to base64 decode"),
        ([{"b64": "aa", "c": 1}], tf.string, "[0]: not of expected type: string: got an object"),
        (["\ud800"], tf.string, "[0]: half of a surrogate pair"),
        ([1], tf.complex64, "JSON has no form for values of type complex64"),
    ],
)
def test_values_that_do_not_fit(value, dtype, message):
    assert message in refused(rest.tensor_from_json, value, dtype)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"[1]", "expected an object, got a list"),
        (b'{"a": }', "JSON Parse error: Invalid value."),
        (b'{"a": "\xff"}', "not UTF-8 at offset: 7"),
        (b'{"a":' + b"[" * 200_000, "JSON Parse error"),
        (b'{"a":' + b"9" * 5000 + b"}", "JSON Parse error"),
    ],
)
def test_bodies_that_are_no_json(body, message):
    assert message in refused(rest.parse_body, body)


def test_lists_that_nest_too_deep():
    value = 1
    for _ in range(40):
        value = [value]
    assert "deeper" in refused(rest.tensor_from_json, value, tf.int32)


def test_a_key_that_is_not_read_may_nest_as_deep_as_it_likes():
    deep = '{"a": [' * 20_000 + '"]", "\\"}"' + "]}" * 20_000
    for body in (
        f'{{"x\\"": {deep}, "instances": [[1, {{"k": "]"}}]], "signature_name": "s"}} more',
        f' {{"instances": [[1, {{"k": "]"}}]], "signature_name": "s", "x": {deep}}}',
    ):
        read = rest.parse_body(body.encode())
        assert read["instances"] == [[1, {"k": "]"}]] and read["signature_name"] == "s"
    assert "JSON Parse error" in refused(rest.parse_body, f'{{"instances": {deep}}}'.encode())
    assert "JSON Parse error" in refused(rest.parse_body, f'{{"x": {deep}'.encode())


def test_body():
    body = rest.parse_body(b'\xef\xbb\xbf\n {"x": [NaN, Infinity, -Infinity]} and more')
    assert str(body) == "{'x': [nan, inf, -inf]}"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"instances": []}, "'instances': expected a list of at least one"),
        ({"instances": {"text": "a"}}, "'instances': expected a list of at least one"),
        ({"instances": ["a"]}, "expected a list of objects with ['ids', 'text']"),
        ({"instances": [{"text": "a"}]}, "expected objects with keys ['ids', 'text']"),
        ({"instances": [{"text": "a", "ids": [1]}, 3]}, "got at item 1 a number: 3"),
        (
            {"instances": [{"text": "a", "ids": [1]}, {"text": "b", "ids": [1, 2]}]},
            "ids: [1]: expected a list of 1 as elsewhere, got 2",
        ),
        ({"inputs": {"text": ["a"]}}, "missing named inputs: ['ids']"),
        ({"inputs": ["a"]}, "'inputs': expected an object with ['ids', 'text']"),
        ({"inputs": 1, "instances": [1]}, "got both"),
        ({}, "Missing 'inputs' or 'instances' key"),
    ],
)
def test_requests_that_do_not_fit(request_, message):
    assert message in refused(rest.predict_inputs, request_, {"text": TEXT, "ids": IDS})


def test_one_input_may_be_named():
    for request in ({"instances": [{"text": "a"}, {"text": "b"}]}, {"instances": ["a", "b"]}):
        arrays, in_rows = rest.predict_inputs(request, {"text": TEXT})
        assert (arrays["text"].tolist(), in_rows) == ([b"a", b"b"], True)
    for request in ({"inputs": {"text": ["a"], "more": 1}}, {"inputs": ["a"]}):
        arrays, in_rows = rest.predict_inputs(request, {"text": TEXT})
        assert (arrays["text"].tolist(), in_rows) == ([b"a"], False)
    request = {"instances": ["a", {"text": "b"}]}
    assert "got at item 1" in refused(rest.predict_inputs, request, {"text": TEXT})


def test_floats_have_the_fewest_digits():
    rng = np.random.default_rng(5)
    values = np.concatenate(
        [rng.normal(size=50) * 10.0 ** rng.integers(-40, 38, 50), [0.1, 7, -0.0, 9e6]]
    ).astype(np.float32)
    body = rest.predict_response({"y": values}, True)
    assert np.array_equal(np.float32(json.loads(body)["predictions"]), values)
    assert rest.predict_response({"y": np.float32([0.1, 7])}, True) == b'{"predictions":[0.1,7.0]}'
    special = rest.predict_response({"y": np.float32([np.nan, np.inf, -np.inf])}, True)
    assert special == b'{"predictions":[NaN,Infinity,-Infinity]}'


def test_responses():
    text = np.array([[b"a", b"\xc3\xa9"], [b"\xff", b""]], object)
    outputs = {"text": text, "ok": np.array([True, False]), "raw_bytes": text[:, :1]}
    rows = rest.predict_response(outputs, True)
    assert b'"text":["\xff",""]' in rows  # As they are, in TF Serving too.
    first = {"ok": True, "raw_bytes": [{"b64": "YQ=="}], "text": ["a", "é"]}
    assert json.loads(rows.decode("utf-8", "replace"))["predictions"][0] == first
    columns = json.loads(rest.predict_response(outputs, False).decode("utf-8", "replace"))
    assert columns["outputs"]["ok"] == [True, False]
    uneven = {"a": np.zeros(2), "b": np.zeros(3)}
    assert "no common first dimension" in refused(rest.predict_response, uneven, True)
    assert "float16" in refused(rest.predict_response, {"a": np.zeros(2, np.float16)}, True)


def test_examples():
    parsed = rest.example_input(
        {"examples": [{"s": "a", "b": [{"b64": "/w=="}], "i": [1, True], "f": 0.5, "none": []}]}
    )
    features = parsed.example_list.examples[0].features.feature
    assert list(features["s"].bytes_list.value) == [b"a"]
    assert list(features["b"].bytes_list.value) == [b"\xff"]
    assert list(features["i"].int64_list.value) == [1, 1]
    assert list(features["f"].float_list.value) == [0.5]
    assert features["none"].WhichOneof("kind") is None
    for request, message in (
        ({}, "'examples': expected a list"),
        ({"examples": []}, "'examples': expected a list"),
        ({"examples": [3]}, "item 0: Example must be JSON object but got a number"),
        ({"examples": [{"a": None}]}, "Feature: 'a'"),
        ({"examples": [{"a": [1, 0.5]}]}, "of one kind"),
        ({"examples": [{"a": [[1]]}]}, "of one kind"),
        ({"examples": [{"a": 2**63}]}, "does not fit int64"),
        ({"examples": [{"a": {"b64": "?"}}]}, "Unable to base64 decode"),
        ({"examples": [{}], "context": 1}, "'context': Example must be JSON object"),
    ):
        assert message in refused(rest.example_input, request)


def test_examples_that_are_no_text_are_the_faults_of_a_request():
    """TensorFlow's error is none of its own where its message quotes such bytes."""
    with pytest.raises(UnicodeDecodeError) as caught:
        tf.io.parse_example([b"\xff\xff"], {"text": tf.io.FixedLenFeature([], tf.string)})
    error = as_serving_error(caught.value)
    assert error.http_status == 400 and "Could not parse example input" in error.message
