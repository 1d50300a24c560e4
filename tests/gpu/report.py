"""What was measured on the card, kept as it comes, and written as JSON and as a page to read."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

GIB = 2**30
# Tokens a second that one stream is to get; more is better.
WANTED_TOKENS_PER_S = (30.0, 50.0)
# Seconds of a switch, on paper: of forked engines under Linux, and of sleepers that wake.
WANTED_COLD_S, WANTED_WARM_S = 8.0, 1.0
WANTED_CONTEXT_TOKENS = 32768
# The plan's figure for an engine against the driver's, as a share of the driver's.
WANTED_PLAN_ERROR = 0.05
# A driver keeps some memory for the processes that are left; an engine is gigabytes.
MAX_KEPT_BYTES = GIB // 4


@dataclass(frozen=True)
class Switch:
    """One switch, as its ticket told it."""

    source: str
    target: str
    mode: str  # first, cold, warm
    seconds: float
    phases: dict[str, float]
    start: str = ""  # how its engine was started: standby, exec, wake
    steps: dict[str, float] = field(default_factory=dict)  # of the load, from the engine's log


@dataclass(frozen=True)
class Speed:
    """One stream of a model that does nothing else."""

    model: str
    ttft_s: float
    num_tokens: int
    tokens_per_s: float  # from the first token to the last

    @property
    def verdict(self) -> str:
        low, high = WANTED_TOKENS_PER_S
        if self.tokens_per_s < low:
            return f"below {low:.0f}"
        return f"above {high:.0f}" if self.tokens_per_s > high else "as wanted"


@dataclass(frozen=True)
class Memory:
    """The card's used memory about one model's stay; None where there is no card.

    `others_gained_bytes`: what other programs hold more after it, as a browser with a new tab.
    """

    model: str
    before_bytes: int | None
    resident_bytes: int | None
    after_bytes: int | None
    others_gained_bytes: int = 0

    @property
    def kept_bytes(self) -> int | None:
        """What was not given back."""
        if self.before_bytes is None or self.after_bytes is None:
            return None
        return self.after_bytes - self.before_bytes - self.others_gained_bytes


@dataclass(frozen=True)
class Planned:
    """The plan of one model's engine, and what the driver says that the engine holds."""

    model: str
    context_tokens: int
    weights_bytes: int
    overhead_bytes: int
    kv_cache_bytes: int
    held_bytes: int | None  # None where there is no card

    @property
    def planned_bytes(self) -> int:
        return self.weights_bytes + self.overhead_bytes + self.kv_cache_bytes

    @property
    def error(self) -> float | None:
        """The plan's error as a share of what the engine holds."""
        return (self.planned_bytes - self.held_bytes) / self.held_bytes if self.held_bytes else None


@dataclass(frozen=True)
class Verdict:
    """One line of the summary; `is_met` is None where it was not measured."""

    claim: str
    found: str
    is_met: bool | None

    @property
    def word(self) -> str:
        return "not measured" if self.is_met is None else ("met" if self.is_met else "NOT MET")


@dataclass
class Report:
    """Grows while the tests run."""

    machine: dict[str, str]
    answers: dict[str, str] = field(default_factory=dict)  # model -> its golden answer
    switches: list[Switch] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)

    def verdicts(self) -> list[Verdict]:
        """What is promised on an RTX 5080, line by line."""
        cold, warm = self._seconds("cold"), self._seconds("warm")
        slowest = min((s.tokens_per_s for s in self.speeds), default=None)
        contexts = [p.context_tokens for p in self.planned]
        errors = [abs(p.error) for p in self.planned if p.error is not None]
        kept = [m.kept_bytes for m in self.memory if m.kept_bytes is not None]
        starts = {s.start for s in self.switches if s.mode == "cold" and s.start}
        return [
            _at_least(
                f"every model has {WANTED_CONTEXT_TOKENS:,} tokens of context",
                min(contexts, default=None),
                WANTED_CONTEXT_TOKENS,
                "{:,.0f} at the least",
            ),
            _at_most(
                f"a cold switch takes {WANTED_COLD_S:.0f} s at most",
                _median(cold),
                WANTED_COLD_S,
                f"median {{:.1f}} s of {len(cold)}",
            ),
            Verdict(
                "engines are forked from the standby",
                ", ".join(sorted(starts)) or "-",
                starts == {"standby"} if starts else None,
            ),
            _at_most(
                f"a warm switch takes {WANTED_WARM_S:.0f} s at most",
                _median(warm),
                WANTED_WARM_S,
                f"median {{:.2f}} s of {len(warm)}",
            ),
            _at_least(
                f"one stream makes {WANTED_TOKENS_PER_S[0]:.0f} tokens a second or more",
                slowest,
                WANTED_TOKENS_PER_S[0],
                "{:.1f} at the least",
            ),
            _at_most(
                f"the plan is right to {WANTED_PLAN_ERROR:.0%}",
                max(errors, default=None),
                WANTED_PLAN_ERROR,
                "off by {:.1%} at the most",
            ),
            _at_most(
                "an unload gives the memory back",
                max(kept, default=None),
                MAX_KEPT_BYTES,
                "{:,.0f} bytes kept at the most",
            ),
        ]

    def _seconds(self, mode: str) -> list[float]:
        return [s.seconds for s in self.switches if s.mode == mode]

    def write(self, folder: Path, stem: str) -> Path:
        """Both files; returns the page's path."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.json").write_text(json.dumps(asdict(self), indent=1))
        page = folder / f"{stem}.md"
        page.write_text(self.page())
        return page

    def page(self) -> str:
        sections = [
            "# Measured on this machine",
            _table(["", ""], [[key, value] for key, value in self.machine.items()]),
            "## Verdict",
            _table(
                ["promised", "found", ""], [[v.claim, v.found, v.word] for v in self.verdicts()]
            ),
            "## Answers",
            _table(["model", "golden answer"], [[m, a] for m, a in self.answers.items()]),
            f"## Speed of one stream (wanted: {WANTED_TOKENS_PER_S[0]:.0f} to "
            f"{WANTED_TOKENS_PER_S[1]:.0f} tokens a second)",
            _table(
                ["model", "first token, s", "tokens", "tokens/s", ""],
                [
                    [
                        s.model,
                        f"{s.ttft_s:.3f}",
                        str(s.num_tokens),
                        f"{s.tokens_per_s:.1f}",
                        s.verdict,
                    ]
                    for s in self.speeds
                ],
            ),
            "## Switches",
            _table(
                ["from", "to", "", "s", "of it", "engine", "steps of the load"],
                [
                    [
                        s.source,
                        s.target,
                        s.mode,
                        f"{s.seconds:.1f}",
                        _phases(s.phases),
                        s.start,
                        _phases(s.steps),
                    ]
                    for s in self.switches
                ],
            ),
            "## The memory plan against the card, GiB",
            _table(
                ["model", "context", "weights", "overhead", "KV cache", "together", "found", "off"],
                [
                    [
                        p.model,
                        f"{p.context_tokens:,}",
                        *map(
                            _gib,
                            (
                                p.weights_bytes,
                                p.overhead_bytes,
                                p.kv_cache_bytes,
                                p.planned_bytes,
                                p.held_bytes,
                            ),
                        ),
                        "" if p.error is None else f"{p.error:+.1%}",
                    ]
                    for p in self.planned
                ],
            ),
            "## Memory of the card, GiB used",
            _table(
                ["model", "before", "resident", "after", "not given back"],
                [
                    [
                        m.model,
                        *map(_gib, (m.before_bytes, m.resident_bytes, m.after_bytes, m.kept_bytes)),
                    ]
                    for m in self.memory
                ],
            ),
        ]
        return "\n\n".join(sections) + "\n"


def _at_most(claim: str, found: float | None, limit: float, text: str) -> Verdict:
    if found is None:
        return Verdict(claim, "-", None)
    return Verdict(claim, text.format(found), found <= limit)


def _at_least(claim: str, found: float | None, limit: float, text: str) -> Verdict:
    if found is None:
        return Verdict(claim, "-", None)
    return Verdict(claim, text.format(found), found >= limit)


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not measured."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _phases(phases: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items() if seconds >= 0.05)


def _gib(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / GIB:.2f}"
