"""The catalogue's flags, and every parser that `llm-backend add` may name, are known to vLLM."""

import shutil
from pathlib import Path

import pytest

from deployments.engine.args import engine_flags
from deployments.engine.flag_check import ask_vllm
from deployments.settings import PROJECT, AppArgs, load_settings
from serve_app.cli.model_file import REASONING_PARSERS, TOOL_PARSERS

pytestmark = pytest.mark.timeout(300)


def test_vllm_takes_the_catalogues_flags_and_knows_the_parsers(tmp_path):
    """All in one process, as its imports take seconds."""
    configs = shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    names = [path.stem for path in (PROJECT / "configs" / "catalogue").glob("*.yaml")]
    for name in names:
        shutil.copy(PROJECT / "configs" / "catalogue" / f"{name}.yaml", configs / "models")
    models = load_settings(AppArgs(profile="rtx5080", config_dir=str(configs)), False).models
    flags = {name: engine_flags(models[name], Path("/c"), "cuda") for name in names}
    coder = models["qwen-coder"]
    for key, parsers in (
        ("tool_call_parser", TOOL_PARSERS),
        ("reasoning_parser", REASONING_PARSERS),
    ):
        for parser in parsers:
            engine = coder.engine.model_copy(update={key: parser})
            spec = coder.model_copy(update={"engine": engine})
            flags[f"{key} {parser}"] = engine_flags(spec, Path("/c"), "cuda")
    assert len(names) == 8
    assert {name: problem for name, problem in ask_vllm(flags).items() if problem} == {}
