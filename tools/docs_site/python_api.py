"""The Python API as Markdown: signatures and docstrings of the public classes, as they stand in the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import quire
import quire.client
from quire import outputs

# The heading, and the classes under it.
_GROUPS: dict[str, tuple[type[Any], ...]] = {
    "Without a server": (quire.LLM,),
    "How tokens are chosen": (quire.SamplingParams, quire.PoolingParams),
    "What comes back": (
        outputs.RequestOutput,
        outputs.CompletionOutput,
        outputs.CompletionDelta,
        outputs.TokenLogprobs,
        outputs.EmbeddingRequestOutput,
        outputs.EmbeddingOutput,
    ),
    "A client for a running server": (
        quire.client.Client,
        quire.client.AsyncClient,
        quire.client.RetryPolicy,
    ),
}

# What only our own processes call.
_INTERNAL = frozenset({"add", "empty", "from_proto", "resolved", "scheduler_address", "stop_strings", "to_proto"})
_LINE = 100


def render() -> str:
    """A section per group, and in it one per class."""
    return "\n\n".join(
        part
        for heading, classes in _GROUPS.items()
        for part in (f"## {heading}", *(line for cls in classes for line in _class(cls)))
    )


def _class(cls: type[Any]) -> Iterator[str]:
    yield f"### {cls.__name__}"
    yield f"```python\n{_home(cls)}\n\n{_signature(cls.__name__, cls)}\n```"
    yield _text(cls)
    if (own := cls.__dict__.get("__init__")) is not None and own.__doc__ and not own.__doc__.startswith("Initialize"):
        yield _text(own)
    for name, member in vars(cls).items():
        if name.startswith("_") or name in _INTERNAL or not inspect.getdoc(member):
            continue
        if isinstance(member, property):
            yield f"**{cls.__name__}.{name}**"
            yield _text(member)
        elif isinstance(member, (classmethod, staticmethod)) or inspect.isfunction(member):
            function = getattr(member, "__func__", member)
            yield f"**{cls.__name__}.{name}**"
            yield f"```python\n{_signature(name, function)}\n```"
            yield _text(function)


def _home(cls: type[Any]) -> str:
    for module in ("quire", "quire.client"):
        if cls.__name__ in inspect.getmodule(quire if module == "quire" else quire.client).__all__:  # type: ignore[union-attr]
            return f"from {module} import {cls.__name__}"
    return f"from {cls.__module__} import {cls.__name__}"


def _signature(name: str, thing: Any) -> str:
    """As in the source, a parameter per line where it is long."""
    signature = inspect.signature(thing)
    parts, is_keyword_only = [], False
    for one in signature.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not is_keyword_only:
            is_keyword_only = True
            parts.append("*")
        parts.append(_parameter(one))
    is_class = inspect.isclass(thing) or signature.return_annotation is inspect.Signature.empty
    result = "" if is_class else f" -> {_annotation(signature.return_annotation)}"
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= _LINE:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def _parameter(one: inspect.Parameter) -> str:
    marks: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    stars = marks.get(one.kind, "")
    default = "" if one.default is inspect.Parameter.empty else f" = {_default(one.default)}"
    return f"{stars}{one.name}: {_annotation(one.annotation)}{default}"


def _default(value: object) -> str:
    text = repr(value)
    return "..." if text.startswith("<") else text  # a dataclass's factory


def _annotation(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:collections\.abc|quire\.outputs|typing)\.", "", text)


def _text(thing: Any) -> str:
    """A docstring; its indented lines, which list fields, as a list."""
    text = inspect.getdoc(thing) or ""
    return re.sub(r"^ {4}(?=\w[\w, ]*: )", "- ", text, flags=re.MULTILINE).replace("\n        ", "\n  ")
