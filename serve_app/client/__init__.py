"""The Python client: `from serve_app.client import LLMClient`.

It needs httpx only: neither Ray nor vLLM, nor the rest of this project.

llm_client.py  `LLMClient`
errors.py      every error it raises
streaming.py   a streamed answer, chunk by chunk
switching.py   follows a switch to its end
lease.py       a lease, renewed while it is held
events.py      follows `/admin/events`
logs.py        a service's log, line by line
transport.py   requests with a deadline, sent again when the server says when
sse.py         reads server-sent events
"""

from serve_app.client.errors import (
    AnswerCut,
    APIError,
    DeadlineExceeded,
    LeaseHeld,
    LLMError,
    ModelLoadFailed,
    ModelNotResident,
    NotAllowed,
    NotFound,
    Overloaded,
    SwitchFailed,
    Unreachable,
)
from serve_app.client.events import Event
from serve_app.client.lease import HeldLease
from serve_app.client.llm_client import LLMClient

__all__ = [
    "APIError",
    "AnswerCut",
    "DeadlineExceeded",
    "Event",
    "HeldLease",
    "LLMClient",
    "LLMError",
    "LeaseHeld",
    "ModelLoadFailed",
    "ModelNotResident",
    "NotAllowed",
    "NotFound",
    "Overloaded",
    "SwitchFailed",
    "Unreachable",
]
