"""Grammars of calls in each family's own format, and that what they allow is what the family's parser reads."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher, LLTokenizer
from support import chat_tokenizer
from tokenizers import Tokenizer

from quire.gateway.chat.prompt import ChatPrompt, Tool, ToolChoice
from quire.gateway.chat.tool_grammar import ToolGrammar
from quire.gateway.chat.tool_parsers import HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_LIST, ToolFormat
from quire.structured_outputs import StructuredOutputs

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [Tool("get", "", CITY, strict=True), Tool("now")]
FORMATS = [HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_LIST]
PARIS = '{"city": "Paris {[\\"é"}'
REQUIRED = ChatPrompt([], tools=TOOLS, tool_choice=ToolChoice("required"))
# Every byte is a token, and no marker is.
BYTES = LLTokenizer("byte")


def accepts(grammar: str, text: str) -> bool:
    """Whether the text is a whole turn."""
    matcher = LLMatcher(BYTES, grammar)
    assert not matcher.is_error(), matcher.get_error()
    token_ids = list(text.encode())
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def turn(form: ToolFormat, *calls: tuple[str, str]) -> str:
    syntax = form.syntax
    texts = [f"{syntax.before_name}{n}{syntax.before_arguments}{a}{syntax.after_arguments}" for n, a in calls]
    return syntax.before_all + syntax.between_calls.join(texts) + syntax.after_all


@pytest.mark.parametrize("form", FORMATS)
def test_calls_that_must_be(form: ToolFormat) -> None:
    grammar = ToolGrammar(form.syntax, {}, ()).enforced(REQUIRED)
    assert accepts(grammar, turn(form, ("get", PARIS)))
    assert accepts(grammar, turn(form, ("now", "{}")))
    assert accepts(grammar, turn(form, ("get", PARIS), ("now", "{}"))) == form.syntax.takes_several
    for wrong in ("", "Hello", turn(form, ("get", "{}")), turn(form, ("now", PARIS)), turn(form, ("nil", "{}"))):
        assert not accepts(grammar, wrong)


@pytest.mark.parametrize("form", FORMATS)
def test_the_named_call_alone(form: ToolFormat) -> None:
    prompt = ChatPrompt([], tools=TOOLS, tool_choice=ToolChoice("named", "get"))
    grammar = ToolGrammar(form.syntax, {}, ()).enforced(prompt)
    assert accepts(grammar, turn(form, ("get", PARIS)))
    assert not accepts(grammar, turn(form, ("now", "{}")))
    assert not accepts(grammar, turn(form, ("get", PARIS), ("get", PARIS)))


@pytest.mark.parametrize("form", FORMATS)
def test_calls_that_may_be(form: ToolFormat) -> None:
    grammar = ToolGrammar(form.syntax, {}, ()).optional(ChatPrompt([], tools=TOOLS))
    strict, loose = turn(form, ("get", PARIS)), turn(form, ("now", '{"any": [1]}'))
    for good in ("", "Hello, é < [x] {", strict, loose):
        assert accepts(grammar, good)
    for bad in (turn(form, ("get", '{"town": "Paris"}')), turn(form, ("nil", "{}"))):
        assert not accepts(grammar, bad)
        # Llama's calls are whole turns: there is none in the middle of a text.
        assert accepts(grammar, f"Hello {bad}") == (form is LLAMA3_JSON)
    assert accepts(grammar, f"Hello {strict} and {loose}{strict}.")


@pytest.mark.parametrize("form", FORMATS)
def test_one_call_that_may_be(form: ToolFormat) -> None:
    prompt = ChatPrompt([], tools=TOOLS, parallel_tool_calls=False)
    grammar = ToolGrammar(form.syntax, {}, ()).optional(prompt)
    call = turn(form, ("get", PARIS))
    for good in ("", "Hello", call, f"Hello {call}"):
        assert accepts(grammar, good)
    for bad in (f"{call}\n{call}", turn(form, ("get", PARIS), ("get", PARIS)), f"{call} Hello"):
        assert not accepts(grammar, bad)


@pytest.mark.parametrize("form", [HERMES, MISTRAL, MISTRAL_LIST])
def test_calls_or_json(form: ToolFormat) -> None:
    grammar = ToolGrammar(form.syntax, {}, ()).or_answer(ChatPrompt([], tools=TOOLS), StructuredOutputs(json=CITY))
    assert accepts(grammar, PARIS)
    assert accepts(grammar, turn(form, ("get", PARIS)))
    assert not accepts(grammar, "Hello")


@pytest.mark.parametrize("form", FORMATS)
def test_the_parser_reads_what_the_grammar_allows(form: ToolFormat) -> None:
    parser = form.new_parser()
    text = turn(form, ("get", PARIS), *([("now", "{}")] if form.syntax.takes_several else []))
    assert accepts(ToolGrammar(form.syntax, {}, ()).enforced(REQUIRED), text)
    (said,) = parser.push(text)
    calls = said.tool_calls
    assert [(call.name, call.arguments) for call in calls] == [("get", PARIS), ("now", "{}")][: len(calls)]
    assert parser.finish() == []


def test_markers_that_are_tokens_are_named_by_their_ids() -> None:
    tokenizer = Tokenizer.from_str(chat_tokenizer.train().to_str())
    markers = {marker: tokenizer.token_to_id(marker) for marker in chat_tokenizer.MARKERS}
    thoughts = [markers["<think>"], markers["</think>"]]
    grammar = ToolGrammar(HERMES.syntax, markers, thoughts)
    known = LLTokenizer(tokenizer.to_str(), eos_token=tokenizer.token_to_id("<|end|>"))

    def accepts_tokens(grammar: str, token_ids: list[int]) -> bool:
        matcher = LLMatcher(known, grammar)
        assert not matcher.is_error(), matcher.get_error()
        return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()

    call = tokenizer.encode(turn(HERMES, ("get", PARIS))).ids
    assert call[0] == markers["<tool_call>"]
    assert accepts_tokens(grammar.enforced(REQUIRED), call)
    thought = tokenizer.encode("<think>one two</think>hello").ids
    optional = grammar.optional(ChatPrompt([], tools=TOOLS))
    assert accepts_tokens(optional, thought + call)
    assert accepts_tokens(optional, call + thought + call)
    # Spelled out, the marker would begin a call that nothing binds.
    spelled = [token_id for sign in "<tool_call>" for token_id in tokenizer.encode(sign).ids]
    assert accepts_tokens(optional, spelled[:-1])
    assert not accepts_tokens(optional, spelled)
    once = grammar.optional(ChatPrompt([], tools=TOOLS, parallel_tool_calls=False))
    assert accepts_tokens(once, thought + call)
    assert not accepts_tokens(once, call + call)
