"""Reads the resident engine's metrics and labels them with our model's name."""

from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from deployments.engine.client import engine_session

# The engine's other metrics describe its Python process; on our page they would look like the
# gateway's.
_VLLM_PREFIX = "vllm:"
_CREATED = "_created"  # the start times of the series: half of the page, and useless


async def ask_engine(endpoint: str, timeout_s: float) -> str:
    """Return the metrics page of the engine at `endpoint`.

    Raises:
        OSError, TimeoutError, aiohttp.ClientError: the engine does not return the page.
    """
    async with (
        engine_session(Path(endpoint), timeout_s) as session,
        session.get("/metrics", raise_for_status=True) as response,
    ):
        return await response.text()


def engine_families(page: str, model: str) -> list[Metric]:
    """Return vLLM's families in `page`, each sample with the label `model`. Raises ValueError."""
    families = []
    for family in text_string_to_metric_families(page):
        if not family.name.startswith(_VLLM_PREFIX) or family.name.endswith(_CREATED):
            continue
        family.samples = [
            sample._replace(labels={**sample.labels, "model": model}) for sample in family.samples
        ]
        families.append(family)
    return families
