"""`llm-backend bench`: runs the benchmark of a source checkout (`tests/bench`)."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from deployments.settings import PROJECT


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure one short round instead of two.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report. Default: tests/artifacts/bench.")
    ] = None,
    peer_env: Annotated[
        Path | None,
        typer.Option(
            help="Also measure Ray Serve LLM: the python of an environment with Ray's extra `llm`."
        ),
    ] = None,
) -> None:
    """Measure this server against bare vLLM on this machine, in two rounds.

    Run no other program meanwhile. The report has tables, JSON and pictures. The exit code is 1 if
    a target is missed or a part fails.
    """
    if not (PROJECT / "tests" / "bench").is_dir():
        typer.echo("The benchmark needs the source checkout: run `make bench` in it.", err=True)
        raise typer.Exit(2)
    command = [sys.executable, "-m", "tests.bench"]
    command += ["--quick"] if quick else []
    command += [f"--out={out.absolute()}"] if out else []
    command += [f"--peer-env={peer_env.absolute()}"] if peer_env else []
    try:
        raise typer.Exit(subprocess.run(command, cwd=PROJECT, check=False).returncode)
    except KeyboardInterrupt:  # the child has received SIGINT too, and has stopped its processes
        raise typer.Exit(130) from None
