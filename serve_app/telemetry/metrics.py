"""The gateway's counters and histograms of its requests.

Label values come from fixed sets only (models and routes of this application, classes of statuses,
codes of `errors.py`), so no client can create series.
"""

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from deployments.settings import Settings
from serve_app.protocol.errors import BackendError

# The start times of the series would be half of the page, and useless.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
UNKNOWN_MODEL = "unknown"
_TTFT_BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 40, 60, 120, 300)
# The memory bandwidth of an RTX 5080 limits a 7B int4 model to 214 tok/s: 4.7 ms a token.
_TOKEN_BUCKETS = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 5)
_WAIT_BUCKETS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
_TOTAL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
CACHE_RESULTS = ("hit", "shared", "miss", "uncacheable", "off", "other")


class GatewayMetrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        self.of_switchboard: list[Metric] = []  # from the Switchboard's last answer
        self._model_of = {target: spec.name for target, spec in settings.targets.items()}
        self.requests = self._counter(
            "llm_backend_requests",
            "Requests by outcome: complete, error (also one that ends a stream with status 200), "
            "or left (the client closed the connection).",
            ["route", "model", "status", "outcome"],
        )
        self.errors = self._counter(
            "llm_backend_errors",
            "Errors sent to clients, by the code in the body.",
            ["code"],
        )
        self.duration = self._histogram(
            "llm_backend_request_duration_seconds",
            "Seconds from a request's arrival to its last byte, for requests that name a model.",
            ["route", "model"],
            _TOTAL_BUCKETS,
        )
        self.first_token = self._histogram(
            "llm_backend_time_to_first_token_seconds",
            "Seconds from a request's arrival to the first event of its stream, waiting included.",
            ["model"],
            _TTFT_BUCKETS,
        )
        self.inter_token = self._histogram(
            "llm_backend_inter_token_seconds",
            "Seconds between two pieces of a stream; a piece holds one token or a few.",
            ["model"],
            _TOKEN_BUCKETS,
        )
        self.queue_wait = self._histogram(
            "llm_backend_queue_wait_seconds",
            "Seconds from an admitted request's arrival to its admission, a switch included.",
            ["model"],
            _WAIT_BUCKETS,
        )
        self.prompt_tokens = self._counter(
            "llm_backend_prompt_tokens",
            "Prompt tokens, from the usage in answers; a stream without usage adds none.",
            ["model"],
        )
        self.generated_tokens = self._counter(
            "llm_backend_generated_tokens",
            "Generated tokens, from the usage in answers; for a stream without usage, its events.",
            ["model"],
        )
        self.cache_lookups = self._counter(
            "llm_backend_cache_lookups",
            "Requests that reached the response cache, by result (X-Cache).",
            ["model", "result"],
        )
        self.switches_avoided = self._counter(
            "llm_backend_switches_avoided",
            "Cache hits for a model that was not resident; each avoided a switch.",
            ["model"],
        )
        self.engine_scrape_errors = self._counter(
            "llm_backend_engine_scrape_errors",
            "Failed attempts to read the resident engine's own metrics for this page.",
            [],
        )
        info = Gauge("llm_backend_info", "The active profile.", ["profile"], registry=self.registry)
        info.labels(settings.profile).set(1)
        self._begin_at_zero()

    def model_of(self, target: str) -> str:
        """Return the `model` label for a target or a model's name."""
        return self._model_of.get(target, UNKNOWN_MODEL)

    def _counter(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: list[str], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def _begin_at_zero(self) -> None:
        """Create all series at 0, so that Prometheus sees the first event as an increase."""
        for model in set(self._model_of.values()):
            for metric in (self.first_token, self.inter_token, self.queue_wait):
                metric.labels(model)
            self.prompt_tokens.labels(model)
            self.generated_tokens.labels(model)
            self.switches_avoided.labels(model)
            for result in CACHE_RESULTS:
                self.cache_lookups.labels(model, result)
        for code in _codes(BackendError):
            self.errors.labels(code)


def _codes(kind: type[BackendError]) -> set[str]:
    """Return the codes of an error class and all its subclasses."""
    return {kind.code or kind.type}.union(*(_codes(each) for each in kind.__subclasses__()))
