"""Right requests of every route, spoilt at random: each is answered or refused in shape, soon, and
without harm to others.

Requests come as from the world: the head first, the body in pieces, from clients that may leave.
"""

import http.client
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from serve_app.protocol.calls import CALLS, Call
from serve_app.protocol.errors import Dialect
from tests.gateway import sse
from tests.gateway.apart import gateway_apart
from tests.gateway.conftest import error_of
from tests.gateway.mutations import HUGE, SIZES, Leaving, Mutated, every_place, mutated
from tests.gateway.voices import VOICES

NUM_REQUESTS = 200  # of each route at random; with one in every place they take about a minute
# `/health` beside it, seconds. Of a machine that is busy with something else the gateway's own time
# counts, so this holds everywhere.
HEALTH_S = 1.0
ANSWER_S = 20.0
IDLE_S = 10.0  # until one who left is forgotten
# What the allocator keeps: four times 300 requests of up to 20 MB left 14, 37, 5 and 3 MiB more.
GROWTH_BYTES = 128 * 2**20
_RIGHT = {  # the field by which a right answer of each route is known
    "/v1/chat/completions": "choices",
    "/v1/completions": "choices",
    "/v1/responses": "output",
    "/v1/messages": "content",
    "/v1/messages/count_tokens": "input_tokens",
    "/v1/embeddings": "data",
    "/tokenize": "tokens",
    "/detokenize": "prompt",
}
_STREAMS = {"/v1/responses": sse.check_responses, "/v1/messages": sse.check_messages}


_MAX_FAILURES = 5  # then the others of a route are not tried


class Client:
    """Sends what is spoilt, and asks for the gateway's health beside it."""

    def __init__(self) -> None:
        self.things = ExitStack()
        self.start()

    def start(self) -> None:
        """With a new gateway: the old one, if there is one, may never answer again."""
        self.things.close()
        self.apart = self.things.enter_context(gateway_apart())
        self.health = http.client.HTTPConnection("127.0.0.1", self.apart.port, timeout=ANSWER_S)
        self.things.callback(self.health.close)
        self.slowest_s = 0.0  # of `/health`, as its client saw it
        self.busiest_s = 0.0  # the gateway's own time meanwhile

    def num_in_flight(self) -> int:
        began, began_cpu = time.monotonic(), self.apart.cpu_s()
        self.health.request("GET", "/health")
        response = self.health.getresponse()
        value = json.loads(response.read())
        took_s, own_s = time.monotonic() - began, self.apart.cpu_s() - began_cpu
        self.slowest_s, self.busiest_s = max(self.slowest_s, took_s), max(self.busiest_s, own_s)
        assert response.status == 200
        assert min(took_s, own_s) < HEALTH_S, f"/health after {took_s:.1f} s, {own_s:.1f} s its own"
        return int(value["in_flight"]) + int(value["queued"])

    def check(self, call: Call, request: Mutated) -> None:
        pieces = request.pieces()
        head = (
            f"POST {call.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {sum(map(len, pieces))}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.apart.port), ANSWER_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(head.encode())
            self.num_in_flight()  # by its answer the gateway has read the head, and no more
            if request.leaving in (Leaving.MID_FIN, Leaving.MID_RST):
                pieces = pieces[:-1] or [pieces[0][:-1]]
            with suppress(ConnectionError):  # refused before its end
                for piece in pieces:
                    connection.sendall(piece)
                    self.num_in_flight()
            match request.leaving:
                case Leaving.RST | Leaving.MID_RST:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                case Leaving.HALF:
                    with suppress(OSError):  # refused, and closed from there
                        connection.shutdown(socket.SHUT_WR)
                case None:
                    self._check_answer(call, request, connection)
        deadline = time.monotonic() + IDLE_S
        while self.num_in_flight():
            assert time.monotonic() < deadline, "one who left is still in flight"

    def _check_answer(self, call: Call, request: Mutated, connection: socket.socket) -> None:
        deadline = time.monotonic() + ANSWER_S
        while not select.select([connection], [], [], 0.05)[0]:
            self.num_in_flight()
            assert time.monotonic() < deadline, "no answer"
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        body, kind = response.read(), response.headers["content-type"]
        if response.status != 200:
            assert 400 <= response.status < 500, (response.status, body[:500])
            _check_error(call, body)
        elif kind.startswith("text/event-stream"):
            check = _STREAMS.get(call.path)
            if check:
                assert check(kind, body).is_done
            else:
                voice = VOICES[call.path]("", json.loads(request.body))
                assert sse.check(kind, body, voice.num_choices).is_done
        else:
            assert _RIGHT[call.path] in json.loads(body)


def _check_error(call: Call, body: bytes) -> None:
    """In the shape that the route's clients parse, short, and without a word of the inside."""
    if call.dialect is not Dialect.ANTHROPIC:
        assert error_of(body)["message"]
        return
    value = json.loads(body)
    assert len(body) < 8192
    assert b"Traceback" not in body
    assert set(value) >= {"type", "error"}
    assert value["type"] == "error"
    assert set(value["error"]) >= {"type", "message"}
    assert value["error"]["message"]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.things.close()


@contextmanager
def resident(client: Client, call: Call) -> Iterator[None]:
    """What the route needs is resident; at the end the gateway's memory is back."""
    target = "qwen-vl:embed" if call.task == "embed" else "qwen-vl"
    client.slowest_s = client.busiest_s = 0
    client.apart.obey(target)
    before = client.apart.rss_bytes()
    try:
        yield
    except BaseException:
        client.start()
        raise
    grown = client.apart.rss_bytes() - before
    print(
        f"\n{call.path}: /health within {client.slowest_s:.2f} s "
        f"({client.busiest_s:.2f} s its own); memory {grown / 2**20:+.0f} MiB"
    )
    assert grown < GROWTH_BYTES, f"{grown / 2**20:.0f} MiB were not given back"


def explore(client: Client, call: Call, sizes: dict[str, int], num: int, number: int) -> None:
    """Not shrunk: faults are few in each request and named, and a slow one is slow each time."""

    @seed(number)
    @settings(
        max_examples=num,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(mutated(call.path, sizes))
    def holds(request: Mutated) -> None:
        client.check(call, request)

    print(f"\n{call.path}: {num} requests at random, seed {number}")
    with resident(client, call):
        holds()


@pytest.mark.parametrize("call", CALLS, ids=[call.path for call in CALLS])
def test_a_fault_in_any_place_is_answered_or_refused_in_shape(client: Client, call: Call) -> None:
    """All that failed are told at once."""
    failures: list[str] = []
    requests = every_place(call.path)
    while len(failures) < _MAX_FAILURES and (failed := _first_failure(client, call, requests)):
        failures.append(failed)
    assert not failures, "\n".join(failures)


def _first_failure(client: Client, call: Call, requests: Iterator[Mutated]) -> str | None:
    request = None
    try:
        with resident(client, call):
            for request in requests:
                client.check(call, request)
    except (AssertionError, OSError, http.client.HTTPException) as exc:
        return f"{request}: {exc!r:.300}"
    return None


@pytest.mark.parametrize("call", CALLS, ids=[call.path for call in CALLS])
def test_spoilt_requests_are_answered_or_refused_in_shape(client: Client, call: Call) -> None:
    """Up to 2 MB, the same ones each time."""
    explore(client, call, SIZES, NUM_REQUESTS, number=1)


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", CALLS, ids=[call.path for call in CALLS])
def test_many_more_of_them_up_to_the_largest_body(client: Client, call: Call) -> None:
    """Others each time."""
    explore(client, call, HUGE, 5 * NUM_REQUESTS, number=int.from_bytes(os.urandom(4)))
