"""Connects a command to a backend, and turns errors into one line and an exit code."""

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
        envvar="LLM_BACKEND_URL",
        help="The backend's address. Default: the server started on this machine.",
    ),
    "key": typer.Option(envvar="LLM_BACKEND_API_KEY", help="The backend's API key."),
    "admin_key": typer.Option(envvar="LLM_BACKEND_ADMIN_KEY", help="The backend's admin key."),
}

_T = TypeVar("_T")


class Connection:
    """A client, and the event loop in which it runs while the command runs."""

    def __init__(self, url: str | None, key: str | None, admin_key: str | None) -> None:
        from serve_app.client import LLMClient

        self.is_remote = url is not None
        if url is None:
            url, key, admin_key = _local_server(key, admin_key)
        self.client: LLMClient = LLMClient(url, key, admin_key)
        self._runner = asyncio.Runner()

    @property
    def url(self) -> str:
        return self.client.base_url

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run `work` and return its result. Ctrl-C cancels it and raises KeyboardInterrupt."""
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
    """Wrap a command whose first argument is a Connection: add `--url`, `--key` and `--admin-key`,
    connect, and turn the client's errors into an exit code."""

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
    options = [
        inspect.Parameter(name, kind, default=None, annotation=Annotated[str | None, option])
        for name, option in _OPTIONS.items()
    ]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(parameter.replace(kind=kind) for parameter in own), *options]
    )
    run.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
    del run.__wrapped__  # Typer would use the wrapped command's annotations
    return run


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Print the message to standard error, and exit with `code`."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def fail_with(exc: Exception, here: Connection) -> NoReturn:
    """Exit with the client's error as the message."""
    from serve_app.client import NotAllowed, Unreachable

    if isinstance(exc, Unreachable):
        hint = "" if here.is_remote else " Start the server with `llm-backend start`."
        fail(f"{exc}{hint}", UNREACHABLE)
    if isinstance(exc, NotAllowed):
        fail(
            f"{exc} Give the keys with --key and --admin-key, or set LLM_BACKEND_API_KEY and "
            "LLM_BACKEND_ADMIN_KEY in the environment or, for a server on this machine, in .env."
        )
    fail(str(exc))


def _local_server(
    key: str | None, admin_key: str | None
) -> tuple[str | None, str | None, str | None]:
    """Return address (None if no server runs), API key and admin key of this machine's server. Keys
    that are not given come from `.env`, which is never sent to another server."""
    from deployments.settings import SettingsError, default_home
    from deployments.settings.environment import read_environment
    from serve_app.launcher import pidfile

    try:
        server, environment = pidfile.find(default_home()), read_environment()
    except SettingsError as exc:
        fail(str(exc))
    if key is None and environment.api_keys:
        key = environment.api_keys[0].get_secret_value()
    if admin_key is None and environment.admin_keys:
        admin_key = environment.admin_keys[0].get_secret_value()
    return server.url if server else None, key, admin_key
