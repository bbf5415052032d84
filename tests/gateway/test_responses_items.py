from __future__ import annotations

import json
from typing import Any

import pytest

from quire.errors import InvalidRequestError
from quire.gateway.chat.prompt import Tool, ToolChoice
from quire.gateway.openai.protocol import parse_request
from quire.gateway.openai.responses.request import ResponsesRequest

CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"where": "Paris"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
TOOL = {"type": "function", "name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": True}


def request(**fields: Any) -> ResponsesRequest:
    return parse_request(ResponsesRequest, json.dumps({"model": "m", "input": "hi", **fields}).encode())


def messages(given: Any, **fields: Any) -> list[Any]:
    return list(request(input=given, **fields).chat().messages)


def test_a_string_is_what_the_user_says() -> None:
    assert messages("hi") == [{"role": "user", "content": "hi"}]


def test_instructions_come_first() -> None:
    assert messages("hi", instructions="Be brief.")[0] == {"role": "system", "content": "Be brief."}


def test_messages_of_all_kinds() -> None:
    given = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t} for t in ("hel", "lo")]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Bye."},
    ]
    assert messages(given) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hel\nlo"},
        {"role": "assistant", "content": "Hi.\nNo."},
        {"role": "user", "content": "Bye."},
    ]


def test_thoughts_words_and_calls_are_one_turn() -> None:
    reasoning = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    said = {"role": "assistant", "content": "I look."}
    assert messages([{"role": "user", "content": "?"}, reasoning, said, CALL, RESULT])[1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"where": "Paris"}}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "sunny"},
    ]


def test_parallel_calls_are_one_turn() -> None:
    (turn,) = messages([CALL, {**CALL, "call_id": "c2", "arguments": ""}])
    assert [call["id"] for call in turn["tool_calls"]] == ["c1", "c2"]
    assert turn["tool_calls"][1]["function"]["arguments"] == {}


def test_a_summary_stands_for_thoughts_that_are_not_there() -> None:
    (turn,) = messages([{"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm."}]}])
    assert turn["reasoning_content"] == "Hm."
    assert messages([{"type": "reasoning", "id": "r", "summary": []}]) == []


def test_results_in_parts() -> None:
    result = {**RESULT, "output": [{"type": "input_text", "text": "sunny"}, {"type": "input_text", "text": "warm"}]}
    assert messages([CALL, result])[-1]["content"] == "sunny\nwarm"


def test_tools_and_their_choice() -> None:
    chat = request(tools=[TOOL], tool_choice={"type": "function", "name": "look"}, parallel_tool_calls=False).chat()
    assert chat.tools == [Tool("look", "Looks.", {"type": "object"}, strict=True)]
    assert chat.tool_choice == ToolChoice("named", "look")
    assert not chat.parallel_tool_calls
    assert request(tools=[TOOL], tool_choice="required").chat().tool_choice == ToolChoice("required")
    assert request(tools=[TOOL]).chat().tool_choice == ToolChoice("auto")
    assert request(tools=[TOOL]).chat().parallel_tool_calls


def test_reasoning_is_told_to_the_template() -> None:
    assert request().chat().template_kwargs == {}
    assert request(reasoning={"summary": "auto"}).chat().template_kwargs == {}
    low = request(reasoning={"effort": "low"}).chat().template_kwargs
    assert low == {"reasoning_effort": "low", "enable_thinking": True}
    assert request(reasoning={"effort": "none"}).chat().template_kwargs["enable_thinking"] is False


def test_formats_are_structured_outputs() -> None:
    def outputs(text: Any) -> Any:
        return request(text=text).sampling_params().structured_outputs

    assert outputs({"format": {"type": "text"}, "verbosity": "medium"}) is None
    assert outputs({"format": {"type": "json_object"}}).json_object
    schema = {"type": "object"}
    assert outputs({"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}).json == schema


def test_sampling() -> None:
    params = request(max_output_tokens=5, temperature=0, top_p=0.5, top_k=3, seed=1, stop=["x"]).sampling_params()
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.seed) == (5, 0, 0.5, 3, 1)
    assert (params.n, params.logprobs, params.stop) == (1, None, ["x"])
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    assert request(include=include).sampling_params().logprobs == 0
    assert request(include=include, top_logprobs=4).sampling_params().logprobs == 4


def test_what_asks_for_nothing_is_taken() -> None:
    request(
        access_programs=None,
        background=False,
        context_management=[],
        conversation=None,
        max_tool_calls=3,
        metadata={"a": "b"},
        moderation=None,
        previous_response_id=None,
        prompt=None,
        prompt_cache_key="k",
        prompt_cache_options={"mode": "implicit"},
        prompt_cache_retention="24h",
        safety_identifier="s",
        service_tier="flex",
        store=True,
        stream_options={"include_obfuscation": False},
        truncation="disabled",
        user="u",
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": 3}, "input"),
    ({"input": None}, "input"),
    ({"input": [3]}, "input[0]"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0]"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"role": "user", "content": "x", "audio": 1}]}, "input[0].audio"),
    ({"input": [{**CALL, "arguments": "{"}]}, "input[0].arguments"),
    ({"input": [{**CALL, "arguments": "[" * 100_000}]}, "input[0].arguments"),
    ({"input": [{**CALL, "arguments": "[1]"}]}, "input[0].arguments"),
    ({"input": [RESULT]}, "input[0].call_id"),
    ({"input": [RESULT, CALL]}, "input[0].call_id"),
    ({"input": [{"type": "reasoning", "id": "r", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
    ({"text": {"format": {"type": "xml"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "all"}}, "reasoning.effort"),
    ({"include": ["everything"]}, "include[0]"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"truncation": "middle"}, "truncation"),
    ({"background": True}, "background"),
    ({"background": 0}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": "7"}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"n": 2}, "n"),
    ({"max_tokens": 2}, "max_tokens"),
]


@pytest.mark.parametrize(("fields", "field"), BAD, ids=lambda value: str(value)[:60])
def test_bad_requests_name_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        made = request(**fields)
        with made.in_its_words():
            made.chat()
            made.sampling_params()
    assert caught.value.field == field
    assert caught.value.message


def test_the_message_says_why() -> None:
    with pytest.raises(InvalidRequestError, match="this server keeps none: send the whole conversation in `input`"):
        request(previous_response_id="resp_1")
    with pytest.raises(InvalidRequestError, match="takes text only"):
        messages([{"role": "user", "content": [{"type": "input_image"}]}])
