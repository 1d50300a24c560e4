"""The report's text and its JSON, out of what was measured."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tests.bench.samples import Samples, Summary
from tests.bench.targets import Row

PICTURES = {"switch.png": "Switch time by phase", "streams.png": "Streams by concurrency"}


def as_json(about: dict[str, Any], rows: Sequence[Row], samples: Samples) -> str:
    """Everything, each measured value included."""
    return json.dumps(
        {
            "about": about,
            "rows": [asdict(row) for row in rows],
            "skipped": samples.skipped,
            "samples": samples.rounds,
        },
        indent=1,
    )


def as_markdown(about: dict[str, Any], rows: Sequence[Row], samples: Samples) -> str:
    """Machine, verdicts, then all medians."""
    lines = ["# Measured against bare vLLM", ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if name != "warnings"]
    lines += ["", *(f"**{warning}**" for warning in about["warnings"]), ""]
    lines += table(rows)
    missed = [row for row in rows if row.verdict == "missed"]
    lines += ["", f"{_count(rows, 'met')} targets met, {len(missed)} missed."]
    lines += [f"- missed: {_title(row)}: {_value(row)}, target {_limit(row)}" for row in missed]
    lines += [f"- not measured: {what}: {why}" for what, why in samples.skipped.items()]
    lines += ["", *(f"![{title}]({name})" for name, title in PICTURES.items())]
    lines += ["", "## All medians", "", *_all(samples), ""]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[str]:
    """A line a comparison. In brackets: the middle half of a sample, the extremes of the rounds."""
    lines = [
        "| what | measured | against | measured | ratio or difference (rounds) | target | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.verdict == "not measured":
            continue
        cells = (
            _title(row),
            _sample(row.ours, row.target.metric),
            row.target.against or "",
            _sample(row.other, row.target.metric),
            _value(row),
            _limit(row),
            row.verdict,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def unit(metric: str) -> str:
    """`ttft_ms@10` is in ms."""
    name = metric.partition("@")[0]
    if name.endswith("tokens_per_s"):
        return "tok/s"
    return next((u for u in ("ms", "s", "%") if name.endswith(f"_{u}") or f"_{u}_" in name), "")


def _title(row: Row) -> str:
    is_default = row.target.subject == "llm-backend"
    return row.target.what + ("" if is_default else f" ({row.target.subject})")


def _sample(summary: Summary | None, metric: str) -> str:
    if summary is None:
        return ""
    spread = f" [{_number(summary.low)} .. {_number(summary.high)}]" if summary.n > 1 else ""
    return f"{_number(summary.median)} {unit(metric)}".rstrip() + f"{spread}, n={summary.n}"


def _value(row: Row) -> str:
    if row.value is None:
        return ""
    is_ratio = row.target.compared == "ratio" and row.target.against is not None
    sign = "" if is_ratio or row.target.against is None or row.value < 0 else "+"
    unit_ = "" if is_ratio else f" {unit(row.target.metric)}"
    if row.low is None or row.high is None or row.low == row.high:
        return f"{sign}{_number(row.value)}{unit_}"
    return f"{sign}{_number(row.value)}{unit_} ({_number(row.low)} .. {_number(row.high)})"


def _limit(row: Row) -> str:
    if row.target.limit is None:
        return ""
    return f"{'≥' if row.target.is_floor else '≤'} {_number(row.target.limit)}"


def _number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _count(rows: Sequence[Row], verdict: str) -> int:
    return sum(row.verdict == verdict for row in rows)


def _all(samples: Samples) -> list[str]:
    lines = ["| metric | subject | median [middle half] | rounds |", "|---|---|---|---|"]
    for metric, subjects in samples.rounds.items():
        for subject, rounds in subjects.items():
            text = _sample(samples.summary(metric, subject), metric)
            lines.append(f"| {metric} | {subject} | {text} | {len(rounds)} |")
    return lines
