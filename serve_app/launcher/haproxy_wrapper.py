"""Patches the configuration that Ray has written for HAProxy, then becomes HAProxy.

Ray runs it as `python -I -S haproxy_wrapper.py <the real binary> <its arguments>`. It imports the
standard library only, because it runs at each reload and must start fast.
"""

import os
import re
import sys
from pathlib import Path

_HEAD_TIMEOUT_S = 30  # a client that sends a request's head slower occupies a connection uselessly
_PAGES = (400, 408, 413, 500, 501, 502, 503, 504)
# Larger than the gateway's limit of 32 KiB, so that the gateway can refuse a large head in words.
_MAX_HEAD_BYTES, _MAX_HEADERS = 65_536, 1_000
_METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS"
# Serve obeys these headers from every client; the first one cuts a stream without an error.
_CONTROL = "^(x-request-timeout-seconds|x[-_]session[-_]id|serve[-_]multiplexed[-_]model[-_]id)$"
# Serve returns a client's request id unchanged, and fails on one that is not UTF-8.
_SAFE_ID = (
    "{ req.fhdr_cnt(x-request-id) 1 } { req.fhdr(x-request-id) -m reg ^[A-Za-z0-9._-]{1,64}$ }"
)
_RULES = f"""
    http-request deny deny_status 501 unless {{ method {_METHODS} }}
    http-request deny deny_status 400 unless {{ path_beg / }}
    http-request del-header {_CONTROL} -m reg
    http-request del-header x-request-id unless {_SAFE_ID}"""


class UnknownConfig(Exception):
    """A line to patch is missing. HAProxy does not start then: a listener might stay open."""


def patch_config(text: str, folder: Path) -> str:
    """Return the configuration with its private listeners on sockets in `folder`; the error pages
    are in the parent of `folder`. The sockets' names are short, because a socket's path has 107
    bytes at most and HAProxy adds a suffix.

    Raises:
        UnknownConfig: a line to patch is missing, or occurs more than once.
    """
    pages = folder.parent
    own_pages = "".join(f"    errorfile {page} {pages}/{page}.http\n" for page in _PAGES)
    away = f"content-type application/json hdr Retry-After 2 file {pages}/503.json"
    slow = f"    timeout http-request {_HEAD_TIMEOUT_S}s"
    for pattern, replacement in (
        # With this option and `abortonclose`, HAProxy 2.8.25 does not notice that a client left if
        # its body came in another segment than its head, and spins until the answer is done.
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
        text, num_patched = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if num_patched != 1:
            raise UnknownConfig(pattern)
    return text


def main(arguments: list[str]) -> None:
    binary, *options = arguments
    config = Path(options[options.index("-f") + 1])
    config.write_text(patch_config(config.read_text(), config.parent))
    os.execv(binary, [binary, *options])  # noqa: S606  the binary that Ray would have started


if __name__ == "__main__":
    main(sys.argv[1:])
