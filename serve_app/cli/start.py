"""`start` and `stop`: the server on this machine."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from serve_app.cli.connection import FAILED, INTERRUPTED, fail
from serve_app.cli.progress import SwitchProgress, Ticket

if TYPE_CHECKING:
    from serve_app.launcher.background import Progress

_CONFIG = Path(__file__).resolve().parents[2] / "serve_config.yaml"

Config = Annotated[Path, typer.Option(help="The deployment file.")]


def start(
    model: Annotated[
        str | None,
        typer.Option(
            help="The model to load, or `none`. Default: a question in a terminal, else the model "
            "of the last run or of the file."
        ),
    ] = None,
    profile: Annotated[
        Literal["rtx5080", "cpu-demo"] | None,
        typer.Option(help="The profile. Default: the deployment file's."),
    ] = None,
    foreground: Annotated[
        bool,
        typer.Option("--foreground", help="Run until Ctrl-C, without asking for the model."),
    ] = False,
    config: Config = _CONFIG,
) -> None:
    """Start the server and wait until it is ready; `llm-backend stop` stops it."""
    from serve_app.launcher.background import choose
    from serve_app.launcher.foreground import run_server
    from serve_app.launcher.preflight import PreflightError
    from serve_app.launcher.private import close_to_others

    close_to_others()
    try:
        if model is None and not foreground and sys.stdin.isatty() and sys.stdout.isatty():
            model = _ask_for_model(config, profile)
        chosen = choose(config, model, profile)
        if foreground:
            raise typer.Exit(run_server(chosen, typer.echo))
        _start_in_background(chosen)
    except PreflightError as exc:
        typer.echo(f"Cannot start: {exc}.")
        raise typer.Exit(FAILED) from None


def stop(config: Config = _CONFIG) -> None:
    """Stop the server: every process that `start` has started, and no other."""
    from serve_app.launcher import pidfile
    from serve_app.launcher.background import home_of
    from serve_app.launcher.preflight import PreflightError

    try:
        home = home_of(config)
    except PreflightError as exc:
        fail(f"{exc}.")
    server = pidfile.find(home)
    if server is None:
        typer.echo(f"No server is running on {home}.")
        return
    typer.echo(f"Stopping {server.url}")
    left = pidfile.stop(home, server, typer.echo)
    if left:
        fail("Still running:\n" + "\n".join(f"  {line}" for line in left))
    typer.echo("Stopped; nothing is left running.")


def register(app: typer.Typer) -> None:
    app.command()(start)
    app.command()(stop)


def _ask_for_model(config: Path, profile: str | None) -> str:
    """Ask which model to load; Enter chooses the saved model, else the default."""
    from serve_app.launcher.background import models_of

    names, default = models_of(config, profile)
    for number, name in enumerate(names, 1):
        typer.echo(f"  {number}  {name}{'  (Enter)' if name == default else ''}")
    while True:
        answer: str = typer.prompt("Which model", default=default, show_default=False)
        if answer in names:
            return answer
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        typer.echo(f"There is no model {answer!r}; type a number or a name from the list.")


def _start_in_background(config: Path) -> None:
    from serve_app.launcher import background

    # `asyncio.run` replaces Python's own handler by one that cancels its task, and loses a SIGINT
    # that arrives while the task ends.
    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    steps = background.start(config)
    with SwitchProgress(is_result=True) as shown:
        for step in steps:
            _show(step, shown)
            if interrupts and not step.is_ready:
                shown.wait("stopping")
                steps.close()
                raise typer.Exit(INTERRUPTED)
    if not step.is_ready:
        raise typer.Exit(step.exit_code or FAILED)
    typer.echo("`llm-backend stop` stops it; `llm-backend logs all -f` shows its logs.")


def _show(step: "Progress", shown: SwitchProgress) -> None:
    for line in step.lines:
        if line:
            shown.print(line)
    if step.url is None:
        return shown.wait("starting")
    ticket = asyncio.run(_running_ticket(step.url))
    return shown.show(ticket) if ticket else shown.wait("starting")


async def _running_ticket(url: str) -> Ticket | None:
    """Return the ticket of the running switch; None if there is none, or without permission."""
    from serve_app.client import LLMClient, LLMError

    async with LLMClient(url, timeout_s=2) as client:
        try:
            ticket: Ticket | None = (await client.status())["switch"]
        except LLMError:
            return None
        return ticket
