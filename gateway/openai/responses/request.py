"""The body of POST /v1/responses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field

from quire.errors import InvalidRequestError
from quire.gateway.chat.prompt import ChatPrompt, ToolChoice
from quire.gateway.openai.protocol import CacheSalt, Integer, Priority, RequestId, Stop, biases_by_token
from quire.gateway.openai.responses.items import Input, to_messages
from quire.gateway.openai.responses.options import (
    FunctionTool,
    NamedFunction,
    Options,
    ReasoningConfig,
    TextConfig,
    ToolChoiceOption,
)
from quire.gateway.origin import Origin
from quire.gateway.request_fields import Only, renamed_fields
from quire.gateway.tenants import Tenant
from quire.gateway.validation import RequestContext
from quire.sampling_params import SamplingParams

LOGPROBS = "message.output_text.logprobs"
# The others name parts of items that this server never makes; and its reasoning is never encrypted.
Includable = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]

# What the client calls fields of SamplingParams and ChatPrompt.
_NAMES = {
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "messages": "input",
    r"structured_outputs(\.json)?": "text.format",
    r"(tools\[\d+\])\.function": r"\1",
    "reasoning_effort": "reasoning.effort",
}
_NOTHING_KEPT = "names a response, but this server keeps none: send the whole conversation in `input`"


class ResponseStreamOptions(Options):
    """Options of a streamed answer."""

    # Random padding against traffic analysis; nothing here to switch off.
    include_obfuscation: bool | None = None


_MetadataText = Annotated[str, Field(max_length=512)]


class ResponsesRequest(Options):
    """What a response is made from; the extensions to OpenAI's fields are vLLM's."""

    model: str | None = None
    input: Input
    instructions: str | None = None
    max_output_tokens: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoiceOption | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[Includable] | None = None
    top_logprobs: Integer | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None

    # Extensions.
    top_k: Integer | None = None
    min_p: float | None = None
    min_tokens: Integer | None = None
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
    bad_words: list[str] | None = None
    allowed_token_ids: list[Integer] | None = None
    request_id: RequestId | None = None
    priority: Priority | None = None
    cache_salt: CacheSalt | None = None

    # Without influence on the output; some come back in the answer.
    max_tool_calls: Integer | None = None  # of built-in tools, of which there are none
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], _MetadataText], Field(max_length=16)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    store: bool | None = None  # answered with false
    user: str | None = None

    access_programs: Annotated[Any, Only()] = None
    background: Annotated[Any, Only(False)] = None
    context_management: Annotated[Any, Only([])] = None
    conversation: Annotated[Any, Only(reason=_NOTHING_KEPT.replace("response", "conversation"))] = None
    image: Annotated[Any, Only()] = None
    moderation: Annotated[Any, Only()] = None
    previous_response_id: Annotated[Any, Only(reason=_NOTHING_KEPT)] = None
    prompt: Annotated[Any, Only()] = None

    @contextmanager
    def in_its_words(self) -> Iterator[None]:
        """Makes errors inside the block name a field as this request does."""
        with renamed_fields(_NAMES):
            yield

    def chat(self) -> ChatPrompt:
        """Input, instructions and tools, for the model's chat template. Raises InvalidRequestError."""
        return ChatPrompt(
            to_messages(self.instructions, self.input),
            tools=[tool.to_tool() for tool in self.tools or ()],
            tool_choice=self._tool_choice(),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            template_kwargs={} if self.reasoning is None else self.reasoning.template_kwargs(),
        )

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        wants_logprobs = LOGPROBS in (self.include or ())
        if self.top_logprobs and not wants_logprobs:
            raise InvalidRequestError(f"top_logprobs requires include to hold {LOGPROBS}", field="top_logprobs")
        return SamplingParams(
            n=1,
            max_tokens=self.max_output_tokens,
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
            logprobs=(self.top_logprobs or 0) if wants_logprobs else None,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            include_stop_str_in_output=self.include_stop_str_in_output,
            bad_words=self.bad_words,
            allowed_token_ids=self.allowed_token_ids,
            structured_outputs=None if self.text is None else self.text.structured_outputs(),
        )

    def context(self, request_id: str, tenant: Tenant, origin: Origin) -> RequestContext:
        """What goes with it."""
        return RequestContext(request_id, tenant, self.priority or 0, self.cache_salt or "", origin=origin)

    def _tool_choice(self) -> ToolChoice:
        if isinstance(self.tool_choice, NamedFunction):
            return ToolChoice("named", self.tool_choice.name)
        return ToolChoice(self.tool_choice or "auto")
