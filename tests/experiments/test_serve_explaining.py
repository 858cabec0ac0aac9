"""Explanations over HTTP: what `Predictor.explain` gives, or one line that says why not."""

import dataclasses
import json
import shutil
import socket
import threading
import types

import pytest

from experiments.model_server.start import NEEDED, export

for module in NEEDED:
    pytest.importorskip(module, reason=f"the extra `serving` is not installed: no {module}")

import bert_tf  # noqa: E402
from bert_tf.serving.explanations import explain  # noqa: E402
from experiments.model_server import explaining  # noqa: E402
from tests.support import explained_models  # noqa: E402
from tests.support import serving_stand_ins as stand_ins  # noqa: E402
from tests.support.explained_models import ASKED, columns  # noqa: E402

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name and folder of the SavedModels that answer."""
    root = tmp_path_factory.mktemp("models")
    return [*stand_ins.save_tasks(root), stand_ins.save_pairs(root)]


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return explained_models.golden_models(tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def server(folders, golden):
    explained = {**golden, "vectors": "explain: turned off by --noexplain"}
    with stand_ins.running(folders, explained=explained, max_explain_steps=64) as running:
        yield running


def ask(server, name, **request):
    return server.post(f"/v1/models/{name}:explain", {"instances": [ASKED[name]], **request})


def as_json(explanations):
    """Fields of explanations as JSON has them: floats are doubles there and here."""
    return [json.loads(json.dumps(dataclasses.asdict(one))) for one in explanations]


@pytest.mark.parametrize(
    ("name", "request_", "options"),
    [
        ("opinions", {}, {}),
        ("opinions", {"target": "negative", "baseline": "mask"}, {}),
        ("pairs", {"target": "neutral", "tolerance": 0.1}, {}),
        ("answers", {}, {}),
        ("entities", {"entity": 3, "max_steps": 16}, {}),
        ("entities", {"max_steps": 1, "tolerance": None}, {"tolerance": 0.01}),
    ],
)
def test_each_kind(server, golden, name, request_, options):
    status, answer = ask(server, name, **request_)
    options = {"max_steps": 64, **request_, **options}
    expected = as_json(explain(golden[name], columns(name), **options))
    assert (status, answer) == (200, {"explanations": expected})
    assert len(expected) == (8 if name == "entities" and "entity" not in request_ else 1)


def test_a_model_directory_is_explained_as_in_python(tmp_path):
    folder = tmp_path / "opinions"
    shutil.copytree(explained_models.GOLDEN / "transformers/BertForSequenceClassification", folder)
    explained_models.write_vocabulary(folder)
    (model,) = export([str(folder)], str(tmp_path / "exported"), True)
    with stand_ins.running(
        [(model.name, model.folder)], explained={model.name: model.explained}
    ) as server:
        assert server.get("/models")[1] == {"models": ["opinions"], "explained": ["opinions"]}
        status, answer = ask(server, "opinions")
        expected = bert_tf.Predictor(folder).explain(*columns("opinions"))
        assert (status, answer) == (200, {"explanations": as_json(expected)})
        _, predicted = server.post(
            "/v1/models/opinions:predict", {"instances": [ASKED["opinions"]]}
        )
        assert predicted["predictions"][0]["label"] == expected[0].target
        assert 'status="OK"' in server.metrics() and 'API="Explain"' in server.metrics()
    (model,) = export([str(folder)], str(tmp_path / "again"), False)
    assert model.explained == "explain: turned off by --noexplain"


def test_which_models_are_explained(server):
    assert server.get("/models")[1]["explained"] == ["opinions", "pairs", "answers", "entities"]


@pytest.mark.parametrize(
    ("name", "request_", "status", "message"),
    [
        ("opinions", {"target": "fine"}, 400, "target: expected one of negative, neutral, "),
        ("opinions", {"target": 3}, 400, "target: expected a string, the name of a label, got"),
        ("opinions", {"entity": 0}, 400, "entity: expected None for classification, got 0"),
        ("opinions", {"baseline": "zero"}, 400, "baseline: expected pad or mask, got 'zero'"),
        ("opinions", {"tolerance": 0}, 400, "tolerance: expected a fraction above 0, got 0"),
        ("opinions", {"tolerance": True}, 400, "tolerance: expected a number above 0, got a bool"),
        ("opinions", {"max_steps": 0}, 400, "max_steps: expected at least 1, got 0"),
        ("opinions", {"max_steps": 65}, 400, "expected at most 64 (--max_explain_steps), got 65"),
        ("opinions", {"max_steps": 1.5}, 400, "max_steps: expected an integer, got a number: 1.5"),
        ("opinions", {"steps": 8}, 400, "expected the keys instances, target, entity, baseline, "),
        ("opinions", {"instances": []}, 400, "'instances': expected a list of at least one"),
        ("opinions", {"instances": ["a", "b"]}, 400, "'instances': expected one, since an expla"),
        ("opinions", {"instances": [["a"]]}, 400, "text: expected a string, got a list"),
        ("opinions", {"instances": [3]}, 400, "text: [0]: not of expected type: string: got a num"),
        ("pairs", {"instances": [{"text": "a"}]}, 400, "expected objects with keys ['text', 'text"),
        ("entities", {"entity": 8}, 400, "entity: expected one of the 8 that are found, from 0, g"),
        ("entities", {"entity": -1}, 400, "entity: expected one of the 8 that are found, from 0"),
        ("entities", {"target": "X"}, 400, "target: expected None for token_classification"),
        ("answers", {"target": "X"}, 400, "target: expected None for question_answering"),
    ],
)
def test_bad_requests(server, name, request_, status, message):
    found, answer = ask(server, name, **request_)
    assert found == status and message in answer["error"] and "\n" not in answer["error"]


def test_requests_for_what_is_not_explained(server):
    request = {"instances": ["a"]}
    for name, status, message in (
        ("masks", 400, "explain: masks is served from a SavedModel, which holds no gradients; "),
        ("vectors", 400, "explain: turned off by --noexplain"),
        ("gone", 404, "Servable not found for request: Latest(gone)"),
        ("opinions/versions/7", 404, "Servable not found for request: Specific(opinions, 7)"),
    ):
        found, answer = server.post(f"/v1/models/{name}:explain", request)
        assert found == status and message in answer["error"]
    for body, message in (("[", "JSON Parse error"), ("{}", "Missing 'instances' key")):
        found, answer = server.post("/v1/models/opinions:explain", body)
        assert found == 400 and message in answer["error"]
    assert server.send("GET", "/v1/models/opinions:explain")[0] == 400


def test_texts_have_bounds(folders, golden):
    with stand_ins.running(folders[3:4], explained=golden, max_text_bytes=10) as server:
        status, answer = ask(server, "opinions")
        assert status == 400 and "at most 10 bytes a text (--max_text_bytes)" in answer["error"]


@pytest.fixture
def held(monkeypatch):
    """Let explanations go on only once they are let, and count those that run at once."""

    told = types.SimpleNamespace(go=threading.Event(), began=[], ended=[], most=0)

    def run(model, columns, *, before_run, **settings):
        told.began.append(columns)
        told.most = max(told.most, len(told.began) - len(told.ended))
        try:
            while not told.go.wait(0.01):
                before_run()
            return []
        finally:
            told.ended.append(columns)

    monkeypatch.setattr(explaining, "explain", run)
    yield told
    told.go.set()


def ask_raw(server):
    body = json.dumps({"instances": [ASKED["opinions"]]})
    return server.send("POST", "/v1/models/opinions:explain", body)


def test_one_at_a_time_and_not_too_many(server, held):
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask_raw(server)))
        for _ in range(explaining._MOST_WAITING + 2)
    ]
    for thread in threads:
        thread.start()
    server.wait_for(lambda: answers and held.began)
    ((status, headers, body),) = answers
    assert (status, headers["Retry-After"]) == (429, "1")
    assert "explanations wait, one at a time; try again later" in json.loads(body)["error"]
    # Others are answered in the meantime.
    assert server.post("/v1/models/opinions:predict", {"instances": ["a"]})[0] == 200
    held.go.set()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in answers[1:]] == [200] * (len(threads) - 1)
    assert held.most == 1


def test_an_explanation_ends_with_its_time_or_its_client(folders, golden, held):
    opinions = folders[3:4]
    with stand_ins.running(opinions, explained=golden, request_timeout_seconds=0.3) as server:
        status, answer = ask(server, "opinions")
        assert status == 504 and "--request_timeout_seconds=0.3; ask for fewer" in answer["error"]
        server.wait_for(lambda: len(held.ended) == 1)
    with stand_ins.running(opinions, explained=golden) as server:
        body = json.dumps({"instances": [ASKED["opinions"]]})
        head = (
            f"POST /v1/models/opinions:explain HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"
        )
        with socket.create_connection(("127.0.0.1", server.ports.rest)) as client:
            client.sendall(f"{head}\r\n\r\n{body}".encode())
            server.wait_for(lambda: len(held.began) == 2)
        server.wait_for(lambda: len(held.ended) == 2)
