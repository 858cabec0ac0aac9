"""Connections of HTTP, with bounds on their number, on the head of a request and on its time.

An answer that nobody reads ends its connection too.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from experiments.model_server.options import ServerOptions
from experiments.model_server.rest import error_response

_LEAST_READ_BYTES = 1 << 16


class BoundedProtocol(H11Protocol):
    """A connection that is ended where a request does not come in time, or too many are open.

    uvicorn itself bounds the size of a head (h11_max_incomplete_event_size), and how long a
    connection may be idle after an answer.

    Args:
        options: its max_connections and read_timeout_seconds.
        arguments: see `H11Protocol`.
    """

    def __init__(self, options: ServerOptions, **arguments: Any):
        super().__init__(**arguments)
        self._options = options
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse it where as many are open as may be."""
        super().connection_made(transport)
        if len(self.connections) > self._options.max_connections:
            most = self._options.max_connections
            self._end("503 Service Unavailable", f"{most} connections are open; try again later")
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Read, and go on waiting for what is left of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_timer()
        self._stop_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read its answer as it comes."""
        super().pause_writing()
        self._watch_reading(None)

    def resume_writing(self) -> None:
        """Go on, once nearly all is read."""
        self._stop_reading()
        super().resume_writing()

    def _watch_reading(self, before: int | None) -> None:
        """End the connection where too little was read since there were so many bytes to read."""
        size = self.transport.get_write_buffer_size()
        if before is not None and size > before - _LEAST_READ_BYTES:
            self.transport.abort()
        else:
            seconds = self._options.read_timeout_seconds
            self._reading = self.loop.call_later(seconds, self._watch_reading, size)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading.cancel()
            self._reading = None

    def _watch(self) -> None:
        """Let the time run while a head, or a body that nobody reads, is not complete.

        The time of a body that is read is that of its reader.
        """
        unread = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        if self.transport.is_closing() or not (self.conn.their_state is h11.IDLE or unread):
            self._stop_timer()
        elif self._timer is None:
            seconds = self._options.read_timeout_seconds
            message = f"the request did not come within {seconds:g} seconds"
            self._timer = self.loop.call_later(seconds, self._end, "408 Request Timeout", message)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _end(self, status: str, message: str) -> None:
        """Say why and close, past h11, for which there is no request yet to answer."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE:
            body = error_response(message)
            head = (
                f"HTTP/1.1 {status}\r\nConnection: close\r\nRetry-After: 1\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
