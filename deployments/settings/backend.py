"""The file `configs/backend.yaml`: what holds for every profile."""

from typing import Annotated, Literal

from pydantic import Field

from deployments.settings.base import Frozen
from deployments.settings.cache import Cache


class Limits(Frozen):
    """What no client can lift."""

    max_in_service: Annotated[int, Field(gt=0)]
    max_queued: Annotated[int, Field(ge=0)]
    request_timeout_s: Annotated[float, Field(gt=0)]
    max_body_bytes: Annotated[int, Field(gt=0)]
    max_values: Annotated[int, Field(gt=0)]
    unknown_fields: Literal["ignore", "refuse"]
    max_choices: Annotated[int, Field(gt=0)]
    max_inputs: Annotated[int, Field(gt=0)]
    max_logprobs: Annotated[int, Field(ge=0, le=20)]  # vLLM's own limit, `--max-logprobs`, is 20
    max_stop: Annotated[int, Field(ge=0, le=16)]  # what engines are started with
    max_tools: Annotated[int, Field(ge=0)]
    max_schema_depth: Annotated[int, Field(gt=0, le=60)]  # vLLM's own limit is 64
    max_schema_properties: Annotated[int, Field(gt=0)]
    max_image_bytes: Annotated[int, Field(gt=0)]
    max_image_pixels: Annotated[int, Field(gt=0)]
    image_hosts: list[Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")]]
    image_fetch_timeout_s: Annotated[float, Field(gt=0)]


class Http(Frozen):
    """Who may reach the server, besides what keys say."""

    allowed_hosts: list[str]
    cors_origins: list[str]
    admin_origins: list[str]


class Switching(Frozen):
    """The residency policy; durations in seconds."""

    drain_timeout_s: Annotated[float, Field(ge=0)]
    load_timeout_s: Annotated[float, Field(gt=0)]
    unload_timeout_s: Annotated[float, Field(gt=0)]
    max_wait_s: Annotated[float, Field(gt=0)]
    min_resident_s: Annotated[float, Field(ge=0)]
    probation_s: Annotated[float, Field(ge=0)]
    failed_retry_s: Annotated[float, Field(gt=0)]
    idle_unload_s: dict[str, Annotated[float, Field(gt=0)]]


class Memory(Frozen):
    """What is expected of the memory from one load to the next."""

    max_drift_bytes: Annotated[int, Field(ge=0)]


class Probing(Frozen):
    """How a serving engine is watched; durations in seconds."""

    interval_s: Annotated[float, Field(gt=0)]
    still_after_s: Annotated[float, Field(gt=0)]
    stuck_after_s: Annotated[float, Field(gt=0)]


class GpuSettings(Frozen):
    """How the card is watched."""

    alarm_at: Annotated[float, Field(gt=0.1, le=1)]  # share of its memory in use
    interval_s: Annotated[float, Field(gt=0)]


class BackendFile(Frozen):
    """All of `configs/backend.yaml`."""

    limits: Limits
    http: Http
    switching: Switching
    probing: Probing
    memory: Memory
    cache: Cache
    gpu: GpuSettings
