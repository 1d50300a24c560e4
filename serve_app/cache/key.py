"""Makes the key under which an answer is kept."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

_FORMAT = 1  # of what is kept: another number finds nothing of before
_EXACT = 2**53  # up to here a float is the whole number that it looks like


def cache_key(
    path: str, request: dict[str, Any], ignored: Collection[str], fingerprint: str, namespace: str
) -> str:
    """SHA-256 over the canonical form of a request and all that its answer depends on.

    The order of keys, white space and escapes do not count, nor does `1.0` for `1` in a field of
    the request itself. Further inside it counts: the engine may repeat a schema's number as it
    was written.
    """
    said = {name: _plain(value) for name, value in request.items() if name not in ignored}
    whole = [_FORMAT, path, namespace, fingerprint, said]
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value
