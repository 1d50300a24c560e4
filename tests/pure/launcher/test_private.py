"""What other users of the machine can reach of a server, and that a start makes it private."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.launcher import private


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home as a start leaves it, below folders that all users may enter, like /home."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o711)
    home = tmp_path / "home"
    for name in ("run", "logs"):
        (home / name).mkdir(parents=True, mode=0o700)
    return home


@pytest.fixture
def umask() -> Iterator[None]:
    """Let all users read what this process writes, as most shells do."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def texts(home: Path, **environment: str) -> list[str]:
    return [e.text for e in private.exposures(home, environment) if e.is_used]


@pytest.mark.usefixtures("umask")
def test_token_and_folders_are_for_this_user_alone(home: Path, tmp_path: Path) -> None:
    """Whatever the umask."""
    token = private.make_ray_token(home)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    with private.folder(home, "ray", tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (home / "run" / "ray").resolve() == folder
    assert not folder.exists()
    assert not (home / "run" / "ray").is_symlink()
    assert texts(home) == []


def test_token_stays_unless_others_could_read_it(home: Path) -> None:
    """Scripts that have the token go on; a token that others may know is replaced."""
    first = private.make_ray_token(home).read_text()
    assert private.make_ray_token(home).read_text() == first
    private.ray_token(home).chmod(0o644)
    assert private.make_ray_token(home).read_text() != first
    assert texts(home) == []


def test_next_start_removes_the_folder_that_a_killed_launcher_left(
    home: Path, tmp_path: Path
) -> None:
    """And no other folder that a link may lead to."""
    killed = private.folder(home, "ray", tmp_path)
    left = killed.__enter__()
    (left / "session").mkdir()
    others = tmp_path / "others"
    others.mkdir()
    (home / "run" / "theirs").symlink_to(others)
    with private.folder(home, "ray", tmp_path) as folder:
        assert folder != left
        assert not left.exists()
        private.remove_folders(home)
        assert not folder.exists()
    assert others.exists()


def test_longest_folder_still_has_room_for_rays_sockets(tmp_path: Path) -> None:
    """A socket's path has 107 bytes; Ray's own name for its longest is bound here."""
    name = "ray/session_2026-11-25_11-05-38_322814_4194304/sockets/plasma_store"
    room = 107 - len(f"/{name}") - len("/llmb-12345678")
    parent = Path("/" + "p" * (room - 1))
    assert not private.is_too_long(parent)
    assert private.is_too_long(Path(f"{parent}p"))
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(FileNotFoundError):
        probe.bind(f"{parent}/llmb-12345678/{name}")  # it is missing, and not too long


@pytest.mark.parametrize(
    ("path", "mode", "verb"),
    [
        (".", 0o775, "write to"),
        ("run", 0o755, "read"),
        ("logs", 0o750, "read"),
        ("run/ray_token", 0o640, "read"),
    ],
)
def test_files_that_others_can_reach_are_named(home: Path, path: str, mode: int, verb: str) -> None:
    """With the command that protects them."""
    private.make_ray_token(home)
    if path == "run/ray_token":
        (home / "run").chmod(0o711)  # else other users cannot enter it
    (home / path).chmod(mode)
    found = [e for e in private.exposures(home, {}) if e.is_used][-1]
    assert found.text == f"other users can {verb} {home / path}"
    assert found.remedy.startswith("chmod go")


def test_open_file_in_a_closed_folder_is_no_exposure(home: Path) -> None:
    """Other users cannot enter the folder."""
    private.make_ray_token(home).chmod(0o644)
    assert texts(home) == []


def test_files_named_by_rays_variables_are_checked(home: Path, tmp_path: Path) -> None:
    """The user's own token file, temporary folder and mode, as Ray's variables name them."""
    token = tmp_path / "token"
    token.write_text("t")
    token.chmod(0o644)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    said = texts(
        home, RAY_AUTH_TOKEN_PATH=str(token), RAY_TMPDIR=str(shared), RAY_AUTH_MODE="disabled"
    )
    assert said == [
        f"other users can write to {shared}",
        f"other users can read {token}",
        "RAY_AUTH_MODE is disabled: other users can run programs as this user",
    ]
    shared.chmod(0o1777)  # sticky, like /tmp: other users cannot replace files
    assert texts(home, RAY_TMPDIR=str(shared)) == []


def test_token_of_a_bare_serve_run_is_reported_but_not_used_by_a_start(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray writes it so that all users can read it; `llm-backend start` does not use it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("t")
    token.chmod(0o644)
    (found,) = private.exposures(home, {})
    assert str(token) in found.text
    assert not found.is_used
