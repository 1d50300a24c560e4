"""Programs of other makers from npm, each of a certain version, installed once and kept."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.conftest import DEMO_HOME

_INSTALL_S = 120.0  # 7 s where the registry is near; the largest unpacks to 400 MB
_INSTALL = [
    *("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"),
    *("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--prefix"),
]


def program(package: str, version: str, script: str) -> list[str]:
    """The command that runs a package's script; skips the test where npm cannot install it."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = DEMO_HOME / "programs" / f"{package.replace('/', '-')}-{version}"
    if not folder.exists():
        _install(f"{package}@{version}", folder)
    return ["node", str(folder / "node_modules" / package / script)]


def _install(package: str, folder: Path) -> None:
    """Install into another folder first: one that has its name is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as room:
        new = Path(room) / "new"
        command = [*_INSTALL, str(new), package]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install {package} within {_INSTALL_S:.0f} s")
        except subprocess.CalledProcessError as exc:
            pytest.skip(f"npm cannot install {package}: {exc.stderr.strip()[:300]}")
        new.rename(folder)
