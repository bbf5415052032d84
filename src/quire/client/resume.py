"""What a caller has seen already, so that a repeated call yields nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec import structs

from quire.client.responses import completion_delta, generation_delta
from quire.outputs import CompletionDelta, GenerationDelta, ToolCallDelta
from quire.v1 import generate_pb2

S = TypeVar("S", bound=Sequence[Any])

# (continuation, what of it): its text, its tokens, …; of a call, its number.
_Part = tuple[int, str | int]


@dataclass(slots=True)
class Progress:
    """How much of each continuation has been yielded, over all attempts."""

    lengths: dict[_Part, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    has_prompt: bool = False


class Resume:
    """Drops from an attempt what earlier attempts have yielded; a repeat may cut the same output elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._to_skip = dict(progress.lengths)

    def new_delta(self, response: generate_pb2.GenerateResponse) -> GenerationDelta:
        """What nobody has seen yet."""
        parts = [part for message in response.deltas if (part := self._new_part(completion_delta(message))) is not None]
        is_new = not self._progress.has_prompt
        self._progress.has_prompt |= bool(response.prompt_token_ids)
        return generation_delta(parts, response, with_prompt=is_new)

    def _new_part(self, part: CompletionDelta) -> CompletionDelta | None:
        index, finished = part.index, self._progress.finished
        if index in finished:
            return None
        tokens = len(part.token_ids)
        token_ids = self._rest((index, "tokens"), part.token_ids)
        part = structs.replace(
            part,
            text=self._rest((index, "text"), part.text),
            reasoning_content=self._rest((index, "reasoning"), part.reasoning_content),
            tool_calls=[call for given in part.tool_calls if (call := self._new_call(index, given)) is not None],
            token_ids=token_ids,
            logprobs=part.logprobs and part.logprobs[tokens - len(token_ids) :],
        )
        if part.finish_reason is not None:
            finished.add(index)
        is_new = part.text or part.token_ids or part.reasoning_content or part.tool_calls or part.finish_reason
        return part if is_new else None

    def _new_call(self, index: int, call: ToolCallDelta) -> ToolCallDelta | None:
        part = (index, call.index)
        is_known = part in self._progress.lengths
        arguments = self._rest(part, call.arguments)
        if not is_known:
            return call
        return ToolCallDelta(call.index, arguments) if arguments else None

    def _rest(self, part: _Part, given: S) -> S:
        """What of a text or a list has not been yielded."""
        skipped = min(self._to_skip.get(part, 0), len(given))
        self._to_skip[part] = self._to_skip.get(part, 0) - skipped
        lengths = self._progress.lengths
        lengths[part] = lengths.get(part, 0) + len(given) - skipped
        rest: Any = given[skipped:]
        return rest  # type: ignore[no-any-return]
