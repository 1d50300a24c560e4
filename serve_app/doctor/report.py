"""Runs all checks, and reports their findings as lines, as JSON and as an exit code."""

from dataclasses import asdict
from typing import Any

from serve_app.doctor import gpu_checks, host_checks, wsl_checks
from serve_app.doctor.facts import Finding, HostFacts, Level


def diagnose(facts: HostFacts) -> list[Finding]:
    """Return all findings, in the order of a start: settings, card, weights, then the rest."""
    first, *rest = host_checks.CHECKS
    checks = (first, *gpu_checks.CHECKS, *rest, *wsl_checks.CHECKS)
    return [finding for check in checks for finding in check(facts)]


def lines_of(findings: list[Finding]) -> list[str]:
    """Format the findings for a terminal: one line each with its remedy below, then the totals."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:8} {finding.check:14} {finding.text}")
        if finding.remedy:
            lines.append(f"{'':8} {'':14} -> {finding.remedy}")
    counts = {level: sum(f.level == level for f in findings) for level in Level}
    if not counts[Level.PROBLEM]:
        verdict = "ready to start"
    else:
        verdict = "the server will not start, or will not work as it should"
    warnings, problems = (
        _counted(counts[level], level) for level in (Level.WARNING, Level.PROBLEM)
    )
    lines.append(f"\n{counts[Level.OK]} ok, {warnings}, {problems}: {verdict}")
    return lines


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def json_of(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings as a JSON object."""
    return {"ok": exit_code(findings) == 0, "findings": [asdict(f) for f in findings]}


def exit_code(findings: list[Finding]) -> int:
    """Return 1 if there is a problem; warnings do not count."""
    return int(any(finding.level is Level.PROBLEM for finding in findings))
