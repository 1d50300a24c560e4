"""How programs of other makers are set up for this backend."""

import json

import pytest
import yaml

from serve_app.cli.tools import TOOLS, Backend

OPEN = Backend("http://127.0.0.1:7000", None, "qwen-coder", 32768)
KEYED = Backend("http://gpu-box:7000", "sesame", "qwen-coder", 6000)


@pytest.mark.parametrize("tool", list(TOOLS))
def test_every_tool_has_the_address_the_model_and_some_key(tool):
    """No tool starts without any key."""
    for backend in (OPEN, KEYED):
        setup = TOOLS[tool](backend)
        all_of_it = json.dumps([dict(setup.environment), setup.arguments, setup.file_content])
        assert backend.url in all_of_it
        assert "qwen-coder" in all_of_it
        assert ("sesame" in all_of_it) is (backend is KEYED)
        assert setup.install


def test_claude_has_the_model_for_each_size_it_asks_for():
    environment = TOOLS["claude"](OPEN).environment
    assert environment["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "qwen-coder"
    assert environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:7000"  # without /v1


def test_codex_gets_its_key_by_the_environment_and_not_in_an_argument():
    """Arguments are seen by every user of the machine."""
    setup = TOOLS["codex"](KEYED)
    assert setup.environment == {"LLM_BACKEND_API_KEY": "sesame"}
    assert "sesame" not in " ".join(setup.arguments)
    assert 'model_providers.llm-backend.env_key="LLM_BACKEND_API_KEY"' in setup.arguments


def test_answers_leave_half_of_a_small_context_to_the_question():
    content = json.loads(TOOLS["opencode"](KEYED).environment["OPENCODE_CONFIG_CONTENT"])
    (model,) = content["provider"]["llm-backend"]["models"].values()
    assert model["limit"] == {"context": 6000, "output": 3000}


def test_continue_has_a_file_that_is_yaml():
    setup = TOOLS["continue"](KEYED)
    (model,) = yaml.safe_load(setup.file_content)["models"]
    assert (model["apiBase"], model["apiKey"]) == ("http://gpu-box:7000/v1", "sesame")
