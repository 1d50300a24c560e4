"""The file of bad inputs, against a real server whose engine serves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests import bad_inputs
from tests.cluster.server import Server, free_port

# The file's expectation, corrected. The engine's grammar compiler (xgrammar) makes an automaton of
# this regular expression in 10 ms, so that it is an answer like any other.
CORRECTED = {"so_regex_redos": [200, 400]}


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
    failures = []
    for row in rows:
        if row.name not in bad_inputs.WAITING_FOR_AUTH:
            with _collecting(failures, row.name):
                answer = bad_inputs.send(urlsplit(server.url).port or 0, row)
                expected = CORRECTED.get(row.name, row.expected)
                assert answer.status in expected, (answer.status, answer.body[:300])
                if row.name not in bad_inputs.NOT_OURS:
                    answer.check_shape()
                if row.name == "size_prompt_over_context":
                    code = json.loads(answer.body)["error"]["code"]
                    assert code == "context_length_exceeded", answer.body
                good = server.chat(model, max_tokens=2)
                assert good.status_code == 200, good.text
    assert not failures, "\n".join(failures)
    assert _processes(server) == before
    assert server.get("/health")["epoch"] == epoch


@contextmanager
def _collecting(failures: list[str], name: str) -> Iterator[None]:
    try:
        yield
    except (AssertionError, OSError) as exc:
        failures.append(f"{name}: {exc!r}"[:600])


def _processes(server: Server) -> set[tuple[int, float]]:
    (engine,) = server.watch().engines().values()
    return {(process.pid, process.create_time()) for process in engine}
