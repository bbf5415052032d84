"""Finds vLLM's flags in a command line, so that the rest of it can be parsed as Quire's own."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any, Final

from quire.errors import StartupError
from quire.settings import flag_name
from quire.vllm_arguments import own_value
from quire.vllm_flags import ALIASES, VLLM_FLAGS, Kind, VllmFlag

_LEVEL: Final = re.compile(r"-O(\d)")  # as in -O3


class VllmCommandLine:
    """Splits words: `own` is the command line without vLLM's flags, `vllm` these by name, with their values as texts.

    In `own`, names are spelled with dashes, values as Quire calls them, and a flag with several values is repeated.
    `--served-model-name a b` names a model twice, as in vLLM, unless there is no other word for MODEL: then b is it.
    """

    def __init__(self, words: list[str], own_names: Container[str], own_switches: Container[str]) -> None:
        """`own_names` are settings of Quire. Raises StartupError for a flag of vLLM's that lacks its value."""
        self.own: list[str] = []
        self.vllm: dict[str, Any] = {}
        self._own_names = own_names
        self._own_switches = own_switches
        self._rest = list(words)
        self._has_model = False
        # The last of several values, which is the model if none is named elsewhere.
        self._spare = ""
        while self._rest:
            self._take(self._rest.pop(0))
        if self._spare and not self._has_model:
            # It stands behind its flag, and no flag follows that takes it for its own value.
            at = len(self.own) - 1 - self.own[::-1].index(self._spare)
            self.own[at - 1 : at + 1] = [self._spare]

    def _take(self, word: str) -> None:
        if word == "--":
            self.own += [word, *self._rest]
            self._rest.clear()
            return
        if not word.startswith("-") or word == "-":
            self._has_model = True
            self.own.append(word)
            return
        spelled, equals, value = word.partition("=")
        if match := _LEVEL.fullmatch(spelled):
            spelled, equals, value = "-O", "=", match[1]
        name = self._name(spelled)
        if equals:
            self._rest.insert(0, value)
        if name is None:
            self._take_unknown(spelled, is_joined=bool(equals))
        elif name in self._own_names:
            self._take_own(name, is_off=spelled.startswith("--no"), is_joined=bool(equals))
        else:
            self._take_vllm(VLLM_FLAGS[name], spelled, is_joined=bool(equals))

    def _name(self, spelled: str) -> str | None:
        """The setting or flag that a word names; None if it is unknown. Of a.b, a part of a JSON value, it is a."""
        name = ALIASES.get(spelled.split(".")[0])
        if name is None and spelled.startswith("--"):
            name = spelled[2:].replace("-", "_").split(".")[0]
        if name is None:
            return None
        positive = name.removeprefix("no_")
        if positive != name and (positive in self._own_switches or _is_switch(positive)):
            return positive
        return name if name in self._own_names or name in VLLM_FLAGS else None

    def _take_unknown(self, spelled: str, *, is_joined: bool) -> None:
        """Left for the parser, which has flags of its own, and suggests others."""
        if is_joined:
            spelled = f"{spelled}={self._rest.pop(0)}"
        self.own.append(spelled)

    def _take_own(self, name: str, *, is_off: bool, is_joined: bool) -> None:
        flag = flag_name(name)
        if name in self._own_switches:
            joined = f"={self._rest.pop(0)}" if is_joined else ""  # for the parser to refuse
            self.own.append((f"--no-{flag[2:]}" if is_off else flag) + joined)
            return
        self._has_model = self._has_model or name == "model"
        if not self._rest:
            self.own.append(flag)  # for the parser to refuse
            return
        values = self._values(is_joined) if _has_many(name) else [self._rest.pop(0)]
        if len(values) > 1:
            self._spare = values[-1]
        for value in values:
            own = own_value(name, value)
            if own is not None:
                self.own += [flag, str(own)]

    def _take_vllm(self, flag: VllmFlag, spelled: str, *, is_joined: bool) -> None:
        if flag.is_switch:
            if is_joined:
                raise StartupError(f"{spelled} takes no value", field=flag.name)
            self.vllm[flag.name] = not spelled.startswith("--no")
            return
        if not self._rest or (not is_joined and self._rest[0].startswith("--")):
            raise StartupError(f"{spelled} needs a value", field=flag.name)
        value: Any = self._values(is_joined) if flag.has_many else self._rest.pop(0)
        # Of --flag.a 1 --flag.b 2, which are parts of one value, any tells that it was given.
        self.vllm[flag.name] = value

    def _values(self, is_joined: bool) -> list[str]:
        """All words up to the next flag; at least one."""
        values = [self._rest.pop(0)]
        while not is_joined and self._rest and not self._rest[0].startswith("-"):
            values.append(self._rest.pop(0))
        return values


def _is_switch(name: str) -> bool:
    return name in VLLM_FLAGS and VLLM_FLAGS[name].is_switch


def _has_many(name: str) -> bool:
    flag = VLLM_FLAGS.get(name)
    return flag is not None and flag.kind is Kind.TAKEN and flag.has_many
