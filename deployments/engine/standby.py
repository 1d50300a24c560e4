"""Whether engines are forked from the standby on this machine.

Forking is not safe everywhere: a process that has touched CUDA must not fork, and vLLM itself does
not under WSL2. Where a fork failed and a plain start then worked, this is remembered, for the
versions that it happened with.
"""

import json
import logging
from pathlib import Path

from deployments.engine.imports import versions
from deployments.host.files import write_whole
from deployments.host.platform import is_wsl
from deployments.settings import Settings, paths

logger = logging.getLogger("llm_backend.standby")


def may_fork(settings: Settings) -> bool:
    """Whether the settings, the machine and past failures allow a standby."""
    if settings.standby == "auto":
        return why_not(settings.home) is None
    return settings.standby


def why_not(home: Path) -> str | None:
    """Why `standby: auto` is off on this machine; None where it is on."""
    if is_wsl():
        return "under WSL2 vLLM cannot fork its engine (vllm#32749)"
    try:
        kept = json.loads((home / paths.FORK_FAILED).read_text())
        if kept["versions"] == versions():
            return f"a forked engine failed, and a plain start worked: {kept['problem']}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def forking_failed(home: Path, problem: str) -> None:
    """Remember that a forked engine failed where a plain start then worked."""
    path = home / paths.FORK_FAILED
    logger.warning(
        "engines are started plainly from now on, which takes longer, because a forked one failed: "
        "%s. To try again: remove %s",
        problem,
        path,
    )
    try:
        write_whole(path, json.dumps({"versions": versions(), "problem": problem}))
    except OSError:  # the next load tries, and falls back, again
        logger.exception("could not keep %s", path)
