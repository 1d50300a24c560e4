"""The Makefile's rules for `.venv`, run in a copy of what they read; pip does nothing here."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deployments.host.needs import compiler_needs
from deployments.settings import PROJECT

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here"),
]

# Makes an environment in a tenth of a second: the Makefile asks only for pip's files.
PYTHON = """\
#!/bin/sh
case "$*" in
  "-m venv"*)
    "$BASE" -m venv --without-pip "$3" || exit 1
    mkdir "$("$3/bin/python" -c 'import site; print(site.getsitepackages()[0])')/pip"
    touch "$("$3/bin/python" -c 'import site; print(site.getsitepackages()[0])')/pip/__init__.py"
    echo "#!$PWD/$3/bin/python" > "$3/bin/pip";;
  *) exec "$BASE" "$@";;
esac
"""
# Debian's without python3-venv: it fails after it has made bin/python.
WITHOUT_ENSUREPIP = """\
#!/bin/sh
case "$*" in
  "-m venv"*) mkdir -p "$3/bin"; ln -s "$BASE" "$3/bin/python"; echo "no ensurepip" >&2; exit 1;;
  *) exec "$BASE" "$@";;
esac
"""
# As 22.04's, seen by what asks for the version.
PYTHON_3_10 = """\
#!/bin/sh
case "$*" in
  *version_info*) exit 1;;
esac
shift 2
exec "$BASE" -c 'import runpy, sys
sys.version_info = (3, 10, 12, "final", 0)
sys.argv.pop(0)
sys.path.insert(0, "")
runpy.run_module(sys.argv[0], run_name="__main__")' "$@"
"""


@dataclass
class Project:
    """A copy of the Makefile and of what it reads, with programs of the test's own."""

    folder: Path
    variables: list[str] = field(default_factory=list)

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    def put_python(self, script: str) -> None:
        for name in ("python3", "python3.12", "python3.11"):
            path = self.folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(script)
            path.chmod(0o700)

    def make(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`make env`, unless another target is named."""
        environ = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "BASE": str(Path(sys.executable).resolve()),
            "CUDA_VISIBLE_DEVICES": "",  # whatever card this machine has
        }
        return subprocess.run(
            ["make", *(arguments or ["env"]), "PIP=:", *self.variables],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=50,
        )

    def put_package(self, name: str) -> None:
        [packages] = self.venv.glob("lib/python3*/site-packages")
        (packages / f"{name}.dist-info").mkdir()
        (packages / f"{name}.dist-info" / "RECORD").touch()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    shutil.copytree(PROJECT / "deployments" / "host", folder / "deployments" / "host")
    for name in ("Makefile", "pyproject.toml", "deployments/__init__.py"):
        shutil.copy(PROJECT / name, folder / name)
    for lock in PROJECT.glob("requirements-*.lock"):
        (folder / lock.name).touch()
    made = Project(folder)
    made.put_python(PYTHON)
    return made


def test_failed_environment_leaves_nothing_and_the_next_run_makes_it(project: Project) -> None:
    project.put_python(WITHOUT_ENSUREPIP)
    failed = project.make()
    assert failed.returncode
    assert "no ensurepip" in failed.stderr
    assert not project.venv.exists()
    project.put_python(PYTHON)
    assert project.make().returncode == 0
    assert (project.venv / ".cpu").exists()


def test_environment_that_is_not_whole_is_made_again(project: Project) -> None:
    """Its stamps say that it is: it was whole once."""
    for fault in ("there is none", "half made", "its Python is gone", "the folder was moved"):
        if fault == "half made":
            (project.venv / "bin" / "pip").unlink()
        elif fault == "its Python is gone":
            (project.venv / "bin" / "python").unlink()
            (project.venv / "bin" / "python").symlink_to("/usr/bin/python3.nine")
        elif fault == "the folder was moved":
            project.folder = project.folder.rename(project.folder.with_name("elsewhere"))
        made = project.make()
        assert made.returncode == 0, made.stderr
        assert "Making an environment" in made.stdout, fault
        assert (project.venv / ".cpu").exists()
    again = project.make()
    assert (again.returncode, again.stdout) == (0, "")


def test_wrong_python_is_told_before_anything_is_made(project: Project) -> None:
    project.put_python(PYTHON_3_10)
    failed = project.make()
    assert failed.returncode
    assert "Python 3.11 or 3.12 is needed, and this is 3.10; run: " in failed.stderr
    assert not project.venv.exists()


def test_packages_for_a_gpu_are_not_replaced_where_no_card_answers(project: Project) -> None:
    """Only DEVICE=cpu on the command line does that, and makes the environment again."""
    if list(compiler_needs(os.environ)):
        pytest.skip("packages for a GPU need a compiler")
    project.variables = ["DEVICE=gpu"]
    assert project.make().returncode == 0
    project.put_package("vllm-0.32.0")
    project.variables = []
    refused = project.make()
    assert refused.returncode
    assert "hides every card" in refused.stderr
    assert "make run DEVICE=cpu" in refused.stderr
    assert list(project.venv.rglob("vllm-0.32.0.dist-info"))
    project.variables = ["DEVICE=cpu"]
    replaced = project.make()
    assert replaced.returncode == 0, replaced.stderr
    assert "are for another device" in replaced.stdout
    assert list(project.venv.rglob("vllm-0.32.0.dist-info")) == []
    assert [path.name for path in project.venv.glob(".?pu")] == [".cpu"]
