"""What tests of the response cache share: checkpoints to tell models by, and questions to ask."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from deployments.settings import Settings
from tests.gateway.conftest import CHAT, A, Backend
from tests.gateway.sse import check

GREEDY: dict[str, Any] = {"temperature": 0}


def with_cache(settings: Settings, home: Path, url: str | None, **changes: Any) -> Settings:
    """The settings with `url` as cache, and something under `home` for each checkpoint."""
    for spec in settings.models.values():
        folder = home / "models" / spec.checkpoint.removeprefix("demo/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
    url = f"disk://{home}/cache" if url == "disk://" else url
    # A second for a look-up: on a busy machine a disk needs more than the shipped 50 ms.
    own = {"url": SecretStr(url) if url else None, "timeout_s": 1.0} | changes
    cache = settings.cache.model_copy(update=own)
    return settings.model_copy(update={"home": home, "cache": cache})


@dataclass
class Answer:
    """One answer to a chat, read to its end."""

    status: int
    headers: dict[str, str]
    raw: bytes
    value: dict[str, Any]  # of a stream: its first chunk
    text: str | None

    @property
    def label(self) -> str:
        return self.headers["X-Cache"]

    @property
    def code(self) -> Any:
        """Of the error that it is."""
        return self.value["error"]["code"]


async def ask(
    backend: Backend, *, headers: dict[str, str] | None = None, model: str = A, **fields: Any
) -> Answer:
    """Ask greedily, unless `fields` say otherwise; a stream keeps the rules."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | GREEDY | fields
    async with backend.client.post(CHAT, json=body, headers=headers) as response:
        raw = await response.read()
        head = {k.title(): v for k, v in response.headers.items()}
        if response.content_type == "text/event-stream":
            stream = check(head["Content-Type"], raw)
            if stream.error:
                return Answer(response.status, head, raw, {"error": stream.error}, None)
            return Answer(response.status, head, raw, stream.chunks[0], stream.texts[0])
        value = json.loads(raw)
        text = None if "error" in value else value["choices"][0]["message"]["content"]
        return Answer(response.status, head, raw, value, text)
