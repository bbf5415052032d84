"""The REST API as Markdown, from the application's own OpenAPI document.

A field is described by its schema; where that is silent, by the comment above it in the class that reads it, and then
by the comment of the same field of SamplingParams in protos/quire/v1, since names and meanings are the same.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from docs_site.grpc import field_comments
from quire.config import ServeSettings
from quire.supervisor import Supervisor

_TIMEOUT_S = 60
_METHODS = ("get", "post", "put", "delete", "patch")
_DEFAULT = re.compile(r"Default:? ([^.]+)\.")
_FIELD = re.compile(r"^ {4}(\w+): ")


@cache
def document() -> dict[str, Any]:
    """What /openapi.json of a real server gives: nothing else makes sure that it is the same."""
    settings = ServeSettings.load({"port": 0, "grpc_port": 0, "kv_cache_memory": "16MiB", "log_level": "error"})
    with Supervisor(settings) as supervisor:
        port = supervisor.start(gateway=settings)["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=_TIMEOUT_S) as answer:
            description: dict[str, Any] = json.load(answer)
    return description


def render_paths() -> str:
    """A section per tag, and in it one per path and method."""
    by_tag: dict[str, list[str]] = {}
    for path, methods in document()["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = methods[method]
                tag = next(iter(operation.get("tags", ())), "other")
                by_tag.setdefault(tag, []).extend(_operation(path, method, operation))
    return "\n\n".join(line for tag, parts in by_tag.items() for line in (f"## {tag.capitalize()}", *parts))


def render_schemas() -> str:
    """A section per schema, in the order of their names."""
    schemas = document()["components"]["schemas"]
    return "\n\n".join(part for name in sorted(schemas, key=_sort_key) for part in _schema(name, schemas[name]))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path}"
    if about := operation.get("description"):
        yield about
    if parameters := operation.get("parameters"):
        rows = ["| parameter | in | type | |", "|---|---|---|---|"]
        for one in parameters:
            about = _one_line(one.get("description", ""))
            rows.append(f"| `{one['name']}` | {one['in']} | {_type(one.get('schema', {}))} | {about} |")
        yield "\n".join(rows)
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody'])}."
    answers = sorted(operation["responses"].items())
    for status, answer in answers:
        if status < "400":
            yield f"{status}: {_body_or_meaning(answer)}."
    by_body: dict[str, list[str]] = {}
    for status, answer in answers:
        if status >= "400":
            by_body.setdefault(_body_or_meaning(answer), []).append(status)
    for body, statuses in by_body.items():
        yield f"{', '.join(statuses)}: {body}."


def _body_or_meaning(answer: Mapping[str, Any]) -> str:
    return _content(answer) or _one_line(answer["description"]).removesuffix(".")


def _content(holder: Mapping[str, Any]) -> str:
    """What a body may be: the type of JSON, or another media type."""
    parts = []
    for media, content in holder.get("content", {}).items():
        if media != "application/json":
            parts.append("server-sent events" if media == "text/event-stream" else media)
        elif content.get("schema"):
            parts.append(_type(content["schema"]))
    return ", or ".join(parts)


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {_public(name)}"
    if about := schema.get("description"):
        yield inspect.cleandoc(about).split("\n\n")[0]
    if "properties" not in schema:
        yield f"Type: {_type(schema)}."
        return
    comments = _comments().get(name, {})
    required = schema.get("required", ())
    fields, refused, ignored = [], [], []
    for field, kind in schema["properties"].items():
        about = kind.get("description", "")
        if about.startswith("Not implemented"):
            refused.append(f"`{field}` ({_type(kind)})")
        elif about.startswith("Accepted;"):
            ignored.append(f"`{field}`")
        else:
            about = _one_line(about or comments.get(field) or _sampling_comments().get(field, ""))
            about, default = _split_default(about)
            default = "required" if field in required else _default(kind) or default
            fields.append(f"| `{field}` | {_type(kind)} | {default} | {about} |")
    if fields:
        yield "\n".join(["| field | type | default | |", "|---|---|---|---|", *fields])
    if ignored:
        yield f"Taken, and without influence on the answer: {', '.join(ignored)}."
    if refused:
        yield f"Known but not implemented, and refused but for the values named: {', '.join(refused)}."


def _split_default(about: str) -> tuple[str, str]:
    """What a description says, and what it says of the default."""
    match = _DEFAULT.search(about)
    return (about, "") if match is None else (about.replace(match[0], "").strip(), match[1])


def _default(kind: Mapping[str, Any]) -> str:
    value = kind.get("default")
    return "" if value is None else f"`{json.dumps(value)}`"


def _type(kind: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in kind:
        name = _public(kind["$ref"].rpartition("/")[2])
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in kind:
            members = dict.fromkeys(_type(one) for one in kind[union] if one.get("type") != "null")
            return " or ".join(members) or "null"
    if "const" in kind or "enum" in kind:
        values = kind.get("enum", [kind.get("const")])
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    name = kind.get("type", "any JSON")
    if name == "array":
        return f"array of {_type(kind.get('items', {}))}"
    if isinstance(kind.get("additionalProperties"), dict):
        return f"object of {_type(kind['additionalProperties'])}"
    return f"{' or '.join(name) if isinstance(name, list) else name}{_bounds(kind)}"


def _bounds(kind: Mapping[str, Any]) -> str:
    low = kind.get("minimum", kind.get("exclusiveMinimum"))
    high = kind.get("maximum", kind.get("exclusiveMaximum"))
    if low is None and high is None:
        return ""
    left = "(" if "exclusiveMinimum" in kind or low is None else "["
    right = ")" if "exclusiveMaximum" in kind or high is None else "]"
    return f" in {left}{'−∞' if low is None else low}, {'∞' if high is None else high}{right}"


def _public(name: str) -> str:
    """A schema's name without what generics and private classes add."""
    return name.strip("_").replace("_", "")


def _sort_key(name: str) -> str:
    return _public(name).lower()


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


@cache
def _sampling_comments() -> dict[str, str]:
    return field_comments("SamplingParams")


@cache
def _comments() -> dict[str, dict[str, str]]:
    """The comments above the fields of the classes that have schemas, by class and field."""
    names = document()["components"]["schemas"].keys()
    comments: dict[str, dict[str, str]] = {}
    for cls in _classes():
        if cls.__name__ in names:
            own = comments.setdefault(cls.__name__, {})
            for base in reversed(cls.__mro__):
                if base.__module__.startswith("quire."):
                    own |= _comments_in(base)
    return comments


def _classes() -> Iterator[type]:
    """All classes of the gateway's modules that its application loads, which all that have schemas are."""
    import quire.gateway.rest  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith("quire.gateway."):
            yield from (cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == name)


def _comments_in(cls: type) -> dict[str, str]:
    found: dict[str, str] = {}
    pending: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if line.startswith("    # "):
            pending.append(line.strip().removeprefix("# "))
            continue
        if pending and (match := _FIELD.match(line)):
            found[match[1]] = " ".join(pending)
        pending = []
    return found
