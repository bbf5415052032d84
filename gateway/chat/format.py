"""How the served model writes chats: what its turns hold besides text, and what a chat needs for that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from quire.config import ChatOptions
from quire.errors import InvalidRequestError
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.chat.reasoning import ReasoningFormat, find_reasoning_format
from quire.gateway.chat.tool_grammar import ToolGrammar
from quire.gateway.chat.tool_parsers import ToolFormat, find_tool_format
from quire.gateway.chat.tools import callable_tools, check_tools
from quire.gateway.chat.turn import TurnParser
from quire.gateway.tokenizer import ModelTokenizer
from quire.sampling_params import SamplingParams
from quire.structured_outputs import StructuredOutputs


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """A chat as it is validated and submitted, and how its turns are read."""

    prompt: ChatPrompt
    params: SamplingParams
    # None where turns hold none.
    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    # Places in `prompt.tools` of those whose calls a grammar binds to their schemas.
    bound_tools: Sequence[int]
    # What the client asked for beside tools, and the grammar has an alternative for.
    answer: StructuredOutputs | None
    # Special tokens that the parsers must see.
    shown_token_ids: frozenset[int]

    def new_parser(self, rendered: str) -> TurnParser:
        """For a turn after this prompt."""
        reasoning = None
        if self.reasoning is not None:
            continued = _final_text(self.prompt) if self.prompt.continue_final_message else None
            reasoning = self.reasoning.new_parser(rendered, continued=continued)
        return TurnParser(reasoning, None if self.tools is None else self.tools.new_parser())


class ChatFormat:
    """What is found in the chat template, or set by the operator."""

    def __init__(self, tokenizer: ModelTokenizer, options: ChatOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        template = tokenizer.chat_template_source
        self.tools = find_tool_format(options.tool_call_parser, template)
        self.reasoning = find_reasoning_format(options.reasoning_parser, template)

    def plan(self, prompt: ChatPrompt, params: SamplingParams) -> ChatPlan:
        """How to run a chat. Raises InvalidRequestError."""
        check_tools(prompt)
        self._check_reasoning(prompt)
        tools = self._callable(prompt)
        answer = params.structured_outputs
        grammar, is_bound = None, answer is not None
        if tools is not None:
            grammar, is_bound = self._constrain(tools, prompt, answer)
        if grammar is not None:
            params = replace(params, structured_outputs=StructuredOutputs(grammar=grammar))
        reasoning = self.reasoning
        if reasoning is not None and is_bound:
            # The turn is one thing from its first token to its last, so there is no room for a thought.
            prompt = replace(prompt, template_kwargs={"enable_thinking": False, **prompt.template_kwargs})
            reasoning = None
        shown = self._tokenizer.vocabulary.special_token_ids.intersection(self._markers(tools, reasoning).values())
        bound = [] if grammar is None else list(_bound_tools(prompt))
        return ChatPlan(prompt, params, tools, reasoning, bound, answer, shown)

    def _callable(self, prompt: ChatPrompt) -> ToolFormat | None:
        """How the model calls the chat's tools; None if it may not or need not."""
        if not callable_tools(prompt):
            return None
        if self.tools is None:
            message = "this model has no way to call tools that the server knows (see --tool-call-parser)"
            raise InvalidRequestError(message, field="tools")
        if prompt.tool_choice.mode == "auto" and not self._options.enable_auto_tool_choice:
            message = 'the server was started with --no-enable-auto-tool-choice; tool_choice cannot be "auto"'
            raise InvalidRequestError(message, field="tool_choice")
        return self.tools

    def _constrain(
        self, tools: ToolFormat, prompt: ChatPrompt, answer: StructuredOutputs | None
    ) -> tuple[str | None, bool]:
        """The grammar that calls need, and whether it leaves no free text."""
        is_enforced = prompt.tool_choice.mode != "auto"
        is_strict = any(tool.strict for tool in prompt.tools)
        if not (is_enforced or is_strict or answer) and prompt.parallel_tool_calls:
            return None, False
        thoughts = () if self.reasoning is None else self.reasoning.markers
        markers = self._markers(tools, self.reasoning)
        grammar = ToolGrammar(tools.syntax, markers, [markers[text] for text in thoughts if text in markers])
        if answer is None:
            return (grammar.enforced(prompt), True) if is_enforced else (grammar.optional(prompt), False)
        if is_enforced:
            message = "a turn that must call a tool cannot have structured output as well (response_format)"
            raise InvalidRequestError(message, field="tool_choice")
        if answer.json is None and not answer.json_object:
            message = "tools can be combined with structured output in JSON only"
            raise InvalidRequestError(message, field="structured_outputs")
        return grammar.or_answer(prompt, answer), True

    def _markers(self, tools: ToolFormat | None, reasoning: ReasoningFormat | None) -> dict[str, int]:
        """The parsers' markers that are single tokens, and their ids."""
        texts: Sequence[str] = [
            *(() if tools is None else tools.markers),
            *(() if reasoning is None else reasoning.markers),
        ]
        ids = {text: self._tokenizer.vocabulary.id_of(text) for text in texts}
        return {text: token_id for text, token_id in ids.items() if token_id is not None}

    def _check_reasoning(self, prompt: ChatPrompt) -> None:
        effort = prompt.template_kwargs.get("reasoning_effort")
        if effort not in (None, "none") and self.reasoning is None:
            message = "this model does not reason, so reasoning_effort can only be none"
            raise InvalidRequestError(message, field="reasoning_effort")


def _bound_tools(prompt: ChatPrompt) -> Iterator[int]:
    choice = prompt.tool_choice
    for index, tool in enumerate(prompt.tools):
        if choice.mode == "required" or (tool.name == choice.name if choice.mode == "named" else tool.strict):
            yield index


def _final_text(prompt: ChatPrompt) -> str:
    """The text of the message that a turn continues."""
    content = prompt.messages[-1].get("content") or ""
    if isinstance(content, str):
        return content
    text: str = content[-1]["text"]
    return text
