"""`start` and `stop`."""

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
        str | None, typer.Option(help="Model to load, or `none`. In a terminal, `start` asks.")
    ] = None,
    profile: Annotated[
        Literal["rtx5080", "cpu-demo"] | None, typer.Option(help="Default: the deployment file's.")
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Run until Ctrl-C; ask nothing.")
    ] = False,
    config: Config = _CONFIG,
) -> None:
    """Start the server, and wait until it is ready; `llm-backend stop` ends it."""
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
        typer.echo(f"Can not start: {exc}.")
        raise typer.Exit(FAILED) from None


def stop(config: Config = _CONFIG) -> None:
    """Stop the server: every process that `start` started, and no other."""
    from serve_app.launcher import pidfile
    from serve_app.launcher.background import home_of
    from serve_app.launcher.preflight import PreflightError

    try:
        home = home_of(config)
    except PreflightError as exc:
        fail(f"{exc}.")
    server = pidfile.find(home)
    if server is None:
        typer.echo(f"No server of {home} is running.")
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
    """Which model to load; Enter takes the one that was wanted last, else the default."""
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
        typer.echo(f"There is no {answer}.")


def _start_in_background(config: Path) -> None:
    from serve_app.launcher import background

    # Python's own handler, which `asyncio.run` replaces by a cancellation of its task, loses one
    # that comes as the task ends.
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
    typer.echo("`llm-backend stop` stops it; `llm-backend logs all -f` shows what it does.")


def _show(step: "Progress", shown: SwitchProgress) -> None:
    for line in step.lines:
        if line:
            shown.say(line)
    if step.url is None:
        return shown.wait("starting")
    ticket = asyncio.run(_running_ticket(step.url))
    return shown.show(ticket) if ticket else shown.wait("starting")


async def _running_ticket(url: str) -> Ticket | None:
    """Of the switch that is under way, as far as one may know."""
    from serve_app.client import LLMClient, LLMError

    async with LLMClient(url, timeout_s=2) as client:
        try:
            ticket: Ticket | None = (await client.status())["switch"]
        except LLMError:
            return None
        return ticket
