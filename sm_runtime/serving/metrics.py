"""What the front counts, in Prometheus' format.

Every request passes the front, so that its counts are those of all workers, the dead too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sm_runtime.serving.workers import Pool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counts of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        more: Any = {"registry": self._registry, "namespace": "sm_runtime"}
        self._requests = Counter(
            "requests", "Requests answered, by path and status", ("path", "status"), **more
        )
        self._seconds = Histogram(
            "request_seconds",
            "Seconds from the whole request to its answer",
            ("path",),
            buckets=_SECONDS,
            **more,
        )
        self._rows = Histogram(
            "batch_rows", "Rows of the calls that requests were part of", buckets=_ROWS, **more
        )
        self._bytes = Counter("request_bytes", "Bytes of requests' bodies", **more)

    def follow(self, pools: Callable[[], Iterable[Pool]]) -> None:
        """Read the state of the workers whenever somebody asks."""
        for name, text, read in (
            ("waiting", "Requests that wait for a worker", lambda pool: pool.waiting),
            ("under_way", "Requests that a worker holds", lambda pool: pool.under_way),
            ("workers_replaced", "Workers started in place of others", lambda pool: pool.restarts),
        ):
            gauge = Gauge(name, text, namespace="sm_runtime", registry=self._registry)
            gauge.set_function(partial(_total, pools, read))

    def count(self, path: str, status: int, seconds: float, body: int, rows: int) -> None:
        """Count one answer; ``rows``: those of its batch, 0 where there was none."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)
        self._bytes.inc(body)
        if rows:
            self._rows.observe(rows)

    def text(self) -> bytes:
        """Return all counts."""
        return generate_latest(self._registry)


def _total(pools: Callable[[], Iterable[Pool]], read: Callable[[Pool], int]) -> int:
    return sum(map(read, pools()))
