"""Settings of a machine whose place is a card, and whose engines compute on the CPU."""

import re
import shutil
from pathlib import Path

from deployments.settings import PROJECT
from serve_app.launcher.ports import free_port
from tests.cluster.server import make_config, make_home

# The share of the card that a model's memory is counted with; the engines are told nothing of it.
UTILIZATION = {"GPU_MEMORY_UTILIZATION": "0.85"}


def gpu_place(folder: Path) -> Path:
    """A copy of `configs/` in `folder` whose profile for the CPU takes a card as its place."""
    configs = folder / "configs"
    shutil.copytree(PROJECT / "configs", configs)
    profile = configs / "profiles" / "cpu-demo.yaml"
    text, num_places = re.subn("resource: .*", "resource: GPU", profile.read_text())
    assert num_places == 1
    profile.write_text(text)
    return configs


def gpu_place_config(folder: Path) -> Path:
    """A deployment file with these settings."""
    configs = gpu_place(folder)
    return make_config(folder, make_home(folder), free_port(), config_dir=str(configs))
