"""`llm-backend doctor`: reports problems of this machine, each with its remedy."""

import json
from pathlib import Path
from typing import Annotated

import typer

from deployments.settings import PROJECT


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: Annotated[Path, typer.Option(help="The deployment file to check.")] = PROJECT
    / "serve_config.yaml",
) -> None:
    """Check the GPU, the software, the checkpoints and the machine; change nothing.

    The exit code is 1 if there is a problem; warnings do not count.
    """
    from serve_app.doctor.gather import gather
    from serve_app.doctor.report import diagnose, exit_code, json_of, lines_of

    findings = diagnose(gather(config))
    if as_json:
        typer.echo(json.dumps(json_of(findings), indent=1))
    else:
        typer.echo("\n".join(lines_of(findings)))
    raise typer.Exit(exit_code(findings))
