"""The fields that every route refuses, each with the reason that the client reads.

The engine or another server supports these fields, and they would change the answer or its cost, so
they are not dropped like unknown fields (`normalizing.py`).
"""

_OWN_TEMPLATE = "a chat template is a program, so only the model's own template is used"
_OWN_MEDIA = "it would change how much memory and time an image takes"
_EMBEDS = "prompt embeddings are pickled tensors that bypass the tokenizer's checks"
_TRANSFER = "it controls transfers between engines, and one engine serves each request here"
_STATE = "answers are not stored; send the whole conversation with each request, and `store: false`"
STATE_OF_MESSAGES = (
    "conversations are not stored; send all messages with each request, without `thread`"
)
_NO_TOOLS = "this server runs no tools itself; the client runs them"
_OLD_TOOLS = "it is deprecated; use `tools` and `tool_choice`"
_OLD_GUIDED = "vLLM no longer supports it; use `structured_outputs` or `response_format`"
REFUSED = {
    "chat_template": _OWN_TEMPLATE,
    "media_io_kwargs": _OWN_MEDIA,
    "mm_processor_kwargs": _OWN_MEDIA,
    "prompt_embeds": _EMBEDS,
    "kv_transfer_params": _TRANSFER,
    "ec_transfer_params": _TRANSFER,
    "vllm_xargs": "it is for plug-ins of the engine, and none are installed",
    "logits_processors": "it names Python code to run in the engine",
    "use_beam_search": "a beam search would take the engine's capacity for many requests",
    "watermarking": "no watermark is configured",
    "repetition_detection": "it would search the whole answer at every token",
    "previous_response_id": _STATE,
    "conversation": _STATE,
    "prompt_id": _STATE,
    "context": _STATE,
    "container": _STATE,
    "mcp_servers": _NO_TOOLS,
    "web_search_options": _NO_TOOLS,
    "audio": "the models produce text only",
    "functions": _OLD_TOOLS,
    "function_call": _OLD_TOOLS,
    "suffix": "this route does not fill in the middle of a text",
    "best_of": "use `n`",
    "guided_json": _OLD_GUIDED,
    "guided_regex": _OLD_GUIDED,
    "guided_choice": _OLD_GUIDED,
    "guided_grammar": _OLD_GUIDED,
    "guided_decoding_backend": _OLD_GUIDED,
}
