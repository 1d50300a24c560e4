"""Ends what a test run has started when the run itself has ended, however that went.

A process of its own, with the run's name as argument, whose standard input only the run holds open.
What the run starts has that name in its environment. The launchers end servers in order; what then
lives of all that was found is killed.
"""

import sys
from collections.abc import Callable

import psutil

MARK = "LLMB_TEST_RUN"
_KEEPERS = (" start ", "serve_app.launcher.foreground", "/serve run ")
_IN_ORDER_S = 100.0  # a launcher gives Serve 40 s, and as long to the engine


def marked(run: str) -> set[psutil.Process]:
    """Those of a run that live, with all they have started: a new title hides an environment."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == run:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return found


def _is_keeper(process: psutil.Process) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(words in f"{line} " for words in _KEEPERS)


def main(run: str) -> None:
    """Wait for the run's end, then end the rest."""
    sys.stdin.read()
    found = marked(run)
    keepers = [process for process in found if _is_keeper(process)]
    for keeper in keepers:
        _try(keeper.terminate)
    psutil.wait_procs(keepers, _IN_ORDER_S)
    for process in found | marked(run):
        _try(process.kill)


def _try(end: Callable[[], None]) -> None:
    try:
        end()
    except psutil.Error:
        return


if __name__ == "__main__":
    main(sys.argv[1])
