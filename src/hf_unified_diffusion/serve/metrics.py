"""What Prometheus reads of a server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "unified_diffusion"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The metrics of one application, in a registry of their own.

    Usage: `metrics.requests.labels("/v1/completions", 200).inc(); metrics.text()`
    """

    def __init__(self, num_unfinished: Callable[[], int]):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds", "From request to answer.", ["route"], registry=registry, buckets=SECONDS
        )
        self.steps = Counter(f"{PREFIX}_steps", "Denoising steps, each of a whole batch.", registry=registry)
        self.tokens = Counter(f"{PREFIX}_tokens", "Tokens written for those who waited for them.", registry=registry)
        self.batch_rows = Histogram(
            f"{PREFIX}_batch_rows", "Rows that ran together.", registry=registry, buckets=(1, 2, 4, 8, 16, 32)
        )
        self.cancelled = Counter(f"{PREFIX}_cancelled", "Requests whose client went away.", registry=registry)
        self.unfinished = Gauge(f"{PREFIX}_unfinished_requests", "Requests that run or wait.", registry=registry)
        self.unfinished.set_function(num_unfinished)

    def text(self) -> bytes:
        """All of them in the text format of Prometheus."""
        return generate_latest(self.registry)
