"""Shows the progress of a switch: finished phases as lines, the current phase as a bar."""

from types import TracebackType
from typing import Any, Self

import typer

Ticket = dict[str, Any]


class SwitchProgress:
    """Shows the tickets of a switch. Without a terminal it prints lines only.

    `is_result`: the lines are the command's result and go to standard output, else to standard
    error.
    """

    def __init__(self, is_result: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._is_result = is_result
        self._console = Console(stderr=not is_result)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[eta]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("asking", total=None, eta="")
        self._ticket_id: str | None = None
        self._num_printed = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        if self._bar.disable:
            typer.echo(line, err=not self._is_result)
        else:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def wait(self, description: str) -> None:
        """Show a description in the bar, while there is no ticket."""
        self._bar.update(self._task, description=description, total=None, eta="")

    def show(self, ticket: Ticket) -> None:
        """Print the phases that have ended since the last call, and update the bar."""
        if ticket["id"] != self._ticket_id:
            self._ticket_id, self._num_printed = ticket["id"], 0
        is_over = ticket["state"] not in ("queued", "running")
        ended = ticket["phases"] if is_over else ticket["phases"][:-1]
        for phase in ended[self._num_printed :]:
            self.print(f"  {phase['phase']:<10}{phase['seconds']:6.1f} s")
        self._num_printed = max(self._num_printed, len(ended))
        estimate_s, eta_s = ticket["estimate_s"], ticket["eta_s"]
        has_eta = estimate_s is not None and eta_s is not None
        self._bar.update(
            self._task,
            description=f"{ticket['phase']}{_waits(ticket['waits_for'])}",
            total=max(estimate_s, 0.1) if has_eta else None,
            completed=estimate_s - eta_s if has_eta else 0,
            eta=_eta(eta_s),
        )


def _waits(waits_for: dict[str, int]) -> str:
    items = ", ".join(f"{num} {name.replace('_', ' ')}" for name, num in waits_for.items())
    return f" (waits for {items})" if items else ""


def _eta(eta_s: float | None) -> str:
    if eta_s is None:
        return ""
    return f"about {eta_s:.0f} s left" if eta_s >= 1 else "any moment"
