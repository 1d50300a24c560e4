"""The comparison of a golden answer, its picture and its fingerprint."""

import io
import shutil
from pathlib import Path

import pytest
from aiohttp import web

from deployments.engine.events import EngineFailed
from deployments.model_server.golden import GoldenAnswer, fingerprint
from deployments.model_server.golden_probe import (
    EmbeddingProbe,
    TextProbe,
    Token,
    compare,
    cosine_distance,
    probe_for,
    red_disc,
)
from deployments.model_server.watchdog import read_counts
from deployments.settings import AppArgs, load_settings

RIGHT = [Token("The", -0.1, -3.0), Token(" capital", -0.2, -2.0), Token(".", -0.5, -0.6)]


def spec(model: str = "qwen-14b"):
    return load_settings(AppArgs(profile="cpu-demo"), has_gpu=False).targets[model]


def test_same_answer_matches():
    assert compare(RIGHT, list(RIGHT), 0.25) is None


def test_small_drift_matches_and_a_large_one_does_not():
    near = [Token(t.text, t.logprob - 0.2, t.runner_up) for t in RIGHT]
    far = [Token(t.text, t.logprob - 0.3, t.runner_up) for t in RIGHT]
    assert compare(RIGHT, near, 0.25) is None
    assert "token 0 has log-probability -0.40" in compare(RIGHT, far, 0.25)


def test_another_token_is_named():
    wrong = [Token("L", -0.1, -3.0), *RIGHT[1:]]
    assert compare(RIGHT, wrong, 0.25) == "token 0 is 'L' and should be 'The'"


def test_nearly_tied_tokens_may_change_places():
    tied = [*RIGHT[:2], Token("!", -0.5, -0.6)]
    assert compare(RIGHT, tied, 0.25) is None
    assert compare(RIGHT, tied, 0.05) is not None


def test_shorter_and_longer_answers_differ():
    assert "has 2 tokens and should have 3" in compare(RIGHT, RIGHT[:2], 0.25)
    assert "has 3 tokens and should have 2" in compare(RIGHT[:2], RIGHT, 0.25)
    assert compare(RIGHT, [], 0.25) is not None


def test_picture_is_a_png_of_a_red_disc_on_white():
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(red_disc()))
    assert image.size == (112, 112)
    assert image.getpixel((56, 56)) == (255, 0, 0)
    assert image.getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize("target", ["qwen-vl", "qwen-vl:embed"])
def test_question_for_the_vision_model_holds_the_picture(target: str):
    """In both of its tasks: an engine that does not see must not serve."""
    content = probe_for(spec(target)).body()["messages"][0]["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


def test_question_without_a_known_answer_does_not_end_early():
    unknown = spec().model_copy(
        update={"golden": spec().golden.model_copy(update={"must_contain": None})}
    )
    assert TextProbe(unknown).body()["ignore_eos"] is True
    assert TextProbe(spec()).body()["ignore_eos"] is False


def embedding(*numbers: float) -> dict:
    return {"data": [{"embedding": list(numbers)}]}


def test_embedding_is_compared_by_its_direction():
    probe = EmbeddingProbe(spec("qwen-vl:embed"))
    kept = probe.read(embedding(0.6, 0.8))
    assert probe.difference(kept, probe.read(embedding(1.2, 1.6))) is None
    assert "0.04" in probe.difference(kept, probe.read(embedding(0.8, 0.6)))


@pytest.mark.parametrize("numbers", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], []])
def test_embedding_without_a_direction_is_wrong(numbers: list[float]):
    with pytest.raises(ValueError, match="no direction"):
        EmbeddingProbe(spec("qwen-vl:embed")).read(embedding(*numbers))


def test_cosine_distance_runs_from_0_to_2():
    assert cosine_distance([1, 0], [3, 0]) == pytest.approx(0)
    assert cosine_distance([1, 0], [0, 2]) == pytest.approx(1)
    assert cosine_distance([1, 0], [-1, 0]) == pytest.approx(2)


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    header = b'{"t":{"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + b"abcd"
    (folder / "model.safetensors").write_bytes(data)
    return folder


def test_fingerprint_follows_what_is_meant_to_run(tmp_path: Path):
    """Template, settings and device count; changed weights under the same name do not."""
    folder = make_checkpoint(tmp_path / "a")
    first = fingerprint(spec(), folder, "cpu")
    assert first == fingerprint(spec(), folder, "cpu")
    assert first != fingerprint(spec(), folder, "cuda")
    assert first != fingerprint(spec("qwen-coder"), folder, "cpu")
    other = shutil.copytree(folder, tmp_path / "b")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert first != fingerprint(spec(), other, "cpu")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"X")
    assert first == fingerprint(spec(), folder, "cpu")


def test_record_is_kept_and_a_damaged_one_is_no_record(tmp_path: Path):
    folder = make_checkpoint(tmp_path / "a")
    answer = GoldenAnswer(spec(), folder, "cpu", tmp_path)
    assert answer._load() is None
    answer._save({"tokens": []})
    assert answer._load() == {"tokens": []}
    assert GoldenAnswer(spec(), folder, "cuda", tmp_path)._load() is None
    (tmp_path / "golden" / "qwen-14b.json").write_text("{")
    assert answer._load() is None


async def test_dying_engine_is_mute_and_not_wrong(tmp_path: Path):
    """A wrong answer earns a second start; an engine whose core is dead says 500."""

    async def fail(_request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "EngineCore died"}}, status=500)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", fail)
    runner = web.AppRunner(app)
    await runner.setup()
    socket = tmp_path / "engine.sock"
    await web.UnixSite(runner, str(socket)).start()
    try:
        with pytest.raises(EngineFailed) as caught:
            await GoldenAnswer(spec(), tmp_path, "cpu", tmp_path).verify(socket, 5)
    finally:
        await runner.cleanup()
    assert caught.value.problem.code == "engine_mute"


def test_counts_are_read_from_the_engines_own_metrics():
    page = """# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen-14b"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="qwen-14b"} 1.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="qwen-14b"} 37.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="qwen-14b"} 8.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="qwen-14b"} 1.7e+09
"""
    counts = read_counts(page)
    assert counts["vllm:num_requests_running"] + counts["vllm:num_requests_waiting"] == 3
    assert counts["vllm:prompt_tokens_total"] + counts["vllm:generation_tokens_total"] == 45
