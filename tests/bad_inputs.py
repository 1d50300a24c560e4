"""The file of bad inputs: rows read, placeholders filled in, and sent byte for byte.

A row names a request and the statuses that are right for it. Placeholders: `{{model}}`,
`{{other_model}}`, `{{api_key}}`, `{{admin_key}}`, `{{canary_port}}`, and `{{repeat:TEXT:N}}`, where
`\\:` is a colon.
"""

import base64
import contextlib
import http.client
import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent / "data" / "bad_inputs.jsonl"
_REPEAT = re.compile(r"\{\{repeat:((?:\\:|[^:])*):(\d+)\}\}")

# Rows that say nothing of a server without keys.
NEED_KEYS = {
    "admin_key_in_query",
    "admin_no_key",
    "admin_user_key",
    "auth_badhost_bypass",
    "auth_basic_scheme",
    "auth_missing",
    "auth_non_ascii_key",
    "auth_wrong_key",
}
# Answered before the gateway sees the request: by the HTTP parser, or by Serve's proxy itself.
NOT_OURS = {"hdr_te_and_cl", "size_many_headers", "route_serve_internal"}
# A request for a model that is not resident waits for a switch unless it says that it will not.
EXTRA_HEADERS = {"model_not_resident": {"X-Switch": "never"}}


@dataclass(frozen=True)
class Row:
    """One bad input."""

    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    expected: list[int]


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes

    def check_shape(self) -> None:
        """An error's body is in shape, short, and tells nothing of the inside."""
        assert len(self.body) < 8192
        for inside in (b"Traceback", b".py", b"/root/", b"/tmp/", b"site-packages", b" at 0x"):
            assert inside not in self.body, self.body
        if self.status >= 400:
            assert self.content_type.startswith("application/json"), self.content_type
            error = json.loads(self.body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]


def rows(**values: str) -> list[Row]:
    """All rows, with placeholders filled in."""
    return [_row(json.loads(line), values) for line in _FILE.read_text().splitlines()]


def _row(row: dict[str, Any], values: dict[str, str]) -> Row:
    def fill(text: str) -> str:
        text = _REPEAT.sub(lambda m: m[1].replace("\\:", ":") * int(m[2]), text)
        for name, value in values.items():
            text = text.replace("{{" + name + "}}", value)
        return text

    body = base64.b64decode(row["body_b64"]) if "body_b64" in row else fill(row["body"]).encode()
    headers = row["headers"] | EXTRA_HEADERS.get(row["name"], {})
    return Row(
        row["name"],
        row["method"],
        fill(row["path"]),
        {name: fill(value) for name, value in headers.items()},
        body,
        row["expect_status"],
    )


def send(port: int, row: Row, timeout_s: float = 60) -> Answer:
    """The server's answer to exactly these bytes."""
    headers = {"Host": f"127.0.0.1:{port}", "Connection": "close"} | row.headers
    if "Transfer-Encoding" not in headers:
        headers.setdefault("Content-Length", str(len(row.body)))
    head = f"{row.method} {row.path} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before the end
            connection.sendall(head.encode() + b"\r\n" + row.body)
        response = http.client.HTTPResponse(connection, method=row.method)
        response.begin()
        return Answer(response.status, response.headers.get("content-type", ""), response.read())
