"""Learns how much of a card's memory CUDA gives out: less than the driver reports, under Linux."""

import os
import subprocess
import sys
from functools import cache

from deployments.host.platform import is_wsl
from deployments.memory.plan import CUDA_RESERVED_BYTES

_ANSWER_S = 10.0
# A process of its own, because a process that has initialised CUDA must not fork an engine. The
# question needs no CUDA context, and takes none of the card's memory.
_ASK = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
device, size = ctypes.c_int(), ctypes.c_size_t()
if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
    raise SystemExit("no CUDA device")
if cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device):
    raise SystemExit("no answer")
print(size.value)
"""


def cuda_total_bytes(driver_bytes: int, visible_devices: str | None) -> int:
    """What vLLM sees of a card whose driver reports `driver_bytes`. Blocks for a second, once.

    CUDA's own answer (`cuDeviceTotalMem`, the total of `cudaMemGetInfo`), else `on_paper`.
    """
    cuda_bytes = _ask_cuda(visible_devices)
    # A CUDA that ordered the cards otherwise would tell of another one.
    is_this_card = cuda_bytes is not None and 0.9 * driver_bytes < cuda_bytes <= driver_bytes
    return cuda_bytes if cuda_bytes and is_this_card else on_paper(driver_bytes)


def on_paper(driver_bytes: int) -> int:
    """The driver's figure, less what it was seen to keep under Linux."""
    return driver_bytes if is_wsl() else max(0, driver_bytes - CUDA_RESERVED_BYTES)


@cache
def _ask_cuda(visible_devices: str | None) -> int | None:
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    visible = {} if visible_devices is None else {"CUDA_VISIBLE_DEVICES": visible_devices}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _ASK],
            env=os.environ | order | visible,
            capture_output=True,
            timeout=_ANSWER_S,
            check=True,
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
