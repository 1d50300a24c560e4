"""The report of the tests on the card: what it says of what was measured."""

import json

from tests.gpu.report import GIB, Memory, Planned, Report, Speed, Switch
from tests.gpu.test_card import _round_trip


def report() -> Report:
    made = Report({"card": "RTX 5080"})
    made.answers["a"] = "Paris | is\nit"
    made.switches.append(
        Switch(
            "a", "b", "cold", 12.34, {"queued": 0.0, "loading": 11.0}, "standby", {"weights": 2.5}
        )
    )
    made.speeds.append(Speed("a", 0.25, 256, 29.0))
    made.memory.append(Memory("a", GIB, 14 * GIB, GIB + GIB // 8))
    return made


def test_page_holds_every_figure(tmp_path):
    page = report().write(tmp_path / "reports", "gpu-1").read_text()
    assert "| a | b | cold | 12.3 | loading 11.0 | standby | weights 2.5 |" in page
    assert "| a | 0.250 | 256 | 29.0 | below 30 |" in page
    assert "| a | 1.00 | 14.00 | 1.12 | 0.12 |" in page
    assert "| a | Paris \\| is it |" in page
    assert (
        json.loads((tmp_path / "reports" / "gpu-1.json").read_text())["speeds"][0]["model"] == "a"
    )


def test_what_was_not_measured_is_said_so():
    assert Report({}).page().count("Not measured.") == 5 + 1


def test_verdict_is_line_by_line():
    made = report()
    made.planned.append(Planned("a", 32768, 9 * GIB, GIB, 3 * GIB, 12 * GIB))
    words = {v.claim: (v.found, v.word) for v in made.verdicts()}
    assert words["a cold switch takes 8 s at most"] == ("median 12.3 s of 1", "NOT MET")
    assert words["a warm switch takes 1 s at most"] == ("-", "not measured")
    assert words["engines are forked from the standby"] == ("standby", "met")
    assert words["every model has 32,768 tokens of context"] == ("32,768 at the least", "met")
    assert words["the plan is right to 5%"] == ("off by 8.3% at the most", "NOT MET")
    assert "| one stream makes 30 tokens a second or more | 29.0 at the least | NOT MET |" in (
        made.page()
    )


def test_memory_that_others_took_is_not_kept():
    """A browser opened a tab."""
    assert Memory("a", GIB, 14 * GIB, 2 * GIB, GIB).kept_bytes == 0


def test_memory_without_a_card_has_no_figures():
    assert Memory("a", None, None, None).kept_bytes is None


def test_walk_around_takes_each_switch_once():
    walk = _round_trip(["a", "b", "c"])
    assert len(walk) == 7
    assert walk[0] == walk[-1]
