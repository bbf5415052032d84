"""/v1/chat/completions: what a request may hold."""

from __future__ import annotations

from typing import Any, Literal

from quire.errors import InvalidRequestError
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.openai.chat_messages import ChatMessage
from quire.gateway.openai.chat_tools import NamedToolChoice, ToolChoiceOption, ToolDefinition, to_tool_choice
from quire.gateway.openai.protocol import OpenAIRequest
from quire.sampling_params import SamplingParams

# Variables of a template that other fields set, or nobody may.
_RESERVED_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"})


class ChatCompletionRequest(OpenAIRequest):
    """The body of POST /v1/chat/completions."""

    # The conversation, which the model's chat template turns into a prompt.
    messages: list[ChatMessage]
    # Whether logprobs come with the answer. Default false.
    logprobs: bool | None = None
    # Number of most likely tokens reported beside each token; needs logprobs. Default 0.
    top_logprobs: int | None = None
    # Functions that the model may call.
    tools: list[ToolDefinition] | None = None
    # none, auto, required (at least one call) or a named function. Default: auto where there are tools.
    tool_choice: ToolChoiceOption | None = None
    # Whether several calls in one turn are allowed. Default true.
    parallel_tool_calls: bool | None = None
    # For the template: none turns thinking off.
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    # Whether the answer shows what the model thought. Default true. (This and what follows are named as in vLLM.)
    include_reasoning: bool | None = None
    # Whether the template opens the assistant's turn. Default true.
    add_generation_prompt: bool | None = None
    # Whether the answer continues the last message instead of opening a turn. Default false.
    continue_final_message: bool | None = None
    # A template instead of the model's own; needs --trust-request-chat-template.
    chat_template: str | None = None
    # Further variables for the template.
    chat_template_kwargs: dict[str, Any] | None = None
    # Documents for a template that takes them.
    documents: list[dict[str, Any]] | None = None

    @property
    def has_named_choice(self) -> bool:
        """Whether the client named the function to call."""
        return isinstance(self.tool_choice, NamedToolChoice)

    def prompt(self) -> ChatPrompt:
        """The chat, for the model's chat template. Raises InvalidRequestError."""
        messages = [message.to_template(f"messages[{index}]") for index, message in enumerate(self.messages)]
        if self.tool_choice not in (None, "none") and not self.tools:
            raise InvalidRequestError("tool_choice is only allowed where there are tools", field="tool_choice")
        continues = self.continue_final_message is True
        if continues and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt cannot both be true"
            raise InvalidRequestError(message, field="continue_final_message")
        return ChatPrompt(
            messages,
            add_generation_prompt=self.add_generation_prompt is not False and not continues,
            continue_final_message=continues,
            tools=[tool.to_tool() for tool in self.tools or ()],
            tool_choice=to_tool_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            template_kwargs=self._template_kwargs(),
        )

    def _template_kwargs(self) -> dict[str, Any]:
        own = self.chat_template_kwargs or {}
        if reserved := sorted(_RESERVED_VARIABLES & own.keys()):
            field = f"chat_template_kwargs.{reserved[0]}"
            raise InvalidRequestError(f"{field} is not the template's to take", field=field)
        given: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            # Templates know the one or the other.
            given["reasoning_effort"] = self.reasoning_effort
            given["enable_thinking"] = self.reasoning_effort != "none"
        if self.chat_template is not None:
            given["chat_template"] = self.chat_template
        if self.documents is not None:
            given["documents"] = self.documents
        return given | own

    def sampling_params(self) -> SamplingParams:
        """Raises InvalidRequestError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError("top_logprobs requires logprobs to be true", field="top_logprobs")
        return self._sampling_params((self.top_logprobs or 0) if self.logprobs else None)

    def _names(self) -> dict[str, str]:
        return {**super()._names(), "logprobs": "top_logprobs"}
