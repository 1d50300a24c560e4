"""A relay between a program and the server: what was sent and answered is kept, and what the model
says is settled. The first turn calls a certain tool with certain arguments, and later ones end in
one word: a model of 135M would do neither by itself."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

# Left free, a later answer runs on until the context is full: minutes, and the program gives up.
_LAST_WORD = {
    "type": "json_schema",
    "schema": {
        "type": "object",
        "properties": {"said": {"enum": ["Done."]}},
        "required": ["said"],
        "additionalProperties": False,
    },
}
_HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True)
class Call:
    """What the first turn is made to call: a tool of the program's, with one argument."""

    tool: str
    argument: str
    value: str

    def force(self, body: dict[str, Any], is_messages: bool) -> None:
        """Leave this call as the one thing that the model can say."""
        schema = {
            "type": "object",
            "properties": {self.argument: {"enum": [self.value]}},
            "required": [self.argument],
            "additionalProperties": False,
        }
        tool = next(tool for tool in body["tools"] if tool.get("name") == self.tool)
        tool["strict"] = True  # Codex says that its tools are not
        tool["input_schema" if is_messages else "parameters"] = schema
        kind = "tool" if is_messages else "function"
        body["tool_choice"] = {"type": kind, "name": self.tool}


@dataclass(frozen=True)
class Turn:
    """A request for an answer as the program sent it, and the status that the server gave."""

    body: dict[str, Any]
    status: int


@dataclass
class Relay:
    """The relay's address, and the turns that went through it."""

    call: Call
    server: str
    url: str = ""
    turns: list[Turn] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_forced: bool = False

    def steer(self, path: str, raw: bytes) -> bytes:
        """The first turn with tools calls one; all others say the last word."""
        body = json.loads(raw)
        is_messages = path.startswith("/v1/messages")
        with self._lock:
            is_first = bool(body.get("tools")) and not self._is_forced
            self._is_forced |= is_first
        if is_first:
            self.call.force(body, is_messages)
        elif is_messages:
            body["output_config"] = (body.get("output_config") or {}) | {"format": _LAST_WORD}
        else:
            body["text"] = (body.get("text") or {}) | {"format": _LAST_WORD | {"name": "said"}}
        return json.dumps(body | {"temperature": 0}).encode()


@contextmanager
def relaying(server: str, call: Call) -> Iterator[Relay]:
    """A relay to the server at that address."""
    relay = Relay(call, server)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _handler(relay))
    relay.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield relay
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def _handler(relay: Relay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            path = self.path.partition("?")[0]
            if path in ("/v1/messages", "/v1/responses"):
                self._forward(relay.steer(path, raw), json.loads(raw))
            else:
                self._forward(raw)

        def do_GET(self) -> None:
            self._forward(None)

        do_HEAD = do_GET

        def _forward(self, content: bytes | None, turn: dict[str, Any] | None = None) -> None:
            """Pass a request on, and its answer back piece by piece."""
            sent = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            sent["Accept-Encoding"] = "identity"
            with httpx.stream(
                self.command, relay.server + self.path, headers=sent, content=content, timeout=400
            ) as answer:
                if turn is not None:
                    relay.turns.append(Turn(turn, answer.status_code))
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in _HOP_BY_HOP:
                        self.send_header(name, value)
                self.end_headers()
                for piece in answer.iter_raw():
                    self.wfile.write(piece)
                    self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Not to the tests' output."""

    return Handler
