"""Drafts a model's file from what its checkpoint says of itself. PURE.

What is guessed here is checked again: the settings by `ModelFile`, the parsers' names by vLLM at
the next start.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from deployments.checkpoints.remote import Remote
from deployments.settings.models import Task

# How a chat template writes tool calls, and vLLM's parser for it; the first that is found counts.
_TOOL_MARKS = (
    ("<|channel|>commentary", "openai"),
    ("<arg_key>", "glm45"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call>", "gemma4"),
    ("<|python_tag|>", "llama3_json"),
    ('{"name": function name, "parameters":', "llama3_json"),
    ("tool▁calls▁begin", "deepseek_v3"),
)
# vLLM's parser for the reasoning of a family, where its template has the mark.
_REASONING_MARKS = (
    ("gpt_oss", "<|channel|>", "openai_gptoss"),
    ("qwen3", "<think>", "qwen3"),
    ("glm4", "<think>", "glm45"),
    ("gemma4", "<|channel>", "gemma4"),
    ("mistral", "[THINK]", "mistral"),
    ("", "<think>", "deepseek_r1"),
)
TOOL_PARSERS = frozenset(parser for _, parser in _TOOL_MARKS)
REASONING_PARSERS = frozenset(parser for _, _, parser in _REASONING_MARKS)

_MORE_THAN_TEXT = ("vision_config", "visual", "vision_tower")
_FLOOR_TOKENS = 8192  # the shortest context that is worth a load
_MANY_BYTES = 8 * 2**30  # above it the weights leave little for the activations of a step


class DraftError(Exception):
    """Why no file can be drafted, in one sentence."""


@dataclass(frozen=True)
class Draft:
    """What a model's file will say."""

    name: str
    repo: str
    commit: str
    tasks: tuple[Task, ...]
    vision: bool
    has_pixels: bool  # its images are scaled by `max_pixels`
    tool_parser: str | None
    reasoning_parser: str | None
    attention_backend: str | None
    kv_cache_dtype: str
    max_model_len: int
    num_seqs: int
    num_batched_tokens: int

    @property
    def min_model_len(self) -> int:
        return min(_FLOOR_TOKENS, self.max_model_len)


def name_of(repo: str) -> str:
    """A model's name from its repository's: `Qwen/Qwen3-14B-AWQ` is qwen3-14b-awq."""
    return re.sub(r"[^a-z0-9._-]+", "-", repo.rpartition("/")[2].lower()).strip("-._")


def draft(remote: Remote, name: str, task: Task | None, context_tokens: int) -> Draft:
    """Guess the settings; the KV cache and the context are those of a card with room for all.

    Raises:
        DraftError: it is a kind of model that is not served here.
        PullError: one of its files cannot be read.
    """
    config = remote.config
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DraftError(f"{name!r} cannot be a model's name: letters, digits, '.', '_', '-' can")
    model_type = str(config.get("model_type"))
    tasks: tuple[Task, ...] = (task,) if task else _tasks(remote)
    template = chat_template(remote)
    if "generate" in tasks and not template and not _has_file(remote, "tekken.json"):
        raise DraftError(f"{remote.repo} has no chat template, so it cannot chat")
    is_vision = "generate" in tasks and any(config.get(key) for key in _MORE_THAN_TEXT)
    is_large = remote.weights_bytes > _MANY_BYTES
    text = config.get("text_config") or config
    return Draft(
        name=name,
        repo=remote.repo,
        commit=remote.commit,
        tasks=tasks,
        vision=is_vision,
        has_pixels=is_vision and model_type.startswith("qwen"),
        tool_parser=_tool_parser(template) if "generate" in tasks else None,
        reasoning_parser=reasoning_parser(model_type, template) if "generate" in tasks else None,
        # Latent attention has a backend of its own, which vLLM chooses.
        attention_backend=None if text.get("kv_lora_rank") else "TRITON_ATTN",
        kv_cache_dtype="auto",
        max_model_len=context_tokens,
        num_seqs=4 if is_large else 8,
        num_batched_tokens=1024 if is_large and not is_vision else 2048,
    )


def chat_template(remote: Remote) -> str:
    """The text of it, wherever the checkpoint keeps it; empty where there is none."""
    if "chat_template.jinja" in remote.texts:
        return remote.texts["chat_template.jinja"]
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = remote.json(name).get("chat_template")
        if found:  # several templates with names, or one
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return ""


def reasoning_parser(model_type: str, template: str) -> str | None:
    for family, mark, parser in _REASONING_MARKS:
        if model_type.startswith(family) and mark in template:
            return parser
    return None


def _tool_parser(template: str) -> str | None:
    if "tools" not in template:
        return None
    return next((parser for mark, parser in _TOOL_MARKS if mark in template), None)


def _tasks(remote: Remote) -> tuple[Task, ...]:
    """By (1) a pooling layer, (2) the architecture."""
    names = [str(name) for name in remote.config.get("architectures") or ()]
    if any(_has_file(remote, name) for name in ("modules.json", "1_Pooling/config.json")):  # (1)
        return ("embed",)
    if any("ForSequenceClassification" in name or "Reward" in name for name in names):  # (2)
        raise DraftError(f"{remote.repo} classifies or ranks; only chat and embeddings are served")
    if any(name.endswith(("ForCausalLM", "ForConditionalGeneration")) for name in names):
        return ("generate",)
    if any(name.endswith("Model") for name in names):
        return ("embed",)
    raise DraftError(
        f"config.json of {remote.repo} names the architectures {names}, which are neither for chat "
        "nor for embeddings; name the task with --task"
    )


def _has_file(remote: Remote, name: str) -> bool:
    return any(file.path == name for file in remote.files)


def text_of(draft: Draft, notes: Mapping[str, str]) -> str:
    """The file. `notes`: what the plan says of the weights and of the context."""
    lines = [
        "# Drafted by `llm-backend add` from the checkpoint's own files; untried on the card.",
        f"name: {draft.name}",
        f"description: {draft.repo}",
        "# What it can do: generate (chat, completions), embed (embeddings).",
        f"tasks: [{', '.join(draft.tasks)}]",
    ]
    if draft.vision:
        lines += ["# Takes images.", "vision: true"]
    lines += [
        "",
        "# A port of its own on 127.0.0.1, open while it is resident. null: none.",
        "port: null",
        "",
        "profiles:",
        "  rtx5080:",
        f"    # Hugging Face name. {notes['weights']}",
        f"    checkpoint: {draft.repo}",
        "    # The revision that was looked at; `llm-backend pull --update` tells of a newer one.",
        f'    revision: "{draft.commit}"',
        *_golden_lines(draft),
        "    engine:",
        f"      # Tokens of prompt and answer together. {notes['context']}",
        f"      max_model_len: {draft.max_model_len}",
        "      # The shortest context that is worth a load, where others hold the card's memory.",
        f"      min_model_len: {draft.min_model_len}",
        "      # The largest share of the card that the engine may take, all of it counted.",
        "      gpu_memory_utilization: 0.88",
        "      # Sequences worked on at once, and tokens per step.",
        f"      max_num_seqs: {draft.num_seqs}",
        f"      max_num_batched_tokens: {draft.num_batched_tokens}",
    ]
    if draft.kv_cache_dtype == "fp8":
        lines += [
            "      # Half the bytes a token: with `auto` the context would be too short.",
            "      kv_cache_dtype: fp8",
        ]
    if draft.attention_backend:
        lines += [
            "      # It needs no nvcc, and takes an fp8 KV cache.",
            f"      attention_backend: {draft.attention_backend}",
        ]
    lines += _vision_lines(draft)
    if "generate" in draft.tasks:
        lines += [
            "      # Batches captured as CUDA graphs, for decoding: as many as sequences.",
            f"      max_cudagraph_capture_size: {draft.num_seqs}",
            "      cudagraph_mode: FULL_DECODE_ONLY",
        ]
    lines += [
        "      # The server has read the files ahead into the page cache.",
        "      safetensors_load_strategy: lazy",
    ]
    if draft.tool_parser:
        lines += [
            "      # How it writes tool calls, by its chat template.",
            f"      tool_call_parser: {draft.tool_parser}",
        ]
    if draft.reasoning_parser:
        lines += [
            "      # How it marks its reasoning, which is answered apart.",
            f"      reasoning_parser: {draft.reasoning_parser}",
        ]
    lines += [
        "    env:",
        "      # FlashInfer's sampler compiles with nvcc at the first start; PyTorch's does not.",
        '      VLLM_USE_FLASHINFER_SAMPLER: "0"',
    ]
    return "\n".join(lines) + "\n"


def _golden_lines(draft: Draft) -> list[str]:
    lines = [
        "    # Asked after every load: an engine that answers wrongly does not serve.",
        "    golden:",
        "      prompt: What is the capital of France?",
    ]
    if "generate" in draft.tasks and not draft.reasoning_parser:  # that one would reason first
        lines += ["      # Part of the right answer.", "      must_contain: Paris"]
    return lines


def _vision_lines(draft: Draft) -> list[str]:
    if not draft.vision:
        return []
    lines = [
        "      # The vision tower on PyTorch's own attention: no xformers, no flash-attn.",
        "      mm_encoder_attn_backend: TORCH_SDPA",
        "      # Images that a request may hold.",
        "      max_images: 2",
    ]
    if draft.has_pixels:
        lines += [
            "      # Pixels that each is scaled down to.",
            "      max_pixels: 1003520",
        ]
    return lines
