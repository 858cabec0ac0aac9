"""The development server: its models and its two ports."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import pathlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import tensorflow as tf

# starlette with uvicorn: the reference pair of ASGI, small, and it shares gRPC's event loop.
import uvicorn

from bert_tf.options import check
from experiments.model_server.batching import Batcher
from experiments.model_server.connections import BoundedProtocol
from experiments.model_server.core import ServingCore
from experiments.model_server.explaining import Explainer
from experiments.model_server.grpc import grpc_server
from experiments.model_server.http import http_app
from experiments.model_server.metrics import ServingMetrics
from experiments.model_server.models import ModelManager, ModelSource
from experiments.model_server.options import ServerOptions, VersionPolicy
from experiments.model_server.start import check_folders

_LOGGER = logging.getLogger("serving")


@dataclasses.dataclass(frozen=True)
class Ports:
    """Where a server listens; None where it does not."""

    rest: int | None
    grpc: int | None


def run(options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT; see `serve`."""
    logging.basicConfig(format="serve: %(message)s", level=logging.WARNING, force=True)
    _LOGGER.setLevel(logging.INFO)
    tf.get_logger().setLevel("ERROR")

    def listening(ports: Ports) -> None:
        if ports.rest is not None:
            print(f"REST API and page: http://{address_of(options.host, ports.rest)}/", flush=True)
        if ports.grpc is not None:
            print(f"gRPC API: {address_of(options.host, ports.grpc)}", flush=True)

    async def serve_until_signal() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def end(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)  # The second one does not wait.
            _LOGGER.info("%s: finishing what was accepted", number.name)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, number)
        await serve(options, stop, listening)

    asyncio.run(serve_until_signal())


class _WebServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # Signals are for the caller, who has gRPC to end as well.


async def serve(
    options: ServerOptions, stop: asyncio.Event, listening: Callable[[Ports], None]
) -> None:
    """Serve until told to stop; then finish what was accepted and refuse what comes.

    Args:
        options: what to serve, and where.
        stop: set it to end.
        listening: called once requests can come; the models may still be loading.

    Raises:
        OSError: a port cannot be had, or a model's folder is not there.
        ValueError: an option is out of range.
    """
    check(options)
    check_folders(options)
    metrics = ServingMetrics()
    default = VersionPolicy(options.num_versions)
    sources = [
        ModelSource(name, pathlib.Path(folder), options.policies.get(name, default))
        for name, folder in options.models
    ]
    models = ModelManager(sources, options.request_timeout_seconds)
    batcher = Batcher(options, metrics)
    core, explainer = ServingCore(models, batcher, options), Explainer(options)
    rpc_server = rpc_port = None
    if options.port >= 0:
        rpc_server, rpc_port = grpc_server(
            core, metrics, address_of(options.host, options.port), options
        )
    listener = _listener(options)
    web_server = _web_server(options, core, explainer, metrics)
    watching = asyncio.create_task(models.watch(options.file_system_poll_wait_seconds))
    web = [asyncio.create_task(web_server.serve(sockets=[listener]))] if listener else []
    if rpc_server:
        await rpc_server.start()
    listening(Ports(listener and listener.getsockname()[1], rpc_port))
    stopping = asyncio.create_task(stop.wait())
    tasks: list[asyncio.Task[Any]] = [watching, *web, stopping]
    try:
        # Watching and the web server end before the order to stop only where they fail.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        web_server.should_exit = True
        batcher.drain()
        endings = [rpc_server.stop(options.shutdown_seconds)] if rpc_server else []
        await asyncio.gather(*web, *endings, return_exceptions=True)
        await batcher.close()
        await explainer.close()
        watching.cancel()
        stopping.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await models.close()


def _listener(options: ServerOptions) -> socket.socket | None:
    """Return the socket of HTTP, which listens already; None where there is none."""
    if options.rest_api_port < 0:
        return None
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    return socket.create_server((options.host, options.rest_api_port), family=family)


def _web_server(
    options: ServerOptions, core: ServingCore, explainer: Explainer, metrics: ServingMetrics
) -> _WebServer:
    return _WebServer(
        uvicorn.Config(
            http_app(core, explainer, metrics, options),
            # h11, since httptools has no bound on a head.
            http=cast(Any, functools.partial(BoundedProtocol, options)),
            h11_max_incomplete_event_size=options.max_header_bytes,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=options.shutdown_seconds,
        )
    )


def address_of(host: str, port: int) -> str:
    """Return an address and port as a browser takes them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
