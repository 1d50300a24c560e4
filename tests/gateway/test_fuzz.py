"""Requests generated from the document at /docs, right ones and wrong ones."""

import asyncio
import sys
from pathlib import Path

import pytest

from deployments.settings import AppArgs, Settings, load_settings
from tests.gateway.conftest import Backend

_SCHEMATHESIS = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 503]  # 503: the model that was asked for is not resident

[generation]
mode = "all"
"""


@pytest.fixture(scope="session")
def settings() -> Settings:
    """The one model that is resident: requests for others would only be told so."""
    settings = load_settings(AppArgs(profile="cpu-demo", home="/nonexistent"), has_gpu=False)
    return settings.model_copy(update={"models": {"qwen-vl": settings.models["qwen-vl"]}})


@pytest.mark.timeout(150)
async def test_no_request_that_the_document_leads_to_is_a_500(
    backend: Backend, tmp_path: Path
) -> None:
    """Generated from the document, right ones and wrong ones, for a minute: what is wrong is
    refused, what is answered is documented, and nothing is an error of our own."""
    await backend.serving("qwen-vl")
    backend.switchboard.answer = {"state": "done", "ticket": {"state": "done"}}
    config = tmp_path / "schemathesis.toml"
    config.write_text(_SCHEMATHESIS)
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        f"--config-file={config}",
        "run",
        f"http://127.0.0.1:{backend.port}/openapi.json",
        "--header=X-Switch: never",
        "--checks=not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance,unsupported_method,negative_data_rejection",
        "--exclude-path=/admin/events",  # endless
        "--phases=examples,coverage,fuzzing",
        "--max-examples=15",
        "--max-time=60",
        "--seed=1",
        "--no-color",
        "--suppress-health-check=all",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=tmp_path,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-6000:]
