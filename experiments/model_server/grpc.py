"""The development server on gRPC: TF Serving's PredictionService and ModelService.

And the services by which tools find out whether it is ready (health), and what it has (reflection).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.apis.model_pb2 import ModelSpec

from experiments.model_server.core import ServingCore, answered_by, tensor_array, tensor_proto
from experiments.model_server.metrics import ServingMetrics
from experiments.model_server.options import ServerOptions
from experiments.model_server.status import as_serving_error, invalid_argument

_WATCH_SECONDS = 0.5
# Reflection finds what was imported: the services themselves, beside their stubs.
_NAMES = [
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    health.SERVICE_NAME,
    reflection.SERVICE_NAME,
]


class _Health(health_pb2_grpc.HealthServicer):
    """gRPC's health protocol: SERVING while every model has a version that answers.

    The one in grpc_health would keep the server from its end while somebody watches.
    """

    def __init__(self, core: ServingCore):
        self._core = core

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        if service not in ("", *_NAMES):
            return HealthCheckResponse.SERVICE_UNKNOWN
        ready = self._core.ready
        return HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING

    async def Check(self, request, context):
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service: {request.service}")
        return HealthCheckResponse(status=status)

    async def Watch(self, request, context):
        last = None
        while True:
            ends, status = self._core.batcher.draining, self._status(request.service)
            if status != last:
                yield HealthCheckResponse(status=status)
            if ends:
                return
            last = status
            await asyncio.sleep(_WATCH_SECONDS)


class _Services(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """Both services; methods that are not here (MultiInference) answer UNIMPLEMENTED."""

    def __init__(self, core: ServingCore, metrics: ServingMetrics):
        self._core, self._metrics = core, metrics

    async def Predict(self, request, context):
        return await self._answer("Predict", request, context, self._predict(request))

    async def Classify(self, request, context):
        return await self._answer("Classify", request, context, self._core.classify(request))

    async def Regress(self, request, context):
        return await self._answer("Regress", request, context, self._core.regress(request))

    async def GetModelMetadata(self, request, context):
        return await self._answer("Metadata", request, context, self._metadata(request))

    async def GetModelStatus(self, request, context):
        return await self._answer("Status", request, context, self._status(request))

    async def _predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        servable = self._core.servable(request.model_spec)
        name = request.model_spec.signature_name
        limit = self._core.max_tensor_bytes
        inputs = {n: tensor_array(n, tensor, limit) for n, tensor in request.inputs.items()}
        outputs = await self._core.predict(servable, name, inputs, request.output_filter)
        response = predict_pb2.PredictResponse(model_spec=answered_by(servable, name))
        for output, array in outputs.items():
            response.outputs[output].CopyFrom(tensor_proto(array))
        return response

    async def _metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return self._core.metadata(request.model_spec, request.metadata_field)

    async def _status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return self._core.status(request.model_spec)

    async def _answer(self, api: str, request: Any, context: Any, answer: Awaitable) -> Any:
        begun, code = time.perf_counter(), grpc.StatusCode.CANCELLED
        spec: ModelSpec = request.model_spec
        try:
            if not request.HasField("model_spec"):
                answer.close()  # pyright: ignore[reportAttributeAccessIssue]
                raise invalid_argument("Missing ModelSpec")
            response = await answer
            code = grpc.StatusCode.OK
            return response
        except Exception as error:
            failure = as_serving_error(error)
            code = failure.code
            await context.abort(code, failure.message)
        finally:
            name = spec.name if spec.name in self._core.models.names else ""
            self._metrics.request(name, api, "GRPC", code, time.perf_counter() - begun)


def grpc_server(
    core: ServingCore, metrics: ServingMetrics, address: str, options: ServerOptions
) -> tuple[grpc.aio.Server, int]:
    """Return a server of both services, not yet started.

    Args:
        core: what answers.
        metrics: what counts.
        address: "host:port"; port 0 takes a free one.
        options: its bounds; a request beyond them gets RESOURCE_EXHAUSTED.

    Returns:
        The server and its port.

    Raises:
        OSError: the address cannot be had.
    """
    server = grpc.aio.server(
        maximum_concurrent_rpcs=options.max_connections,
        options=[
            ("grpc.max_receive_message_length", options.max_request_bytes),
            # From the first on, some heads are refused; beyond the second, all.
            ("grpc.max_metadata_size", options.max_header_bytes),
            ("grpc.absolute_max_metadata_size", options.max_header_bytes),
            ("grpc.server_handshake_timeout_ms", math.ceil(options.read_timeout_seconds * 1000)),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # Else a second server takes half of the first's requests.
        ],
    )
    services = _Services(core, metrics)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
    health_pb2_grpc.add_HealthServicer_to_server(_Health(core), server)
    reflection.enable_server_reflection(_NAMES, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    return server, port
