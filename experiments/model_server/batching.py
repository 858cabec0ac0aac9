"""Dynamic batching: requests of one signature that come within a small window run as one.

Requests join where their arrays agree in everything but the first dimension, the batch. What comes
out is cut along the first dimension again, so that a request gets its own rows; outputs that are
padded to the longest row are padded to the longest of the batch, as in TF Serving. Texts of unlike
lengths run apart: a model computes as much for padding as for text.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
from typing import Protocol

import grpc
import numpy as np

from bert_tf.serving.like_lengths import row_padding
from experiments.model_server.metrics import ServingMetrics
from experiments.model_server.options import ServerOptions
from experiments.model_server.status import ServingError

Arrays = dict[str, np.ndarray]


class Batchable(Protocol):
    """A signature: computes without side effects, in any thread."""

    model_name: str
    # False once its outputs were seen not to have the batch as their first dimension.
    batchable: bool

    def __call__(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name for inputs by name."""
        ...


@dataclasses.dataclass(eq=False)
class _Request:
    signature: Batchable
    inputs: Arrays
    rows: int
    longest: int  # bytes of the longest row's texts
    future: asyncio.Future[Arrays]
    arrived: float


def _longest_row(inputs: Arrays) -> int:
    """Return the most bytes of text that a row has; other values have one shape and no padding."""
    texts = [array for array in inputs.values() if array.dtype == object]
    rows = len(texts[0]) if texts else 0
    sizes = (
        sum(len(text) for array in texts for text in np.ravel(array[row])) for row in range(rows)
    )
    return max(sizes, default=0)


def _common_rows(inputs: Arrays) -> int | None:
    """Return the first dimension of all arrays; None where they have none, or not the same."""
    rows = {array.shape[0] if array.ndim else None for array in inputs.values()}
    return rows.pop() if len(rows) == 1 else None


def _run(signature: Batchable, inputs: Arrays) -> Arrays | Exception:
    try:
        return signature(inputs)
    except Exception as error:  # Whatever went wrong is the answer to this request alone.
        return error


def _run_together(
    signature: Batchable, requests: list[Arrays]
) -> list[Arrays] | list[ServingError] | None:
    """Return each request's outputs of one run of all; None where the run does not come apart."""
    rows = [next(iter(inputs.values())).shape[0] for inputs in requests]
    joined = {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}
    try:
        outputs = signature(joined)
    except Exception as error:
        if isinstance(error, ServingError) and error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return [error] * len(requests)  # Alone they would take as long again, each.
        # One bad request among them: each finds out alone.
        return None
    if any(array.ndim == 0 or array.shape[0] != sum(rows) for array in outputs.values()):
        signature.batchable = False
        return None
    ends = np.cumsum(rows)
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for count, end in zip(rows, ends, strict=True)
    ]


class Batcher:
    """Queue in front of the signatures; to be used in one event loop.

    Args:
        options: sizes and window.
        metrics: where batches are counted.

    Attributes:
        draining: whether the server ends.
    """

    def __init__(self, options: ServerOptions, metrics: ServingMetrics):
        self._options, self._metrics = options, metrics
        self._groups: dict[object, collections.deque[_Request]] = {}
        self._waiting, self.draining = 0, False
        self._idle_threads = options.num_batch_threads
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._executor = concurrent.futures.ThreadPoolExecutor(
            options.num_batch_threads, thread_name_prefix="batch"
        )

    def check_room(self) -> None:
        """Raise where a request would be refused, so that it need not be read first.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, the queue is full.
        """
        if self._waiting >= self._options.max_enqueued_requests:
            raise ServingError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the queue is full: {self._waiting} requests wait; try again later",
            )

    async def run(self, signature: Batchable, inputs: Arrays) -> Arrays:
        """Return what the signature makes of the inputs, run by itself or with others.

        Args:
            signature: what to run.
            inputs: arrays by name.

        Returns:
            Arrays by name; only the rows of this request.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, the queue is full.
            Exception: what the signature raises for these inputs.
        """
        self.check_room()
        rows = _common_rows(inputs) if signature.batchable else None
        shared = bool(rows)
        if rows:
            shapes = ((name, a.dtype.str, a.shape[1:]) for name, a in inputs.items())
            key: object = (signature, tuple(sorted(shapes)))
        else:
            key, rows = object(), self._options.max_batch_size  # Alone and without waiting.
        loop = asyncio.get_running_loop()
        longest = _longest_row(inputs) if shared else 0
        request = _Request(signature, inputs, rows, longest, loop.create_future(), loop.time())
        self._groups.setdefault(key, collections.deque()).append(request)
        self._set_waiting(self._waiting + 1)
        self._dispatch()
        try:
            return await request.future
        except asyncio.CancelledError:
            group = self._groups.get(key)
            if group and request in group:  # The client is gone before its turn came.
                group.remove(request)
                if not group:
                    del self._groups[key]
                self._set_waiting(self._waiting - 1)
            raise

    def drain(self) -> None:
        """Let no request wait from now on for others to join it: the server ends."""
        self.draining = True
        self._dispatch()

    async def close(self) -> None:
        """Wait for what was accepted, then end the threads."""
        self.drain()
        while self._groups or self._running:
            await asyncio.sleep(0.005)
        self._executor.shutdown()

    def _set_waiting(self, requests: int) -> None:
        self._waiting = requests
        self._metrics.waiting.set(requests)

    def _ready_at(self, group: collections.deque[_Request]) -> float:
        rows = self._options.max_batch_size if self.draining else 0
        for request in group:
            rows += request.rows
            if rows >= self._options.max_batch_size:
                return group[0].arrived
        return group[0].arrived + self._options.batch_timeout_micros / 1e6

    def _dispatch(self) -> None:
        """Start the batches that are due, as far as threads are idle; wake up for the next."""
        loop = asyncio.get_running_loop()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._idle_threads and self._groups:
            ready_at, key = min(
                ((self._ready_at(group), key) for key, group in self._groups.items()),
                key=lambda pair: pair[0],
            )
            if ready_at > loop.time():
                self._timer = loop.call_at(ready_at, self._dispatch)
                return
            batch = self._take(key)
            self._idle_threads -= 1
            task = loop.create_task(self._run_batch(batch, loop.time()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _take(self, key: object) -> list[_Request]:
        """Remove the request that waits longest, and those that may run with it."""
        first, *others = self._groups.pop(key)
        batch, rows, sizes = [first], first.rows, [first.longest]
        left: collections.deque[_Request] = collections.deque()
        for request in others:
            has_room = rows + request.rows <= self._options.max_batch_size
            padding = row_padding([*sizes, request.longest])
            if has_room and padding <= self._options.max_row_padding:
                batch.append(request)
                rows += request.rows
                sizes = [min(*sizes, request.longest), max(*sizes, request.longest)]
            else:
                left.append(request)
        if left:
            self._groups[key] = left
        self._set_waiting(self._waiting - len(batch))
        return batch

    async def _run_batch(self, batch: list[_Request], begun: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            outcomes = await loop.run_in_executor(self._executor, self._compute, batch)
        except Exception as error:  # Nothing may leave a client without an answer.
            outcomes = [error] * len(batch)
        self._idle_threads += 1
        self._dispatch()
        waited = [begun - request.arrived for request in batch]
        name = batch[0].signature.model_name
        rows = sum(_common_rows(request.inputs) or 1 for request in batch)
        self._metrics.batch(name, rows, loop.time() - begun, waited)
        for request, outcome in zip(batch, outcomes, strict=True):
            if request.future.done():  # Its client is gone.
                continue
            if isinstance(outcome, Exception):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)

    def _compute(
        self, batch: list[_Request]
    ) -> list[Arrays] | list[ServingError] | list[Arrays | Exception]:
        signature = batch[0].signature
        if len(batch) > 1:
            together = _run_together(signature, [request.inputs for request in batch])
            if together is not None:
                return together
            self._metrics.run_singly.labels(signature.model_name).inc()
        return [_run(signature, request.inputs) for request in batch]
