"""Jinja's sandbox with bounds on time, on the size of values and on the output.

A template is a program. What it can repeat is loops and calls, and both look at the clock; what one operation can make
large is bounded before it runs. So a template ends, and nothing here needs a thread to be killed.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Characters, or elements of a list; no context holds more.
MAX_SIZE: Final = 16 << 20
# Bits of a number.
_MAX_BITS: Final = 10_000
# Widths, counts and the like.
_MAX_ARGUMENT: Final = 1_000_000
_WIDE_FORMAT = re.compile(r"[%{][^%{}]*(\d{6}|\*)")
# Filters that make as much as a number tells them.
_SIZED_FILTERS: Final = ("batch", "center", "format", "indent", "slice", "truncate", "wordwrap")


class TemplateLimitError(jinja2.TemplateError):
    """The template takes too long or makes too much."""


class TemplateTimeoutError(TemplateLimitError):
    """It may end all the same, given more time."""


class _Clock(threading.local):
    """What is rendered in a thread: one template at a time."""

    deadline = 0.0
    limit_s = 0.0


_clock = _Clock()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Templates of this thread raise TemplateTimeoutError after so long."""
    _clock.limit_s, _clock.deadline = seconds, time.monotonic() + seconds
    try:
        yield
    finally:
        _clock.deadline = 0.0


def _check_time() -> None:
    if time.monotonic() > _clock.deadline > 0:
        raise TemplateTimeoutError(f"it takes longer than {_clock.limit_s:g} s")


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The output. Raises TemplateLimitError, and whatever the template raises."""
    pieces: list[str] = []
    size = 0
    for piece in template.generate(variables):
        _check_time()
        size += len(piece)
        _check_size(size)
        pieces.append(piece)
    return "".join(pieces)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that keep to the bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters.update({name: _bounded(self.filters[name]) for name in _SIZED_FILTERS})
        self.filters["_metered"] = _metered
        self.filters["_sized"] = _sized

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_metered", [], [], None, None)
        _measure_concatenations(tree)
        tree.set_environment(self)
        return tree

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call of a template's."""
        _check_time()
        _check_arguments((*args, *kwargs.values()))
        return _sized(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Every operator of `intercepted_binops`."""
        if operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise TemplateLimitError("it formats with a width of six digits or more")
        return _sized(super().call_binop(context, operator, left, right))


def _measure_concatenations(node: nodes.Node) -> None:
    """Puts `_sized` around every `a ~ b`, which no operator's hook sees."""
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            _measure_concatenations(value)
            if isinstance(value, nodes.Concat):
                setattr(node, name, nodes.Filter(value, "_sized", [], [], None, None))
        elif isinstance(value, list):
            for child in value:
                if isinstance(child, nodes.Node):
                    _measure_concatenations(child)
            value[:] = [
                nodes.Filter(child, "_sized", [], [], None, None) if isinstance(child, nodes.Concat) else child
                for child in value
            ]


def _metered(iterable: Iterable[Any]) -> Iterator[Any]:
    for value in iterable:
        _check_time()
        yield value


def _sized(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        _check_size(len(value))
    return value


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes no large numbers."""

    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_arguments((*args, *kwargs.values()))
        if isinstance(args[0], str) and function.__name__ == "do_format" and _WIDE_FORMAT.search(args[0]):
            raise TemplateLimitError("it formats with a width of six digits or more")
        return _sized(function(*args, **kwargs))

    # Some take the environment first; jinja2 marks them with an attribute.
    bounded.__dict__.update(function.__dict__)
    return bounded


def _check_arguments(arguments: Iterable[Any]) -> None:
    for value in arguments:
        if isinstance(value, int) and abs(value) > _MAX_ARGUMENT:
            raise TemplateLimitError(f"it calls something with {str(value)[:20]}")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
        return
    for text, times in ((left, right), (right, left)):
        if isinstance(text, (str, list, tuple)) and isinstance(times, int):
            _check_size(len(text) * times)


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise TemplateLimitError(f"it computes numbers of more than {_MAX_BITS} bits")


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise TemplateLimitError(f"it makes texts or lists of more than {MAX_SIZE:,} characters or elements")
