"""The development server answers as TF Serving documents, on REST and gRPC, and bears bad clients.

Requests and answers of TF Serving's api_rest.md and of its tests (tensorflow_model_server_test.py,
http_rest_api_handler_test.cc) are replayed here against models with the same graphs.
"""

import base64
import contextlib
import gzip
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments.model_server.start import NEEDED

for module in NEEDED:
    pytest.importorskip(module, reason=f"the extra `serving` is not installed: no {module}")

import grpc  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from bert_tf.records.encoding import frame_record  # noqa: E402
from experiments.model_server.http import PAGE  # noqa: E402
from experiments.model_server.models import load_servable  # noqa: E402
from experiments.model_server.server import (  # noqa: E402
    Ports,
    ServerOptions,
)
from tests.support import serving_stand_ins as stand_ins  # noqa: E402

pytestmark = pytest.mark.serving

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
THREE, TWO = "saved_model_half_plus_three", "default"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Name and folder of each model."""
    root = tmp_path_factory.mktemp("models")
    stand_ins.save_half_plus(root / THREE / "00000123", 3)
    stand_ins.save_half_plus(root / TWO / "00000123", 2)
    stand_ins.save_fitting(root / "fitting" / "7")
    models = [(name, str(root / name)) for name in (THREE, TWO, "fitting")]
    return dict(models + stand_ins.save_tasks(root))


@pytest.fixture(scope="module")
def server(exported):
    with stand_ins.running(exported.items(), max_request_bytes=100_000) as running:
        yield running


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as opened:
        yield opened


AVAILABLE = {
    "model_version_status": [
        {
            "version": "123",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
    ]
}


@pytest.mark.parametrize(
    ("path", "request_body", "answer"),
    [
        # api_rest.md
        (f"{THREE}", None, AVAILABLE),
        (f"{THREE}:predict", {"instances": [1.0, 2.0, 5.0]}, {"predictions": [3.5, 4.0, 5.5]}),
        (
            f"{THREE}:regress",
            {"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]},
            {"results": [3.5, 4.0]},
        ),
        # tensorflow_model_server_test.py
        (f"{TWO}", None, AVAILABLE),
        (f"{TWO}:predict", {"instances": [2.0, 3.0, 4.0]}, {"predictions": [3.0, 3.5, 4.0]}),
        (f"{TWO}:predict", {"inputs": [2.0, 3.0, 4.0]}, {"outputs": [3.0, 3.5, 4.0]}),
        (
            f"{TWO}:classify",
            {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]},
            {"results": [[["", 3.0]]]},
        ),
        # http_rest_api_handler_test.cc
        (f"{TWO}/versions/123", None, AVAILABLE),
        (
            f"{TWO}:predict",
            {"instances": [[1.0, 2.0], [3.0, 4.0]]},
            {"predictions": [[2.5, 3.0], [3.5, 4.0]]},
        ),
        (f"{TWO}/versions/123:predict", {"instances": [1.0, 2.0]}, {"predictions": [2.5, 3.0]}),
        (
            f"{TWO}/versions/123:predict",
            {"signature_name": "serving_default", "inputs": [3.0, 4.0]},
            {"outputs": [3.5, 4.0]},
        ),
        # Shapes that api_rest.md describes: named inputs in rows and columns.
        (
            "fitting:predict",
            {
                "instances": [
                    {"tag": "foo", "signal": [1, 2, 3, 4, 5]},
                    {"tag": "ba", "signal": [3, 4, 1, 2, 7]},
                ]
            },
            {"predictions": [{"length": 3, "total": 15}, {"length": 2, "total": 17}]},
        ),
        (
            "fitting:predict",
            {"inputs": {"tag": ["foo", "ba"], "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 7]]}},
            {"outputs": {"length": [3, 2], "total": [15, 17]}},
        ),
        ("fitting:predict", {"signature_name": "mean", "inputs": [1, 2.0]}, {"outputs": 1.5}),
        (
            "fitting:classify",
            {
                "signature_name": "classify",
                "context": {"weight": 0.5},
                "examples": [{"caption": "seaside"}, {"caption": ["hills"]}],
            },
            {
                "results": [
                    [["seaside", 3.5], ["other", -3.5]],
                    [["hills", 2.5], ["other", -2.5]],
                ]
            },
        ),
    ],
)
def test_documented_rest_examples(server, path, request_body, answer):
    if request_body is None:
        assert server.get(f"/v1/models/{path}") == (200, answer)
    else:
        assert server.post(f"/v1/models/{path}", request_body) == (200, answer)


def test_binary_values(server):
    blobs = [bytes(range(256)), b"image bytes", b"\xff\x00"]
    sent = [{"b64": base64.b64encode(blob).decode()} for blob in blobs]
    request = {"signature_name": "single", "instances": sent}
    assert server.post("/v1/models/fitting:predict", request) == (200, {"predictions": sent})
    request = {"signature_name": "image", "inputs": {"image": sent}}
    outputs = {"copy_bytes": sent, "length": [256, 11, 2]}
    assert server.post("/v1/models/fitting:predict", request) == (200, {"outputs": outputs})


def test_metadata(server):
    status, found = server.get(f"/v1/models/{TWO}/metadata")
    assert status == 200
    assert found["model_spec"] == {"name": TWO, "signature_name": "", "version": "123"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    dimensions = [{"size": "-1", "name": ""}, {"size": "1", "name": ""}]
    shape = {"dim": dimensions, "unknown_rank": False}
    assert signatures["serving_default"] == {
        "inputs": {"x": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x:0"}},
        "outputs": {"y": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "y:0"}},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    assert signatures["classify_x_to_y"]["inputs"]["inputs"] == {
        "dtype": "DT_STRING",
        "tensor_shape": {"dim": [], "unknown_rank": True},
        "name": "tf_example:0",
    }
    path = f"/v1/models/{TWO}/versions/123/metadata"
    assert server.get(path)[1] == found


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("half:predict", {"instances": [1.0, 5.0]}, 404, "Latest(half)"),
        (f"{TWO}/versions/99:predict", {"instances": [1]}, 404, f"Specific({TWO}, 99)"),
        (f"{TWO}/labels/new:predict", {"instances": [1]}, 400, "Unrecognized servable version"),
        (f"{TWO}:predict", "", 400, "JSON Parse error: The document is empty"),
        (f"{TWO}:predict", "instances = [1, 2]", 400, "JSON Parse error: Invalid value"),
        (f"{TWO}:predict", {"instances": ["x", "y"]}, 400, "not of expected type: float"),
        (f"{TWO}:predict", {"signature_name": 100}, 400, "'signature_name' key must be a string"),
        (f"{TWO}:predict", {"signature_name": "no", "inputs": 1}, 400, '"no" not found'),
        (f"{TWO}:predict", {"input": [1]}, 400, "Missing 'inputs' or 'instances' key"),
        (f"{TWO}:classify", {"examples": [{"x": 2.0}]}, 400, "Classify: expected a signature"),
        (f"{TWO}:regress", {"signature_name": "no", "examples": [{}]}, 400, '"no" not found'),
        # What TensorFlow itself refuses, with its reason.
        ("fitting:predict", {"instances": [{"tag": "a", "signal": [-1]}]}, 400, "below 0"),
        (
            f"{THREE}:regress",
            {"signature_name": "tensorflow/serving/regress", "examples": [{"y": 1.0}]},
            400,
            "Feature: x",
        ),
        ("fitting:predict", {"signature_name": "half", "inputs": [1]}, 501, "float16"),
    ],
)
def test_errors_on_rest(server, path, body, status, message):
    found, answer = server.post(f"/v1/models/{path}", body)
    assert (found, [*answer]) == (status, ["error"])
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
        ("GET", "/v1/models", 400, "Missing model name"),
        ("GET", "/v1/models/a/b", 400, "Malformed request"),
        ("GET", f"/v1/models/{TWO}:predict", 400, "Malformed request"),
        ("POST", f"/v1/models/{TWO}/metadata", 400, "Malformed request"),
        ("DELETE", f"/v1/models/{TWO}", 400, "Malformed request"),
        ("GET", "/v1/models/half", 404, "Could not find any versions of model half"),
        ("GET", "/v1/models/half/metadata", 404, "Servable not found for request: Latest(half)"),
        ("GET", f"/v1/models/{TWO}/versions/9", 404, f"Could not find version 9 of model {TWO}"),
        ("GET", "/nothing", 404, "Malformed request"),
    ],
)
def test_requests_that_the_api_has_not(server, method, path, status, message):
    found, headers, body = server.send(method, path)
    assert (found, headers["content-type"]) == (status, "application/json")
    assert message in json.loads(body)["error"]


def model_spec(request, name, signature=""):
    request.model_spec.name, request.model_spec.signature_name = name, signature
    return request


def predict_request(name, signature="", **inputs):
    request = model_spec(predict_pb2.PredictRequest(), name, signature)
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def test_grpc_predict(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(predict_request(TWO, x=np.float32([2, 3, 4])))
    assert list(response.outputs["y"].float_val) == [3.0, 3.5, 4.0]  # As TF Serving, no content.
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [3.0, 3.5, 4.0]
    spec = response.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == (TWO, "serving_default", 123)

    inputs = {"tag": ["foo", "ba"], "signal": np.int32([[1, 2], [3, 4]])}
    request = predict_request("fitting", **inputs)
    request.model_spec.version.value = 7
    request.output_filter.append("total")
    response = stub.Predict(request)
    assert [*response.outputs] == ["total"]
    assert tf.make_ndarray(response.outputs["total"]).tolist() == [3, 7]

    blob = bytes(range(256))
    response = stub.Predict(predict_request("fitting", "single", image=[blob]))
    assert list(response.outputs["copy_bytes"].string_val) == [blob]
    response = stub.Predict(predict_request("fitting", "half", x=np.float16([1.5])))
    assert tf.make_ndarray(response.outputs["y"]) == np.float16([1.5])


def test_grpc_classify_and_regress(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = model_spec(classification_pb2.ClassificationRequest(), TWO, "classify_x_to_y")
    example = request.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(2.0)
    response = stub.Classify(request)
    assert [[c.score for c in row.classes] for row in response.result.classifications] == [[3.0]]
    assert response.model_spec.signature_name == "classify_x_to_y"

    request = model_spec(regression_pb2.RegressionRequest(), THREE, "tensorflow/serving/regress")
    listed = request.input.example_list_with_context
    listed.context.features.feature["x"].float_list.value.append(2.0)
    listed.examples.add()
    response = stub.Regress(request)
    assert [row.value for row in response.result.regressions] == [4.0]
    with pytest.raises(grpc.RpcError) as caught:
        stub.Regress(model_spec(regression_pb2.RegressionRequest(), THREE, "serving_default"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_grpc_status_and_metadata(channel, server):
    request = model_spec(get_model_status_pb2.GetModelStatusRequest(), TWO)
    response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
    (found,) = response.model_version_status
    assert (found.version, found.status.error_code) == (123, 0)
    assert found.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE

    request = model_spec(get_model_metadata_pb2.GetModelMetadataRequest(), TWO)
    request.metadata_field.append("signature_def")
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.GetModelMetadata(request)
    assert (response.model_spec.name, response.model_spec.version.value) == (TWO, 123)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    _, on_rest = server.get(f"/v1/models/{TWO}/metadata")
    assert {*signatures.signature_def} == {*on_rest["metadata"]["signature_def"]["signature_def"]}


def filtered(*names):
    request = predict_request(TWO, x=np.float32([1]))
    request.output_filter.extend(names)
    return request


def misshapen():
    request = predict_request(TWO, x=np.float32([1]))
    request.inputs["x"].tensor_shape.dim[0].size = 10**12
    return request


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (predict_request("half", x=1.0), "NOT_FOUND", "Latest(half)"),
        (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (predict_request("", x=1.0), "INVALID_ARGUMENT", "no name"),
        (predict_request(TWO, "no", x=1.0), "INVALID_ARGUMENT", '"no" not found'),
        (predict_request(TWO), "INVALID_ARGUMENT", "missing ['x']"),
        (predict_request(TWO, x=1.0, z=1.0), "INVALID_ARGUMENT", "unknown ['z']"),
        (predict_request(TWO, x=["a"]), "INVALID_ARGUMENT", "expected float32, got string"),
        (misshapen(), "INVALID_ARGUMENT", "need more than"),
        (filtered("y", "nothing"), "INVALID_ARGUMENT", "signature: nothing Outputs expected"),
        (filtered("y", "y"), "INVALID_ARGUMENT", "output_filter: expected each name once"),
        (predict_request(TWO, x=np.zeros(30_000, np.float32)), "RESOURCE_EXHAUSTED", "larger"),
    ],
)
def test_errors_on_grpc(channel, request_, code, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request_)
    assert (caught.value.code().name, message in caught.value.details()) == (code, True)


def test_signatures_that_are_not_of_the_method(channel):
    """Of one that takes no examples, of another method, and metadata of no field."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    examples = input_pb2.Input()
    examples.example_list.examples.add().features.feature["x"].float_list.value.append(1.0)
    for call, request, name, message in (
        (
            stub.Classify,
            classification_pb2.ClassificationRequest(input=examples),
            "serving_default",
            'Classify: expected a signature with one input, "inputs"',
        ),
        (
            stub.Classify,
            classification_pb2.ClassificationRequest(input=examples),
            "tensorflow/serving/regress",
            "Classify: expected a signature with outputs",
        ),
        (
            stub.Regress,
            regression_pb2.RegressionRequest(input=examples),
            "classify_x_to_y",
            "Regress: expected a signature with outputs",
        ),
    ):
        model_spec(request, TWO).model_spec.signature_name = name
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code().name == "INVALID_ARGUMENT"
        assert message in caught.value.details()
    request = model_spec(get_model_metadata_pb2.GetModelMetadataRequest(), TWO)
    with pytest.raises(grpc.RpcError, match="at least one metadata_field"):
        stub.GetModelMetadata(request)


def test_grpc_method_that_is_not_there(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.MultiInference(inference_pb2.MultiInferenceRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_request_that_is_too_large(server):
    body = b'{"instances": [' + b"1.0, " * 20_000 + b"1.0]}"
    path = f"/v1/models/{TWO}:predict"
    status, _, answer = server.send("POST", path, body)
    assert status == 413 and b"larger than 100000 bytes" in answer
    # In chunks, whose sum no header tells.
    status, _, answer = server.send("POST", path, iter([body[:60_000], body[60_000:]]))
    assert status == 413 and b"larger than 100000 bytes" in answer


def test_gzip_bodies(server, channel):
    path, request = f"/v1/models/{TWO}:predict", {"instances": [1.0, 2.0]}

    def send(body, encoding="gzip"):
        status, _, answer = server.send("POST", path, body, {"Content-Encoding": encoding})
        return status, json.loads(answer)

    packed = gzip.compress(json.dumps(request).encode())
    for encoding in ("gzip", "x-gzip", "GZIP"):
        assert send(packed, encoding) == (200, {"predictions": [2.5, 3.0]})
    assert send(json.dumps(request), "identity")[0] == 200
    for body, encoding, status, message in (
        # 100 MB in 97 kB: no more is decompressed than a request may have.
        (gzip.compress(bytes(100_000_000)), "gzip", 413, "larger than 100000 bytes"),
        (gzip.compress(b" " * 100_001), "gzip", 413, "larger than 100000 bytes"),
        (packed[:-3], "gzip", 400, "ends early"),
        (packed + packed, "gzip", 400, "bytes follow"),
        (json.dumps(request), "gzip", 400, "Content-Encoding: gzip: "),
        (packed, "br", 415, "expected gzip or identity, got 'br'"),
    ):
        found, answer = send(body, encoding)
        assert (found, message in answer["error"]) == (status, True), answer
    assert send(gzip.compress(json.dumps(request).encode().ljust(100_000)))[0] == 200
    # On gRPC too it is the decompressed size that counts.
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    small = predict_request(TWO, x=np.float32([2]))
    response = stub.Predict(small, compression=grpc.Compression.Gzip)
    assert list(response.outputs["y"].float_val) == [3.0]
    with pytest.raises(grpc.RpcError) as caught:
        large = predict_request(TWO, x=np.zeros(30_000, np.float32))
        stub.Predict(large, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@contextlib.contextmanager
def connected(server):
    with socket.create_connection(("127.0.0.1", server.ports.rest), timeout=30) as client:
        yield client


def received(client):
    """All that comes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def test_heads_that_are_too_large(server, channel):
    with connected(server) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
            for number in range(1000):  # 10 MB, of which no end is told
                client.sendall(b"X-%d: " % number + b"a" * 10_000 + b"\r\n")
        assert received(client)[:12] in (b"HTTP/1.1 400", b"")
    assert server.get("/healthz")[0] == 200
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(predict_request(TWO, x=np.float32([2])), metadata=[("x", "a" * 200_000)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_requests_that_do_not_come_in_time(exported):
    head = f"POST /v1/models/{TWO}:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\n"
    bounds = {"read_timeout_seconds": 1.5, "max_connections": 4}
    with stand_ins.running([(TWO, exported[TWO])], **bounds) as server:
        for sent in ("", head[:20], head, head + '{"instances": [1.0', "GET /healthz HTTP/1.1\r\n"):
            with connected(server) as client:
                client.sendall(sent.encode())
                answer = received(client)
            assert answer.startswith(b"HTTP/1.1 408") and b"within 1.5 seconds" in answer
        # The body of a request that was answered before it came; it trickles in.
        with connected(server) as client, contextlib.suppress(ConnectionError):
            client.sendall(head.replace("POST", "PUT").encode())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 400")
            for _ in range(39):
                client.sendall(b" ")
                threading.Event().wait(0.1)
            raise AssertionError("the connection stayed open")
        # One connection too many; there is room again when the others end.
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(server)) for _ in range(5)]
            answers = [received(client) for client in clients]
        assert [answer[:12] for answer in answers] == 4 * [b"HTTP/1.1 408"] + [b"HTTP/1.1 503"]
        assert server.get("/healthz")[0] == 200
    # Slow, but within the time for each part; and several requests on one connection.
    with stand_ins.running([(TWO, exported[TWO])], max_connections=4) as server:
        with connected(server) as client:
            body = b'{"instances": [1.0, 2.0]}'.ljust(40)
            for _ in range(3):
                for part in (head[:20].encode(), head[20:].encode(), body[:5], body[5:]):
                    client.sendall(part)
                    threading.Event().wait(0.05)
                answer = b""
                while b"}" not in answer:  # Head and body may come apart.
                    answer += client.recv(1 << 16)
                assert answer.endswith(b'{"predictions":[2.5,3.0]}')


def test_client_that_does_not_read(exported):
    """Its connection ends; one that reads slowly gets all of its answer."""
    models = [("fitting", exported["fitting"])]
    bounds = {"read_timeout_seconds": 4.0, "max_request_bytes": 1 << 26}
    value = {"b64": base64.b64encode(bytes(1 << 20)).decode()}
    body = json.dumps({"signature_name": "single", "instances": [value] * 16}).encode()
    head = f"POST /v1/models/fitting:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with stand_ins.running(models, max_text_bytes=1 << 21, **bounds) as server:
        for seconds, is_whole in ((10.0, False), (0.3, True)):
            with connected(server) as client:
                client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
                parts = [client.recv(100)]
                with contextlib.suppress(ConnectionError):
                    while parts[-1]:
                        threading.Event().wait(seconds if len(parts) < 4 else 0)
                        parts.append(client.recv(1 << 20, socket.MSG_WAITALL))
            answer = b"".join(parts)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert (answer.count(b'=="}') == 16) is is_whole


def test_clients_that_leave(server):
    head = (
        f"POST /v1/models/{TWO}:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n"
    )
    for sent in (
        head[:20],
        head,
        head + '{"instances": [1.0',
        head + '{"instances": [1.0, 2.0]}' * 2,
    ):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.ports.rest)) as client:
                client.sendall(sent.encode())
                # Leave with a reset, as a killed process does when data waits for it.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with socket.create_connection(("127.0.0.1", server.ports.grpc)) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(64))
    request = {"instances": [1.0, 2.0]}
    assert server.post(f"/v1/models/{TWO}:predict", request) == (200, {"predictions": [2.5, 3.0]})
    assert "bert_tf:serving:waiting_requests 0.0" in server.metrics()


def test_health_and_metrics(server):
    assert server.get("/healthz") == (200, {"status": "live"})
    assert server.get("/readyz") == (200, {"status": "ready"})
    assert server.get("/models")[1]["models"][:2] == [THREE, TWO]
    server.post(f"/v1/models/{TWO}:predict", {"instances": [1.0]})
    server.post("/v1/models/unknown-name:predict", {"instances": [1.0]})
    page = server.metrics()
    name = ":tensorflow:serving:request_count"
    assert f'{name}{{model_name="{TWO}",status="OK"}}' in page
    assert ':tensorflow:serving:request_latency_bucket{API="Predict",entrypoint="REST"' in page
    assert "unknown-name" not in page  # Names that clients invent do not become metrics.


def test_page_may_load_nothing_from_elsewhere(server):
    status, headers, body = server.send("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http://" not in body and b"https://" not in body
    files = [path.name for path in PAGE.iterdir()]
    assert {"index.html", "page.css", "page.js"} <= {*files}
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    for name in files:
        status, headers, body = server.send("GET", f"/page/{name}")
        assert (status, headers.get_content_type()) == (200, kinds[name.split(".")[1]])
        assert headers["x-content-type-options"] == "nosniff"
        assert b"http://" not in body and b"https://" not in body
    for path in ("/page/none.js", "/page/", "/page/../http.py", "/page/%2e%2e%2fhttp.py"):
        status, headers, _ = server.send("GET", path)
        assert (status, headers.get_content_type()) == (404, "application/json")


def test_versions(tmp_path):
    base = tmp_path / "model"
    stand_ins.save_half_plus(base / "1", 1)
    (base / "notes").mkdir()
    with stand_ins.running([("m", str(base))]) as server:

        def answer(version=""):
            return server.post(f"/v1/models/m{version}:predict", {"instances": [0.0]})

        assert answer() == answer("/versions/1") == (200, {"predictions": [1.0]})
        # A version that does not load leaves the older one, and says why.
        (base / "2").mkdir()
        (base / "2" / "saved_model.pb").write_bytes(b"no SavedModel")

        def state(version):
            found = server.get(f"/v1/models/m/versions/{version}")[1]
            return found.get("model_version_status", [{"state": None}])[0]

        server.wait_for(lambda: state(2)["state"] == "END")
        assert state(2)["status"]["error_code"] != "OK" and state(2)["status"]["error_message"]
        assert answer() == (200, {"predictions": [1.0]})
        assert answer("/versions/2")[0] == 404
        # A newer one that loads takes over; the older one is unloaded.
        stand_ins.save_half_plus(tmp_path / "new", 3)
        os.rename(tmp_path / "new", base / "3")
        server.wait_for(lambda: state(1)["state"] == "END")
        assert answer() == answer("/versions/3") == (200, {"predictions": [3.0]})
        assert answer("/versions/1")[0] == 404
        versions = server.get("/v1/models/m")[1]["model_version_status"]
        assert [(v["version"], v["state"]) for v in versions] == [
            ("3", "AVAILABLE"),
            ("2", "END"),
            ("1", "END"),
        ]
        # Files that go leave what is loaded.
        shutil.rmtree(base / "3")
        shutil.rmtree(base / "1")
        assert answer() == (200, {"predictions": [3.0]})


def test_several_versions_and_warm_up(tmp_path):
    for version in (1, 2, 3):
        stand_ins.save_half_plus(tmp_path / "m" / str(version), version)
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request("m", x=np.float32([1])))
    extra = tmp_path / "m" / "3" / "assets.extra"
    extra.mkdir()
    (extra / "tf_serving_warmup_requests").write_bytes(frame_record(log.SerializeToString()))
    extra = tmp_path / "bad" / "1" / "assets.extra"
    stand_ins.save_half_plus(tmp_path / "bad" / "1", 1)
    extra.mkdir()
    log.predict_log.request.CopyFrom(predict_request("m", x=["a string"]))
    (extra / "tf_serving_warmup_requests").write_bytes(frame_record(log.SerializeToString()))
    models = [("m", str(tmp_path / "m")), ("bad", str(tmp_path / "bad"))]
    with stand_ins.running(models, wait_ready=False, num_versions=2) as server:
        server.wait_for(lambda: server.get("/v1/models/m/versions/2")[0] == 200)
        server.wait_for(lambda: "END" in str(server.get("/v1/models/bad")))
        for version, status in ((1, 404), (2, 200), (3, 200)):
            path = f"/v1/models/m/versions/{version}:predict"
            assert server.post(path, {"instances": [0.0]})[0] == status
        assert server.post("/v1/models/m:predict", {"inputs": [0.0]}) == (200, {"outputs": [3.0]})
        # Not ready while a model has no version; what is there answers.
        assert server.get("/readyz")[0] == 503 and server.get("/healthz")[0] == 200
        (bad,) = server.get("/v1/models/bad")[1]["model_version_status"]
        assert "expected float32, got string" in bad["status"]["error_message"]


def test_bad_options(tmp_path):
    with pytest.raises(NotADirectoryError, match="model_base_path"):
        stand_ins.RunningServer(ServerOptions([("m", str(tmp_path / "no"))])).start()
    for option, message in (
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"num_versions": -1}, "num_versions"),
        ({"rest_api_port": 70_000}, "rest_api_port: expected at most 65535, got 70000"),
        ({"port": 65_536}, "port: expected at most 65535"),
        ({"max_request_bytes": -1}, "max_request_bytes: expected at least 1"),
        ({"max_request_bytes": 2**31}, "max_request_bytes"),
        ({"file_system_poll_wait_seconds": float("nan")}, "file_system_poll_wait_seconds"),
        ({"shutdown_seconds": -1}, "shutdown_seconds"),
        ({"models": [("m", str(tmp_path)), ("m", str(tmp_path))]}, "model_name"),
    ):
        options = {"models": [("m", str(tmp_path))], **option}
        with pytest.raises(ValueError, match=message):
            stand_ins.RunningServer(ServerOptions(**options)).start()


def test_folder_that_is_no_folder_of_versions(tmp_path, caplog):
    """A version in place of its parent is refused; where none lies, the log says so once."""
    version = stand_ins.save_half_plus(tmp_path / "m" / "1", 1)
    with pytest.raises(ValueError, match="got a SavedModel itself") as caught:
        stand_ins.RunningServer(ServerOptions([("m", str(version))])).start()
    assert f"name {str(tmp_path / 'm')!r}" in str(caught.value)
    empty, late = tmp_path / "empty", tmp_path / "late"
    empty.mkdir()
    (late / "v1").mkdir(parents=True)
    # A number that no request can name does not end the server.
    stand_ins.save_half_plus(late / str(2**63), 3)
    with stand_ins.running([("e", str(empty)), ("m", str(late))], wait_ready=False) as server:
        server.wait_for(lambda: "no versions of m" in caplog.text)
        stand_ins.save_half_plus(tmp_path / "2", 2)
        os.rename(tmp_path / "2", late / "2")
        server.wait_for(lambda: server.get("/v1/models/m")[0] == 200)
        assert server.get("/readyz")[0] == 503
    assert caplog.text.count("no versions of e under") == 1
    assert "got an empty folder" in caplog.text and "'v1'" in caplog.text


def test_bounds_on_work(exported):
    models = [(name, exported[name]) for name in (TWO, "fitting")]
    bounds = {"max_request_rows": 4, "max_text_bytes": 10, "max_request_bytes": 1000}
    with stand_ins.running(models, **bounds) as server:
        path = f"/v1/models/{TWO}"
        assert server.post(f"{path}:predict", {"instances": [1.0] * 4})[0] == 200
        status, answer = server.post(f"{path}:predict", {"inputs": [1.0] * 5})
        assert status == 400
        assert "x: expected at most 4 rows (--max_request_rows), got 5" in answer["error"]
        examples = {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}] * 5}
        assert server.post(f"{path}:classify", examples)[0] == 400
        request = {"signature_name": "single", "instances": ["a", "\u00e9" * 5]}
        assert server.post("/v1/models/fitting:predict", request)[0] == 200
        request["instances"][1] += "b"
        status, answer = server.post("/v1/models/fitting:predict", request)
        assert status == 400
        assert "10 bytes a text (--max_text_bytes), got 11 at item 1" in answer["error"]
        # A few bytes that stand for many rows.
        request = predict_request(TWO, x=np.float32([2]))
        request.inputs["x"].tensor_shape.dim[0].size = 20
        with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            with pytest.raises(grpc.RpcError, match="at most 4 rows") as caught:
                stub.Predict(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class Slow(tf.Module):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def run(self, x):
        large = tf.random.stateless_uniform([800, 800], [0, 0])
        final = tf.while_loop(
            lambda i, value: i < self.steps,
            lambda i, value: (i + 1, tf.tanh(tf.matmul(value, large))),
            (0, large),
        )
        return {"y": x + tf.reduce_sum(final[1])}


def test_request_that_takes_too_long(tmp_path):
    module = Slow(20_000)
    tf.saved_model.save(module, str(tmp_path / "m" / "1"), {"serving_default": module.run})
    bounds = {"request_timeout_seconds": 0.5, "num_batch_threads": 1}
    with stand_ins.running([("m", str(tmp_path / "m"))], **bounds) as server:
        begun = time.monotonic()
        status, answer = server.post("/v1/models/m:predict", {"instances": [1.0]})
        assert status == 504 and len(answer["error"].splitlines()) == 1
    # The computation itself has ended too: the server waits for it, which alone takes minutes.
    assert time.monotonic() - begun < 30


def test_warm_up_may_take_longer_than_a_request(tmp_path):
    module = Slow(50)
    folder = tmp_path / "m" / "1"
    tf.saved_model.save(module, str(folder), {"serving_default": module.run})
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request("m", x=np.float32([1])))
    (folder / "assets.extra").mkdir()
    file = folder / "assets.extra" / "tf_serving_warmup_requests"
    file.write_bytes(frame_record(log.SerializeToString()))
    assert load_servable("m", 1, folder, 1e-3).version == 1


def test_port_that_is_taken(server, exported):
    ports = {"rest_api_port": server.ports.rest, "port": -1}
    taken = ServerOptions([(TWO, exported[TWO])], **ports)
    with pytest.raises(OSError, match="in use"):
        stand_ins.RunningServer(taken).start()


def start_script(*arguments):
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "experiments/serve.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_script_finishes_what_it_accepted(tmp_path, exported):
    script = start_script(
        f"--model_base_path={exported[TWO]}",
        "--model_name=two",
        "--rest_api_port=0",
        "--port=-1",
        "--batch_timeout_micros=3600000000",
        "--notensorflow_text",
    )
    with script:
        line = script.stdout.readline()
        assert line.startswith("REST API and page: http://127.0.0.1:")
        client = stand_ins.RunningServer(None)
        client.ports = Ports(int(line.rsplit(":", 1)[1].strip("/\n")), None)
        while client.get("/readyz")[0] != 200:
            assert script.poll() is None
            threading.Event().wait(0.05)
        # The request would wait an hour for others; the order to stop lets it run.
        answers = []
        path, request = "/v1/models/two:predict", {"instances": [1.0]}
        asking = threading.Thread(target=lambda: answers.append(client.post(path, request)))
        asking.start()
        while "waiting_requests 1.0" not in client.metrics():
            assert not answers and script.poll() is None
        script.send_signal(signal.SIGTERM)
        asking.join()
        assert answers == [(200, {"predictions": [2.5]})]
        _, errors = script.communicate()
        assert script.returncode == 0
        assert "SIGTERM" in errors and "Traceback" not in errors
        with pytest.raises(ConnectionError):
            client.get("/healthz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_base_path=nowhere", "--notensorflow_text"], "'nowhere' of nowhere is not"),
        (["--model_base_path=a", "--model_name=b", "--model_name=c"], "--model_name: expected 1"),
        (["--model_base_path=a", "--rest_api_port=70000"], "rest_api_port: expected at most"),
    ],
)
def test_bad_input_of_the_script(arguments, message):
    with start_script(*arguments) as script:
        _, errors = script.communicate()
    assert script.returncode == 1
    assert errors.splitlines()[-1].startswith("serve: ") and message in errors
    assert "Traceback" not in errors
