"""`quire complete` and `quire chat`: a running server in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from quire.client import Client
from quire.errors import ContextLengthError
from quire.outputs import CompletionDelta
from quire.sampling_params import SamplingParams

Messages = list[dict[str, str]]


def complete(client: Client, prompt: str, max_tokens: int | None, temperature: float | None) -> None:
    """Prints the continuation of a text as it comes. Raises QuireError."""
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    with client:
        _print_stream(client.generate(prompt, params))


def chat(client: Client, system: str | None, max_tokens: int | None, temperature: float | None) -> None:
    """Reads the user's turns from standard input and prints the answers. Raises QuireError."""
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    opening: Messages = [{"role": "system", "content": system}] if system else []
    turns: Messages = []
    with client:
        while question := _ask():
            turns.append({"role": "user", "content": question})
            turns = _answer(client, opening, turns, params)


def _answer(client: Client, opening: Messages, turns: Messages, params: SamplingParams) -> Messages:
    """Prints an answer to the last turn; returns the turns that go on, without the oldest where all do not fit."""
    while turns:
        try:
            answer = _print_stream(client.generate([*opening, *turns], params))
        except ContextLengthError as error:
            is_last = len(turns) == 1
            turns = turns[2:]
            _say(f"this does not fit the context: {error.message}" if is_last else "the oldest turn is left out")
        else:
            return [*turns, {"role": "assistant", "content": answer}]
    return turns


def _ask() -> str:
    """The user's next turn; empty when there is none."""
    while True:
        try:
            if sys.stdin.isatty():
                return input("> ")
            return sys.stdin.buffer.readline().decode().rstrip("\r\n")
        except (EOFError, KeyboardInterrupt):
            return ""
        except UnicodeDecodeError:
            _say("that line is not valid UTF-8; it is left out")


def _print_stream(deltas: Iterable[CompletionDelta]) -> str:
    """Prints text as it comes, until Ctrl-C; returns what was printed."""
    texts = []
    try:
        for part in deltas:
            texts.append(part.text)
            print(part.text, end="", flush=True)  # noqa: T201
    except KeyboardInterrupt:
        _say("stopped")
    print()  # noqa: T201
    return "".join(texts)


def _say(message: str) -> None:
    print(f"quire: {message}", file=sys.stderr)  # noqa: T201
