"""Has the installed vLLM read the engine settings that only it knows: parsers and `engine_args`.

Run as a program it reads flags from its standard input: importing vLLM takes seconds and memory
that the caller is to be spared.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from deployments.engine.args import engine_flags
from deployments.engine.environment import base_environment
from deployments.engine.imports import versions
from deployments.host.files import write_whole
from deployments.settings import ModelSpec, Settings, SettingsError, paths

_LIMIT_S = 300.0  # its imports take 10 s on two idle cores
_SHIPPED_PARSERS = (None, "hermes")  # known to every version


def check_flags(settings: Settings) -> None:
    """Check each model's engine settings with vLLM's own parser, unless they are known to be right.

    Raises:
        SettingsError: vLLM refuses some; the message names the model and the valid choices.
    """
    specs = {name: spec for name, spec in settings.models.items() if _is_in_doubt(spec)}
    if not specs:
        return
    flags = {
        name: engine_flags(spec, Path("/checkpoint"), settings.device)
        for name, spec in specs.items()
    }
    kept = settings.home / paths.FLAGS_CHECKED
    digest = hashlib.sha256(json.dumps([versions(), flags], sort_keys=True).encode()).hexdigest()
    if kept.exists() and kept.read_text() == digest:
        return
    for name, problem in ask_vllm(flags).items():
        if problem:
            raise SettingsError(f"configs/models/{name}.yaml: engine: vLLM refuses it: {problem}")
    write_whole(kept, digest)


def _is_in_doubt(spec: ModelSpec) -> bool:
    engine = spec.engine
    return bool(
        engine.engine_args
        or engine.reasoning_parser
        or engine.tool_call_parser not in _SHIPPED_PARSERS
    )


def ask_vllm(flags: dict[str, list[str]]) -> dict[str, str | None]:
    """Why vLLM does not take each model's flags, or None. Raises SettingsError: it cannot say."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "deployments.engine.flag_check"],
            input=json.dumps(flags),
            env=base_environment(),
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=True,
        )
        problems: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as exc:
        last = exc.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise SettingsError(f"vLLM could not check the engine settings: {last[0]}") from exc
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError) as exc:
        raise SettingsError(f"vLLM could not check the engine settings: {exc}") from exc
    return problems


def _problem(flags: list[str]) -> str | None:
    """Why vLLM does not take `flags`. Imports vLLM."""
    import argparse

    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> None:
            raise argparse.ArgumentError(None, message)

    try:
        args = make_arg_parser(Parser()).parse_args(flags)
        validate_parsed_serve_args(args)
    except (argparse.ArgumentError, TypeError, ValueError) as exc:
        return " ".join(str(exc).split())
    for key, found, manager in (
        ("tool_call_parser", args.tool_call_parser, ToolParserManager),
        ("reasoning_parser", args.reasoning_parser, ReasoningParserManager),
    ):
        if found and found not in manager.list_registered():
            return f"{key}: {found!r} is none of {', '.join(sorted(manager.list_registered()))}"
    return None


if __name__ == "__main__":
    print(json.dumps({name: _problem(flags) for name, flags in json.load(sys.stdin).items()}))
