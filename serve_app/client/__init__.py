"""The Python client: `from serve_app.client import LLMClient`.

It needs httpx only: neither Ray nor vLLM, nor the rest of this project.
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
