"""`GET /metrics`: the metrics of gateway, Switchboard and resident engine on one page.

It answers within a second. If the engine does not answer in time, its metrics are missing and the
failure is counted; if the Switchboard does not, the page has the metrics of its last answer.
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
from serve_app.gateway.gateway import Gateway, GatewayDep
from serve_app.routes.auth import check_user
from serve_app.routes.gauges import gpu_families, residency_families
from serve_app.telemetry.engine_metrics import ask_engine, engine_families

_ANSWER_S = 0.6

logger = logging.getLogger("llm_backend.gateway")

routes = APIRouter(tags=["state"], dependencies=[Depends(check_user)])


@routes.get("/metrics", response_class=Response)
async def metrics(gateway: GatewayDep) -> Response:
    """Return all metrics in Prometheus' text format, even to clients that prefer OpenMetrics.

    In OpenMetrics, prometheus-client 0.26 would write `_` for the `:` in vLLM's names.
    """
    switchboard, engine = await asyncio.gather(_ask_switchboard(gateway), _ask_engine(gateway))
    families = [
        *residency_families(gateway.admission, gateway.settings),
        *gpu_families(gateway.health().get("gpu") or {}),
        *switchboard,
    ]

    def page() -> bytes:
        """Runs in a thread: parsing an engine's page takes 20 ms and must not delay tokens."""
        own = gateway.metrics.registry.collect()
        return generate_latest(_Families([*own, *families, *_read_engine(gateway, engine)]))

    return Response(await asyncio.to_thread(page), media_type=CONTENT_TYPE_PLAIN_0_0_4)


async def _ask_switchboard(gateway: Gateway) -> list[Metric]:
    """Return the Switchboard's metrics, or those of its last answer, and which of the two it is."""
    is_up = True
    try:
        async with asyncio.timeout(_ANSWER_S):
            gateway.metrics.of_switchboard = await gateway.switchboard.metrics()
    except (RayError, RayServeException, TimeoutError):
        is_up = False
    text = "1 if the Switchboard answered for this page; 0 if its metrics here are from before."
    up = GaugeMetricFamily("llm_backend_switchboard_up", text, value=float(is_up))
    return [*gateway.metrics.of_switchboard, up]


async def _ask_engine(gateway: Gateway) -> tuple[str, str]:
    """Return the resident model and its engine's page; an empty page if there is none."""
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
    """Hands families that are already collected to `generate_latest`, which takes a collector."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
