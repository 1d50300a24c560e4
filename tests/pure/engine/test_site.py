"""The import hook of the engine's processes, against packages made up to match torch or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deployments.engine.site

SITE = Path(deployments.engine.site.__file__).parent

TORCH_LIBRARY = """
declared = []
class Library:
    def __init__(self, name, kind): pass
    def define(self, schema): declared.append(schema.split("(")[0])
"""
TORCHVISION = """
from . import extension
import torch.library
if not extension._has_ops() and torch.library.declared != ["nms", "qnms"]:
    raise RuntimeError("operator torchvision::nms does not exist")
"""
TORCHAUDIO_UTILS = "def _load_lib(name): raise OSError('undefined symbol')"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with a `torch` that notes which operators are declared."""
    write(tmp_path, "torch/__init__.py", "")
    write(tmp_path, "torch/library.py", TORCH_LIBRARY)
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def run_python(code: str, packages: Path, *, hook: bool = True) -> str:
    """What `code` prints in a new process; its standard error where it fails."""
    path = [str(SITE), str(packages)] if hook else [str(packages)]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return (done.stdout or done.stderr).strip()


def test_torchvision_without_operators_can_be_imported(packages: Path) -> None:
    write(packages, "torchvision/__init__.py", TORCHVISION)
    write(packages, "torchvision/extension.py", "def _has_ops(): return False")
    code = "import torchvision, torch.library; print(torch.library.declared)"

    assert "operator torchvision::nms does not exist" in run_python(code, packages, hook=False)
    assert run_python(code, packages) == "['nms', 'qnms']"


def test_torchvision_that_matches_is_left_alone(packages: Path) -> None:
    write(packages, "torchvision/__init__.py", TORCHVISION)
    write(packages, "torchvision/extension.py", "def _has_ops(): return True")
    code = "import torchvision, torch.library; print(torch.library.declared)"

    assert run_python(code, packages) == "[]"


def test_torchaudio_goes_on_without_its_library(packages: Path) -> None:
    write(packages, "torchaudio/__init__.py", "from ._extension import LOADED")
    write(
        packages,
        "torchaudio/_extension/__init__.py",
        "from .utils import _load_lib\nLOADED = _load_lib('x')",
    )
    write(packages, "torchaudio/_extension/utils.py", TORCHAUDIO_UTILS)
    code = "import torchaudio; print(torchaudio.LOADED)"

    assert "OSError: undefined symbol" in run_python(code, packages, hook=False)
    assert run_python(code, packages) == "False"


def test_torchcodec_that_does_not_load_is_an_import_error(packages: Path) -> None:
    write(packages, "torchcodec/__init__.py", "raise OSError('Could not load this library')")
    code = "try: import torchcodec\nexcept ImportError as exc: print(exc)"

    assert run_python(code, packages) == "Could not load this library"


def test_the_hook_holds_in_a_process_started_by_the_process(packages: Path) -> None:
    write(packages, "torchcodec/__init__.py", "raise OSError('Could not load this library')")
    inner = "try: import torchcodec\nexcept ImportError as exc: print(exc)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"

    assert run_python(code, packages) == "Could not load this library"


def test_a_sitecustomize_further_down_the_path_still_runs(packages: Path) -> None:
    write(packages, "sitecustomize.py", "print('the other one')")

    assert run_python("pass", packages) == "the other one"


def test_no_package_is_imported_before_it_is_asked_for(packages: Path) -> None:
    code = "import sys; print([name for name in sys.modules if name.startswith('torch')])"

    assert run_python(code, packages) == "[]"
