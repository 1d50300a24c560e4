"""`GET /metrics`: the metrics of the gateway, the Switchboard and the resident engine on one page.

It answers within a second whatever the others do: an engine that does not answer in time is left
out and counted, a Switchboard that does not is shown as it last was.
"""

import asyncio
import logging

import aiohttp
from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.residency import State
from serve_app.gateway.gateway import Gateway, Here
from serve_app.routes.auth import check_user
from serve_app.routes.gauges import gpu_families, residency_families
from serve_app.telemetry.engine_metrics import ask_engine, engine_families

_ANSWER_S = 0.6

logger = logging.getLogger("llm_backend.gateway")

routes = APIRouter(tags=["state"], dependencies=[Depends(check_user)])


@routes.get("/metrics", response_class=Response)
async def metrics(gateway: Here) -> Response:
    """In Prometheus' text format, whatever a client prefers: in OpenMetrics, prometheus-client 0.26
    writes vLLM's names with `_` for `:`."""
    switchboard, engine = await asyncio.gather(_ask_switchboard(gateway), _ask_engine(gateway))
    families = [
        *residency_families(gateway.admission, gateway.settings),
        *gpu_families(gateway.health().get("gpu") or {}),
        *switchboard,
    ]

    def page() -> bytes:
        """In a thread: an engine's page takes some 20 ms, in which tokens are to flow."""
        own = gateway.metrics.registry.collect()
        return generate_latest(_Families([*own, *families, *_read_engine(gateway, engine)]))

    return Response(await asyncio.to_thread(page), media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _ask_switchboard(gateway: Gateway) -> list[Metric]:
    """What it counts, or what it last did, and whether that is news."""
    is_up = True
    try:
        async with asyncio.timeout(_ANSWER_S):
            gateway.metrics.of_switchboard = await gateway.switchboard.metrics()
    except (RayError, RayServeException, TimeoutError):
        is_up = False
    text = "1 when the Switchboard has answered for this page; else its figures are old."
    up = GaugeMetricFamily("llm_backend_switchboard_up", text, value=float(is_up))
    return [*gateway.metrics.of_switchboard, up]


async def _ask_engine(gateway: Gateway) -> tuple[str, str]:
    """The resident model and its engine's page; an empty one where there is none to be had."""
    view = gateway.admission.view
    if view is None or view.state is not State.SERVING or not view.endpoint or not view.holder:
        return "", ""
    try:
        async with asyncio.timeout(_ANSWER_S):
            page = await ask_engine(view.endpoint, _ANSWER_S)
    except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError):
        gateway.metrics.engine_scrape_errors.inc()
        page = ""
    return gateway.metrics.model_of(view.holder), page


def _read_engine(gateway: Gateway, engine: tuple[str, str]) -> list[Metric]:
    model, page = engine
    try:
        return engine_families(page, model)
    except ValueError:
        gateway.metrics.engine_scrape_errors.inc()
        return []


class _Families(Collector):
    """Families that have been collected already, as the encoder wants them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
