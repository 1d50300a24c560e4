"""What outlives a restart of the Switchboard, and of everything: which model is wanted, the last
epoch, the lease, and the last tickets."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deployments.view import LeaseView
from deployments.whole_file import write_whole


@dataclass(frozen=True)
class SavedState:
    """The content of the state file."""

    desired: str | None = None
    epoch: int = 0
    session: str = ""  # of Ray: another one means that everything was started anew
    lease: LeaseView | None = None
    tickets: tuple[dict[str, Any], ...] = ()  # as clients see them, the oldest first


def load_state(path: Path) -> SavedState | None:
    """The saved state; None where there is none, or none that can be read."""
    try:
        raw = json.loads(path.read_text())
        lease = raw["lease"] and LeaseView(**raw["lease"])
        state = SavedState(
            raw["desired"], raw["epoch"], raw["session"], lease, tuple(raw["tickets"])
        )
        is_whole = isinstance(state.desired, str | None) and type(state.epoch) is int
        is_whole &= all(isinstance(ticket["id"], str) for ticket in state.tickets)
        is_whole &= lease is None or isinstance(lease.until, float | int | None)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return state if is_whole else None


def save_state(path: Path, state: SavedState) -> None:
    """Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, json.dumps(asdict(state)))
