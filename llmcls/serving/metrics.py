"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one server, in a registry of their own, so that several servers fit into one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # Memory and CPU time of the process, where the system tells them.
        ProcessCollector(registry=registry)
        self.requests = Counter("llmcls_requests", "Requests by status", ["status"], registry=registry)
        self.seconds = Histogram("llmcls_request_seconds", "Seconds per request", registry=registry, buckets=SECONDS)
        self.passes = Counter("llmcls_passes", "Forward passes", ["run"], registry=registry)
        self.texts = Counter("llmcls_texts", "Classified texts", ["run"], registry=registry)
        self.tokens = Counter("llmcls_tokens", "Tokens of classified texts", ["run"], registry=registry)
        self.waiting = Gauge("llmcls_waiting_texts", "Texts that wait for a pass", registry=registry)

    def count_request(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(str(status)).inc()
        self.seconds.observe(seconds)

    def watch_waiting(self, waiting: Callable[[], float]) -> None:
        """Ask ``waiting`` for the number of waiting texts whenever the metrics are read."""
        self.waiting.set_function(waiting)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
