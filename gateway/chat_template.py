"""A model's chat template: a Jinja program of the model's owner, which turns a chat into a prompt.

It sees what transformers' `apply_chat_template` shows to templates, since they are written for that: the messages,
the tools, documents, the special tokens, variables of the request, `raise_exception`, `strftime_now`, a `tojson` that
does not escape HTML, `break` and `continue`, and `{% generation %}` blocks. It runs in Jinja's sandbox, cannot change
what it is given, and is bounded in time and size (`template_limits.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.chat.tools import callable_tools, to_template
from quire.gateway.template_limits import BoundedEnvironment, TemplateTimeoutError, render, time_limit

# Marks where the final message ends, as in transformers; the space tells whether the template trims the message.
_END_OF_MESSAGE = "CONTINUE_FINAL_MESSAGE_TAG "
# Other names of `reasoning_content`: gpt-oss reads the one, vLLM and OpenRouter write the other.
_OTHER_REASONING_FIELDS = ("thinking", "reasoning")


# What a template may take; a thousand turns take a few milliseconds.
MAX_RENDER_S: Final = 3.0


class ChatTemplate:
    """One template, compiled."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises jinja2.TemplateError for a source that is not a template."""
        self._template = _environment().from_string(source)
        self._special_tokens = special_tokens
        # Templates that do not know the role drop such a message, or write a turn that the model has never seen.
        self._knows_developers = "developer" in source
        # By role: whether a message's content may be a list of parts.
        self._takes_parts: dict[str, bool] = {}

    def render(self, prompt: ChatPrompt, time_limit_s: float = MAX_RENDER_S) -> str:
        """The prompt. Raises whatever the program raises, and TemplateTimeoutError."""
        with time_limit(time_limit_s):
            return self._render_prompt(prompt)

    def _render_prompt(self, prompt: ChatPrompt) -> str:
        messages = [self._prepare(message) for message in prompt.messages]
        tools = [to_template(tool) for tool in callable_tools(prompt)] or None
        opens_turn = prompt.add_generation_prompt and not prompt.continue_final_message
        if not prompt.continue_final_message:
            return self._render(messages, tools, opens_turn, prompt.template_kwargs)
        final = _mark_end(messages)
        rendered = self._render(messages, tools, opens_turn, prompt.template_kwargs)
        end = rendered.rfind(_END_OF_MESSAGE.strip())
        if end < 0 or final.strip() not in rendered:
            raise jinja2.TemplateError("it leaves out some of the final message, which therefore cannot be continued")
        is_trimmed = not rendered.startswith(_END_OF_MESSAGE, end)
        return rendered[:end].rstrip() if is_trimmed else rendered[:end]

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        given = {"documents": None, **self._special_tokens, **variables}
        variables = {**given, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return render(self._template, variables)

    def _prepare(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as templates expect it."""
        prepared = dict(message)
        if prepared["role"] == "developer" and not self._knows_developers:
            prepared["role"] = "system"
        content = prepared.get("content")
        if content is None:
            # Most templates would take None for a text, or fail.
            prepared["content"] = ""
        elif isinstance(content, list) and not self._takes_parts_of(prepared["role"]):
            prepared["content"] = "\n".join(part["text"] for part in content)
        if (reasoning := prepared.get("reasoning_content")) is not None:
            prepared = {**dict.fromkeys(_OTHER_REASONING_FIELDS, reasoning), **prepared}
        return prepared

    def _takes_parts_of(self, role: str) -> bool:
        """Whether the template writes the same for a text part as for the text itself."""
        if role not in self._takes_parts:
            try:
                self._takes_parts[role] = self._probe(role, [{"type": "text", "text": "a"}]) == self._probe(role, "a")
            except TemplateTimeoutError:  # which says nothing of parts
                raise
            except Exception:  # a template may raise anything
                self._takes_parts[role] = False
        return self._takes_parts[role]

    def _probe(self, role: str, content: object) -> str:
        message: dict[str, Any] = {"role": role, "content": content}
        question: dict[str, Any] = {"role": "user", "content": "b"}
        messages = [message] if role == "user" else [message, question] if role == "system" else [question, message]
        return self._render(messages, None, False, {})


def _mark_end(messages: Sequence[dict[str, Any]]) -> str:
    """Appends the mark to the final message; returns its text."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = content + _END_OF_MESSAGE
        return content
    *others, last = content
    messages[-1]["content"] = [*others, {**last, "text": last["text"] + _END_OF_MESSAGE}]
    text: str = last["text"]
    return text


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own, as where the block is a macro's body.
        return nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, without names that reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace, dict=_make_dict
    )
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict` for templates: the class itself would open its attributes to them."""
    return dict(*args, **kwargs)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
