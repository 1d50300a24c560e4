"""Mends the configuration that Ray wrote for HAProxy, then becomes HAProxy.

Run as `python -I -S haproxy_guard.py <the real binary> <its arguments>`; knows nothing but the
standard library, for it runs at each reload.
"""

import os
import re
import sys
from pathlib import Path

_HEAD_TIMEOUT_S = 30  # for a request's head: a slower client holds a connection for nothing
_PAGES = (400, 408, 413, 500, 501, 502, 503, 504)  # beside the private folder's own folders
# Heads past the gateway's 32 KiB still fit, so that the gateway can refuse them in words.
_MAX_HEAD_BYTES, _MAX_HEADERS = 65_536, 1_000
_METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS"
# Serve obeys or reads these from any client: the first cuts a stream without an error event.
_STEERING = "^(x-request-timeout-seconds|x[-_]session[-_]id|serve[-_]multiplexed[-_]model[-_]id)$"
# Serve gives back any name that a client gives its request, and fails on one that is not UTF-8.
_HARMLESS_ID = (
    "{ req.fhdr_cnt(x-request-id) 1 } { req.fhdr(x-request-id) -m reg ^[A-Za-z0-9._-]{1,64}$ }"
)
_RULES = f"""
    http-request deny deny_status 501 unless {{ method {_METHODS} }}
    http-request deny deny_status 400 unless {{ path_beg / }}
    http-request del-header {_STEERING} -m reg
    http-request del-header x-request-id unless {_HARMLESS_ID}"""


class UnknownConfig(Exception):
    """Not the configuration that is known: it might leave something open."""


def mend(text: str, folder: Path) -> str:
    """The configuration, with its private listeners on sockets in `folder`, whose parent holds the
    error pages. Their names are short: a socket's path has 107 bytes, and HAProxy adds to it.

    Raises:
        UnknownConfig: a line to be mended is not there.
    """
    pages = folder.parent
    own_pages = "".join(f"    errorfile {page} {pages}/{page}.http\n" for page in _PAGES)
    away = f"content-type application/json hdr Retry-After 2 file {pages}/503.json"
    slow = f"    timeout http-request {_HEAD_TIMEOUT_S}s"
    for pattern, replacement in (
        # With it and `abortonclose`, HAProxy 2.8.25 does not see a client leave whose body came in
        # another segment than its head, and spins until the answer is done.
        (r"^    option splice-request\n", ""),
        (
            r"(?<=^    tune\.bufsize )\d+$",
            f"{_MAX_HEAD_BYTES}\n    tune.http.maxhdr {_MAX_HEADERS}",
        ),
        (r"(?<=^frontend http_frontend\n)(    bind .*)$", rf"\1{_RULES}"),
        (r"(?<=^defaults\n    mode http$)", f"\n{slow}"),
        (r"(?<=^frontend prometheus\n)    bind :\d+$", f"    bind unix@{folder}/m.sock mode 600"),
        (r"(?<=^listen stats\n)  bind \*:\d+$", f"  bind unix@{folder}/s.sock mode 600"),
        (r"(?<=\.sock )mode 666(?= level admin)", "mode 600"),
        (r"(?:^ *errorfile 50[234] .*\n)+", own_pages),
        (
            r"(?<=^backend default_backend\n)    http-request return status 404 .*$",
            f"    http-request return status 503 {away}",
        ),
    ):
        text, num_mended = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if num_mended != 1:
            raise UnknownConfig(pattern)
    return text


def main(arguments: list[str]) -> None:
    binary, *options = arguments
    config = Path(options[options.index("-f") + 1])
    config.write_text(mend(config.read_text(), config.parent))
    os.execv(binary, [binary, *options])  # noqa: S606  the binary that Ray would have started


if __name__ == "__main__":
    main(sys.argv[1:])
