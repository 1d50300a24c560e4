"""Reads the seconds of a load's parts out of an engine's log. PURE.

Source of the lines: vllm 0.32.0, v1/worker/gpu/model_runner.py, v1/engine/core.py,
model_executor/model_loader/default_loader.py, compilation/monitor.py.
"""

import re

# In the order in which they happen.
STEPS = ("imports_and_setup", "weights", "convert_weights", "compile", "graphs", "warm_up")

_WEIGHTS = re.compile(r"Loading weights took ([\d.]+) seconds")
_MODEL = re.compile(r"Model loading took [\d.]+ GiB memory and ([\d.]+) seconds")
_COMPILE = re.compile(r"torch\.compile took ([\d.]+) s in total")
_GRAPHS = re.compile(r"Graph capturing finished in ([\d.]+) secs")
_INIT = re.compile(r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s")


def read_steps(log: str, load_s: float) -> dict[str, float]:
    """The seconds of each step of a load that took `load_s` until the engine was ready.

    `imports_and_setup` is the rest: imports, configuration, the CUDA context, HTTP routes.
    `convert_weights` is what a quantization does with them (AWQ to Marlin), `warm_up` the profile
    run and the first steps. Only steps that the log tells of; the CPU tells of fewer.
    """
    weights_s, model_s = _seconds(_WEIGHTS, log), _seconds(_MODEL, log)
    compile_s, graphs_s = _seconds(_COMPILE, log), _seconds(_GRAPHS, log)
    init_s = _seconds(_INIT, log)
    if init_s is None:
        return {}
    steps = {
        "imports_and_setup": load_s - init_s - (model_s or weights_s or 0.0),
        "weights": weights_s,
        "convert_weights": None if None in (model_s, weights_s) else _less(model_s, weights_s),
        "compile": compile_s,
        "graphs": graphs_s,
        "warm_up": _less(init_s, (compile_s or 0.0) + (graphs_s or 0.0)),
    }
    return {name: round(max(0.0, s), 2) for name, s in steps.items() if s is not None}


def _less(whole_s: float | None, part_s: float | None) -> float:
    return (whole_s or 0.0) - (part_s or 0.0)


def _seconds(pattern: re.Pattern[str], log: str) -> float | None:
    """The last such line's: a load that is started once more logs it twice."""
    found = pattern.findall(log)
    return float(found[-1]) if found else None
