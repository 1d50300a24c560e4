"""Mends the configuration that Ray has written for HAProxy, then becomes HAProxy.

Run as `python -I -S haproxy_guard.py <the real binary> <its arguments>`; knows nothing but the
standard library, for it runs at each reload.
"""

import os
import re
import sys
from pathlib import Path

_HEAD_TIMEOUT_S = 30  # for a request's head: whoever sends it slower holds a connection for nothing
_PAGES = (400, 408, 413, 500, 501, 502, 503, 504)  # beside the private folder's own folders


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
