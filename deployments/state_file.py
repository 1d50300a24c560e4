"""What outlives a restart of everything: which model is wanted, and the last epoch."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class SavedState:
    """The content of the state file."""

    desired: str | None = None
    epoch: int = 0


def load_state(path: Path) -> SavedState | None:
    """The saved state; None where there is none, or none that can be read."""
    try:
        raw = json.loads(path.read_text())
        state = SavedState(desired=raw["desired"], epoch=raw["epoch"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    is_whole = isinstance(state.desired, str | None) and type(state.epoch) is int
    return state if is_whole else None


def save_state(path: Path, state: SavedState) -> None:
    """Replace the file in one step, so that a reader never sees half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        json.dump(asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
