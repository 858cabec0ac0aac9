r"""Load the development server until it is saturated, and see what becomes of it.

    python experiments/benchmarks/load.py --model_base_path=exported/mini --minutes=10 \
      --requests_file=requests.jsonl

For each --batch_timeout_micros and --max_row_padding it starts experiments/serve.py on free ports
of loopback and, in processes of their own, clients that send one request after another on
connections that stay open. One client process is killed every --kill_seconds and another takes its
place; what a killed one had not yet told is not counted. Prints for each: requests per second, the
server's CPU time, latency as clients see it, errors, and the server's memory over time;
--output_file gets them as JSON.

--requests_file has one JSON body of a :predict request a line; without it, the text of --text.
"""

import contextlib
import dataclasses
import http.client
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bert_tf.options import option
from experiments.benchmarks import harness
from experiments.benchmarks.harness import Figures


@dataclasses.dataclass(frozen=True)
class Options(harness.BenchmarkOptions):
    """Options of the benchmark."""

    model_base_path: str = option(None, "Folder of the model's versions.", required=True)
    requests_file: str | None = option(None, "JSON bodies, one a line.")
    text: tuple[str, ...] = option(
        ("The capital of France is [MASK].",), "Text of a request.", repeated=True
    )
    batch_timeout_micros: tuple[int, ...] = option((0, 1000, 5000), "Windows.", repeated=True)
    max_batch_size: int = option(32, "Rows of a batch at most.")
    max_row_padding: tuple[float, ...] = option(
        (0.5,), "Part of a row that may be padding.", repeated=True
    )
    num_batch_threads: int = option(2, "Batches that run at once.")
    num_processes: int = option(2, "Client processes.")
    num_connections: int = option(16, "Connections of each process.")
    minutes: float = option(1.0, "Minutes for each window.")
    kill_seconds: float = option(10.0, "Seconds between killed clients; 0 kills none.")


_SERVER = pathlib.Path(__file__).resolve().parents[1] / "serve.py"
# Requests until then warm the server up: TensorFlow optimizes a graph when it first runs.
_WARM_UP_SECONDS = 3.0


def _client(port: int, path: str, bodies: list[bytes], connections: int, pipe: Any) -> None:
    """Send requests for ever, and send latencies and errors through the pipe once a second."""
    lock, latencies, errors = threading.Lock(), [], []

    def send(seed: int) -> None:
        order = random.Random(seed)
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with contextlib.closing(connection):
                try:
                    while True:
                        begun = time.perf_counter()
                        connection.request("POST", path, order.choice(bodies))
                        response = connection.getresponse()
                        answer = response.read()
                        seconds = time.perf_counter() - begun
                        with lock:
                            latencies.append(seconds)
                            if response.status != 200:
                                errors.append(f"{response.status} {answer[:200]!r}")
                except (OSError, http.client.HTTPException) as error:
                    with lock:
                        errors.append(repr(error))
                    time.sleep(0.1)

    for number in range(connections):
        threading.Thread(target=send, args=[number], daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        while True:
            time.sleep(1)
            with lock:
                news = latencies.copy(), errors.copy()
                latencies.clear()
                errors.clear()
            pipe.send(news)


class _Clients:
    """Client processes, one of which can be killed and replaced."""

    def __init__(self, options: Options, port: int, path: str, bodies: list[bytes]):
        self._arguments = (port, path, bodies, options.num_connections)
        self._context = multiprocessing.get_context("spawn")
        self._running = [self._start() for _ in range(options.num_processes)]
        self.killed = 0

    def _start(self) -> tuple[Any, multiprocessing.connection.Connection]:
        here, there = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_client, args=(*self._arguments, there), daemon=True)
        process.start()
        there.close()
        return process, here

    def collect(self) -> tuple[list[float], list[str]]:
        """Return latencies and errors since the last time."""
        latencies, errors = [], []
        for _, pipe in self._running:
            with contextlib.suppress(EOFError):
                while pipe.poll():
                    new_latencies, new_errors = pipe.recv()
                    latencies += new_latencies
                    errors += new_errors
        return latencies, errors

    def kill_one(self) -> None:
        """Kill the oldest, with its requests under way, and start another."""
        process, pipe = self._running.pop(0)
        process.kill()
        process.join()
        pipe.close()
        self.killed += 1
        self._running.append(self._start())

    def end(self) -> None:
        """Kill them all."""
        for process, _ in self._running:
            process.kill()
            process.join()


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def _metric(port: int, name: str) -> float:
    """Return a value of the server's metrics; not a number where there is none."""
    page = _get(port, "/monitoring/prometheus/metrics")[1].decode()
    match = re.search(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    return float(match[1]) if match else float("nan")


def _memory_mib(port: int) -> float:
    return round(_metric(port, "process_resident_memory_bytes") / 2**20, 1)


def _cpu_seconds(port: int) -> float:
    return _metric(port, "process_cpu_seconds_total")


@contextlib.contextmanager
def _server(
    options: Options, window: int, padding: float
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield the server, ready; its process and port."""
    command = [
        sys.executable,
        str(_SERVER),
        f"--model_base_path={options.model_base_path}",
        "--model_name=model",
        "--rest_api_port=0",
        "--port=-1",
        f"--batch_timeout_micros={window}",
        f"--max_row_padding={padding}",
        f"--max_batch_size={options.max_batch_size}",
        f"--num_batch_threads={options.num_batch_threads}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            if not line:
                raise RuntimeError("the server did not start; see above")
            port = int(line.rsplit(":", 1)[1].strip("/\n"))
            while _get(port, "/readyz")[0] != 200:
                if "END" in str(_get(port, "/v1/models/model")[1]):
                    raise RuntimeError("the model did not load; see above")
                time.sleep(0.1)
            yield process, port
        finally:
            process.terminate()


def _measure(options: Options, window: int, padding: float, bodies: list[bytes]) -> Figures:
    """Return the figures of one window and bound of padding."""
    with _server(options, window, padding) as (process, port):
        clients = _Clients(options, port, "/v1/models/model:predict", bodies)
        try:
            time.sleep(_WARM_UP_SECONDS)
            clients.collect()
            begun, latencies, errors, memory = time.monotonic(), [], [], []
            next_kill = begun + (options.kill_seconds or float("inf"))
            end = begun + options.minutes * 60
            next_reading, cpu = begun, _cpu_seconds(port)
            while (now := time.monotonic()) < end:
                new_latencies, new_errors = clients.collect()
                latencies += new_latencies
                errors += new_errors
                if now >= next_reading:
                    memory.append(_memory_mib(port))
                    next_reading += options.minutes * 60 / 20
                if now >= next_kill:
                    clients.kill_one()
                    next_kill += options.kill_seconds
                time.sleep(0.2)
            seconds, cpu = time.monotonic() - begun, _cpu_seconds(port) - cpu
            batch_rows, batches = (
                _metric(port, f"bert_tf:serving:batch_size_{kind}") for kind in ("sum", "count")
            )
        finally:
            clients.end()
        memory.append(_memory_mib(port))
        process.terminate()
        status = process.wait()
    if not latencies:
        raise RuntimeError(f"no answers within {options.minutes} minutes: {errors[:3]}")
    p50, p95, p99 = (round(1e3 * float(q), 2) for q in np.percentile(latencies, [50, 95, 99]))
    return {
        "batch_timeout_micros": window,
        "max_row_padding": padding,
        "seconds": round(seconds, 1),
        "requests": len(latencies),
        "requests_per_second": round(len(latencies) / seconds, 1),
        "server_cpu_ms_per_request": round(1e3 * cpu / len(latencies), 2),
        "latency_p50_ms": p50,
        "latency_p95_ms": p95,
        "latency_p99_ms": p99,
        "mean_batch_rows": round(batch_rows / max(batches, 1), 2),
        "errors": len(errors),
        "first_errors": errors[:3],
        "killed_clients": clients.killed,
        "memory_mib": memory,
        "exit_status": status,
    }


def compare(options: Options) -> None:
    """Measure all windows and bounds of padding; print the figures of each as a line of JSON."""
    if options.requests_file:
        lines = pathlib.Path(options.requests_file).read_bytes().splitlines()
        bodies = [line for line in lines if line.strip()]
    else:
        bodies = [json.dumps({"instances": [text]}).encode() for text in options.text]
    if not bodies:
        raise ValueError("--requests_file: expected at least one line")
    rows = []
    cases = itertools.product(options.batch_timeout_micros, options.max_row_padding)
    for window, padding in cases:
        rows.append(_measure(options, window, padding, bodies))
        print(json.dumps(rows[-1]), flush=True)
    harness.write_figures(options, cores=os.cpu_count(), windows=rows)


if __name__ == "__main__":
    harness.run_benchmark(Options, compare)
