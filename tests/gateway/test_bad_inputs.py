"""The file of bad inputs, against a gateway with keys whose engine takes everything."""

import asyncio

import pytest

from tests import bad_inputs
from tests.gateway.conftest import CHAT, A, B, Backend
from tests.gateway.test_auth import ADMIN, USER, keyed

__all__ = ["keyed"]  # a fixture

# Only the real engine, or the real Switchboard, can tell: they know the vocabulary, the number of
# tokens, the grammar, and what is resident. `tests/cluster/test_bad_inputs.py` asks them.
OTHERS_JUDGE = {
    "admin_same_model",
    "chat_logit_bias_out_of_vocab",
    "chat_min_tokens_gt_max",
    "chat_prompt_logprobs_stream",
    "chat_tool_choice_missing_tool",
    "chat_tool_choice_without_tools",
    "comp_token_ids_out_of_vocab",
    "size_prompt_over_context",
    "so_regex_invalid",
    "so_regex_redos",
}
ROWS = bad_inputs.rows(model=A, other_model=B, api_key=USER, admin_key=ADMIN, canary_port="1")
GOOD = {"model": A, "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_a_bad_input_is_refused(keyed: Backend, row: bad_inputs.Row) -> None:
    """With the right status and in shape; a good request after it is answered."""
    await keyed.serving()
    answer = await asyncio.to_thread(bad_inputs.send, keyed.port, row, 10)
    expected = row.expected + ([200, 202] if row.name in OTHERS_JUDGE else [])
    assert answer.status in expected, answer.body[:500]
    if row.name not in bad_inputs.NOT_OURS:
        answer.check_shape()
    headers = {"Authorization": f"Bearer {USER}"}
    async with keyed.client.post(CHAT, json=GOOD, headers=headers) as response:
        assert response.status == 200
