"""The report of the tests on the card: what it says of what was measured."""

import json

from tests.gpu.report import GIB, Memory, Report, Speed, Switch
from tests.gpu.test_card import _round_trip


def report() -> Report:
    made = Report({"card": "RTX 5080"})
    made.answers["a"] = "Paris | is\nit"
    made.switches.append(Switch("a", "b", "cold", 12.34, {"queued": 0.0, "loading": 11.0}))
    made.speeds.append(Speed("a", 0.25, 256, 29.0))
    made.memory.append(Memory("a", GIB, 14 * GIB, GIB + GIB // 8))
    return made


def test_page_holds_every_figure(tmp_path):
    page = report().write(tmp_path / "reports", "gpu-1").read_text()
    assert "| a | b | cold | 12.3 | loading 11.0 |" in page
    assert "| a | 0.250 | 256 | 29.0 | below 30 |" in page
    assert "| a | 1.00 | 14.00 | 1.12 | 0.12 |" in page
    assert "| a | Paris \\| is it |" in page
    assert (
        json.loads((tmp_path / "reports" / "gpu-1.json").read_text())["speeds"][0]["model"] == "a"
    )


def test_what_was_not_measured_is_said_so():
    assert Report({}).page().count("Not measured.") == 5


def test_memory_without_a_card_has_no_figures():
    assert Memory("a", None, None, None).kept_bytes is None


def test_walk_around_takes_each_switch_once():
    walk = _round_trip(["a", "b", "c"])
    assert len(walk) == 7
    assert walk[0] == walk[-1]
