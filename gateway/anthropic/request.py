"""The bodies of POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from quire.errors import InvalidRequestError
from quire.gateway.anthropic.blocks import Message, Texts, to_messages
from quire.gateway.chat.prompt import ChatPrompt, Tool, ToolChoice
from quire.gateway.openai.protocol import Integer
from quire.gateway.request_fields import Only, renamed_fields, tag_of
from quire.sampling_params import SamplingParams
from quire.structured_outputs import StructuredOutputs

# What the client calls fields of SamplingParams and ChatPrompt.
_NAMES = {
    "stop": "stop_sequences",
    r"structured_outputs(\.json)?": "output_config.format",
    r"(tools\[\d+\])\.function\.parameters": r"\1.input_schema",
    r"(tools\[\d+\])\.function": r"\1",
    "reasoning_effort": "output_config.effort",
}
_CHOICES = {"auto": ToolChoice("auto"), "any": ToolChoice("required"), "none": ToolChoice("none")}
# As published: with less, a budget makes no sense.
_LEAST_BUDGET = 1024


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class ClientTool(_Object):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Any = None
    allowed_callers: Annotated[Any, Only(["direct"])] = None
    defer_loading: Annotated[Any, Only(False)] = None
    eager_input_streaming: bool | None = None  # input is always streamed as it comes
    input_examples: Annotated[Any, Only([])] = None

    def to_tool(self) -> Tool:
        """For the chat template."""
        return Tool(self.name, self.description or "", self.input_schema, self.strict is True)


class AnyToolChoice(_Object):
    """Whether the model calls."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedTool(_Object):
    """The tool that must be called."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


ToolChoiceParam = Annotated[
    Annotated[AnyToolChoice, Tag("<auto>")]
    | Annotated[AnyToolChoice, Tag("<any>")]
    | Annotated[AnyToolChoice, Tag("<none>")]
    | Annotated[NamedTool, Tag("<tool>")],
    Discriminator(
        tag_of(),
        custom_error_type="tool_choice",
        custom_error_message="must be an object of type auto, any, tool or none",
    ),
]


class Thinking(_Object):
    """Whether the model thinks. How much is for the model to say: a budget is checked, and does not bind it."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Integer, Field(ge=_LEAST_BUDGET)] | None = None
    display: Annotated[Any, Only("summarized")] = None


class JsonFormat(_Object):
    """JSON of a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(_Object):
    """How the answer is written."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class MessageMetadata(_Object):
    """About the request."""

    user_id: str | None = None


class CountTokensRequest(_Object):
    """What makes a prompt."""

    model: str
    messages: list[Message]
    system: Texts | None = None
    tools: list[ClientTool] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    # Without influence on the output.
    cache_control: Any = None
    user_profile_id: str | None = None
    workspace_id: str | None = None

    context_management: Annotated[Any, Only()] = None
    mcp_servers: Annotated[Any, Only([])] = None
    speed: Annotated[Any, Only("standard")] = None

    @contextmanager
    def in_its_words(self) -> Iterator[None]:
        """Makes errors inside the block name a field as this request does."""
        with renamed_fields(_NAMES):
            yield

    def chat(self) -> ChatPrompt:
        """System prompt, messages and tools, for the model's chat template; an answer begun by the client goes on.

        Raises InvalidRequestError.
        """
        messages = to_messages(self.system, self.messages)
        continues = bool(messages) and messages[-1]["role"] == "assistant"
        if continues and "tool_calls" in messages[-1]:
            raise InvalidRequestError("messages: there are no tool_result blocks for the last calls", field="messages")
        return ChatPrompt(
            messages,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            tools=[tool.to_tool() for tool in self.tools or ()],
            tool_choice=self._tool_choice(),
            parallel_tool_calls=self.tool_choice is None or self.tool_choice.disable_parallel_tool_use is not True,
            template_kwargs=self._template_kwargs(),
        )

    def _tool_choice(self) -> ToolChoice:
        if isinstance(self.tool_choice, NamedTool):
            return ToolChoice("named", self.tool_choice.name)
        return _CHOICES["auto" if self.tool_choice is None else self.tool_choice.type]

    def _template_kwargs(self) -> dict[str, Any]:
        variables: dict[str, Any] = {}
        if self.thinking is not None:
            variables["enable_thinking"] = self.thinking.type != "disabled"
        if self.output_config is not None and self.output_config.effort is not None:
            variables["reasoning_effort"] = self.output_config.effort
        return variables


class MessagesRequest(CountTokensRequest):
    """What a message is made from."""

    max_tokens: Integer
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    stream: bool | None = None

    # Without influence on the output.
    metadata: MessageMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    container: Annotated[Any, Only()] = None
    diagnostics: Annotated[Any, Only()] = None
    inference_geo: Annotated[Any, Only()] = None

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        self._check_budget()
        output_format = None if self.output_config is None else self.output_config.format
        return SamplingParams(
            n=1,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
            structured_outputs=None if output_format is None else StructuredOutputs(json=output_format.schema_),
        )

    def _check_budget(self) -> None:
        if self.thinking is None or self.thinking.type != "enabled":
            return
        budget, field = self.thinking.budget_tokens, "thinking.budget_tokens"
        if budget is None:
            raise InvalidRequestError(f"{field}: is required where thinking is enabled", field=field)
        if budget >= self.max_tokens:
            raise InvalidRequestError(f"{field} must be less than max_tokens ({self.max_tokens})", field=field)
