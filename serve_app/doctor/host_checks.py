"""Checks of everything but the GPU. Pure functions from HostFacts to Findings."""

from collections.abc import Iterator

from deployments.memory.plan import GIB, Plan, gib
from deployments.settings import is_loopback
from serve_app.doctor.facts import Disk, Finding, HostFacts, Level, Port

_MIN_FREE_BYTES = 2 * GIB  # as `launcher/preflight.py` asks for: logs, sockets, Ray's session
_LOW_FREE_BYTES = 10 * GIB
_VOLATILE = {"tmpfs", "ramfs", "overlay"}  # lost with a reboot, or with the container
# For the standby (0.6 GB), Ray, Serve, and an engine's own host memory.
_HOST_MEMORY_BYTES = 6 * GIB


def check_settings(facts: HostFacts) -> Iterator[Finding]:
    """Check that the files under configs/ can be loaded."""
    if facts.settings is None:
        yield Finding(
            "settings",
            Level.PROBLEM,
            facts.settings_problem or "the settings cannot be loaded",
            "correct the file, then check it with: llm-backend doctor",
        )
    else:
        default = facts.settings.default_model or "no model"
        yield Finding(
            "settings", Level.OK, f"profile {facts.settings.profile}, {default} after a start"
        )


def check_needs(facts: HostFacts) -> Iterator[Finding]:
    """Report what a start refuses or notes; `gpu_checks.py` has the card, driver and packages."""
    for need in facts.needs:
        if need.check not in ("gpu", "driver", "vllm"):
            level = Level.PROBLEM if need.is_wall else Level.WARNING
            yield Finding(need.check, level, need.text, need.remedy)


def check_weights(facts: HostFacts) -> Iterator[Finding]:
    """Check that each model's checkpoint is present and complete."""
    default = facts.settings.default_model if facts.settings else None
    for weights in facts.weights:
        name = f"{weights.model} ({weights.checkpoint})"
        if weights.problem is None:
            size = f"{weights.size_bytes / 1e9:.2f} GB"
            yield Finding("weights", Level.OK, f"{name} is present and complete, {size}")
            continue
        is_demo = weights.checkpoint.startswith("demo/")
        yield Finding(
            "weights",
            Level.PROBLEM if weights.model == default else Level.WARNING,
            weights.problem,
            "make models" if is_demo else f"llm-backend pull {weights.model}",
        )


def check_disks(facts: HostFacts) -> Iterator[Finding]:
    """Check that disks have room and keep the caches over a restart of the machine or container."""
    missing = {weights.model for weights in facts.weights if weights.problem}
    download_bytes = sum(p.disk_bytes for p in facts.plans if p.model in missing)
    for disk in facts.disks:
        yield _judge_disk(disk, download_bytes if disk.purpose == "checkpoints" else 0)


def _judge_disk(disk: Disk, download_bytes: int) -> Finding:
    """`download_bytes`: the size of the missing checkpoints that this disk is to hold."""
    text = f"{disk.purpose}: {disk.path}, {disk.free_bytes / GIB:.1f} GiB free"
    if not disk.can_write:
        return Finding(
            "disk",
            Level.PROBLEM,
            f"{text}, but this user cannot write to it",
            f"sudo install -d -o $USER {disk.path}",
        )
    if disk.free_bytes < _MIN_FREE_BYTES:
        return Finding(
            "disk",
            Level.PROBLEM,
            f"{text}, and at least {_MIN_FREE_BYTES >> 30} GiB are needed",
            f"delete files on the disk of {disk.path}",
        )
    if disk.free_bytes < download_bytes + _MIN_FREE_BYTES:
        return Finding(
            "disk",
            Level.WARNING,
            f"{text}, and the missing checkpoints take {gib(download_bytes)}",
            "delete files on that disk, or set HF_HOME to a folder on another disk",
        )
    if disk.filesystem in _VOLATILE:
        return Finding(
            "disk",
            Level.WARNING,
            f"{text}, on {disk.filesystem}: lost when the machine or the container restarts, so "
            "the next start compiles or downloads it again",
            "use a folder on a permanent disk",
        )
    if disk.free_bytes < _LOW_FREE_BYTES:
        return Finding(
            "disk",
            Level.WARNING,
            f"{text}, less than {_LOW_FREE_BYTES >> 30} GiB",
            f"delete files on the disk of {disk.path}",
        )
    return Finding("disk", Level.OK, text)


def check_host_memory(facts: HostFacts) -> Iterator[Finding]:
    """Check that the host has memory for the processes and for the weights of sleeping models."""
    total, available = facts.memory_total_bytes, facts.memory_available_bytes
    text = f"{available / GIB:.1f} of {total / GIB:.1f} GiB are available"
    weights = sorted((p.weights_bytes for p in facts.plans), reverse=True)
    settings = facts.settings
    if settings and settings.residency == "warm":
        asleep = sum(weights[: settings.max_sleepers])
        needed = _HOST_MEMORY_BYTES + asleep
        purpose = f"the processes and {asleep / GIB:.1f} GiB of sleeping models"
        remedy = "set residency: cold, or lower max_sleepers, in configs/profiles"
    else:
        needed, purpose = _HOST_MEMORY_BYTES, "the server's processes"
        remedy = "end other programs (ps aux --sort=-rss lists the largest)"
    if available < needed and not facts.is_serving:
        yield Finding(
            "host memory",
            Level.WARNING,
            f"{text}, and {needed / GIB:.1f} are needed for {purpose}",
            remedy,
        )
    else:
        yield Finding("host memory", Level.OK, text)
    for plan in facts.plans:
        if plan.device == "cpu" and not plan.fits:
            yield _unfit(
                plan, is_default=settings is not None and plan.model == settings.default_model
            )


def _unfit(plan: Plan, *, is_default: bool) -> Finding:
    """Report a model that the host's memory cannot hold. A start refuses it as the default model,
    so it is a problem then, else a warning."""
    return Finding(
        "host memory",
        Level.PROBLEM if is_default else Level.WARNING,
        f"{plan.model} does not fit: {plan.reason}",
        ", or ".join(plan.advice) or "name a smaller checkpoint in configs/models",
    )


def check_ports(facts: HostFacts) -> Iterator[Finding]:
    """Check that the ports are free, or used by this server."""
    for port in facts.ports:
        yield _judge_port(port, facts)


def _judge_port(port: Port, facts: HostFacts) -> Finding:
    text = f"{port.number} ({port.purpose})"
    if port.holder is None:
        return Finding("port", Level.OK, f"{text} is free")
    if facts.is_serving:
        return Finding("port", Level.OK, f"{text} is used by {port.holder}; this server runs")
    if port.is_backend:
        return Finding(
            "port",
            Level.PROBLEM,
            f"{text} is taken by {port.holder}: another llm-backend, with another home or started "
            "by `serve run`",
            "LLM_BACKEND_HOME=<its home> llm-backend stop, or set LLM_BACKEND_PORT to another port",
        )
    return Finding(
        "port",
        Level.PROBLEM if port.is_needed else Level.WARNING,
        f"{text} is taken by {port.holder}",
        "stop that program, or change http_options.port in serve_config.yaml"
        if port.is_needed
        else f"stop that program if it should not be {port.purpose}",
    )


def check_ray(facts: HostFacts) -> Iterator[Finding]:
    """Check that RAY_ADDRESS does not name another Ray cluster."""
    if facts.is_serving:
        yield Finding("ray", Level.OK, "this server's own Ray cluster runs")
    elif facts.ray_address:
        yield Finding(
            "ray",
            Level.PROBLEM,
            f"RAY_ADDRESS names a Ray cluster ({facts.ray_address}), and this server starts its "
            "own",
            "unset RAY_ADDRESS",
        )
    else:
        yield Finding("ray", Level.OK, "RAY_ADDRESS is not set; the server starts its own cluster")


def check_other_users(facts: HostFacts) -> Iterator[Finding]:
    """Check that no other user of this machine can act as the server's user."""
    for exposure in facts.exposures:
        level = Level.PROBLEM if exposure.is_used else Level.WARNING
        yield Finding("other users", level, exposure.text, exposure.remedy)
    if facts.settings and not facts.exposures:
        yield Finding(
            "other users", Level.OK, "only this user can reach the state, the logs and Ray's token"
        )


def check_keys(facts: HostFacts) -> Iterator[Finding]:
    """Check that other machines need a key."""
    settings = facts.settings
    if settings is None:
        return
    num_keys, num_admin = len(settings.api_keys), len(settings.admin_keys)
    text = f"listens on {facts.host}, with {num_keys} API and {num_admin} admin keys"
    is_open = not is_loopback(facts.host)
    if is_open and not num_keys:
        yield Finding(
            "keys",
            Level.PROBLEM,
            f"{text}: the server does not start, because other machines could use it without a key",
            "set LLM_BACKEND_API_KEY in .env, or http_options.host: 127.0.0.1 in serve_config.yaml",
        )
    elif is_open and not num_admin:
        yield Finding(
            "keys",
            Level.WARNING,
            f"{text}: every API key can use the admin routes",
            "set LLM_BACKEND_ADMIN_KEY in .env",
        )
    else:
        yield Finding("keys", Level.OK, text)


def check_offline(facts: HostFacts) -> Iterator[Finding]:
    """Check that HF_HUB_OFFLINE does not prevent a needed pull; serving never goes online."""
    is_set = facts.environment.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
    if is_set and any(weights.problem for weights in facts.weights):
        yield Finding(
            "offline",
            Level.WARNING,
            "HF_HUB_OFFLINE is set and checkpoints are missing: llm-backend pull cannot download "
            "them",
            "unset HF_HUB_OFFLINE (serving never goes online, with or without it)",
        )


CHECKS = (
    check_settings,
    check_needs,
    check_weights,
    check_disks,
    check_host_memory,
    check_ports,
    check_ray,
    check_other_users,
    check_keys,
    check_offline,
)
