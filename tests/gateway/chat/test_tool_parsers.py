"""Recorded turns of each family; and that a turn means the same however it is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.gateway.chat.deltas import ChatDelta, merge_chat_deltas
from quire.gateway.chat.tool_parsers import (
    HERMES,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_LIST,
    ToolFormat,
    find_tool_format,
)
from quire.gateway.chat.tool_parsers.base import ToolText

FORMATS = {"hermes": HERMES, "llama3_json": LLAMA3_JSON, "mistral": MISTRAL}
PARIS = '{"city": "Paris"}'

Turn = tuple[str, list[tuple[str, str]]]

# (family, what the model wrote, content, calls)
TURNS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", "The capital of France is Paris.", "The capital of France is Paris.", []),
    ("hermes", f'<tool_call>\n{{"name": "get", "arguments": {PARIS}}}\n</tool_call>', "", [("get", PARIS)]),
    (
        "hermes",
        f'Let me look.\n<tool_call>\n{{"name": "get", "arguments": {PARIS}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": {"c": [1, "}</tool_call>"]}}}\n</tool_call>\n',
        "Let me look.",
        [("get", PARIS), ("add", '{"a": 1, "b": {"c": [1, "}</tool_call>"]}}')],
    ),
    ("hermes", '<tool_call>{"arguments": {"a": "é\\"😀"}, "name": "f"}</tool_call>', "", [("f", '{"a": "é\\"😀"}')]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call> Done. ', "Done. ", [("now", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    # The end is missing, or one brace of it.
    ("hermes", f'<tool_call>\n{{"name": "get", "arguments": {PARIS}}}', "", [("get", PARIS)]),
    (
        "hermes",
        f'<tool_call>{{"name": "get", "arguments": {PARIS}</tool_call>\n<tool_call>{{"name": "f", "arguments": {{}}}}',
        "",
        [("get", PARIS), ("f", "{}")],
    ),
    # Cut by max_tokens: inside the arguments, and before there is a call.
    ("hermes", '<tool_call>\n{"name": "get", "arguments": {"city": "Pa', "", [("get", '{"city": "Pa')]),
    ("hermes", '<tool_call>\n{"name": "ge', '<tool_call>\n{"name": "ge', []),
    # No calls.
    ("hermes", "Write <tool_call> to call.", "Write <tool_call> to call.", []),
    ("hermes", '<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}</tool_call>', []),
    ("hermes", '<tool_call>{"name": 7}</tool_call>', '<tool_call>{"name": 7}</tool_call>', []),
    ("hermes", f'<tool_call>x<tool_call>{{"name": "get", "arguments": {PARIS}}}', "<tool_call>x", [("get", PARIS)]),
    ("hermes", "a < b, <tool", "a < b, <tool", []),
    ("llama3_json", "The capital is Paris.\n", "The capital is Paris.\n", []),
    ("llama3_json", f'{{"name": "get", "parameters": {PARIS}}}', "", [("get", PARIS)]),
    ("llama3_json", f'\n<|python_tag|>{{"name": "get", "parameters": {PARIS}}}', "", [("get", PARIS)]),
    (
        "llama3_json",
        f'{{"name": "get", "parameters": {PARIS}}}; {{"type": "function", "name": "f", "parameters": {{}}}}',
        "",
        [("get", PARIS), ("f", "{}")],
    ),
    ("llama3_json", '{"city": "Paris"}', '{"city": "Paris"}', []),
    ("llama3_json", '<|python_tag|>search.call(query="x")', '<|python_tag|>search.call(query="x")', []),
    ("llama3_json", f'{{"name": "get", "parameters": {PARIS}}} and more', "and more", [("get", PARIS)]),
    ("llama3_json", '{"name": "get", "parameters": {"city"', "", [("get", '{"city"')]),
    ("mistral", "Hello [TOOL", "Hello [TOOL", []),
    ("mistral", f'[TOOL_CALLS][{{"name": "get", "arguments": {PARIS}}}]', "", [("get", PARIS)]),
    (
        "mistral",
        f'I look. [TOOL_CALLS] [{{"name": "get", "arguments": {PARIS}}}, {{"name": "f", "arguments": {{"a": []}}}}] ',
        "I look.",
        [("get", PARIS), ("f", '{"a": []}')],
    ),
    ("mistral", f"[TOOL_CALLS]get[ARGS]{PARIS}[TOOL_CALLS]f{{}}", "", [("get", PARIS), ("f", "{}")]),
    ("mistral", f"[TOOL_CALLS]get[CALL_ID]a1b2c3d4e[ARGS]{PARIS}", "", [("get", PARIS)]),
    ("mistral", "[TOOL_CALLS] are calls.", "[TOOL_CALLS] are calls.", []),
    ("mistral", "[TOOL_CALLS][1]", "[TOOL_CALLS][1]", []),
    ("mistral", "[TOOL_CALLS]get[ARG", "[TOOL_CALLS]get[ARG", []),
]  # fmt: skip


def parse(form: ToolFormat, pieces: list[str]) -> Turn:
    parser = form.new_parser()
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish() or [ToolText()]
    whole = merge_chat_deltas([ChatDelta(0, delta.content, tool_calls=delta.tool_calls) for delta in deltas])
    assert [call.index for call in whole.tool_calls] == list(range(len(whole.tool_calls)))
    assert all(call.id for call in whole.tool_calls)
    return whole.content, [(call.name or "", call.arguments) for call in whole.tool_calls]


@pytest.mark.parametrize(("family", "text", "content", "calls"), TURNS)
def test_a_recorded_turn(family: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parse(FORMATS[family], [text]) == (content, calls)
    assert parse(FORMATS[family], list(text)) == (content, calls)


_PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", '{"name": "f", ',
     '"arguments": ', '"parameters": ', PARIS, "{", "}", "[", "]", ";", ",", '"', "\\", " ", "\n", "é😀", "f", "<", "0"]
)  # fmt: skip


@given(st.sampled_from(sorted(FORMATS)), st.lists(_PIECES, max_size=14), st.data())
def test_any_cut_gives_the_same(family: str, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse(FORMATS[family], [text])
    assert parse(FORMATS[family], pieces) == whole
    assert parse(FORMATS[family], list(text)) == whole


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from([HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_LIST]),
    st.dictionaries(st.text(max_size=5), _JSON),
    st.data(),
)
def test_whatever_the_arguments_hold_comes_back(
    form: ToolFormat, arguments: dict[str, object], data: st.DataObject
) -> None:
    written = json.dumps(arguments, ensure_ascii=data.draw(st.booleans()))
    syntax = form.syntax
    call = f"{syntax.before_name}f{syntax.before_arguments}{written}{syntax.after_arguments}"
    text = syntax.before_all + syntax.between_calls.join([call] * (2 if syntax.takes_several else 1)) + syntax.after_all
    content, calls = parse(form, [text])
    assert content == ""
    assert calls == [("f", written)] * len(calls)
    assert len(calls) == (2 if syntax.takes_several else 1)


def test_arguments_come_as_they_are_written() -> None:
    parser = HERMES.new_parser()
    parser.push('<tool_call>\n{"name": "f", "arguments": {"a"')
    assert parser.push(': "x')[0].tool_calls[0].arguments == ': "x'
    assert parser.push('y"')[0].tool_calls[0].arguments == 'y"'


def test_what_comes_together_comes_in_its_order() -> None:
    parser = HERMES.new_parser()
    call = f'<tool_call>{{"name": "f", "arguments": {PARIS}}}</tool_call>'
    parser.push(call[:-20])
    said = parser.push(f"{call[-20:]} and {call} more")
    assert [(entry.content, [call.index for call in entry.tool_calls]) for entry in said] == [
        ("", [0]),
        ("and", [1]),
        ("more", []),
    ]


def test_ids_look_as_the_family_expects() -> None:
    ((call,),) = [said.tool_calls for said in HERMES.new_parser().push('<tool_call>{"name": "f", "arguments": {')]
    assert call.id is not None
    assert call.id.startswith("call_")
    assert len(call.id) == 29
    ((call,),) = [said.tool_calls for said in MISTRAL.new_parser().push("[TOOL_CALLS]f[ARGS]{")]
    assert call.id is not None
    assert len(call.id) == 9
    assert call.id.isalnum()


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% if tools %}<tool_call>", "hermes"),
        ("{% if tools %}[TOOL_CALLS]", "mistral"),
        ("{% if tools %}<|start_header_id|> {\"name\": \"x\", \"parameters\": {}}", "llama3_json"),
        ("{% if tools %}<tool_call><function=", None),
        ("<tool_call>", None),
    ],
)  # fmt: skip
def test_the_format_is_found_in_the_template(template: str, name: str | None) -> None:
    found = find_tool_format("auto", template)
    assert (found and found.name) == name


def test_a_name_goes_before_the_template() -> None:
    assert find_tool_format("hermes", "") is HERMES
    assert find_tool_format("mistral", "[ARGS]") is MISTRAL
    assert find_tool_format("mistral", "") is MISTRAL_LIST
    assert find_tool_format("none", "tools <tool_call>") is None
