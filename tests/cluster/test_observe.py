"""A real Prometheus looks at a real backend, with the files that are shipped for it."""

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deployments.settings import PROJECT
from serve_app.launcher.ports import free_port
from tests.cluster.server import CAPITAL, Server, wait_until

SHIPPED = PROJECT / "configs" / "prometheus"
BOARD = PROJECT / "configs" / "grafana" / "boards" / "llm-backend.json"
# Where there is no card there is nothing to show.
NEED_A_GPU = {
    "Memory",
    "Utilization",
    "Temperature and power",
    "Memory that did not come back",
}

needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="no prometheus: apt-get install prometheus"
)


@dataclass
class Prometheus:
    """A running one."""

    url: str

    def get(self, path: str, **params: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=60).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """What a query gives now, without what is not a number."""
        found = self.get("query", query=query)["result"]
        values = [float(series["value"][1]) for series in found]
        return [value for value in values if not math.isnan(value)]


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[Prometheus]:
    """The shipped configuration, but for the ports and the interval."""
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    config["global"]["evaluation_interval"] = "1s"
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [
        server.url.removeprefix("http://")
    ]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={path}", f"--web.listen-address={address}"]
    with (tmp_path / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--storage.tsdb.path={tmp_path / 'data'}"], stdout=log, stderr=log
        )
    try:
        running = Prometheus(f"http://{address}")
        wait_until(lambda: _is_ready(running.url), 120, "Prometheus is ready")
        wait_until(lambda: running.values("up") == [1.0], 120, "it has seen the backend")
        yield running
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _queries() -> dict[str, list[str]]:
    """Panel -> its queries, with Grafana's variables put in."""
    panels = json.loads(BOARD.read_text())["panels"]
    filled = {"$__rate_interval": "10m", "$__range": "10m", "$model": ".*"}
    found: dict[str, list[str]] = {}
    for panel in panels:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable, value in filled.items():
                query = query.replace(variable, value)
            found.setdefault(panel["title"], []).append(query)
    return found


def _load(server: Server) -> None:
    """Streams and plain answers, three switches, a refusal and an unknown model."""
    for model in ("qwen-14b", "qwen-coder", "qwen-14b", "qwen-coder"):
        assert server.chat(model).status_code == 200
        with server.http as http:
            body = {"model": model, "messages": CAPITAL, "stream": True, "max_tokens": 8}
            assert "[DONE]" in http.post("/v1/chat/completions", json=body).text
    assert server.chat("gpt-5").status_code == 404
    body = {"model": "qwen-14b", "messages": CAPITAL}
    with server.http as http:
        answer = http.post("/v1/chat/completions", json=body, headers={"X-Switch": "never"})
    assert answer.status_code == 503


@needs_prometheus
@pytest.mark.timeout(400)
def test_every_query_of_the_board_has_data(server: Server, prometheus: Prometheus) -> None:
    """After a load with switches and a refusal; and the alerts' rules are in good health."""
    _load(server)
    queries = _queries()
    assert queries.keys() >= NEED_A_GPU
    for panel, wanted in queries.items():
        for query in wanted:
            if panel in NEED_A_GPU:
                assert prometheus.values(query) == [], "a card on the CPU?"
            else:
                wait_until(lambda query=query: prometheus.values(query), 120, f"{panel}: {query}")
    switches = 'llm_backend_switches_total{result="done", from="qwen-14b", to="qwen-coder"}'
    assert prometheus.values(switches)[0] >= 2
    assert prometheus.values('sum(vllm:generation_tokens_total{model="qwen-coder"})')[0] > 0
    [group] = prometheus.get("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    firing = {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]}
    assert not firing & {"BackendDown", "NoModelServes", "SwitchFailed", "GoldenFailure"}


@needs_prometheus
def test_promtool_passes_the_real_page(server: Server) -> None:
    """What it says of vLLM's own names is not ours to change."""
    server.chat("qwen-14b")
    with server.http as http:
        page = http.get("/metrics").text
    assert "vllm:" in page
    said = _promtool("check", "metrics", page=page)
    assert not [line for line in said.splitlines() if "vllm:" not in line]


@needs_prometheus
@pytest.mark.parametrize(
    "check",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_passes_the_files(check: tuple[str, str, str]) -> None:
    *verb, name = check
    assert "FAILED" not in _promtool(*verb, str(SHIPPED / name), has_to_pass=True)


def _promtool(*arguments: str, page: str | None = None, has_to_pass: bool = False) -> str:
    done = subprocess.run(
        ["promtool", *arguments], input=page, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 or not has_to_pass, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_observe_says_what_is_missing(tmp_path: Path) -> None:
    """Where there is no Prometheus, one sentence instead of a shell's complaint."""
    for tool in ("make", "sh", "mkdir", "uname", "grep", "rm", "python3"):
        found = shutil.which(tool)
        if found:
            (tmp_path / tool).symlink_to(found)
    done = subprocess.run(
        ["make", "observe"],
        cwd=PROJECT,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "apt-get install --no-install-recommends prometheus" in done.stdout
