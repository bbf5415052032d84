"""Takes thoughts out of a turn: <think>…</think> before the answer."""

from __future__ import annotations

from dataclasses import dataclass

from quire.gateway.chat.tool_parsers.base import held_length


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a family of models marks its thoughts."""

    # As vLLM's --reasoning-parser calls it.
    name: str
    begin: str = "<think>"
    end: str = "</think>"
    # Whether a turn is a thought from its first token, even if neither prompt nor model opens it.
    always_thinks: bool = False

    @property
    def markers(self) -> tuple[str, str]:
        """What stands in the text and may be special tokens of the tokenizer."""
        return self.begin, self.end

    def new_parser(self, prompt: str, *, continued: str | None) -> ReasoningParser:
        """For one turn after this prompt; `continued` is the message that the turn continues, if it does."""
        opened = (prompt if continued is None else continued).rstrip()
        if continued is None:
            inside = opened.endswith(self.begin) or (self.always_thinks and not opened.endswith(self.end))
        else:
            inside = opened.rfind(self.begin) > opened.rfind(self.end)
        return ReasoningParser(self, inside=inside)


QWEN3 = ReasoningFormat("qwen3")
DEEPSEEK_R1 = ReasoningFormat("deepseek_r1", always_thinks=True)
MISTRAL = ReasoningFormat("mistral", "[THINK]", "[/THINK]")
_FORMATS = {known.name: known for known in (QWEN3, DEEPSEEK_R1, MISTRAL)}
REASONING_PARSER_NAMES = tuple(_FORMATS)


def find_reasoning_format(name: str, template: str) -> ReasoningFormat | None:
    """The format of a name, or for "auto" the one that the chat template knows; None if there is none.

    A template that opens the thought itself needs no format of its own: the prompt shows it.
    """
    if name != "auto":
        return _FORMATS.get(name)
    return next((known for known in (MISTRAL, QWEN3) if known.end in template), None)


class ReasoningParser:
    """Takes one turn's text in pieces and splits it into thought and answer.

    The result does not depend on how the text was cut. Only a marker at the very beginning opens a thought, so that a
    text may speak of markers. White space around a thought is dropped.
    """

    def __init__(self, form: ReasoningFormat, *, inside: bool) -> None:
        """`inside`: whether the text begins in a thought."""
        self._form = form
        self._pending = ""
        # Whether a thought may still begin; whether it has ended or never began.
        self._may_begin = True
        self._inside = inside
        self._is_trimming = inside

    def push(self, text: str) -> tuple[str, str]:
        """(thought, answer): what is certain now that `text` has come."""
        if not (self._may_begin or self._inside or self._is_trimming):
            return "", text
        self._pending += text
        if self._may_begin and not self._begin():
            return "", ""
        thought = self._think() if self._inside else ""
        return thought, "" if self._inside else self._answer()

    def finish(self) -> tuple[str, str]:
        """What was held back, when no more text comes."""
        held, self._pending = self._pending, ""
        if self._inside:
            return held.rstrip(), ""
        return "", "" if self._is_trimming else held

    def _begin(self) -> bool:
        """Whether it is known if the text begins with a thought; the marker is then taken off."""
        text = self._pending.lstrip()
        begin = self._form.begin
        if len(text) < len(begin) and begin.startswith(text):
            return False
        self._may_begin = False
        if text.startswith(begin):
            self._pending = text.removeprefix(begin)
            self._inside = self._is_trimming = True
        return True

    def _think(self) -> str:
        if self._is_trimming:
            self._pending = self._pending.lstrip()
            self._is_trimming = not self._pending
        thought, end, rest = self._pending.partition(self._form.end)
        if end:
            self._pending = rest
            self._inside, self._is_trimming = False, True
            return thought.rstrip()
        # White space may turn out to be the last.
        kept = len(thought[: len(thought) - held_length(thought, self._form.end)].rstrip())
        self._pending = thought[kept:]
        return thought[:kept]

    def _answer(self) -> str:
        if self._is_trimming:
            self._pending = self._pending.lstrip()
            self._is_trimming = not self._pending
        answer, self._pending = self._pending, ""
        return answer
