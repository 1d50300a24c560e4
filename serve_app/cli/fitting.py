"""Fits a drafted model to a card: the longest context, and an fp8 KV cache only where it is needed.

Imported by the command `add` alone: the hub's library takes half a second to import.
"""

from dataclasses import replace
from typing import Any

import yaml

from deployments.checkpoints.remote import Remote
from deployments.checkpoints.shape import Shape, UnknownShapeError, shape_of
from deployments.memory.plan import Plan, Room, gib
from deployments.memory.room import plan_on_paper
from deployments.settings import ModelSpec, Settings
from deployments.settings.models import ModelFile, Task
from serve_app.cli.model_file import Draft, draft, text_of

_GOOD_TOKENS = 32768  # a KV cache that holds as many is not halved for more
_ROUND_TOKENS = 1024


def model_file(
    remote: Remote, name: str, task: Task | None, room: Room, settings: Settings
) -> tuple[str, Plan | None]:
    """The file's text and the plan for it; None where its layers are not known.

    Raises:
        DraftError: it cannot be served here, or not as it is.
        PullError: one of its files cannot be read.
    """
    try:
        shape = shape_of(remote.config)
    except UnknownShapeError as exc:
        first = draft(remote, name, task, _context_of(remote))
        notes = {"weights": f"{gib(remote.weights_bytes)} of weights.", "context": f"{exc}."}
        return _checked(text_of(first, notes)), None
    first = draft(remote, name, task, shape.max_context_tokens)
    chosen, made = _chosen(first, remote, shape, room, settings)
    limit = f"{gib(made.limit_bytes)} limit - {gib(made.weights_bytes)} weights - "
    notes = {
        "weights": f"{gib(made.weights_bytes)} of weights.",
        "context": (
            f"The model's own are {shape.max_context_tokens:,}.\n      # The KV cache has room for "
            f"{made.kv_room_tokens:,}: {limit}{gib(made.overhead_bytes)} overhead\n      # leave "
            f"{gib(made.kv_room_bytes)}."
        ),
    }
    return _checked(text_of(chosen, notes)), made


def _context_of(remote: Remote) -> int:
    text = remote.config.get("text_config") or remote.config
    return int(text.get("max_position_embeddings") or _GOOD_TOKENS)


def _chosen(
    first: Draft, remote: Remote, shape: Shape, room: Room, settings: Settings
) -> tuple[Draft, Plan]:
    """The draft with the longest context that fits: (1) with the checkpoint's own precision, where
    that is long enough; (2) with an fp8 KV cache; (3) neither fits: a short one, to be judged."""
    for dtype in ("auto", "fp8"):
        made = _plan(replace(first, kv_cache_dtype=dtype), remote, shape, room, settings)
        tokens = min(made.context_fits_tokens, first.max_model_len)
        if tokens < first.max_model_len:
            tokens = tokens // _ROUND_TOKENS * _ROUND_TOKENS
        is_long = tokens >= min(_GOOD_TOKENS, first.max_model_len)
        if is_long or (dtype == "fp8" and tokens):
            chosen = replace(first, kv_cache_dtype=dtype, max_model_len=tokens)
            return chosen, _plan(chosen, remote, shape, room, settings)
    chosen = replace(
        first, kv_cache_dtype="fp8", max_model_len=min(first.max_model_len, first.min_model_len)
    )
    return chosen, _plan(chosen, remote, shape, room, settings)


def _plan(chosen: Draft, remote: Remote, shape: Shape, room: Room, settings: Settings) -> Plan:
    file: dict[str, Any] = yaml.safe_load(text_of(chosen, {"weights": "", "context": ""}))
    (block,) = file.pop("profiles").values()
    fields = {"task": file["tasks"][0], "vision": False, "untrained": False} | file | block
    spec = ModelSpec.model_validate(fields)
    return plan_on_paper(spec, shape, room, settings.home, remote.weights_bytes)


def _checked(text: str) -> str:
    ModelFile.model_validate(yaml.safe_load(text))
    return text


def plan_lines(name: str, made: Plan | None) -> list[str]:
    if made is None:
        return [f"{name}: no plan, as its layers are of a kind that is not known."]
    total = gib(made.total_bytes)
    if made.reason:
        lines = [f"{name} does not fit the card ({total}): {made.reason}."]
        return lines + [f"  would help: {remedy}" for remedy in made.advice]
    lines = [
        f"{name} fits the card ({total}): {gib(made.weights_bytes)} of weights, "
        f"~{gib(made.overhead_bytes)} overhead, and {gib(made.kv_room_bytes)} of KV cache hold "
        f"{made.kv_room_tokens:,} tokens; a context has {made.context_tokens:,}."
    ]
    return lines + [f"  {note}." for note in made.advice]
