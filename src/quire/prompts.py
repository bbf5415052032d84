"""Prompts as callers of Python give them: checked, and in one form. The client and the offline `LLM` share this."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from quire.errors import InvalidRequestError
from quire.sampling_params import is_encodable

_U32_MAX = 2**32 - 1


def check_text(value: object, field: str) -> str:
    """A text that can be sent. Raises InvalidRequestError."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{field} must be a string, not {_kind(value)}", field=field)
    if not is_encodable(value):
        raise InvalidRequestError(f"{field} is not valid Unicode", field=field)
    return value


def check_token_ids(value: object, field: str) -> list[int]:
    """Token ids from any iterable of integers: lists, generators, numpy arrays. Raises InvalidRequestError."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidRequestError(f"{field} must be token ids, not {_kind(value)}", field=field)
    return [_token_id(entry, field) for entry in value]


def check_mapping(value: object, field: str, keys: Iterable[str]) -> Mapping[str, Any]:
    """A mapping with no other keys than these. Raises InvalidRequestError."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{field} must be a mapping, not {_kind(value)}", field=field)
    for key in value:
        if key not in keys:
            raise InvalidRequestError(f"{field} has no field {key!r}", field=f"{field}.{key}")
    return value


def is_token_id(value: object) -> bool:
    """Whether a value is an integer, of Python's or numpy's; a bool is none."""
    return hasattr(value, "__index__") and not isinstance(value, bool) and not hasattr(value, "__len__")


def _token_id(value: Any, field: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        token_id = operator.index(value)
    except TypeError:
        raise InvalidRequestError(f"{field} must be token ids; {value!r} is none", field=field) from None
    if not 0 <= token_id <= _U32_MAX:
        raise InvalidRequestError(f"{field}: {token_id} is no token id", field=field)
    return token_id


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
