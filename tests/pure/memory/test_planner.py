"""`llm-backend plan`, as a user types it."""

import json

import pytest
from typer.testing import CliRunner

from deployments.memory.plan import GIB, MIB
from deployments.memory.planner import PlanError, card_bytes
from serve_app.cli import app


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *arguments])
    return result.exit_code, result.output


def run_json(*arguments: str):
    code, output = run(*arguments, "--memory", "16GB", "--json")
    return code, json.loads(output)


def test_all_models_of_the_profile_are_planned_for_a_16_gb_card():
    code, output = run("--memory", "16GB")
    assert code == 0
    for part in (
        "rtx5080: card 15.47 GiB; an engine may fill 13.61 GiB, 1.86 GiB stay for others",
        "9.29 GiB",
        "fp8 98,304 B",
        "34,032",
        "135,248",
        "96,672",
        "20.93 GiB",
    ):
        assert part in output
    assert "DOES NOT FIT" not in output


def test_json_has_units_in_its_names():
    code, body = run_json()
    assert code == 0
    assert body["total_bytes"] == 15841 * MIB  # as CUDA gives out under Linux
    assert [m["model"] for m in body["models"]] == ["qwen-14b", "qwen-coder", "qwen-vl"]
    big = body["models"][0]
    assert (big["kv_bytes_per_token"], big["kv_room_tokens"]) == (98304, 34032)
    assert big["overhead_source"] == "estimate"
    assert abs(body["together"]["host_bytes_all_asleep"] / GIB - 20.93) < 0.01


def test_what_does_not_fit_is_told_by_text_json_and_exit_code():
    code, output = run("qwen-14b", "--memory", "12GB")
    assert code == 1
    assert "DOES NOT FIT" in output
    assert "would help: a card with 13 GiB" in output
    code, body = run_json("qwen-coder", "--checkpoint", "Qwen/Qwen2.5-Coder-7B-Instruct")
    assert (code, body["models"][0]["fits"]) == (1, False)
    assert body["models"][0]["advice"]


def test_plan_beside_other_programs_says_which_context_fits():
    """Blender holds 4 GiB: the two small models have their whole context, the big one a shorter."""
    code, output = run("--memory", "16GB", "--beside", "4GiB")
    assert code == 0
    assert "fits with 10,608 tokens" in output
    assert "qwen-14b: a context of 10,608 tokens fits, not 32,768." in output
    code, body = run_json("--beside", "4GiB")
    assert [m["context_tokens"] for m in body["models"]] == [10608, 32768, 32768]


def test_plan_says_how_many_engines_may_sleep():
    code, output = run("--memory", "16GB", "--warm")
    assert code == 0
    assert "2 asleep: 0.97 GiB of the card stay free, too little for a desktop" in output
    code, body = run_json("--warm")
    assert [w["num_sleepers"] for w in body["warm"]] == [0, 1, 2]
    assert "2 asleep: does not fit, " in run("--memory", "14.5GiB", "--warm")[1]


def test_another_checkpoint_can_be_planned():
    name = "Qwen/Qwen2.5-Coder-7B-Instruct-GPTQ-Int8"
    code, body = run_json("qwen-coder", "--checkpoint", name)
    (made,) = body["models"]
    assert (code, made["checkpoint"], made["fits"]) == (0, name, True)
    assert abs(made["weights_bytes"] / GIB - 8.25) < 0.006


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["qwen"], "no model is named 'qwen'; there are qwen-14b"),
        (["--checkpoint", "x"], "--checkpoint needs the model"),
        (["--memory", "much"], "'much' is not a size like 16GB"),
        (["qwen-14b", "--checkpoint", "a/b"], "configs/checkpoints.yaml does not know it"),
    ],
)
def test_what_can_not_be_planned_is_one_sentence(arguments, told):
    code, output = run(*arguments)
    assert code == 2
    assert output.startswith("Cannot plan: ")
    assert told in output


def test_named_profile_beats_the_environment(monkeypatch):
    monkeypatch.setenv("LLM_BACKEND_PROFILE", "cpu-demo")
    assert run("--memory", "16GB")[1].startswith("rtx5080: ")


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("16GB", 16303 * MIB),
        ("16 gb", 16303 * MIB),
        ("16GiB", 16384 * MIB),
        ("16303MiB", 16303 * MIB),
        ("15.5GiB", 15872 * MIB),
    ],
)
def test_size_of_a_card_is_read_as_sold_or_exactly(text, num_bytes):
    assert card_bytes(text) == num_bytes


def test_other_cards_are_a_little_smaller_than_sold_too():
    """An RTX 5090, sold as 32 GB, reports 32,607 MiB."""
    assert abs(card_bytes("32GB") / MIB - 32607) < 2


@pytest.mark.parametrize("text", ["", "16", "GB", "0GB", "-16GB", "16TB", "1e3GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(PlanError):
        card_bytes(text)
