"""What clients may ask for → llguidance's serialised grammar.

White space in JSON is bounded: between two tokens of it there may be a space, or a line end and an indentation of up
to 32 characters. JSON allows any run of it, and a model that falls into one never comes out.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from quire.errors import InvalidRequestError
from quire.gateway.structured.schema import parse_schema

GrammarKind = Literal["json", "json_object", "regex", "choice", "grammar"]

_WHITESPACE: Final = r"( |\n[ \t]{0,32})"
# A rule of GBNF; Lark has a single colon.
_GBNF_RULE: Final = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def to_grammar(kind: GrammarKind, text: str, *, compact: bool) -> str:
    """The grammar, not yet compiled.

    Args:
        kind: a constraint of StructuredOutputs.
        text: of the constraint; a choice is a JSON list.
        compact: JSON without white space.

    Raises:
        InvalidRequestError: the text is not what it should be.
    """
    match kind:
        case "json":
            return json_schema_grammar(parse_schema(text), compact=compact)
        case "json_object":
            return json_schema_grammar({"type": "object"}, compact=compact)
        case "regex":
            return LLMatcher.grammar_from_regex(without_anchors(text))
        case "choice":
            return LLMatcher.grammar_from_lark(choice_grammar(json.loads(text)))
        case "grammar":
            return LLMatcher.grammar_from_lark(as_lark(text))


def json_options(*, compact: bool = False) -> dict[str, Any]:
    """How JSON is written, and that a keyword which cannot be enforced is an error.

    In Lark these are the value of the key `x-guidance` of a `%json` schema.
    """
    whitespace = {"whitespace_flexible": False} if compact else {"whitespace_pattern": _WHITESPACE}
    return {"whitespace_flexible": True, **whitespace, "lenient": False, "coerce_one_of": False}


def json_schema_grammar(schema: dict[str, Any], *, compact: bool) -> str:
    """Options that the schema itself brings (`x-guidance`) do not count: they could make it lenient."""
    plain = {key: value for key, value in schema.items() if key != "x-guidance"}
    return LLMatcher.grammar_from_json_schema(plain, overrides=json_options(compact=compact))  # type: ignore[arg-type]


def without_anchors(regex: str) -> str:
    """The whole output has to match, so a `^` at the start and a `$` at the end say nothing; llguidance takes none."""
    regex = regex.removeprefix("^")
    backslashes = len(regex) - 1 - len(regex[:-1].rstrip("\\"))
    return regex[:-1] if regex.endswith("$") and backslashes % 2 == 0 else regex


def choice_grammar(texts: list[str]) -> str:
    """Lark that matches these texts and no others."""
    return "start: " + " | ".join(map(lark_string, texts))


def lark_string(text: str) -> str:
    """A text as a literal of Lark, which reads JSON's escapes, but no DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def as_lark(grammar: str) -> str:
    """Lark as it is, GBNF (llama.cpp's notation) converted. Raises InvalidRequestError."""
    if not _GBNF_RULE.search(grammar):
        return grammar
    try:
        return gbnf_to_lark(grammar)
    except Exception as error:  # the converter is a small parser with errors of many kinds
        raise InvalidRequestError(f"the GBNF cannot be converted: {error}") from error
