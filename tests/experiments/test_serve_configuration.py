"""What the development server is told at its start, and what it tells tools about itself."""

import contextlib
import dataclasses
import math
import threading

import pytest

from experiments.model_server.start import NEEDED, _models, export, run

for module in NEEDED:
    pytest.importorskip(module, reason=f"the extra `serving` is not installed: no {module}")

import grpc  # noqa: E402
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse  # noqa: E402
from grpc_health.v1.health_pb2_grpc import HealthStub  # noqa: E402
from grpc_reflection.v1alpha import reflection_pb2  # noqa: E402
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    predict_pb2,
    prediction_service_pb2_grpc,
)

from bert_tf.options import check  # noqa: E402
from experiments.model_server.config_file import read_model_config  # noqa: E402
from experiments.model_server.options import (  # noqa: E402
    ServeOptions,
    ServerOptions,
    VersionPolicy,
)
from tests.support import serving_stand_ins as stand_ins  # noqa: E402

pytestmark = pytest.mark.serving

# As in TF Serving's serving_config.md.
CONFIG = """
model_config_list {
  config {
    name: 'half'
    base_path: '%s'
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 3 } }
    version_labels { key: 'stable' value: 1 }
    version_labels { key: 'canary' value: 3 }
  }
  config { name: "every" base_path: "%s" model_version_policy { all {} } }
  config { name: "two" base_path: "x" model_version_policy { latest { num_versions: 2 } } }
  config { name: "one" base_path: "y" }  # the newest
}
"""


PORTS = ("port", "rest_api_port")  # Below 0 there is none.


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "half"
    for version in (1, 2, 3):
        stand_ins.save_half_plus(folder / str(version), version)
    return folder


def test_file_of_models(base, tmp_path, caplog):
    path = tmp_path / "models.config"
    path.write_text(CONFIG % (base, base))
    models = read_model_config(path)
    assert models == [
        ("half", str(base), VersionPolicy(1, (1, 3), {"stable": 1, "canary": 3})),
        ("every", str(base), VersionPolicy(0)),
        ("two", "x", VersionPolicy(2)),
        ("one", "y", VersionPolicy(1)),
    ]
    assert _models(ServeOptions(model_config_file=str(path))) == models
    policies = {name: policy for name, _, policy in models[:2]}
    policies["every"] = VersionPolicy(0, (), {"gone": 9})
    named = [(name, folder) for name, folder, _ in models[:2]]
    with stand_ins.running(named, policies=policies) as server:

        def answer(path):
            return server.post(f"/v1/models/{path}:predict", {"instances": [0.0]})

        server.wait_for(lambda: len(server.get("/v1/models/every")[1]["model_version_status"]) == 3)
        for path, value in (
            ("half", 3),
            ("half/labels/stable", 1),
            ("half/labels/canary", 3),
            ("half/versions/1", 1),
            ("every/versions/2", 2),
        ):
            server.wait_for(lambda path=path: answer(path)[0] == 200)
            assert answer(path) == (200, {"predictions": [value]}), path
        assert answer("half/versions/2")[0] == 404
        assert answer("every/labels/gone")[0] == 404
        for path in ("half/labels/old", "every/labels/stable"):
            status, error = answer(path)
            assert status == 400 and "Unrecognized servable version label" in error["error"]
        status = server.get("/v1/models/half/labels/stable")[1]["model_version_status"]
        assert [row["version"] for row in status] == ["1"]
        assert server.get("/v1/models/half/labels/stable/metadata")[0] == 200
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.version_label = "half", "stable"
        request.inputs["x"].dtype, request.inputs["x"].float_val[:] = 1, [0.0]
        request.inputs["x"].tensor_shape.dim.add().size = 1
        with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)
        assert answer.outputs["y"].float_val[:] == [1.0]
        assert answer.model_spec.version.value == 1
    assert caplog.text.count("which is not loaded") == 1
    assert "every: label 'gone' is version 9, which is not loaded" in caplog.text


def test_model_directories_are_exported_first(tmp_path):
    with pytest.raises(FileNotFoundError, match="tiny-wikipeda: no such file or directory"):
        run(ServeOptions(model_dir=("tiny-wikipeda",)))
    with pytest.raises(ValueError, match="for each model alone, got m, m"):
        run(ServeOptions(model_dir=("a/m", "b/m")))
    (model,) = export(["tiny-wikipedia"], str(tmp_path), True)
    assert (model.name, model.folder) == ("tiny-wikipedia", f"{tmp_path}/0/tiny-wikipedia")
    assert model.explained.startswith("explain: for classification, ")
    with stand_ins.running([(model.name, model.folder)]) as server:
        request = {"instances": ["The film was released in the United [MASK] in 1995."]}
        status, answer = server.post("/v1/models/tiny-wikipedia:predict", request)
        assert status == 200 and answer["predictions"][0]["mask_count"] == 1
        assert b"read from tiny-wikipedia" in server.send("GET", "/models/tiny-wikipedia/card")[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no model"),
        ("model_config_list { config { nam: 'a' } }", r'1:30 : .* no field named "nam"'),
        ("custom_model_config {}", "got no model"),
        ("model_config_list { config { base_path: '/a' } }", "expected a name"),
        ("model_config_list { config { name: 'a' } }", "'a': expected a base_path"),
        ("%s model_platform: 'torch' }}", 'a: model_platform: expected "tensorflow", got "torch"'),
        ("%s model_version_policy { specific {} } }}", "a: specific: expected one version"),
        ("%s model_version_policy { specific { versions: -1 } } }}", "at least 0, got -1"),
        (
            "%s model_version_policy { specific { versions: 1 } } version_labels "
            "{ key: 'new' value: 2 } }}",
            "'new' is version 2, and only 1 are loaded",
        ),
    ],
)
def test_file_that_is_wrong(tmp_path, text, message):
    path = tmp_path / "models.config"
    path.write_text(text.replace("%s", "model_config_list { config { name: 'a' base_path: '/a'"))
    with pytest.raises(ValueError, match=message) as caught:
        read_model_config(path)
    assert str(caught.value).startswith(f"--model_config_file: {path}: ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected --model_base_path or --model_dir, or --model_config_file, got none"),
        ({"model_base_path": ("a",), "model_config_file": "b"}, "got both"),
        ({"model_config_file": "b", "model_name": ("c",)}, "--model_name: the names are those"),
        (
            {"model_config_file": "b", "server": ServerOptions(num_versions=2)},
            "--num_versions: --model_config_file says",
        ),
    ],
)
def test_models_are_named_once(given, message):
    with pytest.raises(ValueError, match=message):
        _models(ServeOptions(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cors_origin": ("app.example",)}, "cors_origin: expected .* got 'app.example'"),
        ({"cors_origin": ("https://a.example/",)}, "cors_origin"),
        ({"port": -1, "rest_api_port": -1}, "expected one of at least 0, got both below"),
    ],
)
def test_options_that_are_wrong(given, message):
    with pytest.raises(ValueError, match=message):
        ServerOptions(**given)


def test_every_number_has_bounds():
    seen = 0
    for field in dataclasses.fields(ServerOptions):
        if type(field.default) not in (int, float):
            continue
        seen += 1
        least, above, most = (field.metadata["bounds"][k] for k in ("minimum", "above", "maximum"))
        wrong = [] if field.name in PORTS else [-1, above if least is None else least - 1]
        wrong += [math.nan, math.inf] if type(field.default) is float else []
        wrong += [] if most is None else [most + 1]
        assert wrong, field.name
        for value in wrong:
            with pytest.raises(ValueError, match=f"^{field.name}: expected "):
                check(ServerOptions(**{field.name: value}))
    assert seen >= 15
    check(ServerOptions(port=-1))


def test_pages_of_other_origins(base):
    path, own = "/v1/models/half:predict", "https://app.example"
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    models = [("half", str(base))]
    for origins, origin, allowed in (
        (None, own, None),
        ((own,), own, own),
        ((own,), "https://other.example", None),
        (("*",), "https://other.example", "*"),
    ):
        with stand_ins.running(models, cors_origin=origins) as server:
            headers = {"Origin": origin}
            _, preflight, _ = server.send("OPTIONS", path, headers={**headers, **asked})
            assert preflight.get("access-control-allow-origin") == allowed
            status, answered, _ = server.send("POST", path, '{"instances": [1]}', headers)
            assert status == 200
            assert answered.get("access-control-allow-origin") == allowed
            # Errors too: a page shall be able to read them.
            status, answered, _ = server.send("POST", path, "{", headers)
            assert (status, answered.get("access-control-allow-origin")) == (400, allowed)


@contextlib.contextmanager
def channel_of(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
        yield channel


def test_grpc_health(base, tmp_path):
    late = tmp_path / "late"
    late.mkdir()
    serving, not_serving = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
    models, seen = [("half", str(base)), ("late", str(late))], []
    with stand_ins.running(models, wait_ready=False) as server, channel_of(server) as channel:
        stub = HealthStub(channel)

        def watch():
            for response in stub.Watch(HealthCheckRequest()):
                seen.append(response.status)

        # Two watch, and neither is forgotten.
        watching = [threading.Thread(target=watch) for _ in range(2)]
        for thread in watching:
            thread.start()
        server.wait_for(lambda: seen == [not_serving] * 2)
        assert stub.Check(HealthCheckRequest()).status == not_serving
        stand_ins.save_half_plus(tmp_path / "1", 1)
        (tmp_path / "1").rename(late / "1")
        server.wait_for(lambda: seen == [not_serving] * 2 + [serving] * 2)
        name = "tensorflow.serving.PredictionService"
        assert stub.Check(HealthCheckRequest(service=name)).status == serving
        with pytest.raises(grpc.RpcError, match="unknown service: no") as caught:
            stub.Check(HealthCheckRequest(service="no"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        # The server ends for all that watch.
        server.ask_to_stop()
        server.join()
        for thread in watching:
            thread.join()
    assert seen[4:] == [not_serving] * 2


def test_grpc_reflection(base):
    with stand_ins.running([("half", str(base))]) as server, channel_of(server) as channel:
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="tensorflow.serving.PredictionService"
            ),
        ]
        services, file = ServerReflectionStub(channel).ServerReflectionInfo(iter(requests))
    assert {service.name for service in services.list_services_response.service} == {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = file.file_descriptor_response.file_descriptor_proto
    assert any(b"PredictionService" in descriptor for descriptor in files)
