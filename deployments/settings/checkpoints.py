"""The file `configs/checkpoints.yaml`: checkpoints that need not be on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.settings.base import Frozen
from deployments.settings.yaml_files import read_file


class _CheckpointsFile(Frozen):
    shapes: list[dict[str, Any]]
    quantizations: list[dict[str, Any]]
    checkpoints: dict[str, dict[str, Any]]


def known_checkpoints(config_dir: Path) -> Mapping[str, Mapping[str, Any]]:
    """What is known of checkpoints that need not be on this machine: name -> its `config.json`.

    Raises:
        SettingsError: the file cannot be used.
    """
    return read_file(config_dir / "checkpoints.yaml", _CheckpointsFile).checkpoints
