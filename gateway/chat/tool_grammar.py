"""Grammars of turns that call tools, in llguidance's variant of Lark.

A turn is written exactly as the model's own chat template writes calls back, with each function's JSON Schema for its
arguments, so a grammar costs the model nothing that it has learned. A marker that is one token of the vocabulary is
named by its id: as text it could not be sampled (llguidance keeps special tokens out of texts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from quire.gateway.chat.prompt import ChatPrompt, Tool
from quire.gateway.chat.tool_parsers import CallSyntax
from quire.gateway.chat.tools import NO_PARAMETERS, callable_tools
from quire.structured_outputs import StructuredOutputs

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
# As json.dumps writes, and chat templates with it.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ToolGrammar:
    """Writes grammars of one family's calls."""

    def __init__(self, syntax: CallSyntax, markers: Mapping[str, int], free_markers: Sequence[int]) -> None:
        """`markers`: texts that are a token of their own, and its id; `free_markers`: such tokens in free text."""
        self._syntax = syntax
        self._markers = markers
        self._free_markers = free_markers
        self._split = re.compile("(" + "|".join(map(re.escape, markers)) + ")") if markers else None

    def enforced(self, prompt: ChatPrompt) -> str:
        """One call or several, and nothing else; of the named function, if one is named."""
        choice = prompt.tool_choice
        tools = [tool for tool in callable_tools(prompt) if choice.mode != "named" or tool.name == choice.name]
        several = prompt.parallel_tool_calls and choice.mode != "named"
        return "start: calls\n" + self._rules(self._syntax, tools, several=several, loose=False)

    def optional(self, prompt: ChatPrompt) -> str:
        """Any text, in which calls are well-formed, and the arguments of strict functions follow their schemas."""
        syntax, tools, several = self._syntax, callable_tools(prompt), prompt.parallel_tool_calls
        trigger = syntax.trigger
        if trigger is None:
            # A call is the whole turn; a text that begins like one would be taken for one.
            calls = self._rules(syntax, tools, several=several, loose=True)
            return "start: calls | FREE?\nFREE: /[^{\\s](?s:.*)/\n" + calls
        # A lexeme is as long as it can be, so text up to a marker in letters has to be a lazy one with it. Where the
        # marker is a token, it may still be spelled out in several, and would then be taken for a call too.
        pattern = re.escape(trigger)
        is_token = trigger in self._markers
        lead = f"lead: FREE? {self._text(trigger)}" if is_token else f"lead[lazy]: /(?s:.*){pattern}/"
        free = f"FREE: /(?s:.*)/ & ~/(?s:.*){pattern}(?s:.*)/"
        markers = " | ".join(f"<[{token_id}]>" for token_id in self._free_markers)
        marked = f"FREE? ({markers})" if markers else ""
        if several:
            start = f"(lead calls{' | ' + marked if marked else ''})* FREE?"
        else:
            start = f"{'(' + marked + ')* ' if marked else ''}(lead calls | FREE?)"
        headless = replace(
            syntax,
            before_all=syntax.before_all.removeprefix(trigger),
            before_name=syntax.before_name.removeprefix(trigger),
            # Each other call has a lead of its own.
            takes_several=syntax.before_all != "",
        )
        return f"start: {start}\n{lead}\n{free}\n" + self._rules(headless, tools, several=several, loose=True)

    def or_answer(self, prompt: ChatPrompt, answer: StructuredOutputs) -> str:
        """Calls, or JSON that answers (`json` or `json_object`). For calls with a trigger: others are JSON too."""
        text = answer.json_text
        schema = _ANY_OBJECT if text is None else json.loads(text)
        calls = self._rules(self._syntax, callable_tools(prompt), several=prompt.parallel_tool_calls, loose=True)
        return f"start: calls | answer\nanswer: {_json(schema)}\n" + calls

    def _rules(self, syntax: CallSyntax, tools: Sequence[Tool], *, several: bool, loose: bool) -> str:
        """The rules of `calls`. If `loose`, only strict functions' arguments are bound to their schemas."""
        between = [self._text(syntax.between_calls)] if syntax.between_calls else []
        more = ["(", *between, "call", ")*"] if several and syntax.takes_several else []
        calls = [self._text(syntax.before_all), "call", *more, self._text(syntax.after_all)]
        lines = [
            "calls: " + " ".join(filter(None, calls)),
            "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
        ]
        for index, tool in enumerate(tools):
            begin = self._text(f"{syntax.before_name}{tool.name}{syntax.before_arguments}")
            schema = _ANY_OBJECT if loose and not tool.strict else tool.parameters or NO_PARAMETERS
            lines.append(f"call_{index}: {begin} arguments_{index} {self._text(syntax.after_arguments)}")
            lines.append(f"arguments_{index}: {_json(schema)}")
        return "\n".join(lines) + "\n"

    def _text(self, text: str) -> str:
        """A text as terminals; nothing for no text."""
        parts = [text] if self._split is None else self._split.split(text)
        return " ".join(
            f"<[{self._markers[part]}]>" if part in self._markers else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )


def _json(schema: Any) -> str:
    spaced = {**schema, "x-guidance": _SPACING} if isinstance(schema, Mapping) else schema
    return f"%json {json.dumps(spaced)}"
