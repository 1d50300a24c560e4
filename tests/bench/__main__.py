"""`python -m tests.bench`: measures, writes the report, prints its table; `make bench` runs it."""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deployments.host.card import find_card
from deployments.settings import PROJECT, AppArgs, ModelSpec, Settings, default_home, load_settings
from tests.bench import machine, report, traces
from tests.bench.rounds import FULL, QUICK, Bench
from tests.bench.samples import Samples
from tests.bench.targets import judge, targets


def main(arguments: list[str] | None = None) -> int:
    """Run it all; 1 where a target is missed or a part fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, and less in it")
    parser.add_argument("--out", type=Path, default=PROJECT / "tests" / "artifacts" / "bench")
    parser.add_argument("--peer-env", type=Path, help="python of an environment with ray[llm]")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    settings = load_settings(
        AppArgs(home=str(default_home()), env_file=""), has_gpu=find_card().is_there
    )
    specs = _switched(settings)
    about = machine.describe() | {
        "profile": f"{settings.profile}: {', '.join(f'{s.name} = {s.checkpoint}' for s in specs)}",
        "run": "quick" if chosen.quick else "full",
    }
    for warning in about["warnings"]:
        _say(warning)
    chosen.out.mkdir(parents=True, exist_ok=True)
    samples, began = Samples(), time.monotonic()
    amounts = QUICK if chosen.quick else FULL
    with tempfile.TemporaryDirectory(prefix="llmb-bench-", ignore_cleanup_errors=True) as work:
        bench = Bench(
            settings, specs, amounts, chosen.out, Path(work), chosen.peer_env, samples, _say
        )
        bench.run()
    about["minutes"] = round((time.monotonic() - began) / 60, 1)
    return _write(about, samples, chosen.out, has_failed=bench.has_failed)


def _switched(settings: Settings) -> list[ModelSpec]:
    """Two models that talk, the one that is resident after a start first."""
    talking = [s for s in settings.models.values() if s.task == "generate" and not s.vision]
    talking.sort(key=lambda spec: spec.name != settings.default_model)
    assert len(talking) > 1
    assert talking[0].name == settings.default_model
    return talking[:2]


def _write(about: dict[str, Any], samples: Samples, folder: Path, *, has_failed: bool) -> int:
    from tests.bench import plots  # matplotlib takes a second to import

    rows = [judge(target, samples) for target in targets(traces.NAMES)]
    (folder / "report.json").write_text(report.as_json(about, rows, samples))
    (folder / "report.md").write_text(report.as_markdown(about, rows, samples))
    plots.draw_all(samples, folder)
    print("\n".join(report.table(rows)))
    _say(f"The report: {folder / 'report.md'}")
    return int(has_failed or any(row.verdict == "missed" for row in rows))


def _stop(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would end the stopping itself
    sys.exit(143)  # an exception: what was started is stopped on the way out


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
