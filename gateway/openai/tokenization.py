"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from msgspec import Struct
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from quire.errors import InvalidRequestError
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.engine import Engine
from quire.gateway.openai.chat import ChatCompletionRequest
from quire.gateway.openai.frames import encode
from quire.gateway.openai.protocol import Integer, parse_request
from quire.gateway.openai.schemas import describe_route
from quire.gateway.streaming import read_body

# A prompt that fills any context, and more than anyone decodes.
_MAX_TOKENS = 1 << 22


class TokenizeTextRequest(BaseModel):
    """The body of POST /tokenize with a text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(ChatCompletionRequest):
    """The body of POST /tokenize with messages: a chat's own body, whose other fields change nothing."""

    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """The body of POST /detokenize."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    tokens: list[Integer]


class Tokenized(Struct):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    # The tokenizer's own names of the tokens, if asked for.
    token_strs: list[str] | None = None


class Detokenized(Struct):
    """The answer of /detokenize."""

    prompt: str


BODIES = (TokenizeTextRequest, TokenizeChatRequest, DetokenizeRequest)
ANSWERS = (Tokenized, Detokenized)


def tokenization_routes(engine: Engine) -> APIRouter:
    """Both endpoints."""
    router = APIRouter(tags=["tokens"])

    @router.post("/tokenize", **describe_route((TokenizeTextRequest, TokenizeChatRequest), Tokenized))
    async def tokenize(http: Request) -> Response:
        """The tokens of a prompt or a chat."""
        return _json(await _tokenize(engine, _parse(await read_body(http))))

    @router.post("/detokenize", **describe_route(DetokenizeRequest, Detokenized))
    async def detokenize(http: Request) -> Response:
        """The text of tokens, special tokens included."""
        request = parse_request(DetokenizeRequest, await read_body(http))
        engine.validator.check_model(request.model)
        _check_count(request.tokens)
        engine.validator.check_token_ids(request.tokens, "tokens")
        return _json(Detokenized(await engine.tokenizer.decode(request.tokens)))

    return router


def _parse(body: bytes) -> TokenizeTextRequest | TokenizeChatRequest:
    """By which of the two fields it has."""
    try:
        content: Any = from_json(body)
    except ValueError as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from None
    is_chat = isinstance(content, dict) and "messages" in content
    return parse_request(TokenizeChatRequest, body) if is_chat else parse_request(TokenizeTextRequest, body)


async def _tokenize(engine: Engine, request: TokenizeTextRequest | TokenizeChatRequest) -> Tokenized:
    engine.validator.check_model(request.model)
    prompt: str | ChatPrompt
    if isinstance(request, TokenizeTextRequest):
        prompt, field = request.prompt, "prompt"
    else:
        prompt, field = request.prompt(), "messages"
    if prompt == "":  # nothing to generate from, but something to count
        tokens = await engine.tokenizer.encode("", add_special_tokens=request.add_special_tokens is not False)
    else:
        tokens = await engine.validator.encode(prompt, field=field, add_special_tokens=request.add_special_tokens)
    names = engine.tokenizer.token_names(tokens) if request.return_token_strs else None
    return Tokenized(len(tokens), engine.limits.max_model_len, tokens, names)


def _check_count(tokens: Sequence[int]) -> None:
    if len(tokens) > _MAX_TOKENS:
        raise InvalidRequestError(f"there are more than {_MAX_TOKENS} tokens", field="tokens")


def _json(answer: Struct) -> Response:
    return Response(encode(answer), media_type="application/json")
