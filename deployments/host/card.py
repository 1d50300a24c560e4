"""Says whether this machine has an NVIDIA card, and whether its driver answers.

The one answer for the Makefile, the start and the application. It comes from the PCI bus (under
WSL2, from what Windows shares) and from the driver's library, NVML. A failing `nvidia-smi` does not
say that there is no card: it also fails after a driver update until the next reboot.
"""

from __future__ import annotations  # this runs under the system's Python too, which may be old

import ctypes
import functools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from deployments.host.platform import is_wsl

ROOT = Path("/")
# The oldest driver that runs CUDA 13, for which the packages are built, and its package in Ubuntu
# 22.04 and 24.04. RTX 50 cards work with the open kernel modules only.
# Source: the compatibility table of NVIDIA's CUDA 13 notes; NVIDIA's open-gpu-kernel-modules.
DRIVER = 580
INSTALL_DRIVER = f"run: sudo apt install nvidia-driver-{DRIVER}-open && sudo reboot"
_AGAIN = f"reboot, and if it stays so {INSTALL_DRIVER.replace('install', 'install --reinstall')}"
WSL_DRIVER = (
    f"install NVIDIA's driver {DRIVER} or newer on Windows and none inside WSL, then run "
    "`wsl --shutdown` in Windows"
)

# As Ray and vLLM load it.
_LIBRARY = "libnvidia-ml.so.1"
_NVIDIA_VENDOR = "0x10de"
# Return codes of NVML. Source: nvml.h.
_NOT_LOADED, _OTHER_VERSION = 9, 18
_HANGS = -1  # our own
_TIMEOUT_S = 20.0  # a driver without persistence takes seconds to wake a card


class CardState(Enum):
    """What is known of the card."""

    ABSENT = "absent"  # no card, or CUDA_VISIBLE_DEVICES hides it
    READY = "ready"  # the driver answers and has a card
    UNREACHABLE = "unreachable"  # there is a card, and the driver does not give it


@dataclass(frozen=True)
class FoundCard:
    """The answer to "is there a card"."""

    state: CardState
    problem: str = ""  # why it is not ready
    remedy: str = ""
    driver: str | None = None  # as 580.95.05
    cuda: tuple[int, int] | None = None  # the newest CUDA that the driver runs

    @property
    def is_there(self) -> bool:
        """Whether the machine has a card, with a driver that answers or not."""
        return self.state is not CardState.ABSENT


@dataclass(frozen=True)
class DriverAnswer:
    """What NVML says."""

    num_cards: int = 0
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    has_library: bool = True
    code: int = 0  # NVML's return code; 0 if it works
    message: str = ""


def find_card(
    visible_devices: str | None = None,
    root: Path = ROOT,
    ask: Callable[[], DriverAnswer] | None = None,
    is_wsl2: bool | None = None,
) -> FoundCard:
    """Look for a card. Blocks for milliseconds.

    `visible_devices`: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    wsl = is_wsl() if is_wsl2 is None else is_wsl2
    if visible_devices is not None and visible_devices.strip() in ("", "-1", "NoDevFiles"):
        return FoundCard(
            CardState.ABSENT,
            f"CUDA_VISIBLE_DEVICES={visible_devices} hides every card",
            "unset CUDA_VISIBLE_DEVICES",
        )
    answer = (ask or _driver_answer)()
    if answer.num_cards:
        return FoundCard(CardState.READY, driver=answer.driver, cuda=answer.cuda)
    if not has_hardware(root):
        remedy = WSL_DRIVER if wsl else "check with `lspci` that the machine sees it"
        return FoundCard(CardState.ABSENT, "there is no NVIDIA card", remedy)
    problem, remedy = _reason(answer, wsl)
    return FoundCard(CardState.UNREACHABLE, problem, remedy, answer.driver, answer.cuda)


def has_hardware(root: Path = ROOT) -> bool:
    """Whether the PCI bus has an NVIDIA display controller, a driver is loaded, or Windows shares a
    card with WSL2."""
    for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"):
        try:
            is_display = (vendor.parent / "class").read_text().startswith("0x03")
            if is_display and vendor.read_text().strip() == _NVIDIA_VENDOR:
                return True
        except OSError:
            continue
    if (root / "dev/nvidiactl").exists():  # a driver is loaded; the card may have left the bus
        return True
    # Windows shares every maker's card through /dev/dxg, and this library for NVIDIA's.
    return (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib" / _LIBRARY).exists()


@functools.cache
def _driver_answer() -> DriverAnswer:
    """One for a process: a start asks several times, and a driver that hangs takes 20 s each."""
    return ask_driver()


def ask_driver(
    load: Callable[[str], Any] = ctypes.CDLL, timeout_s: float = _TIMEOUT_S
) -> DriverAnswer:
    """Ask NVML, in a thread: the calls of a driver that hangs do not return."""
    answers: queue.Queue[DriverAnswer] = queue.Queue()
    threading.Thread(target=lambda: answers.put(_ask(load)), daemon=True).start()
    try:
        return answers.get(timeout=timeout_s)
    except queue.Empty:
        return DriverAnswer(code=_HANGS, message=f"not within {timeout_s:.0f} s")


def _ask(load: Callable[[str], Any]) -> DriverAnswer:
    """Through ctypes, because this runs before any package is installed."""
    try:
        nvml = load(_LIBRARY)
        code = nvml.nvmlInit_v2()
    except (OSError, AttributeError) as exc:
        return DriverAnswer(has_library=False, message=str(exc))
    if code:
        return DriverAnswer(code=code, message=_message(nvml, code))
    try:
        number, cuda = ctypes.c_uint(0), ctypes.c_int(0)
        version = ctypes.create_string_buffer(96)
        code = nvml.nvmlDeviceGetCount_v2(ctypes.byref(number))
        has_cuda = nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda)) == 0
        has_version = nvml.nvmlSystemGetDriverVersion(version, ctypes.c_uint(len(version))) == 0
        return DriverAnswer(
            num_cards=0 if code else number.value,
            driver=version.value.decode(errors="replace") if has_version else None,
            cuda=(cuda.value // 1000, cuda.value % 1000 // 10) if has_cuda else None,
            code=code,
            message=_message(nvml, code) if code else "",
        )
    finally:
        nvml.nvmlShutdown()


def _message(nvml: Any, code: int) -> str:
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    text = nvml.nvmlErrorString(code)
    return text.decode(errors="replace") if text else f"error {code}"


def _reason(answer: DriverAnswer, wsl: bool) -> tuple[str, str]:
    """Why a card that is there cannot be used, and what helps."""
    card = "there is an NVIDIA card, and"
    if wsl and not answer.has_library:
        return (
            f"{card} Linux does not find the driver's library, which Windows puts into "
            "/usr/lib/wsl/lib",
            "run: echo /usr/lib/wsl/lib | sudo tee /etc/ld.so.conf.d/ld.wsl.conf && sudo ldconfig",
        )
    if wsl:
        return f"{card} its driver does not answer ({answer.message or 'no card'})", WSL_DRIVER
    if not answer.has_library:
        return f"{card} no driver for it is installed", INSTALL_DRIVER
    if answer.code == _OTHER_VERSION:
        return f"{card} its driver was updated while the kernel still runs the old one", "reboot"
    if answer.code == _NOT_LOADED:
        return f"{card} the kernel has not loaded its driver", _AGAIN
    if not answer.code:
        return f"{card} its driver {answer.driver or ''} does not support it", INSTALL_DRIVER
    return f"{card} its driver does not answer ({answer.message})", _AGAIN
