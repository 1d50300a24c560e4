"""Flags of vLLM in a model's file: what is passed on, and what is refused with its reason."""

import re

import pytest
from pydantic import ValidationError

from deployments.settings import EngineSettings
from deployments.settings.engine_args import as_flags


def engine(**args: object) -> EngineSettings:
    sizes = {"max_model_len": 4096, "max_num_seqs": 1, "max_num_batched_tokens": 1024}
    return EngineSettings.model_validate(sizes | {"engine_args": args})


def refusal(**args: object) -> str:
    with pytest.raises(ValidationError) as refused:
        engine(**args)
    return str(refused.value.errors()[0]["ctx"]["error"])


def test_values_become_flags_as_vllm_reads_them():
    args = {
        "swap-space": 4,
        "hf_overrides": {"rope_scaling": {"factor": 4.0}},
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
        "async_scheduling": False,
        "enable_chunked_prefill": True,
        "chat_template": "/templates/a b.jinja",
    }
    assert as_flags(engine(**args).engine_args) == [
        "--swap-space=4",
        '--hf-overrides={"rope_scaling": {"factor": 4.0}}',
        '--speculative-config={"method": "ngram", "num_speculative_tokens": 3}',
        "--no-async-scheduling",
        "--enable-chunked-prefill",
        "--chat-template=/templates/a b.jinja",
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("trust_remote_code", "code out of a checkpoint is never run"),
        ("kv-cache-memory-bytes", "the memory plan sizes the KV cache"),
        ("--api-key", "the gateway checks keys"),
        ("no_enable_sleep_mode", "`residency: warm` in the profile sets it"),
        ("config", "its file could set what this server sets"),
    ],
)
def test_flag_that_is_the_servers_to_set_is_refused_with_the_reason(name, reason):
    assert reason in refusal(**{name: "x"})


@pytest.mark.parametrize("name", ["max_model_len", "max-model-len", "no-enable-prefix-caching"])
def test_flag_that_is_a_setting_here_names_the_setting(name):
    assert re.search(r"set `[a-z_]+` beside `engine_args` instead", refusal(**{name: 1}))


def test_flag_without_a_value_and_a_flag_twice_are_refused():
    assert "has no value" in refusal(seed=None)
    assert "twice" in refusal(**{"max-seq": 1, "max_seq": 2})
