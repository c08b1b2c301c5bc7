"""Numbers for Prometheus: counts, bytes and seconds; labels are names of the configuration, states and statuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from concordct.serving.config import Config
from concordct.serving.inbox import Answer
from concordct.serving.queue import Queue

_BUCKETS = (1, 2, 5, 10, 20, 60, 120, 300, 900, 3600)


class Metrics(Collector):
    """What is counted as it happens, and what is looked up when somebody asks."""

    def __init__(self, queue: Queue, node: Any, config: Config) -> None:
        self._queue, self._node, self._config = queue, node, config
        self.registry = CollectorRegistry()
        own = self.registry
        self._objects = Counter("concordct_objects", "Objects that arrived, by answer.", ["status"], registry=own)
        self._seconds = Histogram(
            "concordct_standardize_seconds", "Seconds to standardize a series.", buckets=_BUCKETS, registry=own
        )
        self._deliveries = Counter(
            "concordct_deliveries", "Deliveries tried.", ["destination", "outcome"], registry=own
        )
        for destination in config.destinations:
            for outcome in ("delivered", "failed"):
                self._deliveries.labels(destination.name, outcome)
        self.registry.register(self)

    def answered(self, answer: Answer) -> None:
        """An object was stored or refused."""
        self._objects.labels(f"0x{answer.status:04X}").inc()

    def standardized(self, seconds: float) -> None:
        """A series was standardized."""
        self._seconds.observe(seconds)

    def delivered(self, destination: str, success: bool) -> None:
        """A delivery was tried."""
        self._deliveries.labels(destination, "delivered" if success else "failed").inc()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Series by state, bytes used and free, associations refused."""
        series = GaugeMetricFamily("concordct_series", "Series by state.", labels=["state"])
        for state, count in self._queue.counts().items():
            series.add_metric([state], count)
        yield series
        yield GaugeMetricFamily(
            "concordct_store_used_bytes", "Bytes used and promised.", value=self._queue.bytes_used()
        )
        yield GaugeMetricFamily(
            "concordct_store_free_bytes", "Bytes free on the disk.",
            value=shutil.disk_usage(self._config.store.folder).free,
        )  # fmt: skip
        yield GaugeMetricFamily("concordct_associations_refused", "Since the start.", value=self._node.refused)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
