"""A stub of the NVIDIA driver's library; a test changes its cards while programs run.

The programs load it as they load the driver's: by its name, here found through LD_LIBRARY_PATH. So
the real `pynvml`, Ray's and vLLM's copies of it, and all that is built on them take it for a card.
"""

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

_FOLDER = Path(__file__).parent
_LIBRARIES = {"libnvidia-ml.so.1": "nvml.c", "libcuda.so.1": "cuda.c"}

# Codes of nvml.h that a driver answers everything with.
DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15
VERSION_MISMATCH = 18  # after an update of the driver, until a reboot


@dataclass(frozen=True)
class Process:
    """A program that holds memory of a card."""

    pid: int
    name: str
    mib: int
    kind: Literal["G", "C"] = "G"  # graphics or compute


# As they are seen on a studio's machine; none of these numbers is a process of this one.
DESKTOP = (Process(4_200_901, "Xorg", 420), Process(4_200_902, "firefox", 310))
ENGINE = Process(4_200_900, "VLLM::EngineCore", 12_900, "C")


def blender(mib: int) -> Process:
    """It holds as much as its scene is large."""
    return Process(4_200_903, "blender", mib)


@dataclass(frozen=True)
class Card:
    """An RTX 5080, if nothing else is said. A driver keeps 461 MiB of its 16,303 for itself: CUDA
    has 15.47 GiB of the 15.92 (`total capacity of 15.47 GiB` in public logs of this card)."""

    name: str = "NVIDIA GeForce RTX 5080"
    capability: tuple[int, int] = (12, 0)
    total_mib: int = 16_303
    reserved_mib: int = 461
    processes: tuple[Process, ...] = ()

    def __post_init__(self) -> None:
        assert self.used_mib + self.reserved_mib <= self.total_mib, self

    def beside(self, *processes: Process) -> "Card":
        """The card, with these programs on it too."""
        return replace(self, processes=(*self.processes, *processes))

    @property
    def used_mib(self) -> int:
        return sum(process.mib for process in self.processes)

    @property
    def free_bytes(self) -> int:
        return (self.total_mib - self.reserved_mib - self.used_mib) << 20


class DriverStub:
    """The driver of the compiled `libraries` with a state of its own; at first an idle RTX 5080."""

    def __init__(self, libraries: Path, folder: Path) -> None:
        self._libraries = libraries
        self._state = folder / "driver.txt"
        self.write(Card())

    def write(
        self, *cards: Card, is_wsl2: bool = False, error: int = 0, is_mute: bool = False
    ) -> None:
        """What the driver tells from now on, to programs that run too.

        `error`: the code with which every call fails. `is_mute`: no call returns until the next
        `write`.
        """
        lines = [f"error {error}"] * bool(error) + ["mute"] * is_mute + ["wsl"] * is_wsl2
        for card in cards:
            major, minor = card.capability
            sizes = f"{card.total_mib} {card.reserved_mib} {card.used_mib}"
            lines.append(f"card {major} {minor} {sizes} {card.name}")
            lines += [f"process {p.pid} {p.mib} {p.kind} {p.name}" for p in card.processes]
        new = self._state.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self._state)  # whole at once, for whoever reads it now

    def fail(self, error: int) -> None:
        """Every call fails, until the next `write`."""
        self.write(error=error)

    def fall_mute(self) -> None:
        """No call returns, until the next `write`."""
        self.write(is_mute=True)

    @property
    def variables(self) -> dict[str, str]:
        """What a program's environment has to hold to meet this driver."""
        paths = [str(self._libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {
            "LD_LIBRARY_PATH": ":".join(paths),
            "LLM_REHEARSAL_DRIVER": str(self._state),
        }

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment, made one of a machine with this driver, and `more`."""
        hidden = {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
        ours = {name: value for name, value in os.environ.items() if name not in hidden}
        return ours | self.variables | more


def compile_libraries(folder: Path, compiler: str) -> Path:
    """Compile the stubs into `folder`, and return it."""
    for name, source in _LIBRARIES.items():
        command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{name}"]
        command += ["-o", str(folder / name), str(_FOLDER / source)]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return folder
