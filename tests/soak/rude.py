"""Clients of a soak that speak by a bare socket: head and body apart, and some leave, or send
nonsense."""

import http.client
import json
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import httpx

from tests import bad_inputs
from tests.cluster.ledger import CLIENT_TIMEOUT_S, REFUSALS, Ledger
from tests.gateway.good_requests import GOOD
from tests.gateway.mutations import LARGE, SMALL, Edit, Kind, Mutated, paths
from tests.soak.clients import TEXT_MODELS, Client

_MAX_BAD_BYTES = 100_000  # what is larger keeps this machine busy, and is tested elsewhere
PATIENCE_S = 3.0  # of one who leaves


def split_chat(client: Client) -> None:
    """Head, body and the body's last byte in segments of their own."""
    model = client.model()
    body = {"model": model, "messages": client.question(), "max_tokens": 8, "temperature": 0}
    status, answer = _answer(client, _bytes(body))
    if status == 200:
        value = json.loads(answer)
        client.complete(value["model"] == model, f"{model} was asked: {value}")
    else:
        _refused(client.ledger, status, answer, ())


def leave(client: Client) -> None:
    """Cancelled: in the body, waiting for an answer or for a switch, or in the stream."""
    choose = client.choose
    is_stream = choose.random() < 0.5
    model = client.model()
    if choose.random() < 0.2:  # waits for a switch that nobody else may want
        model = choose.choice([name for name in TEXT_MODELS if name != model])
    body = {"model": model, "messages": client.question(), "max_tokens": 64, "stream": is_stream}
    data = _bytes(body | {"ignore_eos": True})
    when = choose.choice(["in the body", "at once", "waiting", "in the stream"])
    with _connection(client) as connection:
        _send_head(connection, len(data))
        if when == "in the body":
            connection.sendall(data[: len(data) // 2])
        else:
            connection.sendall(data)
        if when == "waiting":
            client.world.stop.wait(choose.uniform(0.1, PATIENCE_S))
        elif when == "in the stream":
            _read_until(connection, b"data: ", PATIENCE_S)
        how = choose.choice(["FIN", "RST", "half-close"])
        if how == "RST":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "half-close":
            connection.shutdown(socket.SHUT_WR)
            client.world.stop.wait(0.5)
    client.ledger.counts["cancelled"] += 1


def bad_row(client: Client, rows: list[bad_inputs.Row]) -> None:
    """One of the file of bad inputs."""
    row = client.choose.choice(rows)
    answer = bad_inputs.send(_port(client), row, CLIENT_TIMEOUT_S)
    _refused(client.ledger, answer.status, answer.body, row.expected)


def spoilt(client: Client) -> None:
    """A right request with one fault in it: refused, or answered where the fault is harmless."""
    choose = client.choose
    path = choose.choice([path for path in GOOD if path != "/v1/embeddings"])  # another task
    number = choose.randrange(len(GOOD[path]))
    odd = choose.choice([*SMALL, *(f"{what}, 2 kB" for what in LARGE)])
    places = [at for at in paths(GOOD[path][number]) if not at or "max_" not in str(at[0])]
    kind, place = choose.choice(list(Kind)), choose.choice(places)  # its answer stays short
    request = Mutated(path, number, (Edit(kind, place, odd, "x_unknown"),))
    body = request.body.replace(b'"qwen-vl"', json.dumps(client.model()).encode())
    status, answer = _answer(client, body, path)
    _refused(client.ledger, status, answer, range(200, 500), f"{request}")


def usable_rows(world_url: str) -> list[bad_inputs.Row]:
    """Those for a server without keys whose resident model may be another at any time."""
    rows = bad_inputs.rows(
        model=TEXT_MODELS[0],
        other_model=TEXT_MODELS[1],
        api_key="key",
        admin_key="key",
        canary_port="1",
    )
    return [
        row
        for row in rows
        if 401 not in row.expected
        and 200 not in row.expected
        and not row.path.startswith("/admin")
        and row.name not in bad_inputs.NOT_OURS
        and len(row.body) < _MAX_BAD_BYTES
    ]


def speak(ledger: Ledger, act: Callable[[], None]) -> None:
    """One request by a bare socket; what is raised becomes its entry, as of any other client."""
    try:
        act()
    except ConnectionRefusedError as exc:
        ledger.note_broken(httpx.ConnectError(repr(exc)))
    except TimeoutError as exc:
        ledger.note_broken(httpx.ReadTimeout(repr(exc)))
    except (OSError, http.client.HTTPException) as exc:
        ledger.note_broken(httpx.ReadError(repr(exc)))


def _refused(
    ledger: Ledger,
    status: int,
    body: bytes,
    expected: list[int] | range | tuple[int, ...],
    what: str = "",
) -> None:
    if status == 200 and status in expected:
        ledger.counts["nonsense answered"] += 1
    elif status == 200 and body.startswith(b": waiting") and b'"message"' in body:
        ledger.counts["nonsense refused"] += 1  # in its one event: a heartbeat was its first byte
    elif status in expected and b'"message"' in body and len(body) < 8192:
        ledger.counts["nonsense refused"] += 1
    elif status in REFUSALS and b'"message"' in body:
        ledger.counts["refused"] += 1
        ledger.errors.append(body.decode(errors="replace"))
    else:
        ledger.lost.append(f"{status} {body[:200]!r} {what}")


def _answer(client: Client, body: bytes, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    with _connection(client) as connection:
        _send_head(connection, len(body), path)
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before its end
            connection.sendall(body[:-1])
            connection.sendall(body[-1:])
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        return response.status, response.read()


def _connection(client: Client) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", _port(client)), CLIENT_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _send_head(connection: socket.socket, length: int, path: str = "/v1/chat/completions") -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode())


def _read_until(connection: socket.socket, mark: bytes, patience_s: float) -> None:
    """Read until `mark`, the end, or no more patience."""
    seen, deadline = b"", time.monotonic() + patience_s
    while mark not in seen and (left := deadline - time.monotonic()) > 0:
        if not select.select([connection], [], [], left)[0]:
            return
        data = connection.recv(65536)
        if not data:
            return
        seen += data


def _bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def _port(client: Client) -> int:
    return urlsplit(client.world.url).port or 0
