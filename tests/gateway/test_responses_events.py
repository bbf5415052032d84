"""How a turn is written as a response: whole, and as events that OpenAI's own types accept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.fake_chat import WHOLE_TURN, FakeRun, body_of, calls, ends, named_events, says, thinks
from tokenizers import Tokenizer

from quire.errors import ServiceUnavailableError
from quire.gateway.chat.deltas import ChatDelta
from quire.gateway.chat.turn_answer import answer_turn
from quire.gateway.openai.responses.answer import ResponseAnswer
from quire.gateway.openai.responses.events import ResponseWriter
from quire.gateway.openai.responses.request import ResponsesRequest
from quire.gateway.openai.tokens import TokenView
from quire.gateway.vocabulary import Vocabulary
from quire.outputs import TokenLogprobs
from quire.sampling_params import SamplingParams

STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def vocabulary(model_folder: Path) -> Vocabulary:
    return Vocabulary(Tokenizer.from_file(str(model_folder / "tokenizer.json")))


def writer(vocabulary: Vocabulary, **fields: Any) -> ResponseWriter:
    request = ResponsesRequest.model_validate({"model": "m", "input": "hi", **fields})
    return ResponseWriter(ResponseAnswer(request, "1f", "tiny", TokenView(vocabulary), SamplingParams(temperature=0.6)))


async def whole(vocabulary: Vocabulary, deltas: Sequence[ChatDelta], **fields: Any) -> dict[str, Any]:
    run = FakeRun(deltas)
    response = await answer_turn(run, writer(vocabulary, **fields), stream=False)
    assert run.num_closed == 1
    body: dict[str, Any] = json.loads(bytes(response.body))
    Response.model_validate(body, strict=True)
    return body


async def streamed(
    vocabulary: Vocabulary, deltas: Sequence[ChatDelta], error: Exception | None = None
) -> list[dict[str, Any]]:
    run = FakeRun(deltas, error)
    events = named_events(await body_of(await answer_turn(run, writer(vocabulary), stream=True)))
    assert run.num_closed == 1
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        STREAM_EVENT.validate_python(event, strict=True)
    return events


def names(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


async def test_the_whole_response(vocabulary: Vocabulary) -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    response = await whole(
        vocabulary,
        WHOLE_TURN,
        instructions="Be brief.",
        tools=[tool],
        tool_choice={"type": "function", "name": "look"},
        reasoning={"effort": "low", "generate_summary": "auto"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
        metadata={"k": "v"},
        store=True,
        max_output_tokens=100,
    )
    thought, said, look, listen = response["output"]
    assert thought == {
        "type": "reasoning",
        "id": "rs_1f_0",
        "status": "completed",
        "content": [{"type": "reasoning_text", "text": "Let me see."}],
        "summary": [],
        "encrypted_content": None,
    }
    assert said == {
        "type": "message",
        "id": "msg_1f_1",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I will look.", "annotations": [], "logprobs": []}],
    }
    assert look == {
        "type": "function_call",
        "id": "fc_1f_2",
        "status": "completed",
        "call_id": "call_a",
        "name": "look",
        "arguments": '{"where": "Paris"}',
    }
    assert (listen["call_id"], listen["name"], listen["arguments"]) == ("call_b", "listen", "{}")
    assert response["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 17,
    }
    told = {
        "id": "resp_1f",
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "tiny",
        "instructions": "Be brief.",
        "tools": [{**tool, "description": None, "strict": False}],
        "tool_choice": {"type": "function", "name": "look"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {
            "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
            "verbosity": "medium",
        },
        "metadata": {"k": "v"},
        "store": False,
        "max_output_tokens": 100,
        # The model's default, and the library's.
        "temperature": 0.6,
        "top_p": 1.0,
        "previous_response_id": None,
        "background": False,
    }
    assert {name: response[name] for name in told} == told
    assert response["completed_at"] >= response["created_at"]


async def test_the_order_of_events(vocabulary: Vocabulary) -> None:
    events = await streamed(vocabulary, WHOLE_TURN)
    part = ["output_item.added", "content_part.added"]
    end = ["content_part.done", "output_item.done"]
    arguments = "function_call_arguments"
    assert names(events) == [
        "created",
        "in_progress",
        *[*part, "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", *end],
        *[*part, "output_text.delta", "output_text.delta", "output_text.done", *end],
        *["output_item.added", f"{arguments}.delta", f"{arguments}.delta", f"{arguments}.done", "output_item.done"],
        *["output_item.added", f"{arguments}.delta", f"{arguments}.done", "output_item.done"],
        "completed",
    ]


async def test_items_are_empty_when_added_and_whole_when_done(vocabulary: Vocabulary) -> None:
    events = await streamed(vocabulary, WHOLE_TURN)
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [item.get("content", item.get("arguments")) for item in added] == [[], [], "", ""]
    assert {item["status"] for item in added} == {"in_progress"}
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[-1]["response"]["output"] == done
    response = await whole(vocabulary, WHOLE_TURN)
    assert done == response["output"]
    assert events[-1]["response"]["usage"] == response["usage"]


async def test_deltas_add_up(vocabulary: Vocabulary) -> None:
    events = await streamed(vocabulary, WHOLE_TURN)
    texts = ["", "", "", ""]
    for event in events:
        if event["type"].endswith(".delta"):
            texts[event["output_index"]] += event["delta"]
    assert texts == ["Let me see.", "I will look.", '{"where": "Paris"}', "{}"]
    done = [event for event in events if event["type"].endswith(("_text.done", "_arguments.done"))]
    assert [event.get("text", event.get("arguments")) for event in done] == texts
    assert [event["name"] for event in done if "name" in event] == ["look", "listen"]


async def test_one_batch_may_hold_a_whole_item(vocabulary: Vocabulary) -> None:
    events = await streamed(vocabulary, [ChatDelta(0, content="all", token_ids=[1], finish_reason="stop")])
    (added,) = [event for event in events if event["type"] == "response.output_item.added"]
    assert (added["item"]["content"], added["item"]["status"]) == ([], "in_progress")


@pytest.mark.parametrize(
    ("deltas", "statuses"),
    [
        ([thinks("hm"), says("a"), ends("length")], ["completed", "incomplete"]),
        ([thinks("hm"), ends("length")], ["incomplete"]),
        ([calls(0, '{"x', "c", "f"), ends("length")], ["incomplete"]),
        ([ends("length")], []),
    ],
)
async def test_a_cut_response_is_incomplete(
    vocabulary: Vocabulary, deltas: list[ChatDelta], statuses: list[str]
) -> None:
    response = await whole(vocabulary, deltas)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None
    assert [item["status"] for item in response["output"]] == statuses
    *_, last = await streamed(vocabulary, deltas)
    assert last["type"] == "response.incomplete"
    assert last["response"]["output"] == response["output"]


async def test_logprobs_of_the_text(vocabulary: Vocabulary) -> None:
    entries = [TokenLogprobs(70, -0.5, ((70, -0.5), (71, float("-inf"))))]
    deltas = [says("a", logprobs=entries), says("b", logprobs=entries), ends()]
    response = await whole(vocabulary, deltas)
    logprobs = response["output"][0]["content"][0]["logprobs"]
    token = vocabulary.text_of(70)
    assert len(logprobs) == 2
    assert logprobs[0]["token"] == token
    assert logprobs[0]["bytes"] == list(vocabulary.bytes_of(70))
    # JSON has no infinity.
    assert [entry["logprob"] for entry in logprobs[0]["top_logprobs"]] == [-0.5, -9999.0]
    events = await streamed(vocabulary, deltas)
    deltas_logprobs = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for part in deltas_logprobs for entry in part] == logprobs
    (done,) = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == logprobs


async def test_a_failure_after_the_first_byte(vocabulary: Vocabulary) -> None:
    events = await streamed(vocabulary, [says("a")], ServiceUnavailableError("the scheduler is gone"))
    error, failed = events[-2:]
    assert error["type"] == "error"
    assert (error["code"], error["message"], error["param"]) == ("service_unavailable", "the scheduler is gone", None)
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "the scheduler is gone"}
    (item,) = failed["response"]["output"]
    assert (item["content"][0]["text"], item["status"]) == ("a", "incomplete")


async def test_a_defect_keeps_its_text_inside(vocabulary: Vocabulary) -> None:
    *_, error, failed = await streamed(vocabulary, [], RuntimeError("secret"))
    assert error["message"] == failed["response"]["error"]["message"] == "internal error"


async def test_an_abort_by_the_server_is_a_failure(vocabulary: Vocabulary) -> None:
    *_, error, failed = await streamed(vocabulary, [says("a"), ends("abort")])
    assert error["code"] == "request_aborted"
    assert failed["response"]["output"][0]["status"] == "incomplete"


async def test_a_whole_response_that_fails_is_no_response(vocabulary: Vocabulary) -> None:
    run = FakeRun([says("a")], ServiceUnavailableError("gone"))
    with pytest.raises(ServiceUnavailableError, match="gone"):
        await answer_turn(run, writer(vocabulary), stream=False)
    assert run.num_closed == 1
