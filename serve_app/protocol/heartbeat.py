"""Keeps a stream alive while it waits for its model."""

import re

from serve_app.protocol.errors import Dialect

_COMMENTS = re.compile(r"^:.*\n+", re.MULTILINE)  # an event's data are one line of JSON
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'


def heartbeat(model: str, dialect: Dialect) -> bytes:
    """Anthropic's streams have an event for it; others get a comment.

    The comment is one line: an empty line after it is an empty event to some decoders, among them
    that of openai-go before mid-2026, which then gives up.
    """
    return _PING if dialect is Dialect.ANTHROPIC else f": waiting for {model}\n".encode()


def is_heartbeat(piece: bytes) -> bool:
    """Whether a piece of a stream, as it was sent, is one."""
    return piece.startswith(b":") or piece == _PING


def without_heartbeats(stream: str) -> str:
    """A whole stream as it is where it never waited."""
    return _COMMENTS.sub("", stream).replace(_PING.decode(), "")
