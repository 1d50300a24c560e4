"""Computes the key under which an answer is kept."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

_FORMAT = 1  # version of the kept form; a new number makes all older entries unfindable
_EXACT = 2**53  # up to this value a float represents each whole number exactly


def cache_key(
    path: str, request: dict[str, Any], ignored: Collection[str], fingerprint: str, namespace: str
) -> str:
    """Return the SHA-256 of a request's canonical form and of all its answer depends on.

    Key order, white space and escapes do not change the key, nor does `1.0` in place of `1` in a
    top-level field. In a nested value `1.0` and `1` differ: the engine may repeat a schema's
    number as the client wrote it.
    """
    fields = {name: _plain(value) for name, value in request.items() if name not in ignored}
    parts = [_FORMAT, path, namespace, fingerprint, fields]
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value
