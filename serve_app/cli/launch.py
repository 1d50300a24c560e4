"""`launch`, `config`: programs of other makers, set up for this backend."""

import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.connection import Connection, connected, fail
from serve_app.cli.tools import TOOLS, Backend, Setup

_MISUSED = 2  # exit code

Tool = Annotated[str, typer.Argument(help=f"One of {', '.join(TOOLS)}.")]
Model = Annotated[
    str | None,
    typer.Option(help="The model. Default: qwen-coder, else the first that can call tools."),
]


def register(app: typer.Typer) -> None:
    # What follows the tool's name is the tool's own.
    own = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(context_settings=own)(connected(launch))
    app.command()(connected(config))


def launch(
    here: Connection,
    context: typer.Context,
    tool: Tool,
    model: Model = None,
) -> None:
    """Start a coding tool on this backend: `llm-backend launch claude -- ARGS`.

    It writes into none of the tool's own settings.
    """
    setup = _setup(here, tool, model)
    program = shutil.which(setup.program)
    if program is None:
        fail(f"{setup.program} is not installed. Install it with: {setup.install}")
    arguments = [program, *setup.arguments]
    if setup.file_name:
        arguments += [setup.file_argument, str(_written(setup))]
    arguments += _own_arguments(context)
    os.execve(program, arguments, os.environ | setup.environment)  # noqa: S606  it takes our place


def config(here: Connection, tool: Tool, model: Model = None) -> None:
    """Print the settings with which a coding tool uses this backend."""
    setup = _setup(here, tool, model)
    for name, value in setup.environment.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    if setup.file_name:
        typer.echo(setup.file_content, nl=False)
    else:
        typer.echo(shlex.join([setup.program, *setup.arguments]))


def _setup(here: Connection, tool: str, model: str | None) -> Setup:
    if tool not in TOOLS:
        fail(f"There is no setup for `{tool}`; there is for {', '.join(TOOLS)}.", _MISUSED)
    models = here.run(here.client.models())
    chosen = _choose(models, model)
    key = here.client.api_key
    return TOOLS[tool](Backend(here.url, key, chosen["id"], chosen["max_model_len"]))


def _choose(models: list[dict[str, Any]], wanted: str | None) -> dict[str, Any]:
    if wanted is not None:
        for model in models:
            if model["id"] == wanted:
                return model
        names = ", ".join(model["id"] for model in models)
        fail(f"The model `{wanted}` does not exist. Available models: {names}.", _MISUSED)
    able = [model for model in models if model["capabilities"]["tools"]]
    if not able:
        fail("No model of this backend can call tools; name one with --model.")
    return next((model for model in able if model["id"] == "qwen-coder"), able[0])


def _written(setup: Setup) -> Path:
    """The tool's settings file, in this backend's own folder."""
    from deployments.settings import default_home

    assert setup.file_name
    folder = default_home() / "tools"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / setup.file_name
    path.touch(mode=0o600)  # it holds the key
    path.write_text(setup.file_content)
    return path


def _own_arguments(context: typer.Context) -> list[str]:
    return context.args[1:] if context.args[:1] == ["--"] else context.args
