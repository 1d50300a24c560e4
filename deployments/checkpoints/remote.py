"""Reads what the hub says of a checkpoint that is not here: its sizes and its small files.

The weights are never downloaded; the small files go into the hub's cache, where a pull finds them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments.checkpoints.hub import Hub, PullError
from deployments.checkpoints.manifest import PulledFile, weights_among
from deployments.checkpoints.pull import served
from deployments.checkpoints.safety import danger_in_config, is_config

_SMALL = ("chat_template.jinja", "chat_template.json", "modules.json")
_MOST_BYTES = 10_000_000  # a tokenizer_config.json with many added tokens has some hundred KB


@dataclass(frozen=True)
class Remote:
    """One revision of a repository on the hub."""

    repo: str
    commit: str
    files: tuple[PulledFile, ...]  # that would be pulled
    texts: Mapping[str, str]  # of the small ones

    @property
    def weights_bytes(self) -> int:
        """What its weights take. The headers of the files, some 100 KB, are counted too."""
        weights = set(weights_among(file.path for file in self.files))
        return sum(file.size_bytes for file in self.files if file.path in weights)

    def json(self, name: str) -> Any:
        """A small file's content; an empty mapping where it is not there.

        Raises:
            PullError: it is not JSON.
        """
        try:
            return json.loads(self.texts.get(name, "{}"))
        except ValueError as exc:
            raise PullError(f"{name} of {self.repo} is not JSON") from exc

    @property
    def config(self) -> Mapping[str, Any]:
        """Raises PullError: there is none."""
        config = self.json("config.json")
        if not config or not isinstance(config, dict):
            raise PullError(f"{self.repo} has no config.json, so it cannot be served")
        return config


def look(hub: Hub, repo: str, revision: str | None) -> Remote:
    """Ask the hub.

    Raises:
        PullError: it cannot be asked, has no such checkpoint, or the checkpoint is refused.
    """
    commit = hub.newest(repo, revision or "main")
    files = served(repo, hub.files(repo, commit))
    texts = {file.path: _text(hub, repo, commit, file) for file in files if _is_small(file)}
    return Remote(repo, commit, files, texts)


def _is_small(file: PulledFile) -> bool:
    is_wanted = is_config(file.path) or file.path in _SMALL
    return is_wanted and file.size_bytes <= _MOST_BYTES


def _text(hub: Hub, repo: str, commit: str, file: PulledFile) -> str:
    if not file.is_whole(hub.blob(repo, file)):
        hub.download(repo, commit, file)
    content = hub.blob(repo, file).read_bytes()
    danger = danger_in_config(file.path, content) if is_config(file.path) else None
    if danger:
        raise PullError(f"{repo} is refused: {danger}")
    return content.decode(errors="replace")
