"""Builds a chat's messages from the parts that APIs send, in the one shape that chat templates expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.errors import InvalidRequestError


class Transcript:
    """Messages in the making. What the assistant says, thinks and calls in a row is one turn of its."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        # By call id.
        self._called: dict[str, str] = {}

    def say(self, role: str, text: str) -> None:
        """A message of the system's or the user's."""
        self.messages.append({"role": role, "content": text})

    def answer(self, text: str) -> None:
        """What the assistant said."""
        turn = self._assistant_turn()
        turn["content"] = f"{turn['content']}\n{text}" if turn["content"] else text

    def think(self, text: str) -> None:
        """What the assistant thought."""
        turn = self._assistant_turn()
        before = turn.get("reasoning_content")
        turn["reasoning_content"] = f"{before}\n{text}" if before else text

    def call(self, call_id: str, name: str, arguments: Mapping[str, Any]) -> None:
        """A function that the assistant called."""
        self._called[call_id] = name
        function = {"name": name, "arguments": arguments}
        calls: list[dict[str, Any]] = self._assistant_turn().setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def result(self, call_id: str, text: str, *, field: str) -> None:
        """What a call gave. Raises InvalidRequestError, for `field`, if nothing like it was called."""
        if call_id not in self._called:
            raise InvalidRequestError(f"{field}: no call before it has the id {call_id!r}", field=field)
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": self._called[call_id], "content": text})

    def _assistant_turn(self) -> dict[str, Any]:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": ""})
        return self.messages[-1]
