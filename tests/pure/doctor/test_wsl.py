"""The doctor's checks of Linux under Windows."""

from dataclasses import replace

from serve_app.doctor.facts import HostFacts, Level
from tests.pure.doctor.test_doctor import GIB, of, worst
from tests.pure.doctor.test_doctor import laptop as laptop
from tests.pure.doctor.test_doctor import workstation as workstation


def test_bare_linux_has_no_line_about_windows(workstation: HostFacts) -> None:
    variables = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    machine = replace(workstation, memory_total_bytes=8 * GIB, environment=variables)
    assert [of(machine, f"wsl {what}") for what in ("memory", "life", "allocator")] == [[], [], []]


def test_virtual_machine_with_half_the_memory_of_a_32_gb_host_is_a_warning(
    workstation: HostFacts, laptop: HostFacts
) -> None:
    small = replace(workstation, is_wsl2=True, memory_total_bytes=int(15.5 * GIB))
    assert worst(small, "wsl memory").level is Level.WARNING
    assert "memory=24GB" in (worst(small, "wsl memory").remedy or "")
    assert worst(replace(small, memory_total_bytes=24 * GIB), "wsl memory").level is Level.OK
    assert of(replace(laptop, is_wsl2=True, memory_total_bytes=8 * GIB), "wsl memory") == []


def test_expandable_segments_are_a_warning_under_either_name(workstation: HostFacts) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        wsl2 = replace(workstation, is_wsl2=True)
        variables = {name: "max_split_size_mb:64,expandable_segments:True"}
        finding = worst(replace(wsl2, environment=variables), "wsl allocator")
        assert (finding.level, finding.remedy) == (Level.WARNING, f"unset {name}")
        off = {name: "expandable_segments:False"}
        assert of(replace(wsl2, environment=off), "wsl allocator") == []
