from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.fake_scheduler import MAX_MODEL_LEN, VOCAB_SIZE
from support.gateway_fixtures import MODEL
from tokenizers import Tokenizer

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = [{"role": "user", "content": "hello"}]


async def post(http: httpx.AsyncClient, path: str, body: Any) -> Any:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_text(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("one two <|im_start|>")
    found = await post(http, "/tokenize", {"model": MODEL, "prompt": "one two <|im_start|>", "return_token_strs": True})
    assert found == {
        "count": len(encoding.ids),
        "max_model_len": MAX_MODEL_LEN,
        "tokens": encoding.ids,
        "token_strs": encoding.tokens,
    }
    bare = await post(http, "/tokenize", {"prompt": "one two", "add_special_tokens": False})
    assert bare["tokens"] == tokenizer.encode("one two", add_special_tokens=False).ids
    assert bare["token_strs"] is None
    assert (await post(http, "/tokenize", {"prompt": ""}))["count"] == len(tokenizer.encode("").ids)


async def test_a_chat_as_it_is_generated_from(http: httpx.AsyncClient) -> None:
    found = await post(http, "/tokenize", {"messages": MESSAGES, "temperature": 0.5})
    chat = {"messages": MESSAGES, "max_tokens": 1, "return_token_ids": True}
    assert found["tokens"] == (await post(http, "/v1/chat/completions", chat))["prompt_token_ids"]


async def test_there_and_back(http: httpx.AsyncClient) -> None:
    text = "one two <|im_start|>Paris 😀"
    tokens = (await post(http, "/tokenize", {"prompt": text, "add_special_tokens": False}))["tokens"]
    assert await post(http, "/detokenize", {"model": MODEL, "tokens": tokens}) == {"prompt": text}
    assert await post(http, "/detokenize", {"tokens": []}) == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "surprise": 1}, "surprise"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": "no"}, "add_special_tokens"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": MESSAGES, "prompt": "x"}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
        ("/detokenize", {"tokens": [10**40]}, "tokens"),
    ],
)
async def test_a_field_at_fault_is_named(http: httpx.AsyncClient, path: str, body: Any, param: str) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": []})])
async def test_an_unknown_model(http: httpx.AsyncClient, path: str, body: Any) -> None:
    assert (await http.post(path, json={**body, "model": "gpt-9"})).status_code == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null"])
async def test_a_body_that_is_no_json_object(http: httpx.AsyncClient, body: bytes) -> None:
    for path in ("/tokenize", "/detokenize"):
        assert (await http.post(path, content=body)).status_code == 400
