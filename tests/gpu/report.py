"""What was measured on the card, kept as it comes, and written as JSON and as a page to read."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

GIB = 2**30
# Tokens a second that one stream is to get; more is better.
WANTED_TOKENS_PER_S = (30.0, 50.0)


@dataclass(frozen=True)
class Switch:
    """One switch, as its ticket told it."""

    source: str
    target: str
    mode: str  # first, cold, warm
    seconds: float
    phases: dict[str, float]


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
    """The card's used memory about one model's stay; None where there is no card."""

    model: str
    before_bytes: int | None
    resident_bytes: int | None
    after_bytes: int | None

    @property
    def kept_bytes(self) -> int | None:
        """What was not given back."""
        if self.before_bytes is None or self.after_bytes is None:
            return None
        return self.after_bytes - self.before_bytes


@dataclass
class Report:
    """Grows while the tests run."""

    machine: dict[str, str]
    answers: dict[str, str] = field(default_factory=dict)  # model -> its golden answer
    switches: list[Switch] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

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
                ["from", "to", "", "s", "of it"],
                [
                    [s.source, s.target, s.mode, f"{s.seconds:.1f}", _phases(s.phases)]
                    for s in self.switches
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
