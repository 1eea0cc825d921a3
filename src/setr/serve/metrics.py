"""Figures for Prometheus: what came in, how long it waited, how well it was batched."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The figures of one server.

    Args:
        waiting: images in the queue.
        inside: requests admitted.
        dropped: jobs nobody waited for any more.
    """

    def __init__(
        self,
        waiting: Callable[[], float],
        inside: Callable[[], float],
        dropped: Callable[[], float],
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        where = {"registry": self.registry}
        self.requests = Counter("setr_requests", "Requests answered", ["route", "status"], **where)
        self.seconds = Histogram(
            "setr_request_seconds", "First byte in to last byte out", ["route"],
            buckets=SECONDS, **where,
        )  # fmt: skip
        self.images = Counter("setr_images", "Images computed", ["model", "task"], **where)
        self.pixels = Counter("setr_pixels", "Pixels computed", ["model"], **where)
        self.queue_seconds = Histogram(
            "setr_queue_seconds", "From decoded to computing", buckets=SECONDS, **where
        )
        self.model_seconds = Histogram(
            "setr_model_seconds", "A batch in the model", ["model"], buckets=SECONDS, **where
        )
        self.batch_size = Histogram(
            "setr_batch_size", "Images in a batch", ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64), **where,
        )  # fmt: skip
        Gauge("setr_queue_images", "Images waiting", **where).set_function(waiting)
        Gauge("setr_requests_inside", "Requests admitted", **where).set_function(inside)
        Gauge("setr_dropped_images", "Images nobody waited for", **where).set_function(dropped)

    def page(self) -> bytes:
        """The text Prometheus reads."""
        return generate_latest(self.registry)
