"""The kind of file system, from files that stand for /proc/self/mountinfo."""

from pathlib import Path

import pytest

from deployments.host.filesystems import filesystem_of, is_slow_filesystem, is_windows_disk

WSL2 = """\
75 1 8:48 / / rw,relatime - ext4 /dev/sdd rw,discard
99 75 0:52 / /mnt/c rw,noatime - 9p C:\\134 rw,dirsync,aname=drvfs;path=C:\\;uid=1000
100 75 0:53 / /mnt/my\\040disk rw shared:3 - virtiofs drvfsa rw
101 75 0:54 / /mnt/d rw - drvfs D: rw
102 75 8:64 / /mnt/c/linux rw - ext4 /dev/sde rw
103 75 0:55 / /host rw - 9p share rw,trans=virtio
broken line
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(WSL2)
    return path


@pytest.mark.parametrize(
    ("folder", "filesystem", "is_windows"),
    [
        ("/home/me/.cache/huggingface", "ext4", False),
        ("/mnt/c/Users/me", "9p", True),
        ("/mnt/c", "9p", True),
        ("/mnt/cd", "ext4", False),
        ("/mnt/c/linux/models", "ext4", False),
        ("/mnt/my disk/models", "virtiofs", True),
        ("/mnt/d/models", "drvfs", True),
    ],
)
def test_disks_of_windows_are_slow(
    mounts: Path, folder: str, filesystem: str, is_windows: bool
) -> None:
    assert filesystem_of(Path(folder), mounts) == filesystem
    assert is_slow_filesystem(Path(folder), mounts) is is_windows
    assert is_windows_disk(Path(folder), mounts) is is_windows


def test_disk_of_another_host_is_slow_and_not_of_windows(mounts: Path) -> None:
    """Unix sockets may work there."""
    assert is_slow_filesystem(Path("/host/models"), mounts)
    assert not is_windows_disk(Path("/host/models"), mounts)


def test_later_mount_on_a_folder_hides_the_earlier_one(mounts: Path) -> None:
    with mounts.open("a") as file:
        file.write("104 75 8:65 / /mnt/c rw - ext4 /dev/sdf rw\n")
    assert not is_slow_filesystem(Path("/mnt/c/models"), mounts)


def test_link_is_followed_to_the_disk_it_leads_to(mounts: Path, tmp_path: Path) -> None:
    (tmp_path / "huggingface").symlink_to("/mnt/c/models")
    assert is_slow_filesystem(tmp_path / "huggingface" / "hub", mounts)


def test_unknown_mounts_are_not_slow(tmp_path: Path) -> None:
    assert filesystem_of(Path("/home"), tmp_path / "none") is None
    assert not is_slow_filesystem(Path("/home"), tmp_path / "none")


def test_this_machine_is_read() -> None:
    assert filesystem_of(Path("/proc/self")) == "proc"
