"""`quire complete` and `quire chat`: a running server in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from quire.client import Client
from quire.outputs import CompletionDelta
from quire.sampling_params import SamplingParams


def complete(address: str, prompt: str, max_tokens: int | None, temperature: float | None) -> None:
    """Prints the continuation of a text as it comes. Raises QuireError."""
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    with Client(address) as client:
        _print_stream(client.generate(prompt, params))


def chat(address: str, system: str | None, max_tokens: int | None, temperature: float | None) -> None:
    """Reads the user's turns from standard input and prints the answers. Raises QuireError."""
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    messages = [{"role": "system", "content": system}] if system else []
    with Client(address) as client:
        while question := _ask():
            messages.append({"role": "user", "content": question})
            answer = _print_stream(client.generate(messages, params))
            messages.append({"role": "assistant", "content": answer})


def _ask() -> str:
    """The user's next turn; empty when there is none."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return ""


def _print_stream(deltas: Iterable[CompletionDelta]) -> str:
    """Prints text as it comes; returns all of it."""
    texts = []
    for part in deltas:
        texts.append(part.text)
        print(part.text, end="", flush=True)  # noqa: T201
    print()  # noqa: T201
    return "".join(texts)
