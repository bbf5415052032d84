"""The request fields of OpenAI and vLLM that are no fields of our classes, and what becomes of them.

A field is either implemented, or without influence on the output and ignored, or known but not implemented, and
then refused unless its value asks for nothing; anything else is unknown and refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire.errors import InvalidRequestError
from quire.sampling_params import number_schemas

# Without influence on the output.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",  # makes an answer faster, never another
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
    }
)
# Known fields that are not implemented, and their values that ask for nothing; so does null.
NOT_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "detokenize": (True,),
    "documents": ([],),
    "ec_transfer_params": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "include_reasoning": (True,),
    "kv_transfer_params": ({},),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prompt_embeds": (),
    "reasoning_effort": ("none",),
    "repetition_detection": (),
    "return_mm_kwargs": (True,),
    "return_prompt_text": (False,),
    "return_token_offsets": (False,),
    "routed_experts_prompt_start": (0,),
    # Texts have spaces where their tokens have them.
    "spaces_between_special_tokens": (True, False),
    "stream_interval": (1,),
    "suffix": ("",),
    "thinking_token_budget": (-1,),
    "tool_choice": ("none",),
    "tools": ([],),
    "truncation_side": ("left",),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
}


def check_extra(extra: Mapping[str, object], known: Mapping[str, Sequence[object]], prefix: str) -> None:
    """Raises InvalidRequestError for fields that are unknown, or not implemented with a value that matters."""
    for name, value in extra.items():
        if name not in known and name not in IGNORED:
            raise InvalidRequestError(f"Unrecognized request argument: {prefix}{name}", field=prefix + name)
        if name in IGNORED or value is None:
            continue
        if not any(type(value) is type(neutral) and value == neutral for neutral in known[name]):
            raise InvalidRequestError(f"{prefix}{name} is not supported by this server", field=prefix + name)


def describe_fields(schema: dict[str, Any]) -> None:
    """Adds to a body's JSON schema what pydantic does not check: ranges, and fields that are no fields of the class."""
    properties = schema["properties"]
    for name, bounds in number_schemas().items():
        for kind in properties.get(name, {}).get("anyOf", ()):
            if kind.get("type") in ("integer", "number"):
                kind.update(bounds)
    for name in sorted(IGNORED - properties.keys()):
        properties[name] = {"description": "Accepted; without influence on the answer."}
    for name in sorted(NOT_IMPLEMENTED.keys() - properties.keys()):
        values = [None, *NOT_IMPLEMENTED[name]]
        properties[name] = {"enum": values, "description": "Not implemented; other values are refused."}
    schema["additionalProperties"] = False
