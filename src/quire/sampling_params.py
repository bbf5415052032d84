"""How tokens are chosen: `SamplingParams`, with vLLM's names and meanings.

Every field may be None, which means "the model's default": the value of the checkpoint's
generation_config.json, or where that is silent, `LIBRARY_DEFAULTS`. A SamplingParams that exists is in range;
`resolved()` gives one in which every field that generation reads is set.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from quire.errors import InvalidRequestError
from quire.structured_outputs import StructuredOutputs
from quire.v1 import generate_pb2

MAX_STOP_STRINGS = 16
MAX_BAD_WORDS = 64

_U32_MAX = 2**32 - 1
_U64_MAX = 2**64 - 1
# Nothing in the mathematics ends here, but nothing sensible lies beyond.
_MAX_REPETITION_PENALTY = 100.0
_MAX_LENGTH_PENALTY = 10.0


@dataclass(frozen=True, slots=True)
class _Range:
    """The values a field may take: numbers in [low, high], or (low, high] if `above_low`."""

    low: float
    high: float
    integer: bool = False
    above_low: bool = False

    def check(self, name: str, value: object) -> None:
        """Raises InvalidRequestError. NaN fails every comparison, so it is refused with the rest."""
        kinds = int if self.integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise InvalidRequestError(f"{name} must be {self}, not {value!r}", field=name)
        if not self.low <= value <= self.high or (self.above_low and _as_float32(value) <= self.low):
            raise InvalidRequestError(f"{name} must be {self}, not {value}", field=name)

    def json_schema(self) -> dict[str, float]:
        """The same in JSON Schema's words."""
        low = "exclusiveMinimum" if self.above_low else "minimum"
        return {low: self.low, "maximum": self.high}

    def __str__(self) -> str:
        if self.integer:
            return f"an integer in [{int(self.low)}, {int(self.high)}]"
        return f"a number in {'(' if self.above_low else '['}{self.low:g}, {self.high:g}]"


# The two ends of every number. How large n, max_tokens and logprobs may be is for the server to say.
_RANGES: dict[str, _Range] = {
    "n": _Range(1, _U32_MAX, integer=True),
    "max_tokens": _Range(1, _U32_MAX, integer=True),
    "min_tokens": _Range(0, _U32_MAX, integer=True),
    "temperature": _Range(0, 2),
    "top_k": _Range(-1, _U32_MAX, integer=True),
    "top_p": _Range(0, 1, above_low=True),
    "min_p": _Range(0, 1),
    "seed": _Range(-(2**63), _U64_MAX, integer=True),
    "presence_penalty": _Range(-2, 2),
    "frequency_penalty": _Range(-2, 2),
    "repetition_penalty": _Range(0, _MAX_REPETITION_PENALTY, above_low=True),
    "logprobs": _Range(0, _U32_MAX, integer=True),
    "best_of": _Range(1, _U32_MAX, integer=True),
    "length_penalty": _Range(-_MAX_LENGTH_PENALTY, _MAX_LENGTH_PENALTY),
    "truncate_prompt_tokens": _Range(-1, 2**31 - 1, integer=True),
    "prompt_logprobs": _Range(0, _U32_MAX, integer=True),
}
_BIAS_RANGE = _Range(-100, 100)
_TOKEN_ID_RANGE = _Range(0, _U32_MAX, integer=True)
_BOOLEANS = ("ignore_eos", "skip_special_tokens", "use_beam_search", "include_stop_str_in_output")
# Fields that protobuf holds as they are; the others are containers.
_SCALARS = (*_RANGES, *_BOOLEANS)

EarlyStopping = bool | Literal["never"]

_EARLY_STOPPING: dict[object, generate_pb2.EarlyStopping.ValueType] = {
    False: generate_pb2.EARLY_STOPPING_UNSPECIFIED,
    True: generate_pb2.EARLY_STOPPING_TRUE,
    "never": generate_pb2.EARLY_STOPPING_NEVER,
}
_EARLY_STOPPING_OF: dict[int, Any] = {number: value for value, number in _EARLY_STOPPING.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Raises InvalidRequestError, with `field`, for a wrong type or value.

    n: number of continuations of the prompt.
    max_tokens, min_tokens: bounds of each continuation, in tokens; no end-of-sequence token, stop token or
        stop string ends it before min_tokens.
    temperature: 0 is greedy. top_k: -1 or 0 keeps every token. top_p, min_p: nucleus and min-p sampling.
    seed: the same seed gives the same tokens; 64 bits, a negative one stands for its two's complement.
    presence_penalty, frequency_penalty: as in OpenAI's API. repetition_penalty: Keskar et al. 2019 (CTRL).
    logit_bias: added to the logits, by token id.
    logprobs: number of most likely tokens reported beside each sampled one; None for no logprobs.
    stop: up to 16 strings that end a continuation and are not part of it. stop_token_ids: likewise.
    ignore_eos: go on after an end-of-sequence token.
    skip_special_tokens: leave special tokens out of the text.
    best_of: generate so many continuations and give the n with the highest mean logprob.
    use_beam_search: search with best_of (or n) beams instead of sampling, as transformers does, and give the n
        best; length_penalty and early_stopping (True, False or "never") are its.
    bad_words: texts that are not generated. allowed_token_ids: if given, no others are sampled.
    include_stop_str_in_output: leave what stopped a continuation in its text.
    truncate_prompt_tokens: keep the last so many tokens of the prompt; -1 for as many as fit.
    prompt_logprobs: as logprobs, for the tokens of the prompt.
    structured_outputs: what the whole output must match.
    """

    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    best_of: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping | None = None
    bad_words: Sequence[str] | None = None
    allowed_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        for name, bounds in _RANGES.items():
            value = getattr(self, name)
            if value is not None:
                bounds.check(name, value)
        for name in _BOOLEANS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise InvalidRequestError(f"{name} must be true or false, not {value!r}", field=name)
        _check_logit_bias(self.logit_bias)
        _check_token_ids("stop_token_ids", self.stop_token_ids)
        _check_token_ids("allowed_token_ids", self.allowed_token_ids)
        _check_texts("stop", (self.stop,) if isinstance(self.stop, str) else self.stop, MAX_STOP_STRINGS)
        _check_texts("bad_words", self.bad_words, MAX_BAD_WORDS)
        self._check_early_stopping()
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequestError("allowed_token_ids must not be empty", field="allowed_token_ids")
        if self.best_of is not None and self.best_of < (self.n or 1):
            message = f"best_of must be at least n ({self.n or 1}), not {self.best_of}"
            raise InvalidRequestError(message, field="best_of")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be at most max_tokens ({self.max_tokens}), not {self.min_tokens}",
                field="min_tokens",
            )

    def _check_early_stopping(self) -> None:
        if not isinstance(self.early_stopping, bool | None) and self.early_stopping != "never":
            message = f'early_stopping must be true, false or "never", not {self.early_stopping!r}'
            raise InvalidRequestError(message, field="early_stopping")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` in its one form."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def resolved(self, defaults: SamplingParams, max_tokens: int) -> SamplingParams:
        """Fills what is absent, from `defaults` (the model's) and then from the library's.

        `max_tokens` is what is left of the context; a seed is drawn where none is given. What a request may do
        without stays None: logprobs, prompt_logprobs, allowed_token_ids, truncate_prompt_tokens and
        structured_outputs.
        """
        sources = (self, defaults, LIBRARY_DEFAULTS)
        values = {field.name: _first_given(field.name, sources) for field in _FIELDS}
        if values["max_tokens"] is None:
            values["max_tokens"] = max_tokens
        if values["seed"] is None:
            values["seed"] = secrets.randbits(63)
        if values["best_of"] is None:
            values["best_of"] = values["n"]
        values["top_k"] = max(values["top_k"], 0)
        values["stop"] = (values["stop"],) if isinstance(values["stop"], str) else tuple(values["stop"])
        return SamplingParams(**values)

    def to_proto(self) -> generate_pb2.SamplingParams:
        """The message; absent stays absent."""
        message = generate_pb2.SamplingParams(
            logit_bias=self.logit_bias,
            stop=self.stop_strings,
            stop_token_ids=self.stop_token_ids,
            bad_words=self.bad_words,
            allowed_token_ids=self.allowed_token_ids,
            structured_outputs=None if self.structured_outputs is None else self.structured_outputs.to_proto(),
        )
        if self.early_stopping is not None:
            message.early_stopping = _EARLY_STOPPING[self.early_stopping]
        for name in _SCALARS:
            value = getattr(self, name)
            if value is not None:
                setattr(message, name, _wire_value(name, value))
        return message

    @classmethod
    def from_proto(cls, message: generate_pb2.SamplingParams) -> Self:
        """The inverse of `to_proto`, in 32-bit floats. Raises InvalidRequestError for values out of range."""
        given = {descriptor.name for descriptor, _ in message.ListFields()}
        return cls(
            **{name: getattr(message, name) for name in _SCALARS if name in given},
            logit_bias=dict(message.logit_bias) or None,
            stop=tuple(message.stop) or None,
            stop_token_ids=tuple(message.stop_token_ids) or None,
            bad_words=tuple(message.bad_words) or None,
            allowed_token_ids=tuple(message.allowed_token_ids) or None,
            early_stopping=_early_stopping(message) if "early_stopping" in given else None,
            structured_outputs=(
                StructuredOutputs.from_proto(message.structured_outputs) if "structured_outputs" in given else None
            ),
        )


_FIELDS = fields(SamplingParams)


def number_schemas() -> dict[str, dict[str, float]]:
    """The ranges of all fields that are numbers, by name, in JSON Schema's words."""
    return {name: bounds.json_schema() for name, bounds in _RANGES.items()}


def generation_config_defaults(generation_config: Mapping[str, Any]) -> SamplingParams:
    """The model owner's defaults, from a parsed generation_config.json.

    Reads what vLLM's `--generation-config auto` reads. Raises InvalidRequestError for a value out of range.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return SamplingParams(**{name: generation_config.get(name) for name in names})


def _first_given(name: str, sources: Sequence[SamplingParams]) -> Any:
    """A field of the first that has it."""
    for source in sources:
        value = getattr(source, name)
        if value is not None:
            return value
    return None


def _as_float32(value: float) -> float:
    """The value as protobuf's `float` will carry it: a tiny positive number becomes 0."""
    narrowed: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return narrowed


def _wire_value(name: str, value: Any) -> Any:
    if name == "seed":
        return value & _U64_MAX
    if name == "top_k":
        return max(value, 0)
    return value


def _check_logit_bias(logit_bias: object) -> None:
    if logit_bias is None:
        return
    if not isinstance(logit_bias, Mapping):
        raise InvalidRequestError("logit_bias must map token ids to numbers", field="logit_bias")
    try:
        for token_id, bias in logit_bias.items():
            _TOKEN_ID_RANGE.check("a token id", token_id)
            _BIAS_RANGE.check(f"the bias of token {token_id}", bias)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"logit_bias: {error.message}", field="logit_bias") from None


def _check_token_ids(name: str, token_ids: object) -> None:
    if token_ids is None:
        return
    if isinstance(token_ids, str) or not isinstance(token_ids, Sequence):
        raise InvalidRequestError(f"{name} must be a list of token ids", field=name)
    try:
        for token_id in token_ids:
            _TOKEN_ID_RANGE.check("each token id", token_id)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name}: {error.message}", field=name) from None


def _check_texts(name: str, texts: object, most: int) -> None:
    if texts is None:
        return
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, str)):
        raise InvalidRequestError(f"{name} must be a string or a list of strings", field=name)
    if len(texts) > most:
        raise InvalidRequestError(f"{name} takes at most {most} strings, not {len(texts)}", field=name)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise InvalidRequestError(f"each string of {name} must be a string that is not empty", field=name)
        if not is_encodable(text):
            raise InvalidRequestError(f"a string of {name} is not valid Unicode", field=name)


def _early_stopping(message: generate_pb2.SamplingParams) -> Any:
    try:
        return _EARLY_STOPPING_OF[message.early_stopping]
    except KeyError:
        text = f"early_stopping has no value {message.early_stopping}"
        raise InvalidRequestError(text, field="early_stopping") from None


def is_encodable(text: str) -> bool:
    """Whether a string has no lone surrogates, which neither UTF-8 nor protobuf can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# What an absent field means where generation_config.json is silent too (vLLM's defaults, but for max_tokens).
LIBRARY_DEFAULTS = SamplingParams(
    n=1,
    min_tokens=0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    repetition_penalty=1.0,
    logit_bias={},
    stop=(),
    stop_token_ids=(),
    ignore_eos=False,
    skip_special_tokens=True,
    use_beam_search=False,
    length_penalty=1.0,
    early_stopping=False,
    bad_words=(),
    include_stop_str_in_output=False,
)
