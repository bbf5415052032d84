"""Sizes of tiles and the like, by GPU, kernel and shape: what decides how fast a kernel is, and none of its bits.

A table is a JSON file:

    {"cards": ["NVIDIA H200"], "measured": true, "kernels": {"linear": {"bfloat16 m<=64": {"num_stages": 4, ...}}}}

Tables are asked in this order: those that were measured (the shipped one, then the cache that `tools/tune_kernels.py`
has written on this machine), then a shipped one that was derived from the card's limits; what none of them knows is the
kernel's own default for the architecture. A start only reads.

A table may set nothing but what the kernel's default names. What decides bits (where long sums are cut) is therefore
not among the defaults but a function of the model's shapes in the kernel's module: executors of one pool whose tables
differ compute the same numbers.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import torch

__all__ = ["INTERPRETER", "Config", "Gpu", "Table", "TableError", "cache_file", "configuration", "gpu_of"]

#: Keywords of `launch`: constants of the kernel, num_warps and num_stages.
Config = dict[str, int]


class TableError(ValueError):
    """A table that cannot be used; the message names its file."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What kernels are fitted to.

    Attributes:
        name: the card's, as the driver says it.
        capability: its compute capability, 90 for 9.0; 0 in Triton's interpreter.
        num_sms: its multiprocessors.
        shared_memory: bytes that one program may take.
    """

    name: str
    capability: int
    num_sms: int
    shared_memory: int


INTERPRETER: Final = Gpu("Triton's interpreter", 0, 2, 1 << 30)

# Where a kernel is compiled for an architecture without a card: one that has it. CUDA C++ Programming Guide, technical
# specifications; NVIDIA's data sheets of A100, L4 and H100.
_ARCHITECTURES: Final = {
    80: Gpu("sm_80", 80, 108, 163 << 10),
    89: Gpu("sm_89", 89, 58, 99 << 10),
    90: Gpu("sm_90", 90, 132, 227 << 10),
}


def gpu_of(device: torch.device) -> Gpu:
    """The GPU that tensors on `device` are computed by."""
    if device.type == "cuda":
        return _card(torch.cuda.current_device() if device.index is None else device.index)
    if os.environ.get("TRITON_INTERPRET") == "1":
        return INTERPRETER
    from triton.runtime import driver

    return _ARCHITECTURES[driver.active.get_current_target().arch]


@functools.cache
def _card(index: int) -> Gpu:
    from triton.runtime import driver

    found = torch.cuda.get_device_properties(index)
    shared_memory = driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return Gpu(found.name, 10 * found.major + found.minor, found.multi_processor_count, shared_memory)


def configuration(kernel: str, shapes: Sequence[str], gpu: Gpu, default: Config) -> Config:
    """How a kernel is launched for a shape: what a table says, or `default`. Callers keep it: this reads dictionaries.

    Args:
        kernel: its name in the tables.
        shapes: classes that the shape belongs to, the narrowest first.
        gpu: as of `gpu_of`.
        default: every keyword that a table may set, for this architecture.

    Raises:
        TableError: a table is unreadable, or sets what is not in `default`.
    """
    for table in _tables(gpu.name):
        entries = table.kernels.get(kernel, {})
        for shape in shapes:
            if shape in entries:
                return default | _checked(entries[shape], default, f"{table.origin}: {kernel}: {shape}")
    return default


def _checked(entry: Config, default: Config, where: str) -> Config:
    if unknown := sorted(entry.keys() - default.keys()):
        raise TableError(f"{where}: unknown keys: {', '.join(unknown)}")
    return entry


@dataclass(frozen=True, slots=True)
class Table:
    """One file's content.

    Attributes:
        origin: the file, for messages.
        cards: names of the GPUs that it is for.
        measured: on such a card; otherwise derived from its limits.
        kernels: kernel → class of shapes → keywords.
    """

    origin: str
    cards: tuple[str, ...]
    measured: bool
    kernels: dict[str, dict[str, Config]]

    def text(self) -> str:
        """What `parse` reads."""
        content = {"cards": self.cards, "measured": self.measured, "kernels": self.kernels}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str, origin: str) -> Table:
        """Raises TableError for what is not a table."""
        try:
            content = json.loads(text)
            cards, measured = tuple(content["cards"]), bool(content["measured"])
            return cls(origin, cards, measured, {name: _entries(value) for name, value in content["kernels"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TableError(f"{origin} is not a table of kernel configurations: {error!r}") from error


def _entries(content: dict[str, Any]) -> dict[str, Config]:
    return {shape: {key: int(value) for key, value in config.items()} for shape, config in content.items()}


def shipped() -> list[Table]:
    """The tables that come with this package."""
    folder = resources.files(__package__) / "configs"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return [Table.parse(file.read_text(), file.name) for file in files]


def cache_file(card: str) -> Path:
    """Where this machine's own table for a card lies: below $QUIRE_CACHE, or quire/ in the user's cache directory."""
    name = "".join(character if character.isalnum() else "_" for character in card)
    if chosen := os.environ.get("QUIRE_CACHE"):
        return Path(chosen) / "kernels" / f"{name}.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire" / "kernels" / f"{name}.json"


@functools.cache
def _tables(card: str) -> list[Table]:
    """The tables for a card, in the order in which they are asked."""
    found = [table for table in shipped() if card in table.cards]
    path = cache_file(card)
    if path.exists():
        found.append(Table.parse(path.read_text(), str(path)))
    return sorted(found, key=lambda table: not table.measured)
