"""Keeps the tokenizers that the fork server has read, for the engines that it forks."""

import logging
from pathlib import Path

from deployments.engine import main as engine_main

logger = logging.getLogger("llm_backend.standby")

_Stamps = dict[str, tuple[int, int]]  # file -> inode, time of its last change in ns


class TokenizerCache:
    """Reads each checkpoint's tokenizer when its first engine is asked for."""

    def __init__(self) -> None:
        self._stamps: dict[str, _Stamps] = {}  # by checkpoint, as some of vLLM's caches are
        self._tried: set[tuple[str, str]] = set()

    def load(self, checkpoint: str, runner: str) -> bool:
        """Have the tokenizer of `checkpoint` in vLLM's caches; a bad one is its engine's to report.

        Returns:
            False when the files are not those that were read: this process is of no more use.
        """
        stamps = file_stamps(checkpoint)
        if self._stamps.setdefault(checkpoint, stamps) != stamps:
            return False
        if (checkpoint, runner) not in self._tried:
            self._tried.add((checkpoint, runner))
            try:
                engine_main.load_tokenizer(checkpoint, runner)
            except Exception:
                logger.exception("could not read the tokenizer of %s", checkpoint)
        return True


def file_stamps(folder: str) -> _Stamps:
    """What changes when a file in `folder`, weights apart, is replaced; links are followed."""
    try:
        files = [file for file in Path(folder).iterdir() if file.is_file()]
        stats = {file.name: file.stat() for file in files if file.suffix != ".safetensors"}
    except OSError:  # what is missing is the engine's to report
        return {}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}
