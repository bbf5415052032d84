"""What all OpenAI-shape requests share. Types are checked here, ranges in SamplingParams, limits in validation.

Fields that are implemented are fields of the classes; `fields` has all others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from quire.errors import InvalidRequestError
from quire.gateway.openai.fields import NOT_IMPLEMENTED, check_extra, describe_fields
from quire.gateway.openai.structured import StructuredFields
from quire.gateway.origin import Origin
from quire.gateway.request_ids import REQUEST_ID_PATTERN
from quire.gateway.tenants import Tenant
from quire.gateway.validation import RequestContext
from quire.sampling_params import MAX_STOP_STRINGS, SamplingParams

M = TypeVar("M", bound=BaseModel)

_MAX_TOKEN_ID_DIGITS = 10

TEXTS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_STOP_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOP_STRINGS},
        {"type": "null"},
    ]
}


def _integer(value: object) -> object:
    """JSON knows numbers only: 2.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_integer)]
RequestId = Annotated[str, Field(pattern=REQUEST_ID_PATTERN)]
Priority = Annotated[Integer, Field(ge=-(2**31), lt=2**31)]
CacheSalt = Annotated[str, Field(min_length=1, max_length=1024)]
EarlyStop = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "boolean"}, {"const": "never"}, {"type": "null"}]})]
Stop = Annotated[Any, WithJsonSchema(_STOP_SCHEMA)]


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    # Usage so far in every chunk, if include_usage too.
    continuous_usage_stats: bool | None = None
    # Random padding against traffic analysis; nothing here to switch off.
    include_obfuscation: bool | None = None


class OpenAIRequest(StructuredFields):
    """What both endpoints share; the extensions to OpenAI's fields are vLLM's."""

    # `extra` so that check_extra can tell unknown fields from those that are not implemented.
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=(), json_schema_extra=describe_fields)

    # One of the names that are served. Default: the first.
    model: str | None = None
    # Whether the answer comes in server-sent events. Default false.
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Integer | None = None
    best_of: Integer | None = None
    # Default: 16 for a completion, what is left of the context for a chat.
    max_tokens: Integer | None = None
    # The same by its newer name; it takes precedence.
    max_completion_tokens: Integer | None = None
    min_tokens: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    min_p: float | None = None
    seed: Integer | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: Stop = None
    stop_token_ids: list[Integer] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    # When a beam search ends. Default false.
    early_stopping: EarlyStop = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[Integer] | None = None
    truncate_prompt_tokens: Integer | None = None
    prompt_logprobs: Integer | None = None
    # Whether special tokens are added around the prompt. Default: true for a completion, false for a chat.
    add_special_tokens: bool | None = None
    # Whether the answer carries the ids of the prompt's and the output's tokens. Default false.
    return_token_ids: bool | None = None
    # Whether logprobs name tokens as `token_id:N` and not by their text. Default false.
    return_tokens_as_token_ids: bool | None = None
    # Takes the place of a new id; the header x-request-id takes precedence.
    request_id: RequestId | None = None
    # With --scheduling-policy priority, the lower number first. Default 0.
    priority: Priority | None = None
    # Prompts share KV blocks only under an equal salt.
    cache_salt: CacheSalt | None = None

    def model_post_init(self, context: Any, /) -> None:
        """Raises InvalidRequestError for fields that do not go together."""
        if self.stream_options is not None and not self.stream:
            message = "stream_options is only allowed where stream is true"
            raise InvalidRequestError(message, field="stream_options")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream says what was used so far."""
        return (
            self.include_usage and self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)
        )

    def context(self, request_id: str, tenant: Tenant, origin: Origin) -> RequestContext:
        """What the request carries besides its prompt and how tokens are chosen."""
        priority, salt = self.priority or 0, self.cache_salt or ""
        return RequestContext(request_id, tenant, priority, salt, self.add_special_tokens, origin=origin)

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
        names = {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
        return names | self._structured_names()

    def _max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def _sampling_params(self, logprobs: int | None) -> SamplingParams:
        if self.stream and self.use_beam_search:
            raise InvalidRequestError(
                "beam search cannot be streamed: its outputs are known at the end", field="stream"
            )
        if self.stream and self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError(
                "best_of must equal n in a stream: the best are known at the end", field="best_of"
            )
        return SamplingParams(
            n=self.n,
            max_tokens=self._max_tokens(),
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
            include_stop_str_in_output=self.include_stop_str_in_output,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            prompt_logprobs=self.prompt_logprobs,
            best_of=self.best_of,
            use_beam_search=self.use_beam_search,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            bad_words=self.bad_words,
            allowed_token_ids=self.allowed_token_ids,
            structured_outputs=self._structured_outputs(),
        )


def parse_request(kind: type[M], body: bytes) -> M:
    """A request from its JSON. Raises InvalidRequestError naming the field at fault."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None
    check_extra(request.model_extra or {}, NOT_IMPLEMENTED, prefix="")
    return request


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
    # A check of ours goes on where the field's name ends.
    colon = "" if message.startswith("is not supported") else ":"
    return InvalidRequestError(f"{field}{colon} {message}" if field else message, field=field or None)


def _step(part: int | str) -> str:
    """A step on the way to a field. Pydantic's tags of unions (`<…>`) are none of the client's."""
    if isinstance(part, int):
        return f"[{part}]"
    return "" if part.startswith("<") else f".{part}"
