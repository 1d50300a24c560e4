"""How programs of other makers reach this backend: their environment, arguments and files. PURE.

Source of each: the program's own documentation, and a tool turn of Claude Code 2.1.197 and Codex
0.169.0 against a server.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_NO_KEY = "none"  # programs refuse to start without any; the server takes each where it has none
_MAX_ANSWER_TOKENS = 4096


@dataclass(frozen=True)
class Backend:
    """Where the backend is, and which of its models the program is to use."""

    url: str  # without `/v1`
    key: str | None
    model: str
    context_tokens: int


@dataclass(frozen=True)
class Setup:
    """What a program is started with."""

    program: str
    install: str  # the command that installs it
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    # The content of a settings file of its own, and the argument that names it.
    file_name: str | None = None
    file_content: str = ""
    file_argument: str = ""


def claude(backend: Backend) -> Setup:
    """Claude Code asks for several of Anthropic's models, so each name is given the one model."""
    names = ("MODEL", *(f"DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    return Setup(
        "claude",
        "npm install -g @anthropic-ai/claude-code",
        {
            "ANTHROPIC_BASE_URL": backend.url,
            "ANTHROPIC_AUTH_TOKEN": backend.key or _NO_KEY,
            **{f"ANTHROPIC_{name}": backend.model for name in names},
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )


def codex(backend: Backend) -> Setup:
    provider = {
        "name": "llm-backend",
        "base_url": f"{backend.url}/v1",
        "wire_api": "responses",
    } | ({"env_key": "LLM_BACKEND_API_KEY"} if backend.key else {})
    settings = {"model": backend.model, "model_provider": "llm-backend"} | {
        f"model_providers.llm-backend.{name}": value for name, value in provider.items()
    }
    return Setup(
        "codex",
        "npm install -g @openai/codex",
        {"LLM_BACKEND_API_KEY": backend.key} if backend.key else {},
        tuple(part for name, value in settings.items() for part in ("-c", f'{name}="{value}"')),
    )


def opencode(backend: Backend) -> Setup:
    """Its settings come in a variable, beside the user's own."""
    limit = {"context": backend.context_tokens, "output": _output_tokens(backend)}
    settings = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"llm-backend/{backend.model}",
        "provider": {
            "llm-backend": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "llm-backend",
                "options": {"baseURL": f"{backend.url}/v1", "apiKey": backend.key or _NO_KEY},
                "models": {backend.model: {"limit": limit}},
            }
        },
    }
    environment = {"OPENCODE_CONFIG_CONTENT": json.dumps(settings)}
    return Setup("opencode", "npm install -g opencode-ai", environment)


def aider(backend: Backend) -> Setup:
    return Setup(
        "aider",
        "pip install aider-chat",
        {"OPENAI_API_BASE": f"{backend.url}/v1", "OPENAI_API_KEY": backend.key or _NO_KEY},
        ("--model", f"openai/{backend.model}", "--no-show-model-warnings"),
    )


def continue_(backend: Backend) -> Setup:
    """Its command line, `cn`; its editor extensions read `~/.continue/config.yaml`."""
    content = f"""\
name: llm-backend
version: 1.0.0
schema: v1
models:
  - name: {backend.model}
    provider: openai
    model: {backend.model}
    apiBase: {backend.url}/v1
    apiKey: {backend.key or _NO_KEY}
    roles: [chat, edit, apply]
    capabilities: [tool_use]
    defaultCompletionOptions:
      contextLength: {backend.context_tokens}
      maxTokens: {_output_tokens(backend)}
"""
    return Setup(
        "cn",
        "npm install -g @continuedev/cli",
        file_name="continue.yaml",
        file_content=content,
        file_argument="--config",
    )


def _output_tokens(backend: Backend) -> int:
    """Half of a small context: what is left is for the question."""
    return min(_MAX_ANSWER_TOKENS, backend.context_tokens // 2)


TOOLS: Mapping[str, Callable[[Backend], Setup]] = {
    "claude": claude,
    "codex": codex,
    "opencode": opencode,
    "aider": aider,
    "continue": continue_,
}
