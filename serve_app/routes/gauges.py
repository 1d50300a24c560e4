"""Gauges of the current state: residency, the gateway's requests, the GPU."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from deployments.settings import Settings
from serve_app.gateway.admission import Admission

# Field of a GPU reading -> name of the gauge, HELP text, factor to the base unit.
_GPU = {
    "used_bytes": ("memory_used_bytes", "Bytes of the GPU's memory in use, by all programs.", 1.0),
    "total_bytes": ("memory_size_bytes", "Bytes of the GPU's memory.", 1.0),
    "utilization_percent": (
        "utilization_ratio",
        "Share of time in which the GPU was computing, 0 to 1.",
        0.01,
    ),
    "temperature_c": ("temperature_celsius", "Temperature of the GPU in degrees Celsius.", 1.0),
    "power_w": ("power_watts", "Power that the GPU draws, in watts.", 1.0),
    "alarm": (
        "memory_alarm",
        "1 while the GPU's memory is nearly full (gpu.alarm_at in configs/backend.yaml).",
        1.0,
    ),
}


def residency_families(admission: Admission, settings: Settings) -> Iterator[Metric]:
    """Yield the gauges of residency, from the view, and of this gateway's requests."""
    view = admission.view
    targets = list(settings.targets)
    resident = [target for target in targets if admission.is_resident(target)]
    yield _flags(
        "llm_backend_resident",
        "1 for the model that serves requests, 0 for the others.",
        targets,
        resident,
    )
    asleep = view.asleep if view else ()
    text = "1 for each model whose engine sleeps, 0 for the others."
    yield _flags("llm_backend_asleep", text, targets, asleep)
    leased = [view.lease.model] if view and view.lease else []
    yield _flags(
        "llm_backend_lease_active",
        "1 for the model that a lease keeps resident, 0 for the others.",
        targets,
        leased,
    )
    yield _gauge("llm_backend_serving", "1 while a model serves requests.", bool(resident))
    text = "1 while no model serves although one should, and no switch runs."
    yield _gauge("llm_backend_failed", text, view is not None and view.place_failed)
    yield _gauge(
        "llm_backend_epoch",
        "The epoch: the number of the current load, counted up with each.",
        view.epoch if view else 0,
    )
    text = "Requests that the engine is working on."
    yield _gauge("llm_backend_in_flight_requests", text, admission.num_in_flight)
    yield _gauge(
        "llm_backend_queued_requests",
        "Requests that wait for a switch, or for a slot in the engine.",
        admission.num_queued,
    )
    text = "Largest number of requests that may wait (limits.max_queued)."
    yield _gauge("llm_backend_queue_limit_requests", text, admission.limits.max_queued)


def gpu_families(reading: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the gauges of the GPU; a value that the driver does not report has none.

    `reading`: the field `gpu` of `GET /health`.
    """
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
