"""The current state as metrics: the view, the gateway's counts, the card."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from deployments.settings import Settings
from serve_app.gateway.admission import Admission

# A field of the card's reading -> the gauge, its text, and what makes its unit the base unit.
_GPU = {
    "used_bytes": ("memory_used_bytes", "Memory of the card in use.", 1.0),
    "total_bytes": ("memory_size_bytes", "Memory of the card.", 1.0),
    "utilization_percent": ("utilization_ratio", "Share of time in which the card computed.", 0.01),
    "temperature_c": ("temperature_celsius", "Temperature of the card.", 1.0),
    "power_w": ("power_watts", "Power that the card draws.", 1.0),
    "alarm": ("memory_alarm", "1 while the card's memory is nearly full.", 1.0),
}


def residency_families(admission: Admission, settings: Settings) -> Iterator[Metric]:
    """What the view says, and what this gateway has in hand."""
    view = admission.view
    targets = list(settings.targets)
    resident = [target for target in targets if admission.is_resident(target)]
    yield _flags("llm_backend_resident", "1 for the resident model.", targets, resident)
    asleep = view.asleep if view else ()
    text = "1 for each model whose engine is asleep."
    yield _flags("llm_backend_asleep", text, targets, asleep)
    leased = [view.lease.model] if view and view.lease else []
    yield _flags("llm_backend_lease_active", "1 for the leased model.", targets, leased)
    yield _gauge("llm_backend_serving", "1 while a model serves.", bool(resident))
    text = "1 while no model serves, although one should."
    yield _gauge("llm_backend_failed", text, view is not None and view.place_failed)
    yield _gauge(
        "llm_backend_epoch", "Epoch: the number of the current load.", view.epoch if view else 0
    )
    text = "Requests that the engine works on."
    yield _gauge("llm_backend_in_flight_requests", text, admission.num_in_flight)
    yield _gauge(
        "llm_backend_queued_requests",
        "Requests that wait for a switch or a slot.",
        admission.num_queued,
    )
    text = "Requests that may wait at most."
    yield _gauge("llm_backend_queue_limit_requests", text, admission.limits.max_queued)


def gpu_families(reading: Mapping[str, Any]) -> Iterator[Metric]:
    """The card as `GET /health` tells of it; what the driver does not say has no gauge."""
    for field, (name, text, factor) in _GPU.items():
        value = reading.get(field)
        if value is not None and reading.get("total_bytes") is not None:
            yield _gauge(f"llm_backend_gpu_{name}", text, value * factor)


def _flags(name: str, text: str, targets: Iterable[str], are_set: Collection[str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["model"])
    for target in targets:
        family.add_metric([target], float(target in are_set))
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))
