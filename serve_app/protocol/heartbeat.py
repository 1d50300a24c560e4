"""Heartbeats: what keeps a stream's connection open while the request waits for its model."""

import re

from serve_app.protocol.errors import Dialect

_COMMENTS = re.compile(
    r"^:.*\n+", re.MULTILINE
)  # never inside an event: its data is one line of JSON
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'


def heartbeat(model: str, dialect: Dialect) -> bytes:
    """Return a heartbeat: Anthropic's `ping` event, or a comment in other streams.

    No empty line follows the comment: some decoders, such as that of openai-go before mid-2026,
    take it for an empty event and fail.
    """
    return _PING if dialect is Dialect.ANTHROPIC else f": waiting for {model}\n".encode()


def is_heartbeat(piece: bytes) -> bool:
    """Whether a piece of a stream, as it was sent, is a heartbeat."""
    return piece.startswith(b":") or piece == _PING


def without_heartbeats(stream: str) -> str:
    """Return a whole stream without its heartbeats, as if it had never waited."""
    return _COMMENTS.sub("", stream).replace(_PING.decode(), "")
