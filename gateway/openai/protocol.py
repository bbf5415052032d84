"""What all OpenAI-shape requests share. Types are checked here, ranges in SamplingParams, limits in validation.

A field is either implemented, or without influence on the output and ignored, or known but not implemented, and
then refused unless its value asks for nothing; anything else is unknown and refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, WithJsonSchema
from pydantic.json_schema import models_json_schema

from quire.errors import InvalidRequestError
from quire.sampling_params import SamplingParams

M = TypeVar("M", bound=BaseModel)

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
TEXTS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "string"}}

Stop = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, TEXTS_SCHEMA, {"type": "null"}]})]


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
            logit_bias=biases_by_token(self.logit_bias),
            logprobs=logprobs,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
        )


def parse_request(kind: type[M], body: bytes) -> M:
    """A request from its JSON. Raises InvalidRequestError naming the field at fault."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None
    check_extra(request.model_extra or {}, _NOT_IMPLEMENTED, prefix="")
    return request


_SCHEMA_PREFIX = "#/components/schemas/"


def request_body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a route's body; `body_schemas` holds what it refers to."""
    schema = {"$ref": _SCHEMA_PREFIX + kind.__name__}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def body_schemas(kinds: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The JSON schemas of bodies, by name."""
    modes: list[tuple[type[BaseModel], Literal["validation"]]] = [(kind, "validation") for kind in kinds]
    _, definitions = models_json_schema(modes, ref_template=_SCHEMA_PREFIX + "{model}")
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def check_extra(extra: Mapping[str, object], known: Mapping[str, Sequence[object]], prefix: str) -> None:
    """Raises InvalidRequestError for fields that are unknown, or not implemented with a value that matters."""
    for name, value in extra.items():
        if name not in known and name not in _IGNORED:
            raise InvalidRequestError(f"Unrecognized request argument: {prefix}{name}", field=prefix + name)
        if name in _IGNORED or value is None:
            continue
        if not any(type(value) is type(neutral) and value == neutral for neutral in known[name]):
            raise InvalidRequestError(f"{prefix}{name} is not supported by this server", field=prefix + name)


def biases_by_token(biases: dict[str, float] | None) -> dict[int, float] | None:
    """`logit_bias` with its keys as token ids. Raises InvalidRequestError for a key that is none."""
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
    field = "".join(map(_step, first["loc"])).lstrip(".")
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(f"Unrecognized request argument: {field}", field=field)
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequestError(f"{field}: {message}" if field else message, field=field or None)


def _step(part: int | str) -> str:
    """A step on the way to a field. Pydantic's tags of unions (`<…>`) are none of the client's."""
    if isinstance(part, int):
        return f"[{part}]"
    return "" if part.startswith("<") else f".{part}"
