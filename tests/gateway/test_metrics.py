"""`GET /metrics`: what clients got is counted, and the page is always there."""

import asyncio
import json
import shutil
import subprocess
import time
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.core import CounterMetricFamily
from starlette.types import Message

from deployments.residency import State
from deployments.switchboard.messages import LeaseView
from serve_app.routes.gauges import gpu_families
from tests.gateway.conftest import CHAT, A, B, Backend, Front, until
from tests.gateway.fake_engine import METRICS, Fault
from tests.gateway.voices import USAGE

OK = {"status": "2xx", "outcome": "complete"}


class Page:
    """What the page says, by name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = list(parser.text_string_to_metric_families(text))
        assert len({family.name for family in families}) == len(families), "a family comes twice"
        self.samples = [sample for family in families for sample in family.samples]
        series = [(s.name, frozenset(s.labels.items())) for s in self.samples]
        assert len(set(series)) == len(series), "a series comes twice"

    def sum(self, name: str, **labels: str) -> float:
        """Over all samples with these labels."""
        return sum(
            s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()
        )


async def read(backend: Backend) -> Page:
    async with asyncio.timeout(60), backend.client.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/plain")
        return Page(await response.text())


async def test_a_plain_answer_is_counted(backend: Backend) -> None:
    """Route, model, status, time, wait and tokens."""
    await backend.serving()
    assert (await backend.asking())[0] == 200
    page = await read(backend)
    assert page.sum("llm_backend_requests_total", route=CHAT, model=A, **OK) == 1
    assert page.sum("llm_backend_request_duration_seconds_count", route=CHAT, model=A) == 1
    assert page.sum("llm_backend_queue_wait_seconds_count", model=A) == 1
    assert page.sum("llm_backend_prompt_tokens_total", model=A) == USAGE["prompt_tokens"]
    assert page.sum("llm_backend_generated_tokens_total", model=A) == USAGE["completion_tokens"]
    assert page.sum("llm_backend_time_to_first_token_seconds_count") == 0


@pytest.mark.parametrize("has_usage", [True, False])
async def test_a_stream_is_timed_and_its_tokens_are_counted(
    backend: Backend, has_usage: bool
) -> None:
    """By its usage where it has one, else by its events."""
    await backend.serving()
    await backend.streaming(stream_options={"include_usage": has_usage})
    page = await read(backend)
    assert page.sum("llm_backend_time_to_first_token_seconds_count", model=A) == 1
    assert page.sum("llm_backend_inter_token_seconds_count", model=A) >= 1
    made = page.sum("llm_backend_generated_tokens_total", model=A)
    assert made == 5 if has_usage else made in (5, 6)
    assert page.sum("llm_backend_prompt_tokens_total", model=A) == (21 if has_usage else 0)


async def test_a_heartbeat_is_no_first_token(backend: Backend) -> None:
    """The time to the first token holds the wait for the model."""
    began = time.monotonic()
    async with await backend.chat(stream=True) as response:
        await response.content.readline()
        waited_s = time.monotonic() - began
        await backend.serving()
        await response.read()
    page = await read(backend)
    assert page.sum("llm_backend_time_to_first_token_seconds_count", model=A) == 1
    assert page.sum("llm_backend_time_to_first_token_seconds_sum", model=A) > waited_s - 0.1
    assert page.sum("llm_backend_queue_wait_seconds_sum", model=A) > waited_s - 0.1


async def test_errors_are_counted_by_their_code(backend: Backend) -> None:
    """Ours before and in the answer, the engine's own, and those that nobody expected."""
    engine = await backend.serving()
    async with backend.client.post(CHAT, json={"model": "gpt-5"}) as response:
        assert response.status == 404
    async with backend.client.post(CHAT, json={"messages": []}) as response:
        assert response.status == 400
    async with backend.client.get("/nowhere/1234") as response:
        assert response.status == 404
    engine.fault = Fault.BAD_REQUEST
    assert (await backend.asking())[0] == 400
    engine.fault = Fault.DONE_WITHOUT_FINISH
    assert (await backend.streaming()).error
    backend.switchboard.answer = ZeroDivisionError()
    async with backend.client.get("/admin/status") as response:
        assert response.status == 500
    page = await read(backend)
    requests = "llm_backend_requests_total"
    failed = {"outcome": "error", "status": "4xx"}
    assert page.sum(requests, route=CHAT, model="unknown", **failed) == 1
    assert page.sum(requests, route=CHAT, model="none", **failed) == 1
    assert page.sum(requests, route="unmatched", model="none", **failed) == 1
    assert page.sum(requests, route=CHAT, model=A, **failed) == 1
    assert page.sum(requests, route=CHAT, model=A, status="2xx", outcome="error") == 1
    errors = "llm_backend_errors_total"
    assert page.sum(errors, code="model_not_found") == 1
    assert page.sum(errors, code="invalid_request_error") == 2  # ours, and the engine's
    assert page.sum(errors, code="not_found") == 1
    assert page.sum(errors, code="engine_restarting") == 1
    assert page.sum(requests, route="/admin/status", status="5xx", outcome="error") == 1
    assert page.sum(errors, code="internal_error") == 1
    assert page.sum(errors) == 6


async def test_a_full_queue_shows(backend: Backend) -> None:
    """Who waits, how many may, and who was turned away."""
    waiting = [backend.asking() for _ in range(4)]
    await until(lambda: backend.admission.num_queued == 4)
    assert (await backend.asking())[0] == 429
    page = await read(backend)
    assert page.sum("llm_backend_queued_requests") == 4
    assert page.sum("llm_backend_queue_limit_requests") == 4
    assert page.sum("llm_backend_errors_total", code="queue_full") == 1
    await backend.serving()
    await asyncio.gather(*waiting)


async def test_a_client_that_leaves_is_seen(backend: Backend) -> None:
    """Before its answer begins, and within a stream."""
    engine = await backend.serving()
    engine.next_token.clear()
    async with await backend.chat(stream=True) as response:
        await response.content.readuntil(b"\n\n")
    await backend.idle()
    engine.first_byte.clear()
    asking = backend.asking()
    for _ in range(2):
        await engine.begun.acquire()
    asking.cancel()
    await backend.idle()
    page = await read(backend)
    requests = "llm_backend_requests_total"
    assert page.sum(requests, model=A, status="2xx", outcome="left") == 1
    assert page.sum(requests, model=A, status="none", outcome="left") == 1
    assert page.sum("llm_backend_request_duration_seconds_count", model=A) == 0


async def test_the_gauges_follow_the_view(backend: Backend) -> None:
    """Resident, epoch, asleep, lease, in flight."""
    page = await read(backend)
    assert page.sum("llm_backend_serving") == page.sum("llm_backend_resident") == 0
    engine = await backend.serving(B, epoch=9)
    await backend.show(asleep=(A,), lease=LeaseView(B, "renders", 60, None))
    engine.first_byte.clear()
    asking = backend.asking(model=B)
    await until(lambda: backend.admission.num_in_flight)
    page = await read(backend)
    assert page.sum("llm_backend_resident", model=B) == page.sum("llm_backend_resident") == 1
    assert page.sum("llm_backend_asleep", model=A) == page.sum("llm_backend_asleep") == 1
    assert page.sum("llm_backend_lease_active", model=B) == 1
    assert page.sum("llm_backend_epoch") == 9
    assert page.sum("llm_backend_in_flight_requests") == page.sum("llm_backend_serving") == 1
    assert page.sum("llm_backend_failed") == 0
    await backend.show(state=State.EMPTY, holder=None, endpoint=None, place_failed=True)
    assert (await read(backend)).sum("llm_backend_failed") == 1
    engine.first_byte.set()
    await asking


# --- labels ---


async def test_ten_thousand_model_names_add_no_series(backend: Backend, front: Front) -> None:
    """Nor do addresses, methods and headers that a client makes up."""
    await backend.serving()
    await _ask_for("one", front)
    await _look_for("one", backend)
    before = await read(backend)
    for number in range(10_000):
        await _ask_for(f"model-{number}", front)
    for number in range(50):
        await _look_for(f"model-{number}", backend)
    after = await read(backend)
    assert after.sum("llm_backend_requests_total", route=CHAT, model="unknown") == 10_001
    series = [{(s.name, *sorted(s.labels.items())) for s in p.samples} for p in (before, after)]
    new = series[1] - series[0]
    assert {dict(s[1:])["route"] for s in new} <= {"/metrics"}, new  # the first look at the page


async def _ask_for(name: str, front: Front) -> None:
    """A chat with a model, straight to the application: a socket for each would take a minute."""
    assert front.app
    body = json.dumps({"model": name}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (b"x-model", name.encode()),
        ],
        "query_string": b"",
    }
    answer: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        answer.append(message)

    await front.app(scope, receive, send)
    assert answer[0]["status"] == 404


async def _look_for(name: str, backend: Backend) -> None:
    for path in (f"/v1/models/{name}", f"/{name}", f"/admin/switch/{name}"):
        async with backend.client.get(path, headers={"X-Model": name}) as response:
            await response.read()


# --- what others tell ---


async def test_the_engines_own_metrics_are_on_the_page(backend: Backend) -> None:
    """vLLM's names with our model's; not those of its Python process."""
    await backend.serving()
    page = await read(backend)
    labels = {"model": A, "engine": "0", "model_name": "m"}
    assert page.sum("vllm:prompt_tokens_total", **labels) == 50
    assert page.sum("vllm:kv_cache_usage_perc", **labels) == 0.25
    assert page.sum("vllm:request_prefill_time_seconds_bucket", le="+Inf", **labels) == 1
    assert "process_open_fds" not in page.text
    assert "_created" not in page.text
    assert page.sum("llm_backend_engine_scrape_errors_total") == 0


@pytest.mark.parametrize("what", ["away", "hangs", "garbage"])
async def test_an_engine_without_metrics_is_left_out(backend: Backend, what: str) -> None:
    """The page comes all the same, within its second, and counts that."""
    engine = await backend.serving()
    if what == "away":
        await engine.stop()
    elif what == "hangs":
        engine.metrics_gate.clear()
    else:
        engine.metrics = METRICS + "vllm:x{ 1\n"
    began = time.monotonic()
    page = await read(backend)
    assert time.monotonic() - began < 20  # on a loaded machine
    assert "vllm:" not in page.text
    assert page.sum("llm_backend_serving") == 1
    page = await read(backend)
    assert page.sum("llm_backend_engine_scrape_errors_total") >= 1
    engine.metrics_gate.set()


async def test_without_an_engine_nothing_is_missed(backend: Backend) -> None:
    """A switch is no failure to scrape."""
    engine = await backend.engine()
    await backend.show(state=State.LOADING, holder=A, endpoint=engine.path, epoch=1)
    await read(backend)
    assert (await read(backend)).sum("llm_backend_engine_scrape_errors_total") == 0


@pytest.mark.parametrize("what", ["away", "hangs"])
async def test_a_silent_switchboard_is_shown_as_it_was(backend: Backend, what: str) -> None:
    """Its counters do not fall, and the page says that they are old."""
    counted = CounterMetricFamily("llm_backend_switches", "Switches.", value=7)
    backend.switchboard.counted = [counted]
    page = await read(backend)
    assert page.sum("llm_backend_switchboard_up") == 1
    if what == "away":
        await backend.switchboard.go_away()
    else:
        backend.switchboard.telling.clear()
    page = await read(backend)
    assert page.sum("llm_backend_switchboard_up") == 0
    assert page.sum("llm_backend_switches_total") == 7


# --- the format ---


async def test_prometheus_gets_the_engines_names_as_they_are(backend: Backend) -> None:
    """It prefers OpenMetrics, in which prometheus-client would rename them."""
    await backend.serving()
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    async with backend.client.get("/metrics", headers={"accept": accept}) as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert Page(await response.text()).sum("vllm:prompt_tokens_total", model=A) == 50


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool comes with prometheus")
async def test_promtool_finds_nothing_in_the_page(backend: Backend) -> None:
    """What it says of vLLM's own names is not ours to change."""
    await backend.serving()
    await backend.streaming()
    page = await read(backend)
    text = page.text + _gpu_text()
    check = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
    )
    said = [line for line in (check.stdout + check.stderr).splitlines() if "vllm:" not in line]
    assert not said


GPU: dict[str, Any] = {
    "name": "NVIDIA GeForce RTX 5080",
    "total_bytes": 17094934528,
    "used_bytes": 14000000000,
    "utilization_percent": 87,
    "temperature_c": 61,
    "power_w": 212.5,
    "alarm": False,
}


def _gpu_text() -> str:
    from prometheus_client import generate_latest

    class Card:
        def collect(self) -> Any:
            return gpu_families(GPU)

    return generate_latest(Card()).decode()  # type: ignore[arg-type]


def test_a_card_is_shown_in_base_units() -> None:
    page = Page(_gpu_text())
    assert page.sum("llm_backend_gpu_memory_used_bytes") == 14000000000
    assert page.sum("llm_backend_gpu_utilization_ratio") == 0.87
    assert page.sum("llm_backend_gpu_temperature_celsius") == 61
    assert page.sum("llm_backend_gpu_power_watts") == 212.5
    assert {s.name for s in page.samples if s.value == 0} == {"llm_backend_gpu_memory_alarm"}


def test_what_the_driver_does_not_tell_has_no_gauge() -> None:
    """Some cards tell no power; where there is no card, nothing is shown, not even an alarm."""
    names = {family.name for family in gpu_families(GPU | {"power_w": None})}
    assert "llm_backend_gpu_power_watts" not in names
    assert len(names) == 5
    assert not list(gpu_families({key: None for key in GPU} | {"alarm": False}))
    assert not list(gpu_families({}))
