"""The report's pictures."""

import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")  # no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tests.bench.samples import Samples
from tests.bench.targets import ALL_CORES, BARE, DIRECT_PEER, OURS, PEER, PYTHON_PROXY

_STREAM_SUBJECTS = [BARE, ALL_CORES, OURS, PYTHON_PROXY, PEER, DIRECT_PEER]


def draw_all(samples: Samples, folder: Path) -> None:
    """Write `switch.png` and `streams.png`."""
    _draw_switches(samples, folder / "switch.png")
    _draw_streams(samples, folder / "streams.png")


def _draw_switches(samples: Samples, path: Path) -> None:
    """One bar a way to switch, cut into its phases' medians."""
    phases = [metric for metric in samples.rounds if metric.startswith("phase_s@")]
    phases.sort(key=lambda metric: metric.endswith("@first token"))  # it is everybody's last
    subjects = list(dict.fromkeys(s for metric in phases for s in samples.rounds[metric]))
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.7 * len(subjects)), layout="constrained")
    left = [0.0] * len(subjects)
    for metric in phases:
        found = [samples.summary(metric, subject) for subject in subjects]
        widths = [summary.median if summary else 0.0 for summary in found]
        axes.barh(subjects, widths, left=left, label=metric.partition("@")[2], edgecolor="white")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.2g} s", va="center")
    axes.set_xlabel("seconds, median of each phase")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    if phases:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_streams(samples: Samples, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for subject in _STREAM_SUBJECTS:
        _draw_line(left, samples, "tokens_per_s", subject)
        _draw_line(right, samples, "ttft_ms", subject)
    left.set_ylabel("tokens a second")
    right.set_ylabel("time to first token, ms")
    for axes in (left, right):
        axes.set_xlabel("concurrent streams")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_line(axes: Axes, samples: Samples, name: str, subject: str) -> None:
    """Medians by concurrency, with their quartiles as bars."""
    points = [(n, samples.summary(f"{name}@{n}", subject)) for n in levels(samples.rounds)]
    known = [(n, summary) for n, summary in points if summary]
    if known:
        medians = [s.median for _, s in known]
        below = [s.median - s.low for _, s in known]
        above = [s.high - s.median for _, s in known]
        numbers = [n for n, _ in known]
        axes.errorbar(numbers, medians, (below, above), marker="o", capsize=3, label=subject)


def levels(metrics: Iterable[str]) -> list[int]:
    """The concurrencies that streams were measured at."""
    found = (re.fullmatch(r"tokens_per_s@(\d+)", metric) for metric in metrics)
    return sorted(int(match[1]) for match in found if match)
