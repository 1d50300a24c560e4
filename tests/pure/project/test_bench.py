"""What the benchmark says of what it has measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli import app, bench
from tests.bench import traces
from tests.bench.cpu import CpuMeter
from tests.bench.report import as_json, as_markdown, table, unit
from tests.bench.rounds import FULL, QUICK, Amounts, Bench
from tests.bench.samples import Samples, summarize
from tests.bench.streams import body, has_token
from tests.bench.targets import (
    ALL_CORES,
    BARE,
    DIRECT_PEER,
    OURS,
    PEER,
    PYTHON_PROXY,
    Target,
    judge,
    targets,
)

FLOOR = Target("throughput", "tokens_per_s@10", BARE, 0.99, is_floor=True)
ADDED = Target("CPU a token", "cpu_ms_a_token@10", BARE, 0.25, compared="difference")
ABOUT = {"CPU": "made up", "warnings": ["The load average was 9."]}


def samples(metric: str, mine: list[list[float]], theirs: list[list[float]]) -> Samples:
    found = Samples()
    for values in mine:
        found.add(metric, OURS, values)
    for values in theirs:
        found.add(metric, BARE, values)
    return found


# --- statistics ---


def test_summary_is_the_median_and_the_middle_half():
    found = summarize([5, 1, 2, 3, 4])
    assert (found.n, found.median, found.low, found.high) == (5, 3, 2, 4)


def test_single_value_is_its_own_spread():
    found = summarize([7])
    assert (found.n, found.median, found.low, found.high) == (1, 7, 7, 7)


def test_values_of_all_rounds_are_one_sample_and_each_round_has_a_median():
    found = samples("start_s", [[1, 2, 3], [10]], [])
    summary = found.summary("start_s", OURS)
    assert summary
    assert (summary.n, summary.median) == (4, 2.5)
    assert found.medians("start_s", OURS) == [2, 10]


def test_empty_round_was_not_measured():
    found = samples("start_s", [[]], [])
    assert found.summary("start_s", OURS) is None
    assert found.rounds == {}


# --- verdicts ---


@pytest.mark.parametrize(("mine", "verdict"), [(99, "met"), (101, "met"), (98, "missed")])
def test_throughput_has_to_be_at_least_its_share(mine, verdict):
    row = judge(FLOOR, samples(FLOOR.metric, [[mine]], [[100]]))
    assert (row.value, row.verdict) == (mine / 100, verdict)


@pytest.mark.parametrize(("mine", "verdict"), [(4.25, "met"), (4.5, "missed"), (3.0, "met")])
def test_added_cpu_is_a_difference(mine, verdict):
    row = judge(ADDED, samples(ADDED.metric, [[mine]], [[4.0]]))
    assert (row.value, row.verdict) == (mine - 4, verdict)


def test_ratio_is_of_all_values_and_its_spread_of_the_rounds():
    """Rounds are pairs: what slowed both sides of one down cancels out."""
    row = judge(FLOOR, samples(FLOOR.metric, [[100, 100], [40]], [[100, 110], [50]]))
    assert row.value == 1
    assert (row.low, row.high) == (0.8, 100 / 105)


def test_one_side_alone_is_no_comparison():
    for found in (samples(FLOOR.metric, [[1]], []), samples(FLOOR.metric, [], [[1]])):
        assert judge(FLOOR, found).verdict == "not measured"


def test_value_can_be_judged_by_itself():
    alone = Target("cache hit", "answer_ms", None, 5)
    assert judge(alone, samples("answer_ms", [[4, 5, 6]], [])).verdict == "met"
    assert judge(alone, samples("answer_ms", [[6, 7, 8]], [])).verdict == "missed"
    assert judge(alone, Samples()).verdict == "not measured"


def test_comparison_without_a_limit_is_told_and_not_judged():
    told = Target("throughput", "tokens_per_s@10", BARE)
    assert judge(told, samples(told.metric, [[1]], [[100]])).verdict == ""


# --- the report ---


def test_row_gives_medians_spreads_sizes_ratio_and_verdict():
    row = judge(FLOOR, samples(FLOOR.metric, [[90, 100, 110]], [[200, 200, 200]]))
    assert table([row])[2:] == [
        "| throughput | 100 tok/s [95 .. 105], n=3 | bare vLLM | 200 tok/s [200 .. 200], n=3 "
        "| 0.5 | ≥ 0.99 | missed |"
    ]


def test_difference_has_a_sign_and_the_unit_and_the_rounds_extremes():
    row = judge(ADDED, samples(ADDED.metric, [[4.5], [5.0]], [[4.0], [4.75]]))
    assert "| +0.375 ms (0.25 .. 0.5) | ≤ 0.25 | missed |" in table([row])[2]


def test_missed_and_unmeasured_are_said_in_words_and_the_load_before_all():
    found = samples(FLOOR.metric, [[50]], [[100]])
    found.skipped["ray.serve.llm"] = "no environment was named"
    text = as_markdown(ABOUT, [judge(FLOOR, found), judge(ADDED, found)], found)
    assert "0 targets met, 1 missed." in text
    assert "- missed: throughput: 0.5, target ≥ 0.99" in text
    assert "- not measured: ray.serve.llm: no environment was named" in text
    assert "CPU a token" not in text
    assert text.index("**The load average was 9.**") < text.index("| what |")


def test_json_holds_each_value_and_each_row():
    found = samples(FLOOR.metric, [[50, 51]], [[100]])
    told = json.loads(as_json(ABOUT, [judge(FLOOR, found)], found))
    assert told["samples"][FLOOR.metric] == {OURS: [[50, 51]], BARE: [[100]]}
    assert told["rows"][0]["verdict"] == "missed"
    assert told["rows"][0]["target"]["limit"] == 0.99
    assert told["about"] == ABOUT


def test_every_metric_that_is_judged_has_a_unit_but_switches_a_request():
    units = {t.metric: unit(t.metric) for t in targets(traces.NAMES)}
    assert {m for m, u in units.items() if not u} == {f"switches@{name}" for name in traces.NAMES}
    assert units["cpu_ms_a_token@10"] == "ms"
    assert units["tokens_per_s@10"] == "tok/s"
    assert unit("idle_cpu_%") == "%"


# --- load ---


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ('data: {"choices":[{"delta":{"role":"assistant","content":""}}]}', False),
        ('data: {"choices":[{"delta":{"content":"Once"}}]}', True),
        ('data: {"choices":[],"usage":{"completion_tokens":3}}', False),
        (": waiting for qwen-vl", False),
        ("data: [DONE]", False),
        ("", False),
    ],
)
def test_first_token_is_the_first_text(line, is_one):
    assert has_token(line.encode()) is is_one


def test_each_question_is_a_new_one():
    assert body("m", 4)["messages"] != body("m", 4)["messages"]


def test_process_that_came_meanwhile_counts_from_its_start():
    class Fake:
        def __init__(self, pid: int, seconds: float) -> None:
            self.pid, self.seconds = pid, seconds

        def children(self, recursive: bool) -> list["Fake"]:
            return []

        def cpu_times(self):
            return type("Times", (), {"user": self.seconds, "system": 1.0})

    old = Fake(1, 10)
    tree = [old, old]
    meter = CpuMeter(lambda: list(tree))
    old.seconds = 12
    tree.append(Fake(2, 4))
    assert meter.read()[0] == 2 + 5


# --- what runs when ---


class Played(Bench):
    """A run whose parts only note their turn; the server's own fail."""

    def __init__(self, amounts: Amounts) -> None:
        settings = type("Settings", (), {"device": "cpu"})
        super().__init__(settings, [], amounts, Path(), Path(), None, Samples(), lambda _: None)  # type: ignore[arg-type]
        self.order: list[str] = []

    def _warm(self) -> None:
        self.order.append("warm")

    def _bare_sleep(self) -> None:
        self.order.append("sleep")

    def _bare(self) -> None:
        self.order.append("bare")

    def _ours(self) -> None:
        self.order.append("ours")
        raise AssertionError("no engine")

    def _python_proxy(self) -> None:
        self.order.append("python proxy")

    def _bare_on_all_cores(self) -> None:
        self.order.append("all cores")


@pytest.fixture
def no_traces(monkeypatch):
    monkeypatch.setattr(traces, "measure", lambda *_: None)


@pytest.mark.usefixtures("no_traces")
def test_order_alternates_and_a_part_that_fails_does_not_end_the_run():
    bench = Played(replace(FULL, rounds=2))
    bench.run()
    first, second = ["bare", "ours", "python proxy", "all cores"], ["ours", "bare"]
    assert bench.order == ["warm", "sleep", *first, *second]
    assert bench.has_failed
    assert (
        bench.samples.skipped["round 2 of 2: llm-backend"] == "it failed: AssertionError: no engine"
    )


@pytest.mark.usefixtures("no_traces")
def test_quick_run_says_what_it_leaves_out():
    bench = Played(QUICK)
    bench.run()
    assert bench.order == ["warm", "sleep", "bare", "ours"]
    left_out = {ALL_CORES, PYTHON_PROXY, "vLLM's bench serve", PEER, DIRECT_PEER}
    assert left_out <= set(bench.samples.skipped)


# --- the command ---


def test_command_passes_its_options_on(monkeypatch, tmp_path):
    seen = []

    def run(command, **_):
        seen.append(command[1:])
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr(bench.subprocess, "run", run)
    result = CliRunner().invoke(app, ["bench", "--quick", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert seen == [["-m", "tests.bench", "--quick", f"--out={tmp_path}"]]


def test_command_says_where_it_can_be_run(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "PROJECT", tmp_path)
    result = CliRunner().invoke(app, ["bench"])
    assert result.exit_code == 2
    assert "source checkout" in result.output
