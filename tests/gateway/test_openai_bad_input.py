"""Every bad input gets its error, in OpenAI's shape, before any 200; then the server serves on."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.fake_scheduler import MAX_MODEL_LEN, VOCAB_SIZE, FakeScheduler

from quire.errors import ContextLengthError, ServiceUnavailableError

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = [{"role": "user", "content": "hello"}]
COMPLETION = {"model": "tiny", "prompt": "hello", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2}

# (changes to the body, the field at fault)
SHARED: list[tuple[dict[str, Any], str]] = [
    ({"model": 5}, "model"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 9}, "n"),
    ({"n": True}, "n"),
    ({"n": "1"}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": "5"}, "max_completion_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"temperature": -0.01}, "temperature"),
    ({"temperature": 2.01}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": -0.01}, "min_p"),
    ({"min_p": 1.01}, "min_p"),
    ({"seed": 2**64}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": False}, "seed"),
    ({"presence_penalty": -2.01}, "presence_penalty"),
    ({"presence_penalty": 2.01}, "presence_penalty"),
    ({"frequency_penalty": -2.01}, "frequency_penalty"),
    ({"frequency_penalty": 2.01}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 101}, "repetition_penalty"),
    ({"logit_bias": {"5": 100.1}}, "logit_bias"),
    ({"logit_bias": {"5": -100.1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {"5": True}}, "logit_bias.5"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop"),
    ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"ignore_eos": "yes"}, "ignore_eos"),
    ({"skip_special_tokens": 1}, "skip_special_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stream_options": {"surprise": 1}}, "stream_options.surprise"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"max_tokens": 1e300}, "max_tokens"),
    ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": MAX_MODEL_LEN + 1}, "truncate_prompt_tokens"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"add_special_tokens": "no"}, "add_special_tokens"),
    ({"return_token_ids": 1}, "return_token_ids"),
    ({"return_tokens_as_token_ids": "yes"}, "return_tokens_as_token_ids"),
    ({"request_id": ""}, "request_id"),
    ({"request_id": "a b"}, "request_id"),
    ({"request_id": "x" * 257}, "request_id"),
    ({"priority": 2**31}, "priority"),
    ({"priority": "high"}, "priority"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "x" * 1025}, "cache_salt"),
    ({"detokenize": False}, "detokenize"),
    ({"logits_processors": ["x"]}, "logits_processors"),
    ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
    ({"truncation_side": "right"}, "truncation_side"),
    ({"logprob_token_ids": [1]}, "logprob_token_ids"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 9}, "best_of"),
    ({"n": 2, "best_of": 1}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": "x"}, "bad_words"),
    ({"bad_words": ["x"] * 65}, "bad_words"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [VOCAB_SIZE]}, "allowed_token_ids"),
    ({"allowed_token_ids": [1.5]}, "allowed_token_ids[0]"),
    ({"use_beam_search": 1}, "use_beam_search"),
    ({"length_penalty": 10.5}, "length_penalty"),
    ({"early_stopping": "always"}, "early_stopping"),
    ({"early_stopping": 1}, "early_stopping"),
    ({"surprise": 1}, "surprise"),
]
ONLY_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt"),
    ({"prompt": [[1], [True]]}, "prompt"),
    ({"prompt": [VOCAB_SIZE]}, "prompt"),
    ({"prompt": [5, -1]}, "prompt"),
    ({"prompt": [2**70]}, "prompt"),
    ({"prompt": ["a"] * 2049}, "prompt"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": 1}, "echo"),
    ({"echo": True, "max_tokens": -1}, "max_tokens"),
    ({"suffix": "x"}, "suffix"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"messages": MESSAGES}, "messages"),
]
ONLY_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role"),
    ({"messages": [*MESSAGES, {"role": "user", "content": 5}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "surprise": 1}]}, "messages[0].surprise"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls[0]"),
    # The template itself refuses this one.
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ({"logprobs": 2}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"prompt": "x"}, "prompt"),
]


def check_error(answer: httpx.Response, status: int, param: str | None, code: str | None) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["code"] == code, error
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    message: str = error["message"]
    return message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "valid", "cases"),
    [
        ("/v1/completions", COMPLETION, [*SHARED, *ONLY_COMPLETION]),
        ("/v1/chat/completions", CHAT, [*SHARED, *ONLY_CHAT]),
    ],
)
async def test_a_field_at_fault_is_named(
    http: httpx.AsyncClient,
    scheduler: FakeScheduler,
    path: str,
    valid: dict[str, Any],
    cases: list[tuple[dict[str, Any], str]],
    stream: bool,
) -> None:
    for changes, param in cases:
        answer = await http.post(path, json={**valid, "stream": stream, **changes})
        check_error(answer, 400, param, "invalid_value")
    assert scheduler.requests == []
    assert (await http.post(path, json=valid)).status_code == 200


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
async def test_an_unknown_model_is_not_found(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await http.post(path, json={**body, "model": "gpt-9"})
    assert "`gpt-9` does not exist" in check_error(answer, 404, "model", "model_not_found")
    check_error(await http.get("/v1/models/gpt-9"), 404, "model", "model_not_found")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": \xff}', b'{"a": "\\ud800"}', b"[" * 9999])
async def test_a_body_that_is_no_json_object(http: httpx.AsyncClient, path: str, body: bytes) -> None:
    check_error(await http.post(path, content=body), 400, None, "invalid_value")


async def test_numbers_that_are_no_numbers(http: httpx.AsyncClient) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"model": "tiny", "prompt": "x", "temperature": {number}}}'
        answer = await http.post("/v1/completions", content=body)
        check_error(answer, 400, "temperature", "invalid_value")


async def test_unknown_token_ids_are_named(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/completions", json={**COMPLETION, "prompt": [1, 600, 2, -7]})
    assert check_error(answer, 400, "prompt", "invalid_value").endswith(f"[0, {VOCAB_SIZE}): 600, -7")


async def test_prompts_beyond_the_context(http: httpx.AsyncClient) -> None:
    longest = {**COMPLETION, "prompt": [5] * (MAX_MODEL_LEN - 1), "max_tokens": 1}
    assert (await http.post("/v1/completions", json=longest)).status_code == 200
    answer = await http.post("/v1/completions", json={**longest, "max_tokens": 2})
    message = check_error(answer, 400, "prompt", "context_length_exceeded")
    assert f"maximum context length is {MAX_MODEL_LEN} tokens" in message
    assert f"you requested {MAX_MODEL_LEN + 1} tokens ({MAX_MODEL_LEN - 1} in the prompt, 2 in the" in message
    for length in (MAX_MODEL_LEN, MAX_MODEL_LEN + 1):
        answer = await http.post("/v1/completions", json={"model": "tiny", "prompt": [5] * length})
        check_error(answer, 400, "prompt", "context_length_exceeded")
    huge = {"model": "tiny", "prompt": "x" * 1_000_000}
    answer = await http.post("/v1/completions", json=huge)
    message = check_error(answer, 400, "prompt", "context_length_exceeded")
    assert "1000000 characters" in message
    long_chat = {**CHAT, "messages": [{"role": "user", "content": "x" * 4 * MAX_MODEL_LEN}]}
    answer = await http.post("/v1/chat/completions", json=long_chat)
    check_error(answer, 400, "messages", "context_length_exceeded")


async def test_one_bad_prompt_of_several_refuses_all(http: httpx.AsyncClient, scheduler: FakeScheduler) -> None:
    answer = await http.post("/v1/completions", json={**COMPLETION, "prompt": ["good", ""]})
    check_error(answer, 400, "prompt", "invalid_value")
    assert scheduler.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_scheduler_refuses_is_told_before_any_200(
    http: httpx.AsyncClient, scheduler: FakeScheduler, stream: bool
) -> None:
    scheduler.submit_error = ContextLengthError("the KV pool holds 64 tokens", field="max_tokens")
    answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    check_error(answer, 400, "max_tokens", "context_length_exceeded")
    scheduler.submit_error = ServiceUnavailableError("the queue is full")
    answer = await http.post("/v1/completions", json={**COMPLETION, "stream": stream})
    check_error(answer, 503, None, "service_unavailable")


async def test_routes_that_do_not_exist(http: httpx.AsyncClient) -> None:
    check_error(await http.get("/v1/nothing"), 404, None, "not_found")
    answer = await http.get("/v1/completions")
    check_error(answer, 405, None, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_values_that_ask_for_nothing_are_accepted(http: httpx.AsyncClient) -> None:
    harmless = {
        "stream": True,
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "stream_options": {"include_usage": True},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "best_of": 1,
        "logit_bias": None,
        "seed": None,
        "stop": None,
        "max_tokens": 2.0,
        "min_tokens": 1e0,
        "detokenize": True,
        "logits_processors": [],
        "spaces_between_special_tokens": True,
        "documents": None,
        "truncation_side": "left",
        "kv_transfer_params": None,
        "vllm_xargs": {},
        "prompt_embeds": None,
        "session_id": "me",
        "include_reasoning": True,
        "thinking_token_budget": -1,
        "stream_interval": 1,
    }
    received = {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None, "annotations": []}
    messages = [*MESSAGES, received, {"role": "user", "content": "again", "name": "me"}]
    answer = await http.post("/v1/chat/completions", json={**CHAT, **harmless, "messages": messages})
    assert answer.status_code == 200, answer.text
    answer = await http.post("/v1/completions", json={**COMPLETION, **harmless, "echo": False, "suffix": None})
    assert answer.status_code == 200, answer.text
