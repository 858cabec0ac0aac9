"""Explanations of answers over HTTP: POST /v1/models/NAME:explain, for models of --model_dir.

TF Serving has no such method; the path, "instances" and "explanations" are those of KServe's V1
protocol. A SavedModel holds no gradients, so each model is kept as it was read beside its export.
An explanation takes tens to hundreds of runs of a model, forward and back: one is computed at a
time, and ends where its client leaves or its time is over.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from bert_tf.serving.explanations import MAX_STEPS, Explanation, explain
from bert_tf.serving.served_model import ServedModel
from experiments.model_server.batching import Arrays
from experiments.model_server.options import ServerOptions
from experiments.model_server.rest import json_bytes, shown_kind
from experiments.model_server.status import ServingError, invalid_argument

_INSTANCES = "instances"
# Key of a request -> the types that its value may have, and their words.
_SETTINGS: dict[str, tuple[tuple[type, ...], str]] = {
    "target": ((str,), "a string, the name of a label"),
    "entity": ((int,), "an integer, the place of an entity in the answer"),
    "baseline": ((str,), '"pad" or "mask"'),
    "tolerance": ((float, int), "a number above 0"),
    "max_steps": ((int,), "an integer"),
}
_MOST_WAITING = 8
_NO_GRADIENTS = (
    "explain: {} is served from a SavedModel, which holds no gradients; serve the model directory "
    "that it was exported from with --model_dir"
)


class _Stopped(Exception):
    """Nobody waits for the explanation any more."""


def explain_settings(request: Mapping[str, Any], most_steps: int) -> dict[str, Any]:
    """Return what a request asks of `explain`, but for its texts.

    Args:
        request: the JSON object.
        most_steps: what max_steps may be.

    Raises:
        ServingError: INVALID_ARGUMENT, a key is unknown or "instances" is missing, or a value is of
            another type or too large.
    """
    unknown = sorted(set(request) - {_INSTANCES, *_SETTINGS})
    if unknown:
        raise invalid_argument(
            f"expected the keys {_INSTANCES}, {', '.join(_SETTINGS)}, got {unknown[0]!r}"
        )
    if _INSTANCES not in request:
        raise invalid_argument(f"Missing '{_INSTANCES}' key")
    settings: dict[str, Any] = {"max_steps": min(MAX_STEPS, most_steps)}
    for name, (types, words) in _SETTINGS.items():
        value = request.get(name)
        if value is None:
            continue
        if not isinstance(value, types) or isinstance(value, bool):
            raise invalid_argument(f"{name}: expected {words}, got {shown_kind(value)}")
        settings[name] = value
    if settings["max_steps"] > most_steps:
        raise invalid_argument(
            f"max_steps: expected at most {most_steps} (--max_explain_steps), "
            f"got {settings['max_steps']}"
        )
    return settings


def explain_columns(inputs: Arrays) -> list[list[bytes]]:
    """Return the columns of `explain`, of one row.

    Args:
        inputs: arrays of bytes by name, in the order of the model's inputs.

    Raises:
        ServingError: INVALID_ARGUMENT, there are several rows, or lists of texts.
    """
    for name, array in inputs.items():
        if array.ndim != 1:
            raise invalid_argument(f"{name}: expected a string, got a list")
        if len(array) != 1:
            raise invalid_argument(
                f"'{_INSTANCES}': expected one, since an explanation takes many runs of the model, "
                f"got {len(array)}; send several requests"
            )
    return [array.tolist() for array in inputs.values()]


def _plain(explanation: Explanation) -> dict[str, Any]:
    """Return it as JSON has it, where a gap that has no number is null."""
    values = dataclasses.asdict(explanation)
    if not math.isfinite(values["completeness_gap"]):
        values["completeness_gap"] = None
    return values


def explain_response(explanations: Sequence[Explanation]) -> bytes:
    """Return the body of the answer: the fields of `Explanation`, for each of them."""
    return json_bytes({"explanations": [_plain(one) for one in explanations]})


class Explainer:
    """Explains answers; to be used in one event loop.

    Args:
        options: its models to explain, and its time for a request.
    """

    def __init__(self, options: ServerOptions):
        self._models, self._seconds = options.explained, options.request_timeout_seconds
        self._waiting = 0
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="explain")

    @property
    def names(self) -> list[str]:
        """Names of the models whose answers can be explained."""
        return [name for name, model in self._models.items() if not isinstance(model, str)]

    def model(self, name: str) -> ServedModel:
        """Return the model of a name.

        Raises:
            ServingError: FAILED_PRECONDITION, its answers cannot be explained.
        """
        found = self._models.get(name) or _NO_GRADIENTS.format(name)
        if isinstance(found, str):
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, found)
        return found

    async def explain(
        self, model: ServedModel, columns: Sequence[Sequence[bytes]], settings: Mapping[str, Any]
    ) -> list[Explanation]:
        """Return explanations, once those that were asked for before are done.

        Args:
            model: see `model`.
            columns: see `explain_columns`.
            settings: see `explain_settings`.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, many wait already; DEADLINE_EXCEEDED, it takes too
                long; INVALID_ARGUMENT, a setting does not suit the model or its answer.
        """
        if self._waiting > _MOST_WAITING:
            raise ServingError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"explain: {self._waiting} explanations wait, one at a time; try again later",
            )
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise _Stopped

        def compute() -> list[Explanation]:
            return explain(model, columns, before_run=check, **settings)

        self._waiting += 1
        computing = asyncio.get_running_loop().run_in_executor(self._executor, compute)
        # A result that nobody reads is no fault.
        computing.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(computing)
        except TimeoutError:
            raise ServingError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"explain: it took longer than --request_timeout_seconds={self._seconds:g}; "
                "ask for fewer max_steps, a shorter text or a larger tolerance",
            ) from None
        except ValueError as error:
            raise invalid_argument(str(error)) from error
        finally:
            stop.set()
            self._waiting -= 1

    async def close(self) -> None:
        """Wait for what is computed, which ends soon where nobody waits for it."""
        await asyncio.to_thread(self._executor.shutdown)
