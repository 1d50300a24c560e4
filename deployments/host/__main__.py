"""Answers the Makefile with the standard library only: no package is installed yet.

python -m deployments.host device        prints which packages this machine gets: gpu or cpu
python -m deployments.host installed     prints which ones .venv holds: gpu, cpu or nothing
python -m deployments.host python        says what this Python lacks for making .venv
python -m deployments.host check DEVICE  says what the machine lacks for serving with DEVICE
    --install                            and for installing the packages
    --any-card                           whatever card it has: the user has named the device
The last two exit with 1 if something is in the way.
"""

from __future__ import annotations  # this runs under the system's Python too, which may be old

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from deployments.host import disk_needs, needs
from deployments.host.card import FoundCard, find_card

_VENV = Path(".venv")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deployments.host")
    parser.add_argument("command", choices=["device", "installed", "python", "check"])
    parser.add_argument("device", nargs="?", choices=["gpu", "cpu"], default="cpu")
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--any-card", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.command == "device":
        print(_device())
    elif chosen.command == "installed":
        print(needs.installed_device(_VENV) or "")
    elif chosen.command == "python":
        return _report(needs.python_needs())
    else:
        return _report(_lacking(chosen.device, chosen.install, chosen.any_card))
    return 0


def _report(found: Iterator[needs.Need]) -> int:
    has_wall = False
    for need in found:
        print(f"{'Cannot go on' if need.is_wall else 'Note'}: {need.sentence}.", file=sys.stderr)
        has_wall |= need.is_wall
    return int(has_wall)


def _device() -> str:
    """The packages for a GPU also where its driver does not answer: they are not to be replaced
    because a driver was updated without a reboot."""
    is_gpu = _card().is_there or needs.installed_device(_VENV) == "gpu"
    return "gpu" if is_gpu else "cpu"


def _lacking(device: str, is_install: bool, is_any_card: bool) -> Iterator[needs.Need]:
    is_ours = Path(sys.prefix) == _VENV.absolute()  # the environment is made already
    python = list(needs.python_needs()) if is_install and not is_ours else []
    yield from python
    if device == "gpu":
        if not is_any_card:
            yield from needs.card_needs(_card())
        if not python:  # another Python brings another Python.h
            yield from needs.compiler_needs(os.environ)
    if is_install:
        if device == "cpu" and not is_any_card:
            card = _card()
            yield needs.Need("gpu", card.problem, card.remedy, is_wall=False)
        yield from needs.nvcc_needs(os.environ) if device == "gpu" else ()
        yield from disk_needs.slow_places(_VENV.absolute(), os.environ)
        if needs.installed_device(_VENV) != device:
            yield from disk_needs.install_needs(device, _VENV, os.environ)


def _card() -> FoundCard:
    return find_card(os.environ.get("CUDA_VISIBLE_DEVICES"))


if __name__ == "__main__":
    sys.exit(main())
