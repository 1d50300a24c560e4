"""Checks of Linux under Windows (WSL2). Pure functions from HostFacts to Findings."""

from collections.abc import Iterator

from deployments.memory.plan import GIB
from serve_app.doctor.facts import Finding, HostFacts, Level

# The largest checkpoint in the page cache (9.3 GiB), and the processes of a server with an engine.
_VM_BYTES = 20 * GIB
_PAGE = "configs/WSL2.md has more"


def check_vm_memory(facts: HostFacts) -> Iterator[Finding]:
    """Check that the virtual machine is large enough: by default it has half of Windows' memory."""
    if not facts.is_wsl2 or not facts.is_gpu_profile:
        return
    text = f"Windows gives WSL {facts.memory_total_bytes / GIB:.1f} GiB of memory"
    if facts.memory_total_bytes < _VM_BYTES:
        yield Finding(
            "wsl memory",
            Level.WARNING,
            f"{text}, by default half of what it has; the weights of the largest model do not stay "
            "in memory beside the processes, and each switch reads them from the disk",
            "write into %UserProfile%\\.wslconfig, below [wsl2]: memory=24GB; then run "
            f"`wsl --shutdown` in Windows ({_PAGE})",
        )
    else:
        yield Finding("wsl memory", Level.OK, text)


def check_background(facts: HostFacts) -> Iterator[Finding]:
    """Tell how long a server in the background lives; Linux cannot read whether it is set so."""
    if facts.is_wsl2:
        yield Finding(
            "wsl life",
            Level.OK,
            "Windows may end WSL, and a server in the background, when its last terminal closes, "
            f"unless .wslconfig sets vmIdleTimeout and instanceIdleTimeout to -1 ({_PAGE})",
        )


def check_allocator(facts: HostFacts) -> Iterator[Finding]:
    """Check that PyTorch's expandable segments are off: under WSL2 they fail as AWQ weights are
    repacked (club-3090#60). Engines do not get these variables, other programs in this shell do."""
    if not facts.is_wsl2:
        return
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if "expandable_segments:true" in facts.environment.get(name, "").lower():
            yield Finding(
                "wsl allocator",
                Level.WARNING,
                f"{name} turns expandable segments on, with which AWQ weights do not load under "
                "WSL2",
                f"unset {name}",
            )


CHECKS = (check_vm_memory, check_background, check_allocator)
