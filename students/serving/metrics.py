"""The metrics of /metrics, in the format of Prometheus."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server. They have their own registry, because the library's is global to the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        common: dict[str, Any] = {"namespace": "switch_distill", "registry": self.registry}
        self.requests = Counter(
            "requests",
            "Completion requests by HTTP status; an interrupted stream counts under the status of its error.",
            ["status"],
            **common,
        )
        self.latency = Histogram(
            "request_seconds", "From a completion request to the end of its answer.", buckets=_SECONDS, **common
        )
        self.batch_size = Histogram("batch_size", "Prompts per computed batch.", ["model"], buckets=_SIZES, **common)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of answered prompts.", ["model"], **common)
        self.completion_tokens = Counter("completion_tokens", "Tokens of answers.", ["model"], **common)
        self.waiting = Gauge("waiting_prompts", "Prompts that wait for a batch.", ["model"], **common)

    def count_answered(self, start: float) -> None:
        """Count an answered request that arrived at time ``start`` of ``time.perf_counter``, in seconds."""
        self.requests.labels(200).inc()
        self.latency.observe(time.perf_counter() - start)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
