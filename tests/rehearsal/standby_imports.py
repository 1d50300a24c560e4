"""What a standby has done to its process and to the card once it has imported everything.

Run with the Python of the CUDA wheel (see `cuda_wheel.py`).
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from deployments.engine import main


def state() -> dict:
    """Of this process: what a fork of it would inherit."""
    import cuda_site
    import torch

    maps = Path("/proc/self/maps").read_text().splitlines()
    libraries = {Path(line.split()[-1]).name for line in maps if "/" in line}
    return {
        "num_threads": len(os.listdir("/proc/self/task")),
        "is_initialized": torch.cuda.is_initialized(),
        "touched": cuda_site.TOUCHED,
        "cuda_libraries": sorted(name for name in libraries if name.startswith("libcuda")),
        "devices": [path for path in _opened() if path.startswith(("/dev/nvidia", "/dev/dxg"))],
    }


def _opened() -> list[str]:
    paths = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of the listing itself
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
    return paths


def touch() -> None:
    """What each would do whose absence is looked for."""
    import ctypes
    import threading

    import torch

    ctypes.CDLL("libcuda.so.1").cuInit(0)
    with suppress(AssertionError):  # PyTorch for the CPU
        torch.cuda.current_device()
    threading.Thread(target=threading.Event().wait, daemon=True).start()


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    main.preload()
    main.fork_engine_core()
    main.register_kernels()
    from vllm.platforms import current_platform

    print(json.dumps({"platform": type(current_platform).__name__, **state()}), file=answers)
    touch()
    print(json.dumps(state()), file=answers)
