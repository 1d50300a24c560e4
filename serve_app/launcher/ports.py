"""Finds a free TCP port in a range from which no other program takes ports at random."""

import random
import socket

# Below the ports that Linux assigns (from 32768), between those of Ray's workers (10002 to 19999)
# and of Serve's replicas (from 30000): a port from those ranges may be taken before its owner
# listens on it.
_FIRST, _LAST = 20000, 29999


def free_port() -> int:
    """Return a TCP port that is free on the loopback interface."""
    while True:
        port = random.randint(_FIRST, _LAST)  # noqa: S311  no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
