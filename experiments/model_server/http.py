"""The development server on HTTP: TF Serving's REST API, health, metrics and the page."""

from __future__ import annotations

import asyncio
import pathlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from experiments.model_server.core import SIGNATURE_DEF, ServingCore
from experiments.model_server.explaining import (
    Explainer,
    explain_columns,
    explain_response,
    explain_settings,
)
from experiments.model_server.metrics import ServingMetrics
from experiments.model_server.options import ServerOptions
from experiments.model_server.rest import (
    Call,
    classify_response,
    error_response,
    example_input,
    json_bytes,
    metadata_response,
    parse_body,
    parse_path,
    predict_inputs,
    predict_response,
    regress_response,
    signature_name,
    status_response,
)
from experiments.model_server.status import ServingError, as_serving_error, invalid_argument

_T = TypeVar("_T")

PAGE = pathlib.Path(__file__).with_name("page")
_PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# The page may load nothing from elsewhere, whatever a model's answer says.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # another version may come on the same port
}
_ERROR_HEADERS = {
    408: {"Connection": "close"},
    415: {"Connection": "close"},
    413: {"Connection": "close"},
    429: {"Retry-After": "1"},
}
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# JSON of more bytes than this is read and written in a thread, so that others need not wait.
_MAX_INLINE_BYTES = 1 << 16


async def _apart_if_large(size: int, function: Callable[..., _T], *args: Any) -> _T:
    if size <= _MAX_INLINE_BYTES:
        return function(*args)
    return await asyncio.to_thread(function, *args)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def _error(error: ServingError) -> Response:
    # The rest of a request that is too large is not read: the connection cannot go on.
    headers = _ERROR_HEADERS.get(error.http_status)
    return _json(error_response(error.message), error.http_status, headers)


def _too_large(max_bytes: int) -> ServingError:
    return ServingError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"the request is larger than {max_bytes} bytes", 413
    )


def gunzip(body: bytes, max_bytes: int) -> bytes:
    """Return what a gzip body holds; never is more made than is allowed.

    Raises:
        ServingError: status 413, it holds more than max_bytes; or it is not one gzip stream.
    """
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        text = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise invalid_argument(f"Content-Encoding: gzip: {error}") from error
    if len(text) > max_bytes:
        raise _too_large(max_bytes)
    if not stream.eof:
        raise invalid_argument("Content-Encoding: gzip: the stream ends early")
    if stream.unused_data:
        raise invalid_argument("Content-Encoding: gzip: bytes follow the end of the stream")
    return text


async def read_body(request: Request, options: ServerOptions) -> bytes:
    """Return the body of a request, decompressed where it is gzip.

    Raises:
        ServingError: status 413, it is larger than may be, as it came or decompressed; 415, it has
            another encoding; 408, it does not come in time; see also `gunzip`.
        ClientDisconnect: the client left before its end.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise ServingError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"Content-Encoding: expected gzip or identity, got {encoding[:80]!r}",
            415,
        )
    max_bytes, seconds = options.max_request_bytes, options.read_timeout_seconds
    try:
        async with asyncio.timeout(seconds):
            body = await _read_raw(request, max_bytes)
    except TimeoutError:
        raise ServingError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"the request did not come within {seconds:g} seconds",
            408,
        ) from None
    if encoding in ("gzip", "x-gzip"):
        return await _apart_if_large(len(body), gunzip, body, max_bytes)
    return body


async def _read_raw(request: Request, max_bytes: int) -> bytes:
    """Return the body as it came."""
    too_large = _too_large(max_bytes)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise too_large
        parts.append(part)
    return b"".join(parts)


async def _unless_gone(request: Request, answer: Any) -> Any:
    """Return the result of a coroutine; it is cancelled when the client leaves before.

    Raises:
        ClientDisconnect: the client left.
    """
    answering = asyncio.ensure_future(answer)
    # Once the body is read, what comes next from the client can only be that it has left.
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        for task in (answering, leaving):
            task.cancel()


class _RestApi:
    """The handler of everything under /v1."""

    def __init__(
        self,
        core: ServingCore,
        explainer: Explainer,
        metrics: ServingMetrics,
        options: ServerOptions,
    ):
        self._core, self._explainer, self._metrics = core, explainer, metrics
        self._options = options

    async def __call__(self, request: Request) -> Response:
        begun = time.perf_counter()
        code, name, method = grpc.StatusCode.OK, "", ""
        try:
            if request.method == "OPTIONS" and request.headers.get("origin"):
                return _json(b"")  # A preflight of an origin that may not go on.
            path = request.scope["raw_path"].decode("latin-1")
            call = parse_path(request.method, path)
            name, method = call.spec.name, call.method.title()
            if request.method == "GET":
                return _json(self._look_up(call))
            self._core.batcher.check_room()
            body = await read_body(request, self._options)
            return _json(await _unless_gone(request, self._compute(call, body)))
        except ClientDisconnect:
            code = grpc.StatusCode.CANCELLED
            return Response(status_code=499)
        except ServingError as error:
            code = error.code
            return _error(error)
        except Exception as error:
            failure = as_serving_error(error)
            code = failure.code
            return _error(failure)
        finally:
            name = name if name in self._core.models.names else ""
            self._metrics.request(name, method, "REST", code, time.perf_counter() - begun)

    def _look_up(self, call: Call) -> bytes:
        if call.method == "metadata":
            return metadata_response(self._core.metadata(call.spec, [SIGNATURE_DEF]))
        return status_response(self._core.status(call.spec))

    async def _compute(self, call: Call, body: bytes) -> bytes:
        # The body first, as in TF Serving: what is no JSON is that whatever model it is for.
        request = await _apart_if_large(len(body), parse_body, body)
        if call.method == "explain":
            return await self._explain(call, request)
        name = signature_name(request)
        call.spec.signature_name = name
        if call.method != "predict":
            examples = await _apart_if_large(len(body), example_input, request)
            if call.method == "classify":
                response = await self._core.classify(
                    ClassificationRequest(model_spec=call.spec, input=examples)
                )
                return classify_response(response.result)
            response = await self._core.regress(
                RegressionRequest(model_spec=call.spec, input=examples)
            )
            return regress_response(response.result)
        servable = self._core.servable(call.spec)
        with servable.in_use():
            signature = servable.signature(name)
            inputs, in_rows = await _apart_if_large(
                len(body), predict_inputs, request, signature.inputs
            )
            outputs = await self._core.predict(servable, name, inputs)
        size = sum(array.size for array in outputs.values()) * 8
        return await _apart_if_large(size, predict_response, outputs, in_rows)

    async def _explain(self, call: Call, request: Mapping[str, Any]) -> bytes:
        servable = self._core.servable(call.spec)
        model = self._explainer.model(servable.model_name)
        settings = explain_settings(request, self._options.max_explain_steps)
        named, _ = predict_inputs(request, servable.signature("").inputs)
        inputs = {spec.name: named[spec.name] for spec in model.answer.input_signature}
        for name, array in inputs.items():
            self._core.check_work(name, array)
        columns = explain_columns(inputs)
        return explain_response(await self._explainer.explain(model, columns, settings))


def http_app(
    core: ServingCore, explainer: Explainer, metrics: ServingMetrics, options: ServerOptions
) -> ASGIApp:
    """Return the web application.

    Args:
        core: what answers.
        explainer: what explains answers.
        metrics: what counts.
        options: the bounds on a request.
    """
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in _PAGE_TYPES}

    async def page(request: Request) -> Response:
        path = files.get(request.path_params.get("name", "index.html"))
        if path is None:
            return await other(request)
        media_type = _PAGE_TYPES[path.suffix]
        return Response(path.read_bytes(), headers=_PAGE_HEADERS, media_type=media_type)

    async def live(request: Request) -> Response:
        return _json(b'{"status":"live"}')

    async def ready(request: Request) -> Response:
        if core.ready:
            return _json(b'{"status":"ready"}')
        return _json(error_response("not every model is loaded, or the server ends"), 503)

    async def models(request: Request) -> Response:
        return _json(json_bytes({"models": core.models.names, "explained": explainer.names}))

    async def card(request: Request) -> Response:
        try:
            text = core.models.get(request.path_params["name"]).card()
        except ServingError as error:
            return _error(error)
        if text is None:
            return Response(status_code=204)
        # As plain text, so that a browser makes nothing of what may stand in it.
        headers = {"X-Content-Type-Options": "nosniff"}
        return Response(text, headers=headers, media_type="text/plain; charset=utf-8")

    async def prometheus(request: Request) -> Response:
        body, content_type = metrics.page()
        return Response(body, media_type=content_type)

    async def other(request: Request) -> Response:
        message = f"Malformed request: {request.method} {request.url.path}"
        return _json(error_response(message), 404)

    rest = _RestApi(core, explainer, metrics, options)

    async def rest_api(request: Request) -> Response:
        return await rest(request)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/page/{name}", page),
            Route("/healthz", live),
            Route("/readyz", ready),
            Route("/models", models),
            Route("/models/{name:path}/card", card),
            Route("/monitoring/prometheus/metrics", prometheus),
            Route("/v1/{rest:path}", rest_api, methods=_METHODS),
            Route("/{rest:path}", other, methods=_METHODS),
        ],
        middleware=_cors(options.cors_origin),
    )


def _cors(origins: Sequence[str] | None) -> list[Middleware]:
    """Return what lets pages of other origins call; nothing where there are none."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type", "Content-Encoding"],
            expose_headers=["Retry-After"],
        )
    ]
