"""Finds a free TCP port that no program takes by chance."""

import random
import socket

# Below what Linux gives out by itself (from 32768), between Ray's workers (10002 to 19999) and
# Serve's replicas (from 30000): one of those may be taken before its owner listens there.
_FIRST, _LAST = 20000, 29999


def free_port() -> int:
    """A port of the loopback at which no program listens."""
    while True:
        port = random.randint(_FIRST, _LAST)  # noqa: S311  no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
