"""Prometheus metrics of the development server, under TF Serving's names where it has them."""

from __future__ import annotations

import grpc
import prometheus_client

# TF Serving's bounds of latencies in microseconds: from 10, times 1.8, to about 20 minutes.
_MICROSECONDS = tuple(10 * 1.8**i for i in range(32))
_ROWS = tuple(2.0**i for i in range(13))


class ServingMetrics:
    """One server's metrics; a registry of its own, so that several servers fit one process.

    Attributes:
        waiting: gauge of the requests that wait.
        run_singly: gauge, by model, of the batches that failed whole.
    """

    def __init__(self):
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)
        # A gauge that only grows: prometheus_client would end the name of a counter in "_total",
        # which TF Serving's has not.
        self._requests = self._gauge(
            ":tensorflow:serving:request_count",
            "The total number of requests.",
            ["model_name", "status"],
        )
        self._latency = self._histogram(
            ":tensorflow:serving:request_latency",
            "Microseconds from request to answer, of requests that succeeded.",
            ["model_name", "API", "entrypoint"],
        )
        self._runtime = self._histogram(
            ":tensorflow:serving:runtime_latency",
            "Microseconds in TensorFlow, of batches.",
            ["model_name"],
        )
        self._queuing = self._histogram(
            ":tensorflow:serving:batching_session:queuing_latency",
            "Microseconds that a request waited for its batch.",
            ["model_name"],
        )
        self._batch_size = self._histogram(
            "bert_tf:serving:batch_size", "Rows of the batches run.", ["model_name"], _ROWS
        )
        self.waiting = self._gauge(
            "bert_tf:serving:waiting_requests", "Requests that wait for a batch."
        )
        self.run_singly = self._gauge(
            "bert_tf:serving:batches_run_singly",
            "Batches that failed whole, so that each of their requests ran alone.",
            ["model_name"],
        )

    def _gauge(self, name, documentation, labels=()):
        return prometheus_client.Gauge(name, documentation, labels, registry=self.registry)

    def _histogram(self, name, documentation, labels, buckets=_MICROSECONDS):
        return prometheus_client.Histogram(
            name, documentation, labels, buckets=buckets, registry=self.registry
        )

    def request(
        self, model_name: str, api: str, entrypoint: str, code: grpc.StatusCode, seconds: float
    ) -> None:
        """Count a request that was answered.

        Args:
            model_name: a model that the server has; "" for any other, whose names have no bound.
            api: "Predict", "Classify" and so on.
            entrypoint: "REST" or "GRPC".
            code: what it was answered with.
            seconds: time that it took.
        """
        self._requests.labels(model_name, code.name).inc()
        if code is grpc.StatusCode.OK:
            self._latency.labels(model_name, api, entrypoint).observe(seconds * 1e6)

    def batch(self, model_name: str, rows: int, seconds: float, waited: list[float]) -> None:
        """Count a batch that ran: its rows, seconds in TensorFlow, seconds its requests waited."""
        self._batch_size.labels(model_name).observe(rows)
        self._runtime.labels(model_name).observe(seconds * 1e6)
        queuing = self._queuing.labels(model_name)
        for wait in waited:
            queuing.observe(wait * 1e6)

    def page(self) -> tuple[bytes, str]:
        """Return the metrics in Prometheus' text format, and its content type."""
        page = prometheus_client.generate_latest(self.registry)
        return page, prometheus_client.CONTENT_TYPE_LATEST
