"""The settings of the response cache, and which address of a store wins."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from deployments.settings import paths
from deployments.settings.base import Frozen, SettingsError


class Cache(Frozen):
    """The response cache; see `serve_app/cache`."""

    url: SecretStr | None  # may hold a password
    ttl_s: Annotated[float, Field(gt=0)]
    max_bytes: Annotated[int, Field(gt=0)]
    max_value_bytes: Annotated[int, Field(gt=0)]
    timeout_s: Annotated[float, Field(gt=0, le=1)]
    seeded: bool


def with_address(path: Path, cache: Cache, given: SecretStr | None, home: Path) -> Cache:
    """`cache` with the address that holds, complete; `given` by the environment beats the file's.

    Raises:
        SettingsError: one cannot be used. No error repeats an address: it may hold a password.
    """
    source = f"{path}: cache.url"
    url = cache.url.get_secret_value() if cache.url else None
    if given:
        source, url = "LLM_BACKEND_CACHE_URL", given.get_secret_value()
        url = None if url == "null" else url
    if cache.max_value_bytes > cache.max_bytes:
        raise SettingsError(
            f"{path}: cache.max_value_bytes: should be at most cache.max_bytes, "
            f"{cache.max_bytes}, but it is {cache.max_value_bytes}"
        )
    if url is None:
        return cache.model_copy(update={"url": None})
    try:
        parts = urlsplit(url)
        is_known = parts.scheme in ("memory", "disk") or bool(parts.hostname and parts.port != 0)
    except ValueError:
        raise SettingsError(f"{source}: not an address") from None
    if parts.scheme not in ("memory", "disk", "redis", "rediss") or not is_known:
        choices = "memory://, disk:///folder, redis://host:port/number, rediss://…, null"
        raise SettingsError(f"{source}: not a store's address; valid: {choices}")
    if parts.scheme == "disk":
        if parts.netloc:
            raise SettingsError(f"{source}: a folder is absolute, with three slashes: disk:///…")
        url = f"disk://{parts.path or home / paths.CACHE}"
    return cache.model_copy(update={"url": SecretStr(url)})
