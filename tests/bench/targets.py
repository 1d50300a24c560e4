"""What is promised, and whether the samples keep it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tests.bench.samples import Samples, Summary

OURS, PYTHON_PROXY = "llm-backend", "python proxy"
BARE, ALL_CORES = "bare vLLM", "bare vLLM on all cores"
PEER, DIRECT_PEER = "ray.serve.llm", "ray.serve.llm, direct streaming"
FIFO, CALLS, GENERATION = "FIFO", "its sleep and wake calls", "the generation"

Verdict = Literal["met", "missed", "", "not measured"]


@dataclass(frozen=True)
class Target:
    """A comparison of one metric between two subjects."""

    what: str
    metric: str
    against: str | None  # None: the value by itself
    limit: float | None = None  # None: told, and not judged
    subject: str = OURS
    compared: Literal["ratio", "difference"] = "ratio"
    is_floor: bool = False  # at least `limit`, not at most


@dataclass(frozen=True)
class Row:
    """A target with what was measured. `low` and `high` are the extremes among the rounds."""

    target: Target
    ours: Summary | None
    other: Summary | None
    value: float | None  # the ratio or difference of the medians
    low: float | None
    high: float | None
    verdict: Verdict


def targets(traces: Sequence[str]) -> list[Target]:
    """All of them, in the order of the report."""
    return [
        Target("cold switch to the first token", "cold_switch_s", BARE, 0.20),
        Target("of it, no model serves", "no_service_s", BARE, 0.15),
        *_data_path(OURS, judged=True),
        Target(
            "throughput of 10, `vllm bench serve`",
            "bench_serve_tokens_per_s@10",
            BARE,
            is_floor=True,
        ),
        Target("TTFT of ten, `vllm bench serve`", "bench_serve_ttft_ms@10", BARE),
        *_data_path(PYTHON_PROXY, judged=False),
        *_streams(OURS, ALL_CORES),
        Target("warm switch, verification apart", "warm_ms", CALLS, 150, compared="difference"),
        Target("cache hit", "answer_ms", GENERATION, 1 / 50),
        Target("cache hit, by itself", "answer_ms", None, 5),
        Target("second start to ready", "start_s", BARE, 0.5),
        *(
            Target(f"switches a request, {trace} (simulated)", f"switches@{trace}", FIFO, 1 / 3)
            for trace in traces
        ),
        *_peer(PEER),
        *_peer(DIRECT_PEER),
    ]


def _data_path(subject: str, *, judged: bool) -> list[Target]:
    def limit(value: float) -> float | None:
        return value if judged else None

    return [
        *_streams(subject, BARE, throughput=limit(0.99), ttft=limit(1.03)),
        Target(
            "CPU a token, the whole tree",
            "cpu_ms_a_token@10",
            BARE,
            limit(0.25),
            subject,
            "difference",
        ),
        Target(
            "the same without what it takes idle",
            "busy_cpu_ms_a_token@10",
            BARE,
            None,
            subject,
            "difference",
        ),
    ]


def _peer(against: str) -> list[Target]:
    return [
        *_streams(OURS, against, throughput=1.0, ttft=1.0),
        Target("CPU a token", "cpu_ms_a_token@10", against, 0, compared="difference"),
    ]


def _streams(
    subject: str, against: str, throughput: float | None = None, ttft: float | None = None
) -> list[Target]:
    return [
        Target(
            "throughput of 10 streams",
            "tokens_per_s@10",
            against,
            throughput,
            subject,
            is_floor=True,
        ),
        Target("TTFT of one stream", "ttft_ms@1", against, ttft, subject),
        Target("TTFT of ten streams", "ttft_ms@10", against, ttft, subject),
    ]


def judge(target: Target, samples: Samples) -> Row:
    """Hold a target against the samples."""
    ours = samples.summary(target.metric, target.subject)
    if target.against is None:
        value = ours.median if ours else None
        return Row(target, ours, None, value, None, None, _verdict(target, value))
    other = samples.summary(target.metric, target.against)
    if ours is None or other is None:
        return Row(target, ours, other, None, None, None, "not measured")
    pairs = zip(
        samples.medians(target.metric, target.subject),
        samples.medians(target.metric, target.against),
        strict=False,  # a round more of the one than of the other has no partner
    )
    each = [_compare(target, mine, theirs) for mine, theirs in pairs]
    value = _compare(target, ours.median, other.median)
    return Row(target, ours, other, value, min(each), max(each), _verdict(target, value))


def _compare(target: Target, mine: float, theirs: float) -> float:
    return mine - theirs if target.compared == "difference" else mine / theirs


def _verdict(target: Target, value: float | None) -> Verdict:
    if value is None:
        return "not measured"
    if target.limit is None:
        return ""
    is_met = value >= target.limit if target.is_floor else value <= target.limit
    return "met" if is_met else "missed"
