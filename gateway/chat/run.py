"""One running chat: a generation whose text is taken apart as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from quire.errors import InvalidRequestError
from quire.gateway.chat.deltas import ChatDelta
from quire.gateway.chat.format import ChatPlan
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.chat.turn import TurnParser
from quire.gateway.engine import Engine
from quire.gateway.generation import Generation
from quire.gateway.structured.compiler import ConstraintTooLongError
from quire.gateway.validation import RequestContext, ValidRequest
from quire.internal.v1 import scheduler_pb2
from quire.outputs import TokenLogprobs, Usage
from quire.sampling_params import SamplingParams
from quire.structured_outputs import StructuredOutputs

# Tokens at the end of a prompt that tell whether it opens a thought.
_TAIL = 16


class ChatRun:
    """The n choices of one chat. Whoever leaves it early must `close` it, which aborts it."""

    def __init__(self, generation: Generation, parsers: Sequence[TurnParser]) -> None:
        """Use `submit`."""
        self._generation = generation
        self._parsers = parsers
        # Its only one, once it has ended.
        self.usages: list[Usage] = []
        # The same, if asked for, from its first batch on.
        self.prompt_logprobs: dict[int, Sequence[TokenLogprobs | None]] = {}

    @classmethod
    async def submit(
        cls,
        engine: Engine,
        prompt: ChatPrompt,
        params: SamplingParams,
        context: RequestContext,
        *,
        field: str = "messages",
    ) -> ChatRun:
        """Validates a chat and queues it; `field` is what the client calls its messages. Raises QuireError."""
        plan = engine.chat_format.plan(prompt, params)
        try:
            valid = await engine.validator.validate(plan.prompt, plan.params, context, field=field)
        except ConstraintTooLongError as error:
            if not plan.bound_tools:
                raise
            raise InvalidRequestError("the schemas of the tools are too long together", field="tools") from error
        except InvalidRequestError as error:
            if error.field == "structured_outputs.grammar":
                await _find_fault(engine, plan)
            raise
        # Without its text where the prompt was cut.
        rendered = valid.prompt or await engine.tokenizer.decode(valid.prompt_token_ids[-_TAIL:])
        generation = await engine.submit(replace(valid, shown_token_ids=plan.shown_token_ids))
        return cls(generation, [plan.new_parser(rendered) for _ in range(valid.n)])

    @property
    def requests(self) -> Sequence[ValidRequest]:
        """Its only one."""
        return [self._generation.request]

    @property
    def num_choices(self) -> int:
        return self._generation.request.n

    async def batches(self) -> AsyncGenerator[Sequence[tuple[int, ChatDelta]], None]:
        """(choice, what is new in it), as it comes, for all choices that a step touched.

        The first delta of a choice is empty: it opens the turn. Raises the QuireError that ends the run.
        """
        unopened = set(range(self.num_choices))
        reasoning_tokens = 0
        no_logprobs = None if self._generation.request.params.logprobs is None else ()
        async for delta in self._generation:
            if delta.prompt_logprobs is not None:
                self.prompt_logprobs[0] = delta.prompt_logprobs
            batch: list[tuple[int, ChatDelta]] = []
            for part in delta.deltas:
                added = self._parsers[part.index].advance(part)
                batch += [(part.index, new) for new in added]
                if added[0].reasoning_content and not added[0].content:
                    reasoning_tokens += len(part.token_ids)
            if delta.usage is not None:
                self.usages.append(replace(delta.usage, reasoning_tokens=reasoning_tokens))
            if unopened:
                opened = {index for index, _ in batch} & unopened
                unopened.difference_update(opened)
                yield [*((index, ChatDelta(index, logprobs=no_logprobs)) for index in sorted(opened)), *batch]
            else:
                yield batch

    def close(self, reason: scheduler_pb2.AbortReason.ValueType = scheduler_pb2.ABORT_REASON_CLIENT_CANCELLED) -> None:
        """Aborts what still runs."""
        self._generation.close(reason)


async def _find_fault(engine: Engine, plan: ChatPlan) -> None:
    """Raises InvalidRequestError naming the schema because of which the grammar of all was refused, if it is one."""
    if plan.answer is not None:
        await engine.validator.compile_grammar(plan.answer)
    for index in plan.bound_tools:
        schema = StructuredOutputs(json=plan.prompt.tools[index].parameters)
        try:
            await engine.validator.compile_grammar(schema)
        except InvalidRequestError as error:
            field = f"tools[{index}].function.parameters"
            message = error.message.replace("structured_outputs.json", field)
            raise InvalidRequestError(message, field=field) from error
