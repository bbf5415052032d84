"""Messages of MonitorService as JSON, for the live page and for `quire top --json`."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf.message import Message

from quire.columns import unpack_u32


def to_plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it: numbers as numbers, columns of u32 as arrays, other bytes in base64.

    Sub-messages that are not set are left out; all else is there even where it is 0.
    """
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            plain[field.name] = [to_plain(item) for item in value] if field.message_type else list(value)
        elif field.message_type is not None:
            if message.HasField(field.name):
                plain[field.name] = to_plain(value)
        elif isinstance(value, bytes):
            is_column = field.name == "block_ids"
            plain[field.name] = unpack_u32(value) if is_column else base64.b64encode(value).decode()
        else:
            plain[field.name] = value
    return plain
