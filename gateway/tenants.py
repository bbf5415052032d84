"""Tenants: whose requests they are, what they may use, and the file that says so."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml
from starlette.types import Scope

from quire.errors import StartupError
from quire.internal.v1 import scheduler_pb2

# The tenant of keys given as --api-key.
DEFAULT_NAME: Final = "default"
_MAX_NAME_LENGTH: Final = 256
_is_digest = re.compile(r"[0-9a-f]{64}").fullmatch

# Fields of an entry, and the largest value of those that are numbers.
_LIMITS: Final = {
    "max_concurrent_requests": 2**32 - 1,
    "requests_per_minute": 2**32 - 1,
    "tokens_per_minute": 2**64 - 1,
}
_FIELDS: Final = ("sha256", "tenant", "weight", "operator", *_LIMITS)


@dataclass(frozen=True)
class Tenant:
    """Who is asking, and the limits that the scheduler enforces over all gateways; None is no limit."""

    # Empty where nobody has to say who they are.
    name: str
    # Share of the tokens under --scheduling-policy fair, relative to other tenants.
    weight: float = 1.0
    # Prompts that run or wait at a time.
    max_concurrent_requests: int | None = None
    requests_per_minute: int | None = None
    # Prompt and output.
    tokens_per_minute: int | None = None
    # Whether it may see what concerns all tenants: the live page's data, KV events, metrics by tenant.
    is_operator: bool = False

    @cached_property
    def message(self) -> scheduler_pb2.Tenant:
        """As the scheduler reads it."""
        limits = {name: value for name in _LIMITS if (value := getattr(self, name)) is not None}
        return scheduler_pb2.Tenant(name=self.name, weight=self.weight, **limits)


# Whoever calls a server without keys, and the offline LLM class.
ANONYMOUS: Final = Tenant("", is_operator=True)


def set_tenant(scope: Scope, tenant: Tenant) -> None:
    """Notes whose REST request it is."""
    scope["state"]["tenant"] = tenant


def tenant_of(scope: Scope) -> Tenant:
    """Whose REST request it is."""
    tenant: Tenant = scope["state"]["tenant"]
    return tenant


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What --api-keys holds."""

    # By the SHA-256 of a key.
    by_digest: Mapping[bytes, Tenant] = field(default_factory=dict)
    by_name: Mapping[str, Tenant] = field(default_factory=dict)


def read_key_file(path: Path) -> KeyFile:
    """Reads a YAML list of entries. Raises StartupError that names the file, the entry and the field.

    An entry has a `tenant`, and may have the `sha256` of one of its keys (without one the tenant is known by its client
    certificate), a `weight` and limits. Entries of one tenant, which has several keys then, must agree in these.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _error(f"{path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise _error(f"{path} is not a list of entries, each with `sha256` and `tenant`")
    by_digest: dict[bytes, Tenant] = {}
    by_name: dict[str, Tenant] = {}
    for number, entry in enumerate(content, start=1):
        where = f"{path}, entry {number}"
        tenant, digest = _parse_tenant(entry, where), _parse_digest(entry, where)
        if by_name.setdefault(tenant.name, tenant) != tenant:
            message = "weight, operator and limits must be those of its tenant's other entries"
            raise _error(f"{where}: tenant {tenant.name!r}: {message}")
        if digest in by_digest:
            raise _error(f"{where}: sha256: the same key is in an entry above")
        if digest is not None:
            by_digest[digest] = tenant
    return KeyFile(by_digest, by_name)


def _parse_tenant(entry: Any, where: str) -> Tenant:
    if not isinstance(entry, dict):
        raise _error(f"{where}: not a mapping with `sha256` and `tenant`")
    for name in entry:
        if name not in _FIELDS:
            raise _error(f"{where}: {name}: there is no such field; there are {', '.join(_FIELDS)}")
    name = entry.get("tenant")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _MAX_NAME_LENGTH:
        raise _error(f"{where}: tenant: must be a name of 1 to {_MAX_NAME_LENGTH} printable characters")
    limits = {limit: _parse_limit(entry, limit, most, where) for limit, most in _LIMITS.items()}
    return Tenant(name, _parse_weight(entry, where), **limits, is_operator=_parse_operator(entry, where))


def _parse_weight(entry: Mapping[str, Any], where: str) -> float:
    value = entry.get("weight", 1.0)
    # A boolean is an integer to Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise _error(f"{where}: weight: must be a number above 0, not {value!r}")
    return float(value)


def _parse_operator(entry: Mapping[str, Any], where: str) -> bool:
    value = entry.get("operator", False)
    if not isinstance(value, bool):
        raise _error(f"{where}: operator: must be true or false, not {value!r}")
    return value


def _parse_limit(entry: Mapping[str, Any], name: str, most: int, where: str) -> int | None:
    if name not in entry:
        return None
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _error(f"{where}: {name}: must be an integer of at least 1, not {value!r}; leave it out for no limit")
    return value


def _parse_digest(entry: Mapping[str, Any], where: str) -> bytes | None:
    value = entry.get("sha256")
    if "sha256" not in entry:
        return None
    if not isinstance(value, str) or not _is_digest(value):
        raise _error(f"{where}: sha256: must be 64 hexadecimal digits in lower case; `quire hash-key` makes an entry")
    return bytes.fromhex(value)


def _error(message: str) -> StartupError:
    return StartupError(f"--api-keys: {message}", field="api_keys")
