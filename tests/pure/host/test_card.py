"""Whether there is a card: from folders that stand for /sys and /dev, and a library that stands for
the driver's."""

import ctypes
import threading
from pathlib import Path
from typing import Any

import pytest

from deployments.host.card import CardState, DriverAnswer, ask_driver, find_card, has_hardware
from deployments.host.needs import card_needs

READY = DriverAnswer(1, "580.95.05", (13, 0))
NO_LIBRARY = DriverAnswer(has_library=False)


def put(root: Path, name: str, text: str = "") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_device(root: Path, vendor: str, kind: str) -> Path:
    for name, text in (("vendor", vendor), ("class", kind)):
        put(root, f"sys/bus/pci/devices/0000:01:00.0/{name}", f"{text}\n")
    return root


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """With an RTX 5080 on the bus."""
    return put_device(tmp_path, "0x10de", "0x030000")


def test_card_whose_driver_answers_is_ready(machine: Path) -> None:
    found = find_card(None, machine, lambda: READY)
    assert (found.state, found.driver, found.cuda) == (CardState.READY, "580.95.05", (13, 0))
    assert list(card_needs(found)) == []


@pytest.mark.parametrize(
    ("answer", "words", "remedy"),
    [
        (NO_LIBRARY, "no driver for it is installed", "run: sudo apt install nvidia-driver-580"),
        (DriverAnswer(code=18), "was updated while the kernel still runs the old one", "reboot;"),
        (DriverAnswer(code=9), "has not loaded its driver", "reboot, and if it stays so run: sudo"),
        (DriverAnswer(code=15, message="GPU is lost"), "does not answer (GPU is lost)", "reboot"),
        (DriverAnswer(driver="575.1"), "driver 575.1 does not support it", "run: sudo apt"),
    ],
)
def test_card_whose_driver_does_not_answer_is_there_all_the_same(
    machine: Path, answer: DriverAnswer, words: str, remedy: str
) -> None:
    """And the sentence says which of the reasons it is, and what helps."""
    found = find_card(None, machine, lambda: answer, is_wsl2=False)
    assert (found.state, found.is_there) == (CardState.UNREACHABLE, True)
    [need] = card_needs(found)
    assert words in need.text
    assert need.remedy.startswith(remedy)
    assert need.is_wall


@pytest.mark.parametrize(
    ("vendor", "kind"),
    [("0x8086", "0x030000"), ("0x10de", "0x040300")],  # another maker's card; a card's sound
)
def test_other_devices_are_no_card(tmp_path: Path, vendor: str, kind: str) -> None:
    put_device(tmp_path, vendor, kind)
    assert find_card(None, tmp_path, lambda: NO_LIBRARY).state is CardState.ABSENT


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_card_that_the_environment_hides_is_absent(machine: Path, hidden: str) -> None:
    found = find_card(hidden, machine, lambda: READY)
    assert found.state is CardState.ABSENT
    assert "CUDA_VISIBLE_DEVICES" in found.problem
    assert find_card("0", machine, lambda: READY).state is CardState.READY


def test_wsl2_shares_a_card_by_its_library_and_not_on_the_bus(tmp_path: Path) -> None:
    """/dev/dxg alone is a card of any maker."""
    put(tmp_path, "dev/dxg")
    assert not has_hardware(tmp_path)
    put(tmp_path, "usr/lib/wsl/lib/libnvidia-ml.so.1")
    assert has_hardware(tmp_path)
    found = find_card(None, tmp_path, lambda: DriverAnswer(code=9), is_wsl2=True)
    assert "on Windows and none inside WSL" in found.remedy
    not_found = find_card(None, tmp_path, lambda: NO_LIBRARY, is_wsl2=True)
    assert "ldconfig" in not_found.remedy


def test_loaded_driver_means_a_card_that_may_have_left_the_bus(tmp_path: Path) -> None:
    put(tmp_path, "dev/nvidiactl")
    assert find_card(None, tmp_path, lambda: DriverAnswer(code=15)).is_there


def test_old_driver_is_named_with_the_cuda_that_it_runs(machine: Path) -> None:
    found = find_card(None, machine, lambda: DriverAnswer(1, "570.86", (12, 8)))
    [need] = card_needs(found)
    assert "570.86 runs CUDA 12.8" in need.text
    assert "580" in need.sentence


# --- the library ---


class Library:
    """Stands for the driver's library; `code`: what its first call returns."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.nvmlErrorString = lambda code: f"text of {code}".encode()
        self.is_shut = False

    def nvmlInit_v2(self) -> int:
        return self.code

    def nvmlShutdown(self) -> None:
        self.is_shut = True

    def nvmlDeviceGetCount_v2(self, number: Any) -> int:
        number._obj.value = 2
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, version: Any) -> int:
        version._obj.value = 13010
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: ctypes.c_uint) -> int:
        text.value = b"580.95.05"
        return 0


def test_library_is_asked_for_cards_driver_and_cuda_and_shut() -> None:
    library = Library()
    assert ask_driver(lambda name: library) == DriverAnswer(2, "580.95.05", (13, 1))
    assert library.is_shut


def test_code_of_the_library_comes_with_its_text() -> None:
    answer = ask_driver(lambda name: Library(18))
    assert (answer.num_cards, answer.code, answer.message) == (0, 18, "text of 18")


def test_missing_library_is_no_driver() -> None:
    def load(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    assert not ask_driver(load).has_library


def test_driver_that_hangs_is_given_up() -> None:
    release = threading.Event()
    try:
        answer = ask_driver(lambda name: release.wait(), timeout_s=0.05)
    finally:
        release.set()
    assert (answer.num_cards, answer.code) == (0, -1)
    assert "not within" in answer.message
