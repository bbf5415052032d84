"""Tools and thoughts of /v1/chat/completions, by a gateway whose scheduler says what the test wants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from llguidance import LLMatcher, LLTokenizer
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from support import chat_tokenizer
from support.fake_scheduler import VOCAB_SIZE, FakeScheduler, Submitted, running
from support.gateway_fixtures import MODEL, Gateway, sse_events, start_gateway
from tokenizers import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time", "description": "The time"}}
QUESTION = {"role": "user", "content": "hello"}
PARIS, TOKYO = '{"city": "Paris"}', '{"city": "Tokyo"}'


def written(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


Say = Callable[[str], None]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat-model")
    chat_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def chat_tokens(chat_model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(chat_model / "tokenizer.json"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_scheduler(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FakeScheduler]:
    """With room for tools."""
    fake = FakeScheduler(tmp_path_factory.mktemp("run") / "s.sock")
    fake.description.max_model_len = 2048
    async with running(fake) as scheduler:
        yield scheduler


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat_gateway(module_scheduler: FakeScheduler, chat_model: Path) -> AsyncIterator[Gateway]:
    gateway = await start_gateway(module_scheduler, chat_model)
    yield gateway
    await gateway.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat(chat_gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=chat_gateway.url, timeout=60) as client:
        yield client


@pytest.fixture
def say(scheduler: FakeScheduler, chat_tokens: Tokenizer) -> Say:
    """Makes every turn say a text, and end unless it is cut."""

    def say(text: str) -> None:
        token_ids = chat_tokens.encode(text + "<|im_end|>").ids
        scheduler.script = lambda request, index: token_ids

    return say


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [QUESTION], "tools": [WEATHER, TIME], **fields}


async def ask(chat: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """The only choice, which a stream gives as well."""
    response = await chat.post("/v1/chat/completions", json=body(**fields))
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json(), strict=True)
    (choice,) = response.json()["choices"]
    streamed = await stream(chat, **fields)
    for call in [*choice["message"].get("tool_calls", []), *streamed["message"].get("tool_calls", [])]:
        assert call.pop("id")
    assert streamed == choice
    return dict(choice)


async def stream(chat: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """A choice put together by OpenAI's own client from its chunks."""
    response = await chat.post("/v1/chat/completions", json=body(stream=True, **fields))
    *chunks, done = sse_events(response.text)
    assert done == "[DONE]"
    state: Any = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk, strict=True))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    choice: dict[str, Any] = state.current_completion_snapshot.choices[0].model_dump()
    message = {name: value for name, value in choice["message"].items() if value is not None or name == "refusal"}
    if not message.get("content"):
        message["content"] = None
    for call in message.get("tool_calls", []):
        for extra in ("index", "parsed_arguments"):
            call.pop(extra, None)
            call["function"].pop(extra, None)
    message.pop("parsed", None)
    return {**choice, "message": message}


def calls_of(choice: dict[str, Any]) -> list[tuple[str, str]]:
    calls = choice["message"]["tool_calls"]
    assert all(call["type"] == "function" for call in calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def grammar_of(request: Submitted, tokenizer: LLTokenizer) -> Callable[[str], bool]:
    """Whether a text is a whole turn by the grammar that went to the scheduler."""
    start = LLMatcher(tokenizer, request.message.constraints.grammar)
    assert not start.is_error(), start.get_error()

    def accepts(text: str) -> bool:
        matcher = start.deep_copy()
        token_ids = tokenizer.tokenize_str(text, parse_special=True)
        return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()

    return accepts


@pytest.fixture(scope="module")
def grammar_tokenizer(chat_model: Path) -> LLTokenizer:
    return LLTokenizer((chat_model / "tokenizer.json").read_text(), n_vocab=VOCAB_SIZE, eos_token=[0, 2])


async def test_calls(chat: httpx.AsyncClient, say: Say) -> None:
    say(f"I look.\n{written('get_weather', PARIS)}\n{written('get_weather', TOKYO)}")
    choice = await ask(chat)
    assert choice["message"]["content"] == "I look."
    assert calls_of(choice) == [("get_weather", PARIS), ("get_weather", TOKYO)]
    assert choice["finish_reason"] == "tool_calls"


async def test_content_is_null_where_there_are_calls_alone(chat: httpx.AsyncClient, say: Say) -> None:
    say(written("get_time", "{}"))
    choice = await ask(chat)
    assert choice["message"]["content"] is None


async def test_a_cut_call_ends_with_length(chat: httpx.AsyncClient, say: Say) -> None:
    say(written("get_weather", PARIS))
    choice = await ask(chat, max_tokens=48)
    ((name, arguments),) = calls_of(choice)
    assert name == "get_weather"
    assert PARIS.startswith(arguments)
    assert choice["finish_reason"] == "length"


async def test_the_template_is_shown_what_the_model_may_call(
    chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, chat_tokens: Tokenizer
) -> None:
    say("hello")
    await chat.post("/v1/chat/completions", json=body())
    await chat.post("/v1/chat/completions", json=body(tool_choice="none"))
    shown, hidden = (chat_tokens.decode(request.prompt_token_ids) for request in scheduler.requests)
    described = {"name": "get_time", "description": "The time", "parameters": {"type": "object", "properties": {}}}
    assert json.dumps([WEATHER, {"type": "function", "function": described}]) in shown
    assert "get_time" not in hidden


async def test_without_tools_a_call_is_text(chat: httpx.AsyncClient, say: Say) -> None:
    call = written("get_time", "{}")
    say(call)
    for fields in ({"tool_choice": "none"}, {"tools": None}):
        choice = await ask(chat, **fields)
        # Its markers are special tokens here, and no parser needs them.
        assert choice["message"]["content"] == call.removeprefix("<tool_call>").removesuffix("</tool_call>")
        assert choice["finish_reason"] == "stop"


async def test_a_result_goes_back(
    chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, chat_tokens: Tokenizer
) -> None:
    say(written("get_weather", PARIS))
    answer = (await chat.post("/v1/chat/completions", json=body())).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "sunny"}
    say("It is sunny.")
    choice = await ask(chat, messages=[QUESTION, answer, result])
    assert choice["message"]["content"] == "It is sunny."
    prompt = chat_tokens.decode(scheduler.requests[-1].prompt_token_ids, skip_special_tokens=False)
    assert f"<|im_start|>assistant\n{written('get_weather', PARIS)}<|im_end|>\n<|im_start|>tool\nsunny" in prompt


async def test_required_is_enforced(
    chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, grammar_tokenizer: LLTokenizer
) -> None:
    say(written("get_time", "{}"))
    choice = await ask(chat, tool_choice="required")
    assert choice["finish_reason"] == "tool_calls"
    accepts = grammar_of(scheduler.requests[-1], grammar_tokenizer)
    call = written("get_weather", PARIS)
    assert accepts(call)
    assert accepts(f"{call}\n{written('get_time', '{}')}")
    assert not accepts("hello")
    assert not accepts(written("get_weather", "{}"))
    assert not accepts(written("get_time", PARIS))
    assert not accepts(written("get", "{}"))
    await chat.post("/v1/chat/completions", json=body(tool_choice="required", parallel_tool_calls=False))
    accepts = grammar_of(scheduler.requests[-1], grammar_tokenizer)
    assert accepts(call)
    assert not accepts(f"{call}\n{call}")


async def test_a_named_function_is_enforced_and_ends_with_stop(
    chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, grammar_tokenizer: LLTokenizer
) -> None:
    say(written("get_weather", PARIS))
    choice = await ask(chat, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    assert calls_of(choice) == [("get_weather", PARIS)]
    assert choice["finish_reason"] == "stop"
    accepts = grammar_of(scheduler.requests[-1], grammar_tokenizer)
    assert accepts(written("get_weather", PARIS))
    assert not accepts(written("get_time", "{}"))


async def test_strict_functions_are_bound_when_they_are_called(
    chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, grammar_tokenizer: LLTokenizer
) -> None:
    say("hello")
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    await ask(chat, tools=[strict, TIME])
    accepts = grammar_of(scheduler.requests[-1], grammar_tokenizer)
    assert accepts("hello")
    assert accepts("<think>hello</think>hello")
    loose = written("get_time", '{"any": 1}')
    assert accepts(f"hello {written('get_weather', PARIS)}\n{loose} hello")
    assert not accepts(written("get_weather", '{"town": "Paris"}'))
    assert not accepts(written("get", "{}"))


async def test_one_call_at_most(
    chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, grammar_tokenizer: LLTokenizer
) -> None:
    say("hello")
    await ask(chat, parallel_tool_calls=False)
    accepts = grammar_of(scheduler.requests[-1], grammar_tokenizer)
    call = written("get_time", "{}")
    assert accepts("hello")
    assert accepts(f"hello {call}")
    assert not accepts(f"{call}\n{call}")
    scheduler.reset()
    say("hello")
    await ask(chat)
    assert not scheduler.requests[-1].message.constraints.grammar


async def test_calls_or_an_answer_in_json(
    chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, grammar_tokenizer: LLTokenizer
) -> None:
    say(PARIS)
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    choice = await ask(chat, response_format=form)
    assert choice["message"]["content"] == PARIS
    accepts = grammar_of(scheduler.requests[-1], grammar_tokenizer)
    assert accepts(PARIS)
    assert accepts(written("get_time", "{}"))
    assert not accepts("hello")
    assert not accepts('{"town": "Paris"}')


async def test_tokens_of_thoughts_are_counted(chat: httpx.AsyncClient, say: Say, tokenizer: Tokenizer) -> None:
    say("<think>\nhello, hello\n</think>\n\nParis.")
    answer = await chat.post("/v1/chat/completions", json=body())
    usage = answer.json()["usage"]
    spent = usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < spent <= len(tokenizer.encode("\nhello, hello\n").ids)
    assert spent < usage["completion_tokens"]


async def test_thoughts(chat: httpx.AsyncClient, say: Say) -> None:
    say(f"<think>\nhello\n</think>\n\nParis.\n{written('get_time', '{}')}")
    choice = await ask(chat)
    message = choice["message"]
    assert (message["reasoning_content"], message["reasoning"], message["content"]) == ("hello", "hello", "Paris.")
    assert calls_of(choice) == [("get_time", "{}")]
    say("hello</think>Paris.")
    choice = await ask(chat, chat_template_kwargs={"enable_thinking": True})
    assert choice["message"]["reasoning_content"] == "hello"
    choice = await ask(chat, reasoning_effort="high")
    assert choice["message"]["reasoning_content"] == "hello"
    choice = await ask(chat, reasoning_effort="high", include_reasoning=False)
    assert choice["message"] == {"role": "assistant", "content": "Paris.", "refusal": None}


async def test_a_grammar_leaves_no_room_for_thoughts(
    chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler, chat_tokens: Tokenizer
) -> None:
    say(PARIS)
    choice = await ask(chat, tools=None, response_format={"type": "json_object"})
    assert choice["message"] == {"role": "assistant", "content": PARIS, "refusal": None}
    assert chat_tokens.decode(scheduler.requests[-1].prompt_token_ids, skip_special_tokens=False).endswith(
        "assistant\n"
    )


async def test_every_token_has_its_logprobs(chat: httpx.AsyncClient, say: Say, scheduler: FakeScheduler) -> None:
    say(written("get_weather", PARIS))
    response = await chat.post("/v1/chat/completions", json=body(logprobs=True))
    entries = response.json()["choices"][0]["logprobs"]["content"]
    text = b"".join(bytes(entry["bytes"]) for entry in entries).decode()
    assert text == written("get_weather", PARIS) + "<|im_end|>"


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": function}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"tools": [tool()]}, "tools[0].function.name"),
    ({"tools": [TIME, tool(name="")]}, "tools[1].function.name"),
    ({"tools": [tool(name="a b")]}, "tools[0].function.name"),
    ({"tools": [tool(name="x" * 65)]}, "tools[0].function.name"),
    ({"tools": [TIME, TIME]}, "tools[1].function.name"),
    ({"tools": [tool(name="f", parameters=[])]}, "tools[0].function.parameters"),
    ({"tools": [tool(name="f", parameters={"type": "string"})]}, "tools[0].function.parameters"),
    ({"tools": [tool(name="f", parameters={"properties": []})]}, "tools[0].function.parameters"),
    ({"tools": [tool(name="f", surprise=1)]}, "tools[0].function.surprise"),
    (
        {"tools": [TIME, tool(name="f", parameters={"not": {}})], "tool_choice": "required"},
        "tools[1].function.parameters",
    ),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": tool(name="f")}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": []}, {"role": "user"}]}, "messages[1].content"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"chat_template_kwargs": {"chat_template": "{{ messages }}"}}, "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_refused(chat: httpx.AsyncClient, stream: bool) -> None:
    for changes, param in BAD:
        answer = await chat.post("/v1/chat/completions", json=body(**changes, stream=stream))
        assert answer.status_code == 400, (changes, answer.text)
        error = answer.json()["error"]
        # A union's alternatives are fields of their own.
        assert error["param"].startswith(param), (changes, error)


@pytest.mark.parametrize("arguments", ["", "{}", '{"a": 1}', "[1]", "{", None])
async def test_arguments_of_earlier_calls(chat: httpx.AsyncClient, say: Say, arguments: str | None) -> None:
    say("hello")
    call = {"id": "x", "type": "function", "function": {"name": "get_time", "arguments": arguments}}
    messages = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]
    answer = await chat.post("/v1/chat/completions", json=body(messages=messages))
    is_object = arguments is not None and arguments.strip("{}") in ("", '"a": 1') and arguments != "{"
    assert answer.status_code == (200 if is_object else 400)
    if not is_object:
        assert answer.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"


async def test_settings(module_scheduler: FakeScheduler, chat_model: Path) -> None:
    """What the operator switches on and off."""
    module_scheduler.reset()
    flags = {
        "enable_auto_tool_choice": False,
        "reasoning_parser": "none",
        "trust_request_chat_template": True,
    }
    gateway = await start_gateway(module_scheduler, chat_model, **flags)
    try:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

            async def post(**fields: Any) -> httpx.Response:
                return await client.post("/v1/chat/completions", json=body(max_tokens=2, **fields))

            assert (await post()).json()["error"]["param"] == "tool_choice"
            assert (await post(tool_choice="required")).status_code == 200
            assert (await post(tools=None, reasoning_effort="low")).json()["error"]["param"] == "reasoning_effort"
            assert (await post(tools=None, chat_template="{{ messages[0].content }}!")).status_code == 200
            assert (await post(tools=None, chat_template="{% if %}")).json()["error"]["param"] == "messages"
    finally:
        await gateway.close()
        module_scheduler.reset()


async def test_a_model_that_cannot_call(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/chat/completions", json=body())
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
