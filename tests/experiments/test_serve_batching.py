"""Requests that come together run as one, and a bad one harms none of the others."""

import asyncio
import contextlib
import json
import socket
import threading

import numpy as np
import pytest

for module in ("tensorflow_serving", "prometheus_client"):
    pytest.importorskip(module, reason=f"the extra `serving` is not installed: no {module}")

import grpc  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    predict_pb2,
    prediction_service_pb2_grpc,
)

from bert_tf.serving.saved_model import export_saved_model  # noqa: E402
from experiments.model_server.batching import Batcher  # noqa: E402
from experiments.model_server.metrics import ServingMetrics  # noqa: E402
from experiments.model_server.options import ServerOptions  # noqa: E402
from experiments.model_server.status import ServingError  # noqa: E402
from tests.serving import test_saved_model  # noqa: E402
from tests.serving.test_saved_model import model, vocab_file  # noqa: E402, F401  (fixtures)
from tests.support import serving_stand_ins as stand_ins  # noqa: E402

pytestmark = pytest.mark.serving

HOUR = 3_600_000_000  # A window that only a full batch ends.


class Doubling:
    """y = 2 x; refuses numbers below 0, and waits at a gate where it has one."""

    model_name = "doubling"

    def __init__(self, gate=None):
        self.batchable, self.gate, self.calls = True, gate, []
        self.begun = threading.Event()

    def __call__(self, inputs):
        self.begun.set()
        if self.gate:
            self.gate.wait()
        x = inputs["x"]
        self.calls.append(x.tolist())
        if (x < 0).any():
            raise ValueError(f"below 0: {x.tolist()}")
        return {"y": x * 2, "rows": np.arange(len(x))}


def inputs(*values):
    return {"x": np.array(values)}


def test_a_fault_of_the_batcher_itself_is_an_answer_too(monkeypatch):
    """Nothing leaves a client waiting, and the thread is free for the next request."""

    async def run():
        made, doubling = batcher(size=1), Doubling()
        monkeypatch.setattr(made, "_compute", lambda batch: 1 / 0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(made.run(doubling, inputs(1)), 60)
        monkeypatch.undo()
        assert (await asyncio.wait_for(made.run(doubling, inputs(1)), 60))["y"].tolist() == [2]
        await made.close()

    asyncio.run(run())


def batcher(size=4, micros=HOUR, threads=1, room=100, padding=0.5):
    options = ServerOptions(
        max_batch_size=size,
        max_row_padding=padding,
        batch_timeout_micros=micros,
        num_batch_threads=threads,
        max_enqueued_requests=room,
    )
    return Batcher(options, ServingMetrics())


async def gathered(*coroutines):
    return await asyncio.gather(*coroutines, return_exceptions=True)


def test_full_batch_runs_as_one():
    async def main():
        made, signature = batcher(size=5), Doubling()
        results = await gathered(
            made.run(signature, inputs(1, 2)),
            made.run(signature, inputs(3)),
            made.run(signature, inputs(4, 5)),
        )
        await made.close()
        return signature.calls, results

    calls, results = asyncio.run(main())
    assert calls == [[1, 2, 3, 4, 5]]
    assert [r["y"].tolist() for r in results] == [[2, 4], [6], [8, 10]]
    assert [r["rows"].tolist() for r in results] == [[0, 1], [2], [3, 4]]


class Measuring:
    """Tells how many texts it was given at once, and the longest."""

    model_name = "measuring"

    def __init__(self, gate=None):
        self.batchable, self.gate, self.calls = True, gate, []

    def __call__(self, inputs):
        if self.gate:
            self.gate.wait()
        texts = [b"".join(np.ravel(row)) for row in inputs["text"]]
        self.calls.append([len(text) for text in texts])
        return {"bytes": np.array([len(text) for text in texts])}


def batches_of(sizes, columns=1, **options):
    """Return the sizes of each batch that requests of one text each make, and the answers."""

    async def main():
        made, signature = batcher(size=len(sizes), **options), Measuring()
        arrays = [np.array([[b"x" * size] * columns], object) for size in sizes]
        results = await gathered(*(made.run(signature, {"text": array}) for array in arrays))
        await made.close()
        return signature.calls, [int(result["bytes"][0]) for result in results]

    return asyncio.run(main())


def test_texts_of_unlike_lengths_run_apart():
    """Each batch begins with the request that waits longest, so that none waits for ever."""
    sizes = [2000, 10, 1000, 30, 1900, 900]
    calls, answers = batches_of(sizes, micros=20_000)
    assert calls == [[2000, 1000, 1900], [10, 30], [900]]
    assert answers == sizes
    # A row costs something besides its text: the shortest may as well run together.
    assert batches_of([1, 60, 2])[0] == [[1, 60, 2]]
    # All texts of a row count.
    assert batches_of([2000, 10], columns=2, micros=20_000)[0] == [[4000], [20]]


def test_requests_left_by_a_batch_may_be_cancelled_and_are_drained():
    async def main():
        gate = threading.Event()
        signature = Measuring(gate)
        made = batcher(size=2)

        def texts(size):
            return {"text": np.array([b"x" * size], object)}

        tasks = [asyncio.ensure_future(made.run(signature, texts(n))) for n in (2000, 10, 20, 30)]
        await asyncio.sleep(0)  # the first is at work, alone; it holds the only thread
        tasks[1].cancel()
        gate.set()
        await made.close()
        return signature.calls, [task.cancelled() for task in tasks]

    calls, cancelled = asyncio.run(asyncio.wait_for(main(), 60))
    assert calls == [[2000], [20, 30]] and cancelled == [False, True, False, False]


def test_padding_may_be_without_limit_or_none():
    sizes = [2000, 10, 2000]
    assert batches_of(sizes, padding=1.0)[0] == [sizes]
    assert batches_of(sizes, padding=0.0, micros=20_000)[0] == [[2000, 2000], [10]]


def test_window_ends_a_batch_that_is_not_full():
    async def main():
        made, signature = batcher(micros=20_000), Doubling()
        results = await gathered(*(made.run(signature, inputs(i)) for i in range(3)))
        await made.close()
        return signature.calls, results

    calls, results = asyncio.run(main())
    assert calls == [[0, 1, 2]]
    assert [r["y"].tolist() for r in results] == [[0], [2], [4]]


def test_bad_request_does_not_spoil_the_others():
    async def main():
        made, signature = batcher(size=4), Doubling()
        results = await gathered(*(made.run(signature, inputs(i)) for i in (1, -2, 3, -4)))
        await made.close()
        return signature.calls, results

    calls, (one, two, three, four) = asyncio.run(main())
    assert calls == [[1, -2, 3, -4], [1], [-2], [3], [-4]]
    assert (one["y"].tolist(), three["y"].tolist()) == ([2], [6])
    assert (str(two), str(four)) == ("below 0: [-2]", "below 0: [-4]")


def test_only_what_fits_together_is_joined():
    async def main():
        made, signature, other = batcher(size=2), Doubling(), Doubling()
        results = await gathered(
            made.run(signature, {"x": np.ones((1, 3))}),
            made.run(signature, {"x": np.ones((1, 2))}),
            made.run(other, {"x": np.ones((1, 3))}),
            made.run(signature, {"x": np.ones((1, 3)) + 1}),
            made.run(signature, {"x": np.ones((1, 2)) + 1}),
            made.run(other, {"x": np.ones((1, 3)) + 1}),
            # More rows than a batch has, or none: alone and at once.
            made.run(signature, {"x": np.ones((3, 2))}),
            made.run(signature, {"x": np.ones((0, 2))}),
        )
        await made.close()
        return signature.calls, other.calls, results

    calls, others, results = asyncio.run(main())
    assert sorted(map(len, calls)) == [0, 2, 2, 3] and len(others) == 1
    assert [r["y"].shape for r in results] == [
        (1, 3),
        (1, 2),
        (1, 3),
        (1, 3),
        (1, 2),
        (1, 3),
        (3, 2),
        (0, 2),
    ]


def test_outputs_without_a_batch_dimension_are_not_cut():
    class Mean(Doubling):
        def __call__(self, inputs):
            self.calls.append(inputs["x"].tolist())
            return {"mean": inputs["x"].mean()}

    async def main():
        made, signature = batcher(size=2), Mean()
        results = await gathered(*(made.run(signature, inputs(i)) for i in (1, 3)))
        results += await gathered(*(made.run(signature, inputs(i)) for i in (5,)))
        await made.close()
        return signature.calls, [float(r["mean"]) for r in results]

    assert asyncio.run(main()) == ([[1, 3], [1], [3], [5]], [1.0, 3.0, 5.0])


def test_full_queue_refuses():
    async def main():
        gate = threading.Event()
        made, signature = batcher(size=1, room=2), Doubling(gate)
        running = asyncio.create_task(made.run(signature, inputs(1)))
        await asyncio.to_thread(signature.begun.wait)
        waiting = [asyncio.create_task(made.run(signature, inputs(i))) for i in (2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(ServingError) as caught:
            await made.run(signature, inputs(4))
        # One that is given up makes room, and never runs.
        waiting[0].cancel()
        await gathered(waiting[0])
        made.check_room()
        gate.set()
        results = await gathered(running, waiting[1])
        await made.close()
        return caught.value, signature.calls, results

    error, calls, results = asyncio.run(main())
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.http_status == 429
    assert calls == [[1], [3]] and [r["y"].tolist() for r in results] == [[2], [6]]


def test_client_that_leaves_while_its_batch_runs():
    async def main():
        gate = threading.Event()
        made, signature = batcher(size=2), Doubling(gate)
        both = [asyncio.create_task(made.run(signature, inputs(i))) for i in (1, 2)]
        await asyncio.to_thread(signature.begun.wait)
        both[0].cancel()
        gate.set()
        results = await gathered(*both)
        await made.close()
        return results

    left, stayed = asyncio.run(main())
    assert isinstance(left, asyncio.CancelledError) and stayed["y"].tolist() == [4]


def waiting(server, requests):
    return f"bert_tf:serving:waiting_requests {requests}.0" in server.metrics()


@contextlib.contextmanager
def grpc_stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def grpc_request(name):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1])))
    return request


def ask_together(server, requests):
    """Answers to requests that are under way at the same time."""
    answers = [None] * len(requests)

    def ask(i):
        answers[i] = server.post(*requests[i])

    threads = [threading.Thread(target=ask, args=[i]) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_server_pads_answers_to_the_longest_of_the_batch(tmp_path):
    models = [m for m in stand_ins.save_tasks(tmp_path) if m[0] == "masks"]
    texts = ["a [MASK]", "[MASK] [MASK]", "nothing"]
    options = {"max_batch_size": 3, "batch_timeout_micros": HOUR}
    with stand_ins.running(models, **options) as server:
        path = "/v1/models/masks:predict"
        answers = ask_together(server, [(path, {"instances": [text]}) for text in texts])
        assert 'bert_tf:serving:batch_size_sum{model_name="masks"} 3.0' in server.metrics()
    for count, (status, answer) in zip((1, 2, 0), answers, strict=True):
        real, padding = ["number", "##ed"], ["", ""]
        assert (status, answer["predictions"][0]["mask_count"]) == (200, count)
        assert answer["predictions"][0]["tokens"] == [real] * count + [padding] * (2 - count)


def test_server_joins_requests_of_an_exported_model(tmp_path, model, vocab_file):  # noqa: F811
    pytest.importorskip("tensorflow_text")
    export_saved_model(test_saved_model.fill_mask_of(model, vocab_file), tmp_path / "fill")
    sentences = test_saved_model.SENTENCES
    options = {"max_batch_size": len(sentences), "max_row_padding": 1, "batch_timeout_micros": HOUR}
    path = "/v1/models/fill:predict"
    with stand_ins.running([("fill", str(tmp_path / "fill"))], **options) as server:
        together = ask_together(server, [(path, {"instances": [s]}) for s in sentences])
        assert 'bert_tf:serving:batch_size_count{model_name="fill"} 1.0' in server.metrics()
    for sentence, (status, answer) in zip(sentences, together, strict=True):
        assert status == 200
        (row,) = answer["predictions"]
        tokens, scores = test_saved_model.expected(model, vocab_file, sentence)
        count = row["mask_count"]
        assert row["tokens"][:count] == tokens
        np.testing.assert_allclose(np.ravel(row["scores"][:count]), np.ravel(scores), rtol=1e-5)


def test_server_when_its_queue_is_full(tmp_path):
    stand_ins.save_half_plus(tmp_path / "two" / "1", 2)
    path, request = "/v1/models/two:predict", {"instances": [1.0]}
    # Two requests wait for two more, which are refused, until the server ends.
    options = {"max_batch_size": 4, "batch_timeout_micros": HOUR, "max_enqueued_requests": 2}
    with stand_ins.running([("two", str(tmp_path / "two"))], **options) as server:
        answers = []
        asking = threading.Thread(
            target=lambda: answers.extend(ask_together(server, [(path, request)] * 2))
        )
        asking.start()
        server.wait_for(lambda: waiting(server, 2))
        status, headers, answer = server.send("POST", path, json.dumps(request))
        assert status == 429 and b"queue is full" in answer
        assert headers["retry-after"] == "1"
        with pytest.raises(grpc.RpcError) as caught, grpc_stub(server) as stub:
            stub.Predict(grpc_request("two"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        server.ask_to_stop()
        asking.join()
        assert answers == [(200, {"predictions": [2.5]})] * 2


def test_requests_of_clients_that_left_do_not_run(tmp_path):
    stand_ins.save_half_plus(tmp_path / "two" / "1", 2)
    options = {"max_batch_size": 3, "batch_timeout_micros": HOUR}
    with stand_ins.running([("two", str(tmp_path / "two"))], **options) as server:
        body = b'{"instances": [1.0]}'
        head = (
            "POST /v1/models/two:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", server.ports.rest)) as client:
            client.sendall(head.encode() + body)
            server.wait_for(lambda: waiting(server, 1))
        server.wait_for(lambda: waiting(server, 0))
        with grpc_stub(server) as stub:
            asking = stub.Predict.future(grpc_request("two"))
            server.wait_for(lambda: waiting(server, 1))
            asking.cancel()
            server.wait_for(lambda: waiting(server, 0))
        assert "batch_size_count" not in server.metrics()
        path = "/v1/models/two:predict"
        answers = ask_together(server, [(path, {"instances": [1.0 + i]}) for i in range(3)])
        assert answers == [(200, {"predictions": [2.5 + i / 2]}) for i in range(3)]


def test_bad_row_among_requests_of_the_server(tmp_path):
    models = [m for m in stand_ins.save_tasks(tmp_path) if m[0] == "answers"]
    good = {"question": "q", "context": "a long enough context"}
    bad = {"question": "q", "context": "short"}  # The stand-in cuts beyond its end.
    options = {"max_batch_size": 3, "batch_timeout_micros": HOUR}
    with stand_ins.running(models, **options) as server:
        path = "/v1/models/answers:predict"
        answers = ask_together(server, [(path, {"instances": [c]}) for c in (good, bad, good)])
        assert [status for status, _ in answers] == [200, 400, 200]
        assert answers[0][1]["predictions"][0]["answer"] == " enou"
        assert "out of range" in answers[1][1]["error"]
        assert 'batches_run_singly{model_name="answers"} 1.0' in server.metrics()
