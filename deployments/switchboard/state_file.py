"""Saves what outlives a restart: the desired model, the last epoch, the lease, the tickets."""

import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config

from deployments.host.files import write_whole
from deployments.switchboard.messages import LeaseView

logger = logging.getLogger("llm_backend.switchboard")


def _has_id(ticket: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(ticket.get("id"), str):
        raise ValueError("a ticket needs an id")
    return ticket


@with_config(ConfigDict(strict=True, allow_inf_nan=False))
@dataclass(frozen=True)
class SavedState:
    """The content of the state file."""

    desired: str | None = None
    epoch: Annotated[int, Field(ge=0)] = 0
    session: str = ""  # Ray's session; it changes when the whole server is started again
    lease: LeaseView | None = None
    # the tickets' JSON for clients, the oldest first
    tickets: tuple[Annotated[dict[str, Any], AfterValidator(_has_id)], ...] = ()


_SAVED = TypeAdapter(SavedState)


def load_state(path: Path) -> SavedState | None:
    """The saved state; None if there is no file or it is damaged. A damaged file is renamed: its
    name then ends in `.damaged`."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    try:
        state = _SAVED.validate_json(raw)
        if missing := asdict(state).keys() - json.loads(raw).keys():
            raise ValueError(f"{missing} is missing")
        if state.lease:
            state.lease.ends_at  # noqa: B018  raises for a date outside the calendar
    except (ValueError, OverflowError, OSError, RecursionError):
        logger.warning("%s is damaged; it is renamed to %s.damaged", path, path.name)
        with suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
        return None
    return state


def save_state(path: Path, state: SavedState) -> None:
    """Write the state file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, json.dumps(asdict(state)))
