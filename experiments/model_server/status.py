"""What can go wrong with a request of the development server, and its code on gRPC and HTTP.

Reference: gRPC's canonical codes, and TF Serving's mapping of them to HTTP (http_server.cc).
"""

from __future__ import annotations

import grpc
import tensorflow as tf

HTTP_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """A request that gets an error for an answer.

    Args:
        code: gRPC's code.
        message: one line that says what is wrong with the request.
        http_status: status on HTTP where it is not the one of `HTTP_STATUS`.
    """

    def __init__(self, code: grpc.StatusCode, message: str, http_status: int | None = None):
        super().__init__(message)
        self.code, self.message = code, message
        self.http_status = http_status or HTTP_STATUS[code]


def invalid_argument(message: str) -> ServingError:
    """Return the error of a request that cannot be right, whatever is loaded."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """Return the error of a request for what is not loaded."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def as_serving_error(error: BaseException) -> ServingError:
    """Return the error that a client gets for an exception, TensorFlow's with their own code."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        # The first line is the reason; what follows names nodes of the graph.
        reason = error.message.split("\n\t [[")[0]
        return ServingError(_BY_NUMBER.get(error.error_code, grpc.StatusCode.UNKNOWN), reason)
    if isinstance(error, UnicodeDecodeError):  # TensorFlow's message, which quotes the request
        return invalid_argument(error.object.decode(errors="replace").split("\n\t [[")[0])
    return ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
