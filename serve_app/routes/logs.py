"""Logs over HTTP: the last lines, and the lines that follow."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import PlainTextResponse

from serve_app.gateway.gateway import Here
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
    gateway: Here,
    lines: Annotated[int, Query(ge=0, le=5000, description="How many of the last.")] = 200,
    follow: Annotated[bool, Query(description="Go on with what is added.")] = False,
) -> Response:
    """The last lines of a service's log as plain text, also when the service is dead: `gateway`,
    `switchboard`, `serve`, `standby`, `redis`, a model's name, or `all`, where each line begins
    with its service.

    With `follow`: server-sent events, one a line, whose type is the service.
    """
    names = list(gateway.settings.models)
    paths = log_reader.paths_of(service, gateway.settings.home, names)
    if not paths:
        known = ", ".join([*log_reader.SERVICES, *names, "all"])
        raise NotFound(f"Unknown log. Available logs: {known}.", "service")
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
    """What one reader is sent: the last lines, then what is added."""

    def open_all() -> dict[str, log_reader.Follower]:
        return {name: log_reader.Follower(path, num_lines) for name, path in paths.items()}

    followers = await asyncio.to_thread(open_all)
    try:
        past = [(name, line) for name, follower in followers.items() for line in follower.past]
        yield _events(past) or b": nothing yet\n"
        num_silent = 0
        while True:
            await asyncio.sleep(_POLL_S)
            new = await asyncio.to_thread(_news, followers)
            num_silent = 0 if new else num_silent + 1
            if new or num_silent * _POLL_S >= _HEARTBEAT_S:
                num_silent = 0
                yield _events(new) or b": nothing new\n"
    finally:
        for follower in followers.values():
            follower.close()


def _news(followers: dict[str, log_reader.Follower]) -> list[tuple[str, str]]:
    return [(name, line) for name, follower in followers.items() for line in follower.new_lines()]


def _events(lines: list[tuple[str, str]]) -> bytes:
    return "".join(f"event: {name}\ndata: {line}\n\n" for name, line in lines).encode()
