"""A request finds its model by name, alias, pattern or variant."""

import pytest
from pydantic import ValidationError

from deployments.settings import AppArgs, SettingsError, load_settings
from deployments.settings.models import ModelFile, Variant
from deployments.settings.names import ModelNames

MODELS = load_settings(AppArgs(profile="cpu-demo"), has_gpu=False).models


def names(**changes: dict) -> ModelNames:
    """Of the shipped models, changed by their names with underscores."""
    changed = {name.replace("_", "-"): change for name, change in changes.items()}
    return ModelNames(
        {name: spec.model_copy(update=changed.get(name, {})) for name, spec in MODELS.items()}
    )


def found(made: ModelNames, asked: str) -> str | None:
    named = made.find(asked)
    return named.spec.name if named else None


def test_alias_and_pattern_name_a_model():
    made = names(qwen_14b={"aliases": ["gpt-4o-mini", "claude-*"]})
    assert found(made, "qwen-14b") == "qwen-14b"
    assert found(made, "gpt-4o-mini") == "qwen-14b"
    assert found(made, "claude-sonnet-4-5") == "qwen-14b"
    assert found(made, "gpt-4o") is None
    assert made.find("claude-sonnet-4-5").asked == "claude-sonnet-4-5"


def test_spelled_out_name_beats_a_pattern_and_the_longest_pattern_the_others():
    made = names(
        qwen_14b={"aliases": ["claude-*"]},
        qwen_coder={"aliases": ["claude-opus-*", "claude-haiku"]},
    )
    assert found(made, "claude-haiku") == "qwen-coder"
    assert found(made, "claude-opus-4") == "qwen-coder"
    assert found(made, "claude-sonnet") == "qwen-14b"


def test_variant_is_a_name_with_parameters():
    precise = Variant(forced={"temperature": 0})
    named = names(qwen_coder={"variants": {"precise": precise}}).find("qwen-coder:precise")
    assert (named.spec.name, named.variant) == ("qwen-coder", precise)


def test_names_that_are_spelled_out_are_listed():
    made = names(qwen_14b={"aliases": ["gpt-4o-mini", "claude-*"]})
    assert {n.asked for n in made.listed()} == {*MODELS, "gpt-4o-mini"}


def test_same_name_of_two_models_is_refused():
    with pytest.raises(SettingsError, match="the name 'qwen-vl' is qwen-"):
        names(qwen_14b={"aliases": ["qwen-vl"]})


@pytest.mark.parametrize("field", ["model", "messages", "stream"])
def test_variant_cannot_change_what_a_request_is_about(field):
    with pytest.raises(ValidationError, match=field):
        Variant(forced={field: "x"})


def test_variant_cannot_have_a_tasks_name():
    with pytest.raises(ValidationError, match="is a task's name already"):
        ModelFile(
            name="m",
            description="",
            tasks=["generate"],
            port=None,
            variants={"embed": Variant()},
            profiles={},
        )
