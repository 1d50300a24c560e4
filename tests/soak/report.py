"""The verdict of a soak, on one screen."""

import re
from collections import Counter
from dataclasses import dataclass, field

from tests.cluster.ledger import Ledger
from tests.soak.census import MEASURES, REPLACED, Sample, by_role, numbers
from tests.soak.growth import Allowance, Growth, Series, judge

MIB = 2**20
_CODE = re.compile(r"""['"]code['"]: ?['"](\w+)""")  # JSON, or a package's text of it
SETTLE_S = 60.0  # of each process's life: imports, pools and caches
# What may grow. Once: what fills up and then stays, such as the allocator's free lists, the cache
# of answers and one more connection. An hour: 24 MiB is half a gigabyte a day of one process, and
# at the soak's two requests a second it is a leak of 3 kB a request, the least that would show in
# twenty minutes beside the noise. A descriptor, a socket or a thread lost at every second switch
# is sixty an hour.
ALLOWED = {
    "rss": Allowance(24 * MIB, 24 * MIB),
    "pss": Allowance(24 * MIB, 24 * MIB),
    "descriptors": Allowance(8, 12),
    "sockets": Allowance(8, 12),
    "threads": Allowance(4, 6),
    "processes": Allowance(1, 0),
}
# What is replaced is another model's each time: the demo's text and vision engines lie 0.3 GiB
# apart, and the two quarters need not have served each for as long.
ALLOWED_REPLACED = ALLOWED | {
    "rss": Allowance(256 * MIB, 24 * MIB),
    "pss": Allowance(512 * MIB, 96 * MIB),  # of all processes together
    "descriptors": Allowance(24, 12),
    "sockets": Allowance(16, 12),
    "threads": Allowance(32, 6),
    "processes": Allowance(2, 0),
}
# Ray's log monitor keeps up to 200 logs open, its own limit (LOG_MONITOR_MAX_OPEN_FILES).
ALLOWED_BESIDES = {"Ray log monitor": {"descriptors": Allowance(200, 12)}}
# One file lost at every fifth switch is 24 an hour. Logs are set aside at 10 MB and the third is
# thrown away, so what they may hold is bounded: this is how fast they fill.
FILES = Allowance(12, 24)
BYTES = Allowance(8 * MIB, 64 * MIB)


@dataclass
class Verdict:
    """What is wrong, and the lines that tell of the rest."""

    failures: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def merged(ledgers: list[Ledger]) -> Ledger:
    """One ledger of all clients'; each has its own, because adding to a count is not atomic."""
    whole = Ledger(front_kills=ledgers[0].front_kills, controller_kills=ledgers[0].controller_kills)
    for ledger in ledgers:
        whole.counts += ledger.counts
        whole.lost += ledger.lost
        whole.errors += ledger.errors
    return whole


def judge_ledger(verdict: Verdict, ledger: Ledger, num_sent: int) -> None:
    """Every request has exactly one entry, and none is lost."""
    counts = ", ".join(f"{name} {num}" for name, num in ledger.counts.most_common())
    num_entered = ledger.counts.total() + len(ledger.lost)
    verdict.lines.append(f"requests {num_sent}: {counts}, lost {len(ledger.lost)}")
    if num_entered != num_sent:
        verdict.failures.append(f"{num_sent} requests were sent, {num_entered} entered")
    told = Counter(found[1] for error in ledger.errors if (found := _CODE.search(error)))
    verdict.lines.append("told: " + ", ".join(f"{code} {num}" for code, num in told.most_common(6)))
    for text, num in Counter(lost[:300] for lost in ledger.lost).most_common(12):
        verdict.failures.append(f"lost {num}: {text}")


def judge_growth(verdict: Verdict, samples: list[Sample], settle_s: float = SETTLE_S) -> None:
    """Every role's processes, and what lies in the folders."""
    counts = numbers(samples)
    series = {measure: by_role(samples, measure, settle_s) for measure in MEASURES}
    verdict.lines.append(
        f"{'first and last quarter':22}{'processes':>11}{'RSS MiB':>15}{'PSS MiB':>15}"
        f"{'descriptors':>13}{'sockets':>11}{'threads':>11}"
    )
    for role, of_role in counts.items():
        allowed = ALLOWED_REPLACED if role in REPLACED else ALLOWED
        allowed = allowed | ALLOWED_BESIDES.get(role, {})
        found = [_judged(verdict, f"{role}: processes", of_role, allowed["processes"])]
        for measure in MEASURES:
            name, of_role = f"{role}: {measure}", series[measure][role]
            # what forked processes share changes sides as they come and go: judged of all together
            is_told_only = measure == "pss"
            found.append(
                judge(name, of_role, allowed[measure])
                if is_told_only
                else _judged(verdict, name, of_role, allowed[measure])
            )
        number, rss, pss, descriptors, sockets, threads = found
        cells = [_cell(rss, MIB), _cell(pss, MIB), *map(_cell, (descriptors, sockets, threads))]
        widths = (15, 15, 13, 11, 11)
        line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        verdict.lines.append(f"{role:22}{_cell(number):>11}{line}")
    whole = [
        (sample.at_s, float(sum(p.pss for p in sample.processes)))
        for sample in samples
        if any(p.role == "engine core" for p in sample.processes)  # else most of it is not there
    ]
    growth = _judged(verdict, "all processes: pss", whole, ALLOWED_REPLACED["pss"])
    verdict.lines.append(f"{'all together':48}{_cell(growth, MIB):>15}")
    for folder in samples[0].files:
        files = [(sample.at_s, float(sample.files[folder])) for sample in samples]
        sizes = [(sample.at_s, float(sample.bytes[folder])) for sample in samples]
        num = _judged(verdict, f"files in {folder}", files, FILES)
        size = _judged(verdict, f"bytes in {folder}", sizes, BYTES)
        verdict.lines.append(f"{folder:22}{_cell(num):>15} files{_cell(size, MIB):>18} MiB")
    states = sorted({state for sample in samples for state in sample.connections})
    for state in states:
        held = [(sample.at_s, float(sample.connections.get(state, 0))) for sample in samples]
        growth = _judged(verdict, f"TCP connections in {state}", held, Allowance(16, 12))
        verdict.lines.append(f"{'TCP ' + state:22}{_cell(growth):>15} connections")


def _judged(verdict: Verdict, name: str, series: Series, allowed: Allowance) -> Growth | None:
    growth = judge(name, series, allowed)
    if growth and growth.is_too_much:
        unit, scale = ("MiB", MIB) if allowed.once > MIB else ("", 1)
        verdict.failures.append(
            f"{name} grew from {growth.first / scale:.0f} to {growth.last / scale:.0f} {unit}, "
            f"{growth.allowed / scale:.0f} are allowed"
        )
    return growth


def _cell(growth: Growth | None, scale: float = 1) -> str:
    if growth is None:
        return "-"
    sign = " !" if growth.is_too_much else ""
    return f"{growth.first / scale:.0f} → {growth.last / scale:.0f}{sign}"
