"""The routes of `/admin/logs`: the last lines of a log, and a stream of new ones."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import PlainTextResponse

from serve_app.gateway.gateway import GatewayDep
from serve_app.protocol.asgi import EventStream
from serve_app.protocol.errors import NotFound
from serve_app.routes.auth import check_admin
from serve_app.telemetry import log_reader

_POLL_S = 0.5
_HEARTBEAT_S = 10.0

routes = APIRouter(tags=["admin"], dependencies=[Depends(check_admin)])


@routes.get("/admin/logs/{service}", response_class=Response)
async def tail(
    service: str,
    gateway: GatewayDep,
    lines: Annotated[int, Query(ge=0, le=5000, description="Number of last lines.")] = 200,
    follow: Annotated[bool, Query(description="Stream new lines as they are written.")] = False,
) -> Response:
    """Return the last lines of a service's log as plain text, even if the service is dead.

    Services: `gateway`, `switchboard`, `serve`, `standby`, `redis`, a model's name, or `all`, where
    each line starts with the name of its service. With `follow`: server-sent events, one for each
    line; the event's type is the service.
    """
    names = list(gateway.settings.models)
    paths = log_reader.paths_of(service, gateway.settings.home, names)
    if not paths:
        known = ", ".join([*log_reader.SERVICES, *names, "all"])
        raise NotFound(f"There is no log with this name. Available logs: {known}.", "service")
    if follow:
        return EventStream(_follow(paths, lines))
    past = await asyncio.to_thread(_past, paths, lines)
    label = "{0} | {1}\n" if service == "all" else "{1}\n"
    return PlainTextResponse("".join(label.format(name, line) for name, line in past))


def _past(paths: dict[str, Path], num_lines: int) -> list[tuple[str, str]]:
    return [
        (name, line)
        for name, path in paths.items()
        for line in log_reader.last_lines(path, num_lines)
    ]


async def _follow(paths: dict[str, Path], num_lines: int) -> AsyncGenerator[bytes, None]:
    """Yield the last lines as events, then new lines as they are written."""

    def open_all() -> dict[str, log_reader.Follower]:
        return {name: log_reader.Follower(path, num_lines) for name, path in paths.items()}

    followers = await asyncio.to_thread(open_all)
    try:
        past = [(name, line) for name, follower in followers.items() for line in follower.past]
        yield _events(past) or b": no lines yet\n"
        num_silent = 0
        while True:
            await asyncio.sleep(_POLL_S)
            new = await asyncio.to_thread(_new_lines, followers)
            num_silent = 0 if new else num_silent + 1
            if new or num_silent * _POLL_S >= _HEARTBEAT_S:
                num_silent = 0
                yield _events(new) or b": no new lines\n"
    finally:
        for follower in followers.values():
            follower.close()


def _new_lines(followers: dict[str, log_reader.Follower]) -> list[tuple[str, str]]:
    return [(name, line) for name, follower in followers.items() for line in follower.new_lines()]


def _events(lines: list[tuple[str, str]]) -> bytes:
    return "".join(f"event: {name}\ndata: {line}\n\n" for name, line in lines).encode()
