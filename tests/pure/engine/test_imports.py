"""The list of an engine's imports, from its end to the next standby."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.engine import imports
from deployments.settings import PROJECT

# A process that imports a module, and forks one that imports another, as an engine does its core.
ENGINE = """
import multiprocessing, sys
from pathlib import Path
from deployments.engine import imports

def core():
    import wave

with imports.kept(Path(sys.argv[1])):
    import colorsys
    process = multiprocessing.get_context("fork").Process(target=core)
    process.start()
    process.join()
"""


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    path = tmp_path / "imports.json"
    run(ENGINE, path)
    return path


def test_engine_and_its_core_leave_what_they_had_imported(learned):
    names = imports.learned(learned)
    assert {"colorsys", "wave"} <= set(names)
    assert "__main__" not in names


def test_second_engine_adds_to_the_list(learned):
    run(ENGINE.replace("import colorsys", "import mailbox"), learned)
    assert {"colorsys", "wave", "mailbox"} <= set(imports.learned(learned))


def test_list_of_other_versions_is_not_used(learned):
    kept = json.loads(learned.read_text())
    learned.write_text(json.dumps(kept | {"versions": {"vllm": "0.33.0"}}))
    assert imports.learned(learned) == []


def test_standby_imports_the_list_and_keeps_it_once_it_did_no_harm(learned):
    script = """
import sys
from pathlib import Path
from deployments.engine import imports
path = Path(sys.argv[1])
assert "colorsys" not in sys.modules
imports.preload(path)
assert "colorsys" in sys.modules and "wave" in sys.modules
print(path.exists())
imports.confirm(path)
print(path.exists())
"""
    assert run(script, learned).split() == ["False", "True"]


def test_list_that_ended_a_standby_is_not_tried_again(learned):
    imports.preload(learned)  # and no `confirm`
    assert imports.learned(learned) == []
    assert imports.preload(learned) == 0


def test_modules_that_touch_cuda_are_not_for_the_standby():
    found = imports._importable({"flashinfer.utils": os, "json": json, "gone": None})
    assert found == ["json"]


def test_list_that_cannot_be_written_stops_nothing(tmp_path):
    imports.keep(tmp_path / "no such folder" / "imports.json")
    with imports.kept(None):
        assert multiprocessing.active_children() == []
