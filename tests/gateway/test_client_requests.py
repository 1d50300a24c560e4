"""The Python client against answers written down: what it sends again, and what it raises."""

import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from serve_app import client
from serve_app.client import LLMClient, LLMError
from serve_app.launcher.ports import free_port
from serve_app.protocol import errors
from tests.gateway.conftest import MESSAGES, A, B, Front
from tests.gateway.scripted import Scripted, Time

ANSWER = {"object": "chat.completion", "model": A}


@pytest.fixture
def script(front: Front) -> Scripted:
    script = Scripted()
    front.app = script
    return script


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def llm(front: Front, script: Scripted, time: Time) -> AsyncIterator[LLMClient]:
    async with LLMClient(
        f"http://127.0.0.1:{front.port}", "user-key", "admin-key", clock=time.clock()
    ) as llm:
        yield llm


async def test_a_request_is_sent_again_when_the_backend_says(
    llm: LLMClient, script: Scripted, time: Time
) -> None:
    """After 429 and 503 alike, and no sooner."""
    full = errors.Overloaded("full", retry_after_s=3)
    leased = errors.Leased("leased until then", retry_after_s=40)
    script.answers.extend([full, leased, ANSWER])
    assert await llm.chat(model=A, messages=MESSAGES) == ANSWER
    assert time.pauses == [3, 40]
    assert len({str(request.body) for request in script.requests}) == 1


async def test_nothing_is_sent_again_past_the_deadline(
    llm: LLMClient, script: Scripted, time: Time
) -> None:
    """What the backend said last is raised at once, with its Retry-After."""
    script.answers.extend([errors.Overloaded("full", retry_after_s=s) for s in (200, 101)])
    with pytest.raises(client.Overloaded) as caught:
        await llm.chat(model=A, messages=MESSAGES)
    assert (time.pauses, caught.value.retry_after_s) == ([200], 101)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (errors.InvalidRequest("bad", "n"), client.APIError),
        (errors.UnknownModel("no such"), client.NotFound),
        (errors.LeaseRefused("held"), client.LeaseHeld),
        (errors.Overloaded("full"), client.Overloaded),
        (errors.ModelNotResident("another is", None, 5), client.ModelNotResident),
        (errors.ModelLoadFailed("cut short", None, 15), client.ModelLoadFailed),
        (errors.EngineLost("died"), client.APIError),
        (errors.DeadlineExceeded("over"), client.APIError),
    ],
)
async def test_an_error_keeps_what_the_backend_said(
    llm: LLMClient, script: Scripted, answer: errors.BackendError, kind: type[client.APIError]
) -> None:
    """Its kind, status, code and text; what another try cannot mend is raised at the first."""
    script.answers.append(answer)
    with pytest.raises(client.APIError) as caught:
        await llm.chat(model=A, messages=MESSAGES)
    assert type(caught.value) is kind
    error = caught.value
    assert (str(error), error.status, error.code, error.param, error.retry_after_s) == (
        answer.message,
        answer.status,
        answer.code,
        answer.param,
        answer.retry_after_s,
    )


async def test_each_route_gets_the_key_it_needs(llm: LLMClient, script: Scripted) -> None:
    """The admin's key goes to admin routes, and with the admin's right to cut."""
    script.answers.extend([{}] * 4)
    await llm.health_check()
    await llm.chat(model=A, messages=MESSAGES)
    await llm.chat(model=A, messages=MESSAGES, switch="force", max_wait_s=2)
    await llm.status()
    sent = [request.headers["authorization"] for request in script.requests]
    assert sent == [f"Bearer {key}-key" for key in ("user", "user", "admin", "admin")]
    headers = script.requests[2].headers
    assert (headers["x-switch"], headers["x-max-wait"]) == ("force", "2.000")


async def test_keys_and_address_come_from_the_environment(
    front: Front, script: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`LLMClient()` is enough; of several keys, the first; `/v1` at the end does no harm."""
    monkeypatch.setenv("LLM_BACKEND_URL", f"http://127.0.0.1:{front.port}/v1/")
    monkeypatch.setenv("LLM_BACKEND_API_KEY", "one, two")
    monkeypatch.delenv("LLM_BACKEND_ADMIN_KEY", raising=False)
    script.answers.append({"status": "ok"})
    async with LLMClient() as llm:
        assert await llm.health_check() == {"status": "ok"}
    [request] = script.requests
    assert (request.path, request.headers["authorization"]) == ("/health", "Bearer one")


async def test_the_body_holds_what_was_given_and_no_more(llm: LLMClient, script: Scripted) -> None:
    """Any field of the request can be given; those left out are the backend's to choose."""
    script.answers.extend([ANSWER, ANSWER, {"object": "list"}])
    await llm.chat(model=A, messages=MESSAGES)
    await llm.chat(model=A, messages=MESSAGES, temperature=0, max_tokens=5, seed=1)
    await llm.embed(model=B, input=("one", "two"))
    bodies = [request.body for request in script.requests]
    assert bodies == [
        {"model": A, "messages": MESSAGES},
        {"model": A, "messages": MESSAGES, "temperature": 0, "max_tokens": 5, "seed": 1},
        {"model": B, "input": ["one", "two"]},
    ]


@pytest.mark.parametrize("page", [b"<html>", b"[]", b""])
async def test_what_is_no_backend_is_told(llm: LLMClient, script: Scripted, page: bytes) -> None:
    """A typed error, as for everything else."""
    script.answers.append(page)
    with pytest.raises(client.APIError, match="did not answer with a JSON object"):
        await llm.health_check()


async def test_a_deadline_ends_the_wait(front: Front) -> None:
    """However silent the other side is."""

    async def silent(scope: object, receive: object, send: object) -> None:
        await receive()  # type: ignore[operator]
        await receive()  # type: ignore[operator]  until the client has gone

    front.app = silent
    async with LLMClient(f"http://127.0.0.1:{front.port}", timeout_s=0.05) as llm:
        with pytest.raises(client.DeadlineExceeded, match=r"0\.05 s"):
            await llm.chat(model=A, messages=MESSAGES)
        with pytest.raises(client.DeadlineExceeded):
            await anext(llm.stream(model=A, messages=MESSAGES))


async def test_a_backend_that_is_not_there_is_told() -> None:
    """By its address, at once, from every method."""
    port = free_port()
    async with LLMClient(f"http://127.0.0.1:{port}") as llm:
        for asked in (llm.health_check(), llm.switch(A), anext(llm.events())):
            with pytest.raises(client.Unreachable, match=f"127.0.0.1:{port}"):
                await asked


async def test_a_connection_that_breaks_is_told(front: Front) -> None:
    """It is not sent again: it may have been heard."""

    async def breaking(scope: object, receive: object, send: object) -> None:
        raise ConnectionResetError

    front.app = breaking
    async with LLMClient(f"http://127.0.0.1:{front.port}") as llm:
        with pytest.raises(client.LLMError):
            await llm.chat(model=A, messages=MESSAGES)


def test_every_error_is_an_llm_error() -> None:
    """One `except` is enough."""
    exported = [getattr(client, name) for name in client.__all__]
    kinds = [kind for kind in exported if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 8
    assert all(issubclass(kind, LLMError) for kind in kinds)


def test_the_client_brings_neither_ray_nor_vllm() -> None:
    """Nor anything else of the server: it is what a script on another machine imports."""
    program = (
        "import sys; from serve_app.client import LLMClient; LLMClient();"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "httpx" in loaded
    assert not {"ray", "vllm", "torch", "deployments", "pydantic", "yaml"} & set(loaded)
