"""From what callers give to messages. Whatever is wrong with it is an InvalidRequestError that names the field."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypedDict

from quire.errors import InvalidRequestError
from quire.pooling_params import PoolingParams, pooling_to_proto
from quire.prompts import check_mapping, check_text, check_token_ids
from quire.sampling_params import SamplingParams
from quire.v1 import generate_pb2

# A text, token ids (any iterable of integers), or chat messages in OpenAI's form: `role`, `content`, and perhaps
# `name`, `tool_calls`, `tool_call_id`, `reasoning_content`.
Prompt = str | Iterable[int] | Sequence[Mapping[str, Any]]


class ChatOptions(TypedDict, total=False):
    """What goes with chat messages; forms and meanings are OpenAI's and vLLM's."""

    # {"type": "function", "function": {"name": …, "description": …, "parameters": JSON Schema, "strict": …}}
    tools: Sequence[Mapping[str, Any]]
    # "auto", "none", "required" or {"type": "function", "function": {"name": …}}
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    chat_template_kwargs: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool


class RequestOptions(ChatOptions, total=False):
    """What a generation may carry besides its prompt and how tokens are chosen."""

    # Chosen by the client to make a retry safe; default: a random one.
    request_id: str
    # The served model's name; default: whichever is served.
    model: str
    # Lower is scheduled first.
    priority: int
    # Prompts share KV blocks only under an equal salt.
    cache_salt: str
    # Whether the output has the prompt's token ids.
    return_token_ids: bool
    # The call's deadline, in seconds, its retries included; default: the client's.
    timeout: float


_MESSAGE_KEYS: Final = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_MODES: Final = {
    "auto": generate_pb2.ToolChoice.MODE_AUTO,
    "none": generate_pb2.ToolChoice.MODE_NONE,
    "required": generate_pb2.ToolChoice.MODE_REQUIRED,
}


def generate_request(
    prompt: Prompt, params: SamplingParams | None, options: RequestOptions
) -> generate_pb2.GenerateRequest:
    """A request with an id and a seed, so that it can be repeated. Raises InvalidRequestError."""
    params = SamplingParams() if params is None else params
    if not isinstance(params, SamplingParams):
        raise InvalidRequestError(f"params must be SamplingParams, not {params!r}", field="params")
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(63))
    request = generate_pb2.GenerateRequest(
        request_id=check_text(options.get("request_id") or uuid.uuid4().hex, "request_id"),
        model=check_text(options.get("model", ""), "model"),
        sampling_params=params.to_proto(),
        cache_salt=check_text(options.get("cache_salt", ""), "cache_salt"),
    )
    _set(request, "priority", options.get("priority"))
    # Logprobs of the prompt travel beside its ids.
    wants_ids = options.get("return_token_ids") or params.prompt_logprobs is not None
    _set(request, "return_token_ids", wants_ids)
    if isinstance(prompt, str):
        request.text = check_text(prompt, "prompt")
    else:
        _set_prompt(request, prompt, options)
    if (unused := options.keys() & ChatOptions.__optional_keys__) and request.WhichOneof("prompt") != "chat":
        name = min(unused)
        raise InvalidRequestError(f"{name} goes with chat messages only", field=name)
    return request


def call_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """What goes with every call. Raises InvalidRequestError for a key that no header can carry."""
    if api_key is None:
        return ()
    if not isinstance(api_key, str) or not api_key.isascii() or not api_key.isprintable():
        raise InvalidRequestError("api_key must be printable ASCII text", field="api_key")
    return (("authorization", f"Bearer {api_key}"),)


def tokenize_request(prompt: Prompt, add_special_tokens: bool, options: ChatOptions) -> generate_pb2.TokenizeRequest:
    """Raises InvalidRequestError."""
    request = generate_pb2.TokenizeRequest()
    _set(request, "add_special_tokens", add_special_tokens)
    if isinstance(prompt, str):
        request.text = check_text(prompt, "prompt")
        return request
    messages = _entries(prompt)
    if not all(isinstance(message, Mapping) for message in messages):
        raise InvalidRequestError("prompt must be a text or chat messages", field="prompt")
    request.chat.CopyFrom(chat_prompt(messages, options))
    return request


def embed_request(
    inputs: str | Iterable[str | Iterable[int]], params: PoolingParams | None, model: str
) -> generate_pb2.EmbedRequest:
    """Raises InvalidRequestError."""
    params = PoolingParams() if params is None else params
    if not isinstance(params, PoolingParams):
        raise InvalidRequestError(f"params must be PoolingParams, not {params!r}", field="params")
    request = generate_pb2.EmbedRequest(model=check_text(model, "model"))
    if params.pooling is not None:
        request.pooling = pooling_to_proto(params.pooling)
    _set(request, "dimensions", params.dimensions)
    _set(request, "truncate_prompt_tokens", params.truncate_prompt_tokens)
    entries = [inputs] if isinstance(inputs, str) else inputs
    if isinstance(entries, (bytes, Mapping)) or not isinstance(entries, Iterable):
        message = f"inputs must be a text or several inputs, not a {type(inputs).__name__}"
        raise InvalidRequestError(message, field="inputs")
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            request.inputs.add(text=check_text(entry, f"inputs[{index}]"))
        else:
            request.inputs.add().token_ids.ids.extend(check_token_ids(entry, f"inputs[{index}]"))
    return request


def chat_prompt(messages: Iterable[object], options: ChatOptions) -> generate_pb2.ChatPrompt:
    """A chat with its tools. Raises InvalidRequestError."""
    chat = generate_pb2.ChatPrompt(
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(messages)],
        tools=[_tool(tool, f"tools[{index}]") for index, tool in enumerate(options.get("tools") or ())],
    )
    for name in ("parallel_tool_calls", "add_generation_prompt", "continue_final_message"):
        _set(chat, name, options.get(name))
    if (choice := options.get("tool_choice")) is not None:
        chat.tool_choice.CopyFrom(_tool_choice(choice))
    if (variables := options.get("chat_template_kwargs")) is not None:
        chat.chat_template_kwargs = _json_object(variables, "chat_template_kwargs")
    return chat


def _entries(prompt: object) -> list[object]:
    if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Iterable):
        message = f"prompt must be a text, token ids or chat messages, not a {type(prompt).__name__}"
        raise InvalidRequestError(message, field="prompt")
    return list(prompt)


def _set_prompt(request: generate_pb2.GenerateRequest, prompt: object, options: RequestOptions) -> None:
    entries = _entries(prompt)
    num_messages = sum(isinstance(entry, Mapping) for entry in entries)
    if not num_messages:
        request.token_ids.ids.extend(check_token_ids(entries, "prompt"))
    elif num_messages == len(entries):
        request.chat.CopyFrom(chat_prompt(entries, options))
    else:
        raise InvalidRequestError("a prompt cannot mix messages and other entries", field="prompt")


def _message(message: object, field: str) -> generate_pb2.ChatMessage:
    given = check_mapping(message, field, _MESSAGE_KEYS)
    texts = {
        key: check_text(_joined(value, f"{field}.{key}") if key == "content" else value, f"{field}.{key}")
        for key, value in given.items()
        if key != "tool_calls" and value is not None
    }
    calls = enumerate(given.get("tool_calls") or ())
    return generate_pb2.ChatMessage(
        **texts, tool_calls=[_tool_call(call, f"{field}.tool_calls[{index}]") for index, call in calls]
    )


def _joined(content: object, field: str) -> object:
    """A content of several text parts as one text, joined as vLLM does."""
    if not isinstance(content, (list, tuple)):
        return content
    parts = [check_mapping(part, f"{field}[{index}]", ("type", "text")) for index, part in enumerate(content)]
    return "\n".join(check_text(part.get("text"), f"{field}[{index}].text") for index, part in enumerate(parts))


def _tool_call(call: object, field: str) -> generate_pb2.ToolCall:
    given = check_mapping(call, field, ("id", "type", "function"))
    function = check_mapping(given.get("function"), f"{field}.function", ("name", "arguments"))
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = _json_object(arguments, f"{field}.function.arguments")
    return generate_pb2.ToolCall(
        id=check_text(given.get("id", ""), f"{field}.id"),
        name=check_text(function.get("name"), f"{field}.function.name"),
        arguments=check_text(arguments, f"{field}.function.arguments"),
    )


def _tool(tool: object, field: str) -> generate_pb2.Tool:
    function = check_mapping(tool, field, ("type", "function")).get("function")
    given = check_mapping(function, f"{field}.function", ("name", "description", "parameters", "strict"))
    message = generate_pb2.Tool(
        name=check_text(given.get("name"), f"{field}.function.name"),
        description=check_text(given.get("description") or "", f"{field}.function.description"),
    )
    if given.get("parameters") is not None:
        message.parameters = _json_object(given["parameters"], f"{field}.function.parameters")
    _set(message, "strict", given.get("strict"), f"{field}.function.strict")
    return message


def _tool_choice(choice: object) -> generate_pb2.ToolChoice:
    if isinstance(choice, str):
        if choice not in _MODES:
            message = f"tool_choice must be {', '.join(_MODES)} or name a function, not {choice!r}"
            raise InvalidRequestError(message, field="tool_choice")
        return generate_pb2.ToolChoice(mode=_MODES[choice])
    function = check_mapping(choice, "tool_choice", ("type", "function")).get("function")
    name = check_mapping(function, "tool_choice.function", ("name",)).get("name")
    named = check_text(name, "tool_choice.function.name")
    return generate_pb2.ToolChoice(mode=generate_pb2.ToolChoice.MODE_NAMED, name=named)


def _json_object(value: object, field: str) -> str:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{field} must be a mapping, not a {type(value).__name__}", field=field)
    try:
        return json.dumps(dict(value), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{field} cannot be written as JSON: {error}", field=field) from None


def _set(message: Any, name: str, value: object, field: str | None = None) -> None:
    """Sets a number or a flag, if it is given; protobuf knows which values it takes."""
    if value is None:
        return
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{field or name}: {error}", field=field or name) from None
