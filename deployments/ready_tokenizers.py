"""The tokenizers that the standby has read, for the engines that it forks."""

import logging
import os

from deployments import engine_main

logger = logging.getLogger("llm_backend.standby")

_Stamps = dict[str, tuple[int, int, int]]  # file -> inode, size, time of its last change in ns


class ReadyTokenizers:
    """Reads each checkpoint's tokenizer when its first engine is asked for."""

    def __init__(self) -> None:
        self._stamps: dict[tuple[str, str], _Stamps] = {}

    def load(self, checkpoint: str, runner: str) -> bool:
        """Have the tokenizer of `checkpoint` in vLLM's caches; a bad one is its engine's to report.

        Returns:
            False when the files are not those that were read: this process is of no more use.
        """
        stamps = file_stamps(checkpoint)
        known = self._stamps.setdefault((checkpoint, runner), stamps)
        if known is stamps:
            try:
                engine_main.load_tokenizer(checkpoint, runner)
            except Exception:
                logger.exception("could not read the tokenizer of %s", checkpoint)
        return known == stamps


def file_stamps(folder: str) -> _Stamps:
    """What changes when a file in `folder`, weights apart, is replaced; links are followed."""
    stamps: _Stamps = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return stamps
    for name in names:
        if not name.endswith(".safetensors"):
            try:
                found = os.stat(os.path.join(folder, name))
            except OSError:
                continue
            stamps[name] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return stamps
