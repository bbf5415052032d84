"""Every numeric field of the REST API and of the gRPC messages, from the descriptions that clients get."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Names of objects' members, 0 for the first element of a list, and EVERY for a member of any name.
Path: TypeAlias = tuple[str | int, ...]
EVERY = "7"

_MAX_DEPTH = 6
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)


def json_fields(schema: dict[str, Any], components: dict[str, Any]) -> set[Path]:
    """Where a schema of an OpenAPI document takes numbers."""
    return set(_walk(schema, components, (), ()))


def _walk(schema: dict[str, Any], components: dict[str, Any], path: Path, around: tuple[str, ...]) -> Iterator[Path]:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        if name not in around:
            yield from _walk(components[name], components, path, (*around, name))
        return
    if len(path) > _MAX_DEPTH:
        return
    if schema.get("type") in ("integer", "number"):
        yield path
    parts = [(choice, path) for key in ("anyOf", "oneOf", "allOf") for choice in schema.get(key, [])]
    parts += [(part, (*path, name)) for name, part in schema.get("properties", {}).items()]
    if isinstance(schema.get("additionalProperties"), dict):
        parts.append((schema["additionalProperties"], (*path, EVERY)))
    if "items" in schema:
        parts.append((schema["items"], (*path, 0)))
    for part, place in parts:
        yield from _walk(part, components, place, around)


def put(body: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """`body` with a value at that place; what is on the way is made."""
    changed = dict(body)
    head, *rest = path
    assert isinstance(head, str)
    changed[head] = _wrapped(changed.get(head), rest, value)
    return changed


def _wrapped(existing: Any, path: list[str | int], value: Any) -> Any:
    if not path:
        return value
    head, *rest = path
    if head == 0:
        return [_wrapped(None, rest, value)]
    return {**(existing if isinstance(existing, dict) else {}), head: _wrapped(None, rest, value)}


def extreme_messages(message: Message) -> Iterator[tuple[str, Message]]:
    """Field and a copy of the message, for each numeric field in it and each extreme value that its type can hold.

    Of messages inside, those that are set, and one of each that may be set.
    """
    for field in message.DESCRIPTOR.fields:
        if _is_map(field):
            yield from _extreme_maps(message, field)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            yield from _inside(message, field)
        else:
            for value in _extremes(field):
                changed = _copy(message)
                if field.is_repeated:
                    getattr(changed, field.name).append(value)
                else:
                    setattr(changed, field.name, value)
                yield field.name, changed


def _inside(message: Message, field: FieldDescriptor) -> Iterator[tuple[str, Message]]:
    template = _copy(message)
    inner = getattr(template, field.name)
    if field.is_repeated:
        inner = inner[0] if inner else inner.add()
    for name, changed in extreme_messages(inner):
        whole = _copy(message)
        target = getattr(whole, field.name)
        if field.is_repeated:
            target = target[0] if target else target.add()
        target.CopyFrom(changed)
        yield f"{field.name}.{name}", whole


def _extreme_maps(message: Message, field: FieldDescriptor) -> Iterator[tuple[str, Message]]:
    kinds = field.message_type.fields_by_name
    for key in _extremes(kinds["key"]):
        changed = _copy(message)
        getattr(changed, field.name)[key] = 1
        yield field.name, changed
    for value in _extremes(kinds["value"]):
        changed = _copy(message)
        getattr(changed, field.name)[int(EVERY)] = value
        yield field.name, changed


def _extremes(field: FieldDescriptor) -> list[Any]:
    if field.cpp_type in _FLOATS:
        return [0.0, -1.0, 2.0**31, 2.0**63, 1e38, math.nan, math.inf, -math.inf]
    if field.cpp_type in _INTEGERS:
        low, high = _INTEGERS[field.cpp_type]
        return [value for value in {0, -1, 2**31, 2**63, low, high} if low <= value <= high]
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return [-1, 99, 2**31 - 1]
    return []


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
