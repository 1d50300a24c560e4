"""Fetches the resident engine's metrics: vLLM's names, with our model's name."""

from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from deployments.engine.client import engine_session

_OURS = "vllm:"  # the rest of its page is of its Python process, and would pass for the gateway's
_CREATED = "_created"  # when a series began: half of the page, and of use to no one


async def ask_engine(endpoint: str, timeout_s: float) -> str:
    """The metrics page of the engine at `endpoint`.

    Raises:
        OSError, TimeoutError, aiohttp.ClientError: it gives none.
    """
    async with (
        engine_session(Path(endpoint), timeout_s) as session,
        session.get("/metrics", raise_for_status=True) as response,
    ):
        return await response.text()


def engine_families(page: str, model: str) -> list[Metric]:
    """vLLM's families in `page`, each sample with the label `model`. Raises ValueError."""
    families = []
    for family in text_string_to_metric_families(page):
        if not family.name.startswith(_OURS) or family.name.endswith(_CREATED):
            continue
        family.samples = [
            sample._replace(labels={**sample.labels, "model": model}) for sample in family.samples
        ]
        families.append(family)
    return families
