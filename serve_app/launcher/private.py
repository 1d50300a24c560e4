"""Protects a server's files from the other users of its machine, and finds files that are exposed.

A user who has Ray's token can run programs as the server's user. Ray 2.60 writes the token to
`~/.ray/auth_token`, which every user can read, and lets every user write to its temporary folder
(`authentication_token_setup.py`, `try_make_directory_shared`). So this module makes a token and a
folder for this user alone, and every process that is started inherits a umask that gives other
users no rights.
"""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployments.settings import paths

_PREFIX = "llmb-"
_SOCKET_BYTES = 107  # the longest path of a Unix socket
_RAY_BYTES = 68  # `/ray/session_<date>_<pid>/sockets/plasma_store`, with seven digits of pid
_MAX_PARENT_BYTES = _SOCKET_BYTES - _RAY_BYTES - len(f"/{_PREFIX}12345678")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Exposure:
    """One thing that another user of this machine can reach, and the command that closes it."""

    text: str
    remedy: str
    is_used: bool = True  # by `llm-backend start`; False: only by a bare `serve run`


def close_to_others() -> None:
    """Set the umask: files of this process and its children are for this user alone from now on."""
    os.umask(_OTHERS)


def temporary_parent(environment: Mapping[str, str]) -> Path:
    """Return the parent of Ray's temporary folder: the folder that Ray itself would choose."""
    return Path(environment.get("RAY_TMPDIR") or tempfile.gettempdir())


def is_too_long(parent: Path) -> bool:
    """Whether the paths of Ray's sockets below `parent` would be longer than the system allows."""
    return len(os.fsencode(parent)) > _MAX_PARENT_BYTES


@contextmanager
def folder(home: Path, name: str, parent: Path) -> Iterator[Path]:
    """Make a folder with a short path in `parent`, for this user alone; remove it at the end of the
    block. `<home>/run/<name>` is a link to it."""
    link = home / paths.RUN / name
    link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remove(link)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        link.symlink_to(path)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        link.unlink(missing_ok=True)


def remove_folders(home: Path) -> None:
    """Remove the folders that a killed launcher has left."""
    for link in (home / paths.RUN).glob("*"):
        _remove(link)


def _remove(link: Path) -> None:
    if link.is_symlink() and link.readlink().name.startswith(_PREFIX):
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()


def ray_token(home: Path) -> Path:
    """Return the path of Ray's token for the servers of `home`."""
    return home / paths.RAY_TOKEN


def make_ray_token(home: Path) -> Path:
    """Make Ray's token for this user alone, or keep the one from an earlier start. A token that
    other users could read is replaced."""
    path = ray_token(home)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists() or path.stat().st_mode & _OTHERS:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path


def exposures(home: Path, environment: Mapping[str, str]) -> Iterator[Exposure]:
    """Yield what other users can reach of a server on `home` that is started in `environment`."""
    for path in (home, temporary_parent(environment)):
        if _is_replaceable(path):
            yield Exposure(f"other users can write to {path}", f"chmod go-w {path}")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    token = Path(named) if named else ray_token(home)
    for path in (home / paths.RUN, home / paths.LOGS, token):
        if _is_open(path):
            yield Exposure(f"other users can read {path}", f"chmod go= {path}")
    if environment.get("RAY_AUTH_MODE", "token") != "token":
        yield Exposure(
            f"RAY_AUTH_MODE is {environment['RAY_AUTH_MODE']}: other users can run programs as "
            "this user",
            "unset RAY_AUTH_MODE",
        )
    yield from _exposures_of_serve_run()


def _exposures_of_serve_run() -> Iterator[Exposure]:
    """Yield exposures of the token that Ray itself writes."""
    token = Path.home() / ".ray" / "auth_token"
    if _is_open(token):
        yield Exposure(
            f"other users can read {token}, and can then run programs as this user while a bare "
            "`serve run` runs",
            f"chmod go= {token}",
            is_used=False,
        )


def _is_open(path: Path) -> bool:
    """Whether other users have any right to `path`, and can enter all folders above it."""
    try:
        is_open = path.stat().st_mode & _OTHERS != 0
        can_reach = all(folder.stat().st_mode & 0o011 for folder in path.absolute().parents)
    except OSError:
        return False
    return is_open and can_reach


def _is_replaceable(path: Path) -> bool:
    """Whether other users can replace our files in this folder by theirs."""
    try:
        found = path.stat()
    except OSError:
        return False
    is_foreign = found.st_uid not in (0, os.geteuid())
    is_sticky = found.st_mode & stat.S_ISVTX
    return is_foreign or bool(found.st_mode & _OTHERS_WRITE and not is_sticky)
