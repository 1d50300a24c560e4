"""For the client's tests: a backend whose answers are written down, and a clock of one's own."""

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from serve_app.client.transport import Clock
from serve_app.protocol.errors import BackendError, error_response


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Scripted:
    """An ASGI application that keeps its requests.

    An answer is an error, an object (200), or bytes that are no JSON.
    """

    answers: deque[BackendError | dict[str, Any] | bytes] = field(default_factory=deque)
    requests: list[Request] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message.get("body", b"")
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append(Request(scope["path"], headers, json.loads(body) if body else None))
        status, own, content = self._answer()
        encoded = [(name.encode(), value.encode()) for name, value in own.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": content})

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        answer = self.answers.popleft()
        if isinstance(answer, BackendError):
            status, headers, content = error_response(answer)
            return status, dict(headers), content
        if isinstance(answer, bytes):
            return 200, {"content-type": "text/html"}, answer
        return 200, {"content-type": "application/json"}, json.dumps(answer).encode()


@dataclass
class Time:
    """A clock that sleeping turns on."""

    now_s: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now_s, sleep=self._sleep, jitter=lambda: 0.0)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds
