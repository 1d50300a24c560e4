"""The board and the alerts ask for what the page really has."""

import json
import re
from itertools import combinations
from typing import Any

from prometheus_client import Metric

from deployments.engine.events import EngineStarted
from deployments.residency import State
from deployments.settings import PROJECT, AppArgs, load_settings
from deployments.switchboard.messages import View
from deployments.switchboard.metrics import SwitchMetrics
from serve_app.gateway.admission import Admission
from serve_app.routes.gauges import gpu_families, residency_families
from serve_app.telemetry.metrics import GatewayMetrics

BOARD = json.loads((PROJECT / "configs/grafana/boards/llm-backend.json").read_text())
RULES = (PROJECT / "configs/prometheus/rules.yml").read_text()
GPU = ("total_bytes", "used_bytes", "utilization_percent", "temperature_c", "power_w")
ADDED = {"llm_backend_switchboard_up"}  # by the page itself


def _names() -> set[str]:
    """Every name that a sample of ours can have."""
    settings = load_settings(AppArgs(profile="cpu-demo", home="/nonexistent"), has_gpu=False)
    switches = SwitchMetrics(list(settings.targets), now=0)
    switches.started("qwen-14b", EngineStarted(1, "exec", 16_000))
    admission = Admission(settings.limits, "gateway")
    admission.view = View("boot", 1, State.EMPTY, 0, None, None, False)
    families: list[Metric] = [
        *switches.families(1),
        *GatewayMetrics(settings).registry.collect(),
        *residency_families(admission, settings),
        *gpu_families(dict.fromkeys(GPU, 1) | {"alarm": False}),
    ]
    suffixes = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_sum", "_count"),
        "gauge": ("",),
    }
    return ADDED | {family.name + suffix for family in families for suffix in suffixes[family.type]}


def _panels() -> list[dict[str, Any]]:
    return [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def test_the_board_and_the_alerts_name_metrics_that_there_are() -> None:
    queries = " ".join(target["expr"] for panel in _panels() for target in panel["targets"])
    expressions = " ".join(re.findall(r"expr: (.*)", RULES))
    wanted = set(re.findall(r"llm_backend_\w+", queries + " " + expressions))
    assert len(wanted) > 25
    assert wanted <= _names()


def test_no_panel_lies_upon_another() -> None:
    """And each has a number of its own, and says what it shows."""
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for one, other in combinations([panel["gridPos"] for panel in BOARD["panels"]], 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_apart, (one, other)
    assert all(panel["title"] for panel in _panels())
    assert all(0 < panel["gridPos"]["w"] <= 24 for panel in BOARD["panels"])
    assert {panel["datasource"]["uid"] for panel in _panels()} == {"llm-backend-prometheus"}
