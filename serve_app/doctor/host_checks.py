"""Checks the rest of the machine. Pure: facts in, findings out."""

from collections.abc import Iterator

from deployments.memory.plan import GIB, Plan, gib
from deployments.settings import is_loopback
from serve_app.doctor.facts import Disk, Finding, HostFacts, Level, Port

_MIN_FREE_BYTES = 2 * GIB  # as the start asks for: logs, sockets, Ray's session
_LOW_FREE_BYTES = 10 * GIB
_VOLATILE = {"tmpfs", "ramfs", "overlay"}  # gone after a reboot, or with the container
# The standby (0.6 GB), Ray and Serve, an engine's own host memory.
_HOST_MEMORY_BYTES = 6 * GIB


def check_settings(machine: HostFacts) -> Iterator[Finding]:
    """That the files under configs/ can be used."""
    if machine.settings is None:
        yield Finding(
            "settings", Level.PROBLEM, machine.settings_problem or "not readable", "correct it"
        )
    else:
        default = machine.settings.default_model or "no model"
        yield Finding(
            "settings", Level.OK, f"profile {machine.settings.profile}, {default} after a start"
        )


def check_weights(machine: HostFacts) -> Iterator[Finding]:
    """That each model's checkpoint is present and whole."""
    default = machine.settings.default_model if machine.settings else None
    for weights in machine.weights:
        name = f"{weights.model} ({weights.checkpoint})"
        if weights.problem is None:
            size = f"{weights.size_bytes / 1e9:.2f} GB"
            yield Finding("weights", Level.OK, f"{name} is present and whole, {size}")
            continue
        is_demo = weights.checkpoint.startswith("demo/")
        yield Finding(
            "weights",
            Level.PROBLEM if weights.model == default else Level.WARNING,
            weights.problem,
            "make models" if is_demo else f"llm-backend pull {weights.model}",
        )


def check_disks(machine: HostFacts) -> Iterator[Finding]:
    """That there is room, and that caches outlive a restart of the machine or container."""
    missing = {weights.model for weights in machine.weights if weights.problem}
    to_come_bytes = sum(p.disk_bytes for p in machine.plans if p.model in missing)
    for disk in machine.disks:
        yield _judge_disk(disk, to_come_bytes if disk.purpose == "checkpoints" else 0)


def _judge_disk(disk: Disk, to_come_bytes: int) -> Finding:
    """`to_come_bytes`: what is still to be pulled to it."""
    text = f"{disk.purpose}: {disk.path}, {disk.free_bytes / GIB:.1f} GiB free"
    if not disk.can_write:
        return Finding("disk", Level.PROBLEM, f"{text}, cannot be written", "change its owner")
    if disk.free_bytes < _MIN_FREE_BYTES:
        return Finding(
            "disk", Level.PROBLEM, text, f"make room: {_MIN_FREE_BYTES >> 30} GiB at least"
        )
    if disk.free_bytes < to_come_bytes + _MIN_FREE_BYTES:
        return Finding(
            "disk",
            Level.WARNING,
            f"{text}, and the checkpoints that are missing take {gib(to_come_bytes)}",
            "make room, or name another disk with HF_HOME",
        )
    if disk.filesystem in _VOLATILE:
        return Finding(
            "disk",
            Level.WARNING,
            f"{text}, on {disk.filesystem}: gone when the machine or the container restarts",
            "put it on a disk that stays; else each first start compiles and downloads again",
        )
    if disk.free_bytes < _LOW_FREE_BYTES:
        return Finding("disk", Level.WARNING, f"{text}, which is little", "make room")
    return Finding("disk", Level.OK, text)


def check_host_memory(machine: HostFacts) -> Iterator[Finding]:
    """That the host has memory for the processes, and for weights kept asleep or read ahead."""
    total, available = machine.memory_total_bytes, machine.memory_available_bytes
    text = f"{available / GIB:.1f} of {total / GIB:.1f} GiB are available"
    weights = sorted((p.weights_bytes for p in machine.plans), reverse=True)
    settings = machine.settings
    if settings and settings.residency == "warm":
        asleep = sum(weights[: settings.max_sleepers])
        needed, what = _HOST_MEMORY_BYTES + asleep, f"and {asleep / GIB:.1f} GiB asleep"
        remedy = "residency: cold in configs/profiles, or fewer max_sleepers"
    else:
        needed, what = _HOST_MEMORY_BYTES, "with the models' processes"
        remedy = "end other programs"
    if available < needed and not machine.is_serving:
        yield Finding(
            "host memory",
            Level.WARNING,
            f"{text}, and {needed / GIB:.1f} are wanted {what}",
            remedy,
        )
    else:
        yield Finding("host memory", Level.OK, text)
    for plan in machine.plans:
        if plan.device == "cpu" and not plan.fits:
            yield _unfit(
                plan, is_default=settings is not None and plan.model == settings.default_model
            )


def _unfit(plan: Plan, *, is_default: bool) -> Finding:
    """A model for which the host has too little memory: a start refuses it as the default."""
    return Finding(
        "host memory",
        Level.PROBLEM if is_default else Level.WARNING,
        f"{plan.model} does not fit: {plan.reason}",
        ", or ".join(plan.advice) or "name a smaller checkpoint in configs/models",
    )


def check_ports(machine: HostFacts) -> Iterator[Finding]:
    """That the ports are free, or ours."""
    for port in machine.ports:
        yield _judge_port(port, machine)


def _judge_port(port: Port, machine: HostFacts) -> Finding:
    text = f"{port.number} ({port.purpose})"
    if port.holder is None:
        return Finding("port", Level.OK, f"{text} is free")
    if machine.is_serving:
        return Finding("port", Level.OK, f"{text} is taken by {port.holder}; this server runs")
    if port.is_backend:
        return Finding(
            "port",
            Level.PROBLEM,
            f"{text} is taken by {port.holder}: an llm-backend, of another home or begun by "
            "`serve run`",
            "llm-backend stop, with its LLM_BACKEND_HOME; or name another LLM_BACKEND_PORT",
        )
    return Finding(
        "port",
        Level.PROBLEM if port.is_needed else Level.WARNING,
        f"{text} is taken by {port.holder}",
        "stop that, or change http_options.port in serve_config.yaml"
        if port.is_needed
        else "fine if that is meant; else stop it",
    )


def check_ray(machine: HostFacts) -> Iterator[Finding]:
    """That no other Ray cluster is in the way."""
    if machine.is_serving:
        yield Finding("ray", Level.OK, "this server's own cluster runs")
    elif machine.ray_address:
        yield Finding(
            "ray",
            Level.PROBLEM,
            f"RAY_ADDRESS names a Ray cluster ({machine.ray_address}), and this server starts its "
            "own",
            "unset RAY_ADDRESS",
        )
    else:
        yield Finding("ray", Level.OK, "no cluster is named; the server starts its own")


def check_other_users(machine: HostFacts) -> Iterator[Finding]:
    """That no other user of this machine can become the server's."""
    for exposure in machine.exposures:
        level = Level.PROBLEM if exposure.is_used else Level.WARNING
        yield Finding("other users", level, exposure.text, exposure.remedy)
    if machine.settings and not machine.exposures:
        yield Finding("other users", Level.OK, "state, logs and Ray's token are this user's alone")


def check_keys(machine: HostFacts) -> Iterator[Finding]:
    """Check that other machines need a key."""
    settings = machine.settings
    if settings is None:
        return
    num_keys, num_admin = len(settings.api_keys), len(settings.admin_keys)
    text = f"listens on {machine.host}, with {num_keys} API and {num_admin} admin keys"
    is_open = not is_loopback(machine.host)
    if is_open and not num_keys:
        yield Finding(
            "keys",
            Level.PROBLEM,
            f"{text}: any client that reaches this machine could use it, so it does not start",
            "set LLM_BACKEND_API_KEY, or http_options.host: 127.0.0.1 in serve_config.yaml",
        )
    elif is_open and not num_admin:
        yield Finding(
            "keys",
            Level.WARNING,
            f"{text}: each API key is an admin's",
            "set LLM_BACKEND_ADMIN_KEY",
        )
    else:
        yield Finding("keys", Level.OK, text)


def check_offline(machine: HostFacts) -> Iterator[Finding]:
    """A variable that would stop a pull; serving is offline with or without it."""
    is_set = machine.environment.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
    if is_set and any(weights.problem for weights in machine.weights):
        yield Finding(
            "offline",
            Level.WARNING,
            "HF_HUB_OFFLINE is set, and checkpoints are missing: llm-backend pull cannot get them",
            "unset HF_HUB_OFFLINE; serving is offline without it",
        )


CHECKS = (
    check_settings,
    check_weights,
    check_disks,
    check_host_memory,
    check_ports,
    check_ray,
    check_other_users,
    check_keys,
    check_offline,
)
