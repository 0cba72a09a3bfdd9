"""What /metrics shows, in Prometheus' format."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one server. A registry of its own, because the library's is shared by a whole process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        made = {"namespace": "switch_distill", "registry": self.registry}
        self.requests = Counter(
            "requests",
            "Completion requests, by HTTP status; a stream that breaks off, by its error's.",
            ["status"],
            **made,
        )
        self.latency = Histogram(
            "request_seconds", "From a completion request to its answer's end.", buckets=_SECONDS, **made
        )
        self.batch_size = Histogram("batch_size", "Prompts per computed batch.", ["model"], buckets=_SIZES, **made)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of answered prompts.", ["model"], **made)
        self.completion_tokens = Counter("completion_tokens", "Tokens of answers.", ["model"], **made)
        self.waiting = Gauge("waiting_prompts", "Prompts that wait for a batch.", ["model"], **made)

    def answered(self, began: float) -> None:
        """Count a request that came in at ``began`` (of ``time.perf_counter``) and has its answer."""
        self.requests.labels(200).inc()
        self.latency.observe(time.perf_counter() - began)

    def text(self) -> bytes:
        return generate_latest(self.registry)
