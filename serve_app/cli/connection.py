"""Reaches a server, and turns its errors into one line and an exit code."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Annotated, Any, NoReturn, Self, TypeVar

import typer

FAILED, UNREACHABLE, INTERRUPTED = 1, 3, 130  # exit codes

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_OPTIONS = {
    "url": typer.Option(
        envvar="LLM_BACKEND_URL", help="The server's address. Default: the one started here."
    ),
    "key": typer.Option(envvar="LLM_BACKEND_API_KEY", help="The server's API key."),
    "admin_key": typer.Option(envvar="LLM_BACKEND_ADMIN_KEY", help="The server's admin key."),
}

_T = TypeVar("_T")


class Connection:
    """A client, and the loop it lives in while the command runs."""

    def __init__(self, url: str | None, key: str | None, admin_key: str | None) -> None:
        from serve_app.client import LLMClient

        self.is_remote = url is not None
        if url is None:
            url, key, admin_key = _of_this_machine(key, admin_key)
        self.client: LLMClient = LLMClient(url, key, admin_key)
        self._runner = asyncio.Runner()

    @property
    def url(self) -> str:
        return self.client.base_url

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What `work` returns; Ctrl-C cancels it, and raises KeyboardInterrupt."""
        return self._runner.run(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """A command that gets a Connection first, with the options that say to what."""

    @functools.wraps(command)
    def run(url: str | None, key: str | None, admin_key: str | None, **arguments: Any) -> None:
        from serve_app.client import LLMError

        with Connection(url, key, admin_key) as here:
            try:
                command(here, **arguments)
            except LLMError as exc:
                fail_with(exc, here)
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None

    own = list(inspect.signature(command).parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    to_what = [
        inspect.Parameter(name, kind, default=None, annotation=Annotated[str | None, option])
        for name, option in _OPTIONS.items()
    ]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(parameter.replace(kind=kind) for parameter in own), *to_what]
    )
    run.__annotations__ = {p.name: p.annotation for p in [*own, *to_what]}
    del run.__wrapped__  # Typer would look at its annotations
    return run


def fail(message: str, code: int = FAILED) -> NoReturn:
    """End the command with one line on standard error."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def fail_with(exc: Exception, here: Connection) -> NoReturn:
    """End the command with what the backend, or the way to it, has raised."""
    from serve_app.client import NotAllowed, Unreachable

    if isinstance(exc, Unreachable):
        hint = "" if here.is_remote else " `llm-backend start` starts a server."
        fail(f"{exc}{hint}", UNREACHABLE)
    if isinstance(exc, NotAllowed):
        fail(f"{exc} Keys are given by --key and --admin-key, in the environment, or in .env.")
    fail(str(exc))


def _of_this_machine(
    key: str | None, admin_key: str | None
) -> tuple[str | None, str | None, str | None]:
    """The address of the server on this machine's home, None where none is; and its keys, which
    stand in `.env` where they were not given. No other server is shown the file's keys."""
    from deployments.settings import SettingsError, default_home
    from deployments.settings.environment import read_environment
    from serve_app.launcher import pidfile

    try:
        server, machine = pidfile.find(default_home()), read_environment()
    except SettingsError as exc:
        fail(str(exc))
    if key is None and machine.api_keys:
        key = machine.api_keys[0].get_secret_value()
    if admin_key is None and machine.admin_keys:
        admin_key = machine.admin_keys[0].get_secret_value()
    return server.url if server else None, key, admin_key
