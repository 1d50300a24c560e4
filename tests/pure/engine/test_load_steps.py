"""The seconds of a load's parts, from the lines that vLLM writes."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from deployments.engine.load_steps import STEPS, read_steps

# As vllm 0.32.0 writes them on a GPU, in their order, with made-up numbers.
LOG = """\
(EngineCore pid=7) INFO 11-22 19:50:04 [default_loader.py:501] Loading weights took 2.50 seconds
(EngineCore pid=7) INFO 11-22 19:50:05 [model_runner.py:424] Model loading took 9.31 GiB memory \
and 3.300000 seconds
(EngineCore pid=7) INFO 11-22 19:50:07 [monitor.py:53] torch.compile took 1.25 s in total
(EngineCore pid=7) INFO 11-22 19:50:10 [model_runner.py:1127] Graph capturing finished in 1 secs, \
took 0.10 GiB
(EngineCore pid=7) INFO 11-22 19:50:10 [core.py:403] init engine (profile, create kv cache, \
warmup model) took 4.25 s (compilation: 1.25 s)
"""


def test_steps_of_a_load_sum_up_to_it():
    steps = read_steps(LOG, 11.0)
    assert steps == {
        "imports_and_setup": 3.45,
        "weights": 2.5,
        "convert_weights": 0.8,
        "compile": 1.25,
        "graphs": 1.0,
        "warm_up": 2.0,
    }
    assert tuple(steps) == STEPS
    assert sum(steps.values()) == pytest.approx(11.0)


def test_load_without_graphs_or_compilation_tells_of_neither():
    """As on the CPU, where the line about the model is missing too."""
    lines = [line for line in LOG.splitlines() if "weights" in line or "init engine" in line]
    assert read_steps("\n".join(lines), 8.0) == {
        "imports_and_setup": 1.25,
        "weights": 2.5,
        "warm_up": 4.25,
    }


def test_second_start_of_a_load_counts():
    assert read_steps(LOG.replace("2.50", "9.90") + LOG, 11.0)["weights"] == 2.5


@pytest.mark.parametrize(
    "log", ["", "noise", LOG.split("(EngineCore pid=7) INFO 11-22 19:50:10")[0]]
)
def test_load_that_did_not_end_has_no_steps(log):
    assert read_steps(log, 1.0) == {}


def test_lines_are_in_the_installed_vllms_source():
    """A new vLLM that words them otherwise would tell nothing, silently."""
    (package,) = find_spec("vllm").submodule_search_locations
    for file, line in (
        ("model_executor/model_loader/default_loader.py", '"Loading weights took %.2f seconds"'),
        ("v1/worker/gpu/model_runner.py", '"Model loading took %s GiB memory and %.6f seconds"'),
        ("v1/worker/gpu/model_runner.py", '"Graph capturing finished in %.0f secs'),
        ("compilation/monitor.py", "torch.compile took %.2f s in total"),
        ("v1/engine/core.py", "init engine (profile, create kv cache, warmup model) took"),
    ):
        assert line in (Path(package) / file).read_text(), file
