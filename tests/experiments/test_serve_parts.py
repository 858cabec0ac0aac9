"""Parts of the development server by themselves, where a running one is seldom or never so."""

import asyncio
import contextlib
import json
import types

import numpy as np
import pytest

from experiments.model_server import start
from experiments.model_server.options import ServeOptions

for module in start.NEEDED:
    pytest.importorskip(module, reason=f"the extra `serving` is not installed: no {module}")

import grpc  # noqa: E402
import h11  # noqa: E402
import tensorflow as tf  # noqa: E402
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse  # noqa: E402
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest  # noqa: E402
from tensorflow_serving.apis.input_pb2 import Input  # noqa: E402
from tensorflow_serving.apis.model_pb2 import ModelSpec  # noqa: E402
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog  # noqa: E402

from bert_tf.records.files import RecordWriter  # noqa: E402
from experiments.model_server import batching, connections, core, http, models, rest  # noqa: E402
from experiments.model_server import grpc as serving_grpc  # noqa: E402
from experiments.model_server import server as model_server  # noqa: E402
from experiments.model_server.explaining import Explainer  # noqa: E402
from experiments.model_server.metrics import ServingMetrics  # noqa: E402
from experiments.model_server.options import ServerOptions  # noqa: E402
from experiments.model_server.status import ServingError  # noqa: E402

pytestmark = pytest.mark.serving


@contextlib.contextmanager
def refused(message, code=grpc.StatusCode.INVALID_ARGUMENT):
    with pytest.raises(ServingError, match=message) as caught:
        yield
    assert caught.value.code is code


# === Batches ===


def test_a_batch_that_takes_too_long_ends_all_its_requests():
    late = ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "too long")
    bad = ServingError(grpc.StatusCode.INVALID_ARGUMENT, "bad")

    def run(error):
        def signature(inputs):
            assert len(inputs["x"]) == 3
            raise error

        return batching._run_together(signature, [{"x": np.ones(1)}, {"x": np.ones(2)}])

    assert run(late) == [late, late]
    assert run(bad) is None  # each finds out alone


def test_what_runs_is_waited_for_at_the_end():
    async def serve():
        batcher = batching.Batcher(ServerOptions(models=()), ServingMetrics())
        gate = asyncio.Event()
        batcher._running.add(asyncio.create_task(gate.wait()))
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.02)
        assert not closing.done() and batcher.draining
        batcher._running.clear()
        await asyncio.wait_for(closing, 60)
        gate.set()

    asyncio.run(serve())


# === What a request may be ===


def test_tensors_that_are_none():
    proto = tf.make_tensor_proto([1.0, 2.0])
    assert core.tensor_array("x", proto, 100).tolist() == [1, 2]
    proto.tensor_shape.dim[0].size = -1
    with refused("inputs: x: not a tensor: its shape is not known"):
        core.tensor_array("x", proto, 100)
    proto = tf.make_tensor_proto(1.0)
    proto.tensor_shape.unknown_rank = True
    with refused("inputs: x: not a tensor: its shape is not known"):
        core.tensor_array("x", proto, 100)


def test_requests_without_examples_or_inputs():
    for kind in ("example_list", "example_list_with_context"):
        examples = Input()
        getattr(examples, kind).SetInParent()
        with refused("^Input is empty.$"):
            core.serialized_examples(examples)
    with refused("the signature has no inputs"):
        rest.predict_inputs({"inputs": 1}, {})


def test_outputs_that_are_not_of_the_method():
    core._check_output("scores", np.ones((2, 1), np.float32), np.float32, [(2,), (2, 1)])
    message = r"scores: expected float32 \[2\] or \[2, 1\] from the signature, got float64 \[2\]"
    with refused(message):
        core._check_output("scores", np.ones(2), np.float32, [(2,), (2, 1)])
    with refused(r"scores: .*, got float32 \[1, 2\]"):
        core._check_output("scores", np.ones((1, 2), np.float32), np.float32, [(2,), (2, 1)])


def core_of(outputs, **options):
    """Return what answers with the same outputs always."""
    signature = types.SimpleNamespace(
        inputs={"inputs": None}, outputs=outputs, checked=lambda inputs: inputs
    )
    servable = types.SimpleNamespace(
        model_name="m",
        version=7,
        signature=lambda name: signature,
        in_use=contextlib.nullcontext,
        definitions={},
    )

    async def run(signature, inputs):
        return outputs

    found = types.SimpleNamespace(get=lambda name, version: servable, names=["m"], ready=True)
    batcher = types.SimpleNamespace(run=run, draining=False, check_room=lambda: None)
    return core.ServingCore(found, batcher, ServerOptions(models=(), **options)), servable


def test_classes_without_scores_and_scores_without_classes():
    request = ClassificationRequest(model_spec=ModelSpec(name="m"))
    for _ in range(2):
        request.input.example_list.examples.add()
    classes = np.array([[b"a", b"\xff"], [b"c", b"d"]], object)
    scores = np.array([[0.5, 0.25], [1, 0]], np.float32)
    for outputs in ({"classes": classes}, {"scores": scores}):
        response = asyncio.run(core_of(outputs)[0].classify(request))
        found = [
            [(label.label, label.score) for label in row.classes]
            for row in response.result.classifications
        ]
        if "classes" in outputs:
            assert found == [[("a", 0), ("\ufffd", 0)], [("c", 0), ("d", 0)]]
        else:
            assert found == [[("", 0.5), ("", 0.25)], [("", 1), ("", 0)]]


def test_all_texts_of_a_request_together_have_a_bound():
    serving, servable = core_of({"y": np.ones(3)}, max_request_bytes=1024, max_text_bytes=1000)
    texts = np.array([b"x" * 400] * 3, object)
    with refused(r"text: expected at most 1024 bytes in all \(--max_request_bytes\), got 1200"):
        asyncio.run(serving.predict(servable, "", {"text": texts}))
    assert asyncio.run(serving.predict(servable, "", {"text": texts[:2]}))["y"].tolist() == [1] * 3


def test_metadata_are_of_signatures_alone():
    serving, _ = core_of({})
    for fields, message in (([], "must specify at least one"), (["x"], "Metadata field x is not")):
        with refused(message):
            serving.metadata(ModelSpec(name="m"), fields)
    assert serving.metadata(ModelSpec(name="m"), ["signature_def"]).model_spec.version.value == 7


# === Models ===


class Reads:
    """A version that notes what it is asked in its warm-up."""

    def __init__(self):
        self.read = []

    def signature(self, name):
        def run(inputs):
            self.read.append((name, inputs["x"].tolist()))

        run.checked = lambda inputs: inputs
        return run


def test_warm_up_takes_predictions_alone_and_not_too_many(tmp_path, monkeypatch):
    path = tmp_path / "requests"
    other, log = PredictionLog(), PredictionLog()
    other.classify_log.SetInParent()
    request = log.predict_log.request
    request.model_spec.signature_name = "two"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0]))
    with RecordWriter(path) as writer:
        for one in (other, log, log):
            writer.write(one.SerializeToString())
    asked = Reads()
    models._warm_up(asked, path)  # pyright: ignore
    assert asked.read == [("two", [1, 2])] * 2
    monkeypatch.setattr(models, "MAX_WARMUP_RECORDS", 2)
    with pytest.raises(ValueError, match="requests: more than 2 warm-up requests"):
        models._warm_up(asked, path)  # pyright: ignore


def test_a_folder_that_is_not_there_has_no_versions(tmp_path, monkeypatch):
    source = models.ModelSource("m", tmp_path / "gone")
    assert source.versions() == {} and source.contents() == "No such file or directory"
    (tmp_path / "1").mkdir()
    before = models._fingerprint(tmp_path / "1")
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"x")
    assert models._fingerprint(tmp_path / "1") != before

    def lost(path, pattern):
        raise FileNotFoundError(path)

    monkeypatch.setattr("pathlib.Path.rglob", lost)  # while it is looked through
    assert models._fingerprint(tmp_path / "1") == ()


def test_a_version_is_unused_once_its_requests_have_ended():
    async def serve():
        servable = models.Servable.__new__(models.Servable)
        servable._users = 0
        with servable.in_use():
            waiting = asyncio.create_task(servable.unused())
            await asyncio.sleep(0.03)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 60)

    asyncio.run(serve())


# === HTTP and gRPC ===


def ask(app, path):
    """Return status and JSON of the answer to a request."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
    scope |= {"headers": [], "query_string": b"", "scheme": "http", "http_version": "1.1"}
    asyncio.run(app({**scope, "server": ("h", 1), "client": ("c", 2)}, receive, send))
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent))


def test_a_fault_of_the_server_and_a_card_of_no_model():
    serving, _ = core_of({})
    metrics = ServingMetrics()
    options = ServerOptions(models=())
    app = http.http_app(serving, Explainer(options), metrics, options)

    def fail(spec):
        raise MemoryError("no room")

    serving.status = fail
    status, answer = ask(app, "/v1/models/m")
    assert status == 500 and "no room" in answer["error"]
    assert b'="INTERNAL"' in metrics.page()[0]

    def none(name):
        raise ServingError(grpc.StatusCode.NOT_FOUND, f"no model {name}")

    serving.models.get = none
    status, answer = ask(app, "/models/nobody/card")
    assert (status, answer["error"]) == (404, "no model nobody")


def test_a_connection_that_is_closing_is_told_nothing():
    written, is_closing = [], [True]
    transport = types.SimpleNamespace(
        is_closing=lambda: is_closing[0],
        write=written.append,
        close=lambda: written.append("closed"),
    )
    protocol = connections.BoundedProtocol.__new__(connections.BoundedProtocol)
    protocol.transport, protocol._timer = transport, None  # pyright: ignore
    protocol.conn = h11.Connection(h11.SERVER)
    protocol._end("408 Request Timeout", "too late")
    assert written == []
    is_closing[0] = False
    protocol._end("408 Request Timeout", "too late")
    assert written[0].startswith(b"HTTP/1.1 408 Request Timeout\r\n") and written[1] == "closed"


def test_who_watches_is_told_of_changes_alone(monkeypatch):
    monkeypatch.setattr(serving_grpc, "_WATCH_SECONDS", 0)
    states = [True, True, False, False, True]

    class Core:
        """Ready or not as `states` says; the server ends with the last one."""

        batcher = types.SimpleNamespace(draining=False)

        @property
        def ready(self):
            self.batcher.draining = len(states) == 1
            return states.pop(0) if len(states) > 1 else states[0]

    async def watch():
        health = serving_grpc._Health(Core())  # pyright: ignore
        return [x.status async for x in health.Watch(HealthCheckRequest(), None)]

    serving, down = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
    assert asyncio.run(watch()) == [serving, down, serving]


def test_an_address_that_cannot_be_had():
    async def serve():
        serving, _ = core_of({})
        options = ServerOptions(models=())
        serving_grpc.grpc_server(serving, ServingMetrics(), "256.0.0.1:port", options)

    with pytest.raises(OSError, match="cannot listen on 256.0.0.1:port: "):
        asyncio.run(serve())


# === The start ===


@pytest.mark.parametrize(
    ("ports", "lines"),
    [
        ((8501, None), ["REST API and page: http://[::1]:8501/"]),
        ((None, 8500), ["gRPC API: [::1]:8500"]),
    ],
)
def test_where_it_listens_is_told(monkeypatch, capsys, ports, lines):
    async def serve(options, stop, listening):
        listening(model_server.Ports(*ports))

    monkeypatch.setattr(model_server, "serve", serve)
    monkeypatch.setattr(model_server.logging, "basicConfig", lambda **_: None)
    levels = [(logger, logger.level) for logger in (tf.get_logger(), model_server._LOGGER)]
    model_server.run(ServerOptions(models=(), host="::1"))
    for logger, level in levels:
        logger.setLevel(level)
    assert capsys.readouterr().out.splitlines() == lines


def test_no_port_is_opened_where_none_is_asked_for():
    assert model_server._listener(ServerOptions(models=(), rest_api_port=-1)) is None
    listener = model_server._listener(ServerOptions(models=(), rest_api_port=0, host="127.0.0.1"))
    assert listener is not None and listener.getsockname()[1] > 0
    listener.close()


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(start, "NEEDED", ("json", "no_such_package"))
    message = r"no_such_package is missing: pip install -e '.\[serving\]'"
    with pytest.raises(ImportError, match=message):
        start.run(ServeOptions())
