"""Messages of MonitorService as JSON, for the live page and for `quire top --json`."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from quire.columns import unpack_u32

_Converter: TypeAlias = Callable[[Any], Any]


def to_plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it: numbers as numbers, columns of u32 as arrays, other bytes in base64.

    Sub-messages that are not set are left out; all else is there even where it is 0.
    """
    shape = _Shape.of(message.DESCRIPTOR)
    # In one go, since a state has thousands of fields.
    plain = dict(zip(shape.names, shape.get(message), strict=True))
    for name, convert in shape.converters:
        plain[name] = convert(plain[name])
    for name in shape.optional:
        if message.HasField(name):
            plain[name] = to_plain(plain[name])
        else:
            del plain[name]
    return plain


class _Shape:
    """The fields of a kind of message, of which it has at least two."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.names = [field.name for field in descriptor.fields]
        self.get: Callable[[Message], tuple[Any, ...]] = attrgetter(*self.names)
        self.converters: list[tuple[str, _Converter]] = []
        self.optional: list[str] = []
        for field in descriptor.fields:
            if field.message_type is not None and not field.is_repeated:
                self.optional.append(field.name)
            elif (convert := _converter(field)) is not None:
                self.converters.append((field.name, convert))

    @staticmethod
    @functools.cache
    def of(descriptor: Descriptor) -> _Shape:
        return _Shape(descriptor)


def _converter(field: FieldDescriptor) -> _Converter | None:
    if field.is_repeated:
        return _messages if field.message_type is not None else list
    if field.type == FieldDescriptor.TYPE_BYTES:
        return unpack_u32 if field.name == "block_ids" else _base64
    return None


def _messages(values: Any) -> list[dict[str, Any]]:
    return [to_plain(value) for value in values]


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
