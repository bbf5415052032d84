"""What OpenAI-shape requests may hold. Types are checked here, ranges in SamplingParams, limits in validation.

A field is either implemented, or without influence on the output and ignored, or known but not implemented, and
then refused unless its value asks for nothing; anything else is unknown and refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, WithJsonSchema
from pydantic.json_schema import models_json_schema

from quire.errors import InvalidRequestError
from quire.gateway.validation import ChatPrompt
from quire.sampling_params import SamplingParams

M = TypeVar("M", bound=BaseModel)

# OpenAI's default for /v1/completions; a chat may fill the context.
COMPLETION_MAX_TOKENS = 16
# Prompts times continuations of one request.
_MAX_CHOICES = 2048
_MAX_TOKEN_ID_DIGITS = 10

_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Known fields that are not implemented, and their values that ask for nothing; so does null.
_NOT_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "cache_salt": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1.0, 1),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# The same for a chat message: clients send back what they received, with its empty fields.
_NOT_IMPLEMENTED_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


def _parse_prompts(value: object) -> list[str | list[int]]:
    """The four forms of `prompt`, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")
    if len(value) > _MAX_CHOICES and not _is_token_ids(value):
        raise ValueError(f"holds more than {_MAX_CHOICES} prompts")
    if all(isinstance(entry, str) for entry in value):
        return value
    if _is_token_ids(value):
        return [value]
    for index, entry in enumerate(value):
        if not isinstance(entry, list) or not _is_token_ids(entry):
            raise ValueError(f"mixes kinds of prompts, or is neither text nor integers, at index {index}")
    return value


def _is_token_ids(value: list[object]) -> bool:
    return all(type(entry) is int for entry in value)  # a bool is no token id


def _parse_content(value: object) -> str:
    """A message's content: a text, or text parts, which are joined by line ends as vLLM does."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string or a list of text parts")
    texts: list[str] = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"part {index} is not a text part; the model takes text only")
        texts.append(part["text"])
    return "\n".join(texts)


_TOKEN_IDS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
_TEXTS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_PROMPT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        _TEXTS_SCHEMA,
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "items": _TOKEN_IDS_SCHEMA},
    ]
}
_CONTENT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}},
        },
    ]
}

Prompts = Annotated[list[str | list[int]], PlainValidator(_parse_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
Content = Annotated[str, PlainValidator(_parse_content), WithJsonSchema(_CONTENT_SCHEMA)]
Stop = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS_SCHEMA, {"type": "null"}]})]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    # Random padding against traffic analysis; nothing here to switch off.
    include_obfuscation: bool | None = None


class OpenAIRequest(BaseModel):
    """What both endpoints share; the extensions to OpenAI's fields are vLLM's."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: Stop = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    @contextlib.contextmanager
    def in_its_words(self) -> Iterator[None]:
        """Makes errors inside the block name a field as this request does."""
        try:
            yield
        except InvalidRequestError as error:
            field, names = error.field, self._names()
            if field is None or field not in names:
                raise
            raise type(error)(error.message.replace(field, names[field]), field=names[field]) from None

    def _names(self) -> dict[str, str]:
        """Fields of SamplingParams that the client calls by another name."""
        return {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}

    def _sampling_params(self, logprobs: int | None) -> SamplingParams:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError("best_of other than n is not supported", field="best_of")
        return SamplingParams(
            n=self.n,
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_biases_by_token(self.logit_bias),
            logprobs=logprobs,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
        )


class CompletionRequest(OpenAIRequest):
    """The body of POST /v1/completions."""

    prompt: Prompts
    logprobs: int | None = None

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        num_choices = (self.n or 1) * len(self.prompt)
        if num_choices > _MAX_CHOICES:
            message = f"{len(self.prompt)} prompts with n = {self.n or 1} make {num_choices} choices"
            raise InvalidRequestError(f"{message}; at most {_MAX_CHOICES} fit one request", field="n")
        return self._sampling_params(self.logprobs)


class ChatMessage(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None

    def to_template(self) -> dict[str, str]:
        """As chat templates expect it; the models' word for a developer's message is system."""
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": self.content}
        return message if self.name is None else {**message, "name": self.name}


class ChatCompletionRequest(OpenAIRequest):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def prompt(self) -> ChatPrompt:
        """The messages, for the model's chat template."""
        return ChatPrompt([message.to_template() for message in self.messages])

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs requires logprobs to be true", field="top_logprobs")
        return self._sampling_params((self.top_logprobs or 0) if self.logprobs else None)

    def _names(self) -> dict[str, str]:
        return {**super()._names(), "logprobs": "top_logprobs"}


def parse_request(kind: type[M], body: bytes) -> M:
    """A request from its JSON. Raises InvalidRequestError naming the field at fault."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None
    _check_extra(request.model_extra or {}, _NOT_IMPLEMENTED, prefix="")
    for index, message in enumerate(getattr(request, "messages", ())):
        _check_extra(message.model_extra or {}, _NOT_IMPLEMENTED_IN_MESSAGE, prefix=f"messages[{index}].")
    return request


_SCHEMA_PREFIX = "#/components/schemas/"


def request_body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a route's body; `body_schemas` holds what it refers to."""
    schema = {"$ref": _SCHEMA_PREFIX + kind.__name__}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def body_schemas() -> dict[str, Any]:
    """The JSON schemas of all bodies, by name."""
    kinds: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (CompletionRequest, "validation"),
        (ChatCompletionRequest, "validation"),
    ]
    _, definitions = models_json_schema(kinds, ref_template=_SCHEMA_PREFIX + "{model}")
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _check_extra(extra: Mapping[str, object], known: Mapping[str, Sequence[object]], prefix: str) -> None:
    for name, value in extra.items():
        if name not in known and name not in _IGNORED:
            raise InvalidRequestError(f"Unrecognized request argument: {prefix}{name}", field=prefix + name)
        if name in _IGNORED or value is None:
            continue
        if not any(type(value) is type(neutral) and value == neutral for neutral in known[name]):
            raise InvalidRequestError(f"{prefix}{name} is not supported by this server", field=prefix + name)


def _biases_by_token(biases: dict[str, float] | None) -> dict[int, float] | None:
    if biases is None:
        return None
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) <= _MAX_TOKEN_ID_DIGITS):
            raise InvalidRequestError(f"logit_bias: {key!r} is not a token id", field="logit_bias")
    return {int(key): bias for key, bias in biases.items()}


def _explain(error: ValidationError) -> InvalidRequestError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return InvalidRequestError(f"the body is not valid JSON: {first['msg']}")
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequestError(f"{field}: {message}" if field else message, field=field or None)
