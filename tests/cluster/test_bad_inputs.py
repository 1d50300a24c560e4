"""The file of bad inputs, against a real server whose engine serves."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from serve_app.launcher.ports import free_port
from tests import bad_inputs
from tests.cluster.server import CAPITAL, Server

DEADLINE_S = 150  # of a row, and of the good request after it
# The file's expectation, corrected. The engine's grammar compiler (xgrammar) makes an automaton of
# this regular expression in 10 ms, so that it is an answer like any other.
# `tool_choice: auto` without tools asks for nothing, and is left out.
CORRECTED = {"so_regex_redos": [200, 400], "chat_tool_choice_without_tools": [200]}


@pytest.mark.timeout(900)
def test_bad_inputs_are_refused_and_the_engine_lives_on(server: Server) -> None:
    """Each row gets a right status in shape; a good request after it is answered; the engine's
    processes are the same at the end. All that failed are told at once."""
    model = "qwen-14b"
    if server.get("/health")["resident"] != model:
        assert server.switch(model).status_code == 200
    epoch = server.wait_serving(model)
    before = _processes(server)
    rows = bad_inputs.rows(
        model=model,
        other_model="qwen-coder",
        api_key="key",
        admin_key="key",
        canary_port=str(free_port()),
    )
    failures: list[str] = []
    for row in rows:
        if 401 not in row.expected:  # this server has no keys; the gateway's tests have
            began = time.monotonic()
            with _collecting(failures, row.name):
                _check(server, model, row)
            took_s = time.monotonic() - began
            if took_s > 60:
                failures.append(f"{row.name}: the row and a good request took {took_s:.0f} s")
            assert took_s < DEADLINE_S, failures  # the next ones would say nothing new
    assert not failures, "\n".join(failures)
    assert _processes(server) == before
    assert server.get("/health")["epoch"] == epoch


def _check(server: Server, model: str, row: bad_inputs.Row) -> None:
    answer = bad_inputs.send(urlsplit(server.url).port or 0, row, DEADLINE_S)
    expected = CORRECTED.get(row.name, row.expected)
    assert answer.status in expected, (answer.status, answer.body[:300])
    if row.name not in bad_inputs.NOT_OURS:
        answer.check_shape()
    if row.name == "size_prompt_over_context":
        code = json.loads(answer.body)["error"]["code"]
        assert code == "context_length_exceeded", answer.body
    good = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"model": model, "messages": CAPITAL, "max_tokens": 1},
        timeout=DEADLINE_S,
    )
    assert good.status_code == 200, good.text


@contextmanager
def _collecting(failures: list[str], name: str) -> Iterator[None]:
    try:
        yield
    except (AssertionError, OSError, httpx.HTTPError) as exc:
        failures.append(f"{name}: {exc!r}"[:600])


def _processes(server: Server) -> set[tuple[int, float]]:
    (engine,) = server.watch().engines().values()
    return {(process.pid, process.create_time()) for process in engine}
