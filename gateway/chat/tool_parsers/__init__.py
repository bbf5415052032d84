"""How families of models write calls of tools: a parser for each, and what a grammar of its calls is made of."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass

from quire.gateway.chat.tool_parsers import hermes, llama3_json, mistral
from quire.gateway.chat.tool_parsers.base import ToolParser


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """What a family's models put around names and arguments, as their chat templates write it."""

    before_name: str
    before_arguments: str
    after_arguments: str
    between_calls: str = ""
    before_all: str = ""
    after_all: str = ""
    # What only a call begins with, in the middle of a text; None where calls are a whole turn.
    trigger: str | None = None
    # Whether a turn may have several calls.
    takes_several: bool = True


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One family."""

    # As vLLM's --tool-call-parser calls it.
    name: str
    parser: Callable[[Callable[[], str]], ToolParser]
    syntax: CallSyntax
    # What stands in the text and may be special tokens of the tokenizer.
    markers: tuple[str, ...]
    new_id: Callable[[], str]

    def new_parser(self) -> ToolParser:
        """For one turn."""
        return self.parser(self.new_id)


def new_call_id() -> str:
    """As OpenAI's look."""
    return "call_" + secrets.token_hex(12)


def _new_mistral_id() -> str:
    """Mistral's templates refuse others."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


HERMES = ToolFormat(
    "hermes",
    hermes.HermesParser,
    CallSyntax(
        before_name=hermes.BEGIN + '\n{"name": "',
        before_arguments='", "arguments": ',
        after_arguments="}\n" + hermes.END,
        between_calls="\n",
        trigger=hermes.BEGIN,
    ),
    (hermes.BEGIN, hermes.END),
    new_call_id,
)
LLAMA3_JSON = ToolFormat(
    "llama3_json",
    llama3_json.Llama3JsonParser,
    # Llama's templates refuse a turn with several calls when it is sent back.
    CallSyntax('{"name": "', '", "parameters": ', "}", takes_several=False),
    (llama3_json.PYTHON_TAG,),
    new_call_id,
)
_MISTRAL_MARKERS = (mistral.CALLS, mistral.ARGUMENTS, mistral.CALL_ID)
MISTRAL = ToolFormat(
    "mistral",
    mistral.MistralParser,
    CallSyntax(mistral.CALLS, mistral.ARGUMENTS, "", trigger=mistral.CALLS),
    _MISTRAL_MARKERS,
    _new_mistral_id,
)
MISTRAL_LIST = ToolFormat(
    "mistral",
    mistral.MistralParser,
    CallSyntax(
        before_name='{"name": "',
        before_arguments='", "arguments": ',
        after_arguments="}",
        between_calls=", ",
        before_all=mistral.CALLS + "[",
        after_all="]",
        trigger=mistral.CALLS,
    ),
    _MISTRAL_MARKERS,
    _new_mistral_id,
)

TOOL_PARSER_NAMES = ("hermes", "llama3_json", "mistral")


def find_tool_format(name: str, template: str) -> ToolFormat | None:
    """The format of a name, or for "auto" the one that the chat template is written for; None if there is none."""
    if name == "none" or (name == "auto" and "tools" not in template):
        return None
    if name == "mistral" or (name == "auto" and mistral.CALLS in template):
        return MISTRAL if mistral.ARGUMENTS in template else MISTRAL_LIST
    # Qwen3-Coder has the same marker around XML.
    if name == "hermes" or (name == "auto" and hermes.BEGIN in template and "<function=" not in template):
        return HERMES
    if name == "llama3_json" or (name == "auto" and "<|start_header_id|>" in template and '"parameters"' in template):
        return LLAMA3_JSON
    return None
