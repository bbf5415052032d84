"""Prompts and chats in the forms that users of vLLM's `LLM` know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from quire.client.requests import ChatOptions
from quire.client.requests import chat_prompt as chat_message
from quire.errors import InvalidRequestError
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.grpc_api.requests import chat_prompt
from quire.prompts import check_mapping, check_text, check_token_ids, is_token_id

Message = Mapping[str, Any]


class TextPrompt(TypedDict):
    """A text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt that is tokenised already."""

    prompt_token_ids: Iterable[int]


# Token ids may come as any iterable of integers, numpy arrays among them.
OfflinePrompt = str | Iterable[int] | TextPrompt | TokensPrompt


def to_prompts(prompts: OfflinePrompt | Iterable[OfflinePrompt]) -> list[str | list[int]]:
    """One prompt or many, as many. Integers are one prompt. Raises InvalidRequestError."""
    if isinstance(prompts, (str, Mapping)):
        return [_to_prompt(prompts, "prompts")]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        message = f"prompts must be a text, token ids or several of these, not a {type(prompts).__name__}"
        raise InvalidRequestError(message, field="prompts")
    entries = list(prompts)
    if entries and is_token_id(entries[0]):
        return [check_token_ids(entries, "prompts")]
    return [_to_prompt(entry, f"prompts[{index}]") for index, entry in enumerate(entries)]


def to_chats(messages: Sequence[Message] | Sequence[Sequence[Message]], options: ChatOptions) -> list[ChatPrompt]:
    """One conversation or many, as many. Raises InvalidRequestError."""
    if not messages:
        raise InvalidRequestError("there are no messages", field="messages")
    conversations: Any = [messages] if isinstance(messages[0], Mapping) else messages
    return [chat_prompt(chat_message(conversation, options)) for conversation in conversations]


def _to_prompt(prompt: object, field: str) -> str | list[int]:
    if isinstance(prompt, str):
        return check_text(prompt, field)
    if not isinstance(prompt, Mapping):
        return check_token_ids(prompt, field)
    given = check_mapping(prompt, field, ("prompt", "prompt_token_ids"))
    if given.get("prompt_token_ids") is not None:
        return check_token_ids(given["prompt_token_ids"], f"{field}.prompt_token_ids")
    return check_text(given.get("prompt"), f"{field}.prompt")
