"""The development server: its options, its models and its two ports."""

import asyncio
import contextlib
import dataclasses
import pathlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

NEEDED = ("starlette", "uvicorn", "prometheus_client", "tensorflow_serving")


def _option(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """What the flags say, which have the same names and defaults.

    Attributes:
        models: name and folder of each model.
    """

    models: Sequence[tuple[str, str]]
    host: str = _option("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.")
    rest_api_port: int = _option(8501, "Port of HTTP; 0 takes a free one, below 0 there is none.")
    port: int = _option(8500, "Port of gRPC; 0 takes a free one, below 0 there is none.")
    num_versions: int = _option(1, "How many of a model's newest versions are loaded; 0 for all.")
    file_system_poll_wait_seconds: float = _option(1.0, "Seconds between looks for new versions.")
    max_batch_size: int = _option(32, "Rows of a batch at most; a larger request runs alone.")
    batch_timeout_micros: int = _option(1000, "How long a request waits for others to join it.")
    num_batch_threads: int = _option(2, "Batches that run at once.")
    max_enqueued_requests: int = _option(256, "Requests that wait; one more gets status 429.")
    max_request_bytes: int = _option(1 << 24, "Size of a request; a larger one gets status 413.")
    shutdown_seconds: int = _option(30, "How long requests under way may take at the end.")


SERVER_FIELDS = [field for field in dataclasses.fields(ServerOptions) if field.metadata]


@dataclasses.dataclass(frozen=True)
class Ports:
    """Where a server listens; None where it does not."""

    rest: int | None
    grpc: int | None


def check_folders(options: ServerOptions) -> None:
    """Refuse a folder of models that is not there."""
    for name, folder in options.models:
        if not pathlib.Path(folder).is_dir():
            raise NotADirectoryError(f"model_base_path: {folder!r} of {name} is not a folder")


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
    # starlette with uvicorn: the reference pair of ASGI, small, and it shares gRPC's event loop.
    import uvicorn

    from experiments.model_server.batching import Batcher, BatchingOptions
    from experiments.model_server.core import ServingCore
    from experiments.model_server.grpc import grpc_server
    from experiments.model_server.http import http_app
    from experiments.model_server.metrics import ServingMetrics
    from experiments.model_server.models import ModelManager, ModelSource

    class WebServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # Signals are for the caller, who has gRPC to end as well.

    check_folders(options)
    metrics = ServingMetrics()
    batching = BatchingOptions(
        options.max_batch_size,
        options.batch_timeout_micros,
        options.num_batch_threads,
        options.max_enqueued_requests,
    )
    models = ModelManager(
        [ModelSource(name, pathlib.Path(folder)) for name, folder in options.models],
        options.num_versions,
    )
    batcher = Batcher(batching, metrics)
    core = ServingCore(models, batcher, options.max_request_bytes)
    listener = rpc_server = rpc_port = None
    if options.port >= 0:
        rpc_server, rpc_port = grpc_server(
            core, metrics, address_of(options.host, options.port), options.max_request_bytes
        )
    if options.rest_api_port >= 0:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.rest_api_port), family=family)

    web_server = WebServer(
        uvicorn.Config(
            http_app(core, metrics, options.max_request_bytes),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=options.shutdown_seconds,
        )
    )
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(models.watch(options.file_system_poll_wait_seconds))
    ]
    if listener:
        tasks.append(asyncio.create_task(web_server.serve(sockets=[listener])))
    if rpc_server:
        await rpc_server.start()
    listening(Ports(listener and listener.getsockname()[1], rpc_port))
    tasks.append(asyncio.create_task(stop.wait()))
    try:
        # Watching and the web server end before the order to stop only where they fail.
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        web_server.should_exit = True
        batcher.drain()
        endings = tasks[1:-1] + ([rpc_server.stop(options.shutdown_seconds)] if rpc_server else [])
        await asyncio.gather(*endings, return_exceptions=True)
        await batcher.close()
        for task in (tasks[0], tasks[-1]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await models.close()


def address_of(host: str, port: int) -> str:
    """Return an address and port as a browser takes them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
