"""`llm-backend bench`: starts the benchmark of a source checkout."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from deployments.settings import PROJECT


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Run one short round.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report. Default: tests/artifacts/bench.")
    ] = None,
    peer_env: Annotated[
        Path | None,
        typer.Option(help="Python of an environment with `ray[llm]`, measured as a peer."),
    ] = None,
) -> None:
    """Measure this server against bare vLLM on this machine, in two rounds; stop other programs
    first. Writes a report with tables, JSON and pictures. The exit code is 1 if a target is missed
    or a part fails."""
    if not (PROJECT / "tests" / "bench").is_dir():
        typer.echo(
            "The benchmark is part of the source checkout: run `make bench` there.", err=True
        )
        raise typer.Exit(2)
    command = [sys.executable, "-m", "tests.bench"]
    command += ["--quick"] if quick else []
    command += [f"--out={out.absolute()}"] if out else []
    command += [f"--peer-env={peer_env.absolute()}"] if peer_env else []
    try:
        raise typer.Exit(subprocess.run(command, cwd=PROJECT, check=False).returncode)
    except KeyboardInterrupt:  # the child had it too, and has stopped what it had started
        raise typer.Exit(130) from None
