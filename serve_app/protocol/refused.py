"""Fields that would change the answer or its cost and cannot be done here, on every route, and why.

Other unknown fields are left out: see `normalizing.py`.
"""

_OWN_TEMPLATE = "a template is a program; the model's own is used"
_OWN_MEDIA = "it sets how much memory and time a picture takes"
_EMBEDS = "embeddings are unpickled tensors that skip the tokenizer's checks"
_TRANSFER = "it steers transfers between the engines of a cluster"
_STATE = "answers are not stored: send the whole conversation with each request, and `store: false`"
STATE_OF_MESSAGES = (
    "conversations are not stored: send all messages with each request, without `thread`"
)
_OLD_TOOLS = "it is deprecated; use `tools` and `tool_choice`"
_OLD_GUIDED = "vLLM no longer has it; use `structured_outputs` or `response_format`"
REFUSED = {
    "chat_template": _OWN_TEMPLATE,
    "media_io_kwargs": _OWN_MEDIA,
    "mm_processor_kwargs": _OWN_MEDIA,
    "prompt_embeds": _EMBEDS,
    "kv_transfer_params": _TRANSFER,
    "ec_transfer_params": _TRANSFER,
    "vllm_xargs": "it reaches plug-ins of the engine, of which there are none",
    "logits_processors": "it names Python code to run in the engine",
    "use_beam_search": "one such request takes the engine's places of many",
    "watermarking": "no watermark is set up",
    "repetition_detection": "it searches the whole answer at every token",
    "previous_response_id": _STATE,
    "conversation": _STATE,
    "prompt_id": _STATE,
    "context": _STATE,
    "container": _STATE,
    "mcp_servers": "no tools are run here",
    "web_search_options": "no tools are run here",
    "audio": "the models do not speak",
    "functions": _OLD_TOOLS,
    "function_call": _OLD_TOOLS,
    "suffix": "the models are not asked to fill in the middle on this route",
    "best_of": "use `n`",
    "guided_json": _OLD_GUIDED,
    "guided_regex": _OLD_GUIDED,
    "guided_choice": _OLD_GUIDED,
    "guided_grammar": _OLD_GUIDED,
    "guided_decoding_backend": _OLD_GUIDED,
}
