"""Translates vLLM's flags and arguments into Quire's settings, by the table in `vllm_flags`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from quire.errors import StartupError
from quire.settings import flag_name
from quire.vllm_flags import VLLM_FLAGS, Kind, VllmFlag

# vLLM's multipliers of counts: small letters are decimal, capitals binary.
_MULTIPLIERS: Final = {letter: 1000**power for power, letter in enumerate("kmgt", 1)} | {
    letter: 1024**power for power, letter in enumerate("KMGT", 1)
}
_COUNT: Final = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)")


@dataclass
class Translation:
    """What vLLM's arguments come to."""

    # Quire's settings, with the vLLM flag that each came from.
    settings: dict[str, Any] = field(default_factory=dict)
    came_from: dict[str, str] = field(default_factory=dict)
    # One line for each flag that is not what it was.
    notices: list[str] = field(default_factory=list)

    def add(self, setting: str, value: object, name: str) -> None:
        """Raises StartupError if another flag has given the setting another value."""
        if setting in self.settings and self.settings[setting] != value:
            other = flag_name(self.came_from[setting])
            raise StartupError(f"{flag_name(name)} and {other} give {flag_name(setting)} two values", field=name)
        self.settings[setting] = value
        self.came_from[setting] = name


def translate(given: Mapping[str, Any]) -> Translation:
    """Arguments by vLLM's names or Quire's own; unknown ones are passed on. Raises StartupError for a refused one.

    None asks for nothing, as in vLLM.
    """
    translation = Translation()
    for name, value in given.items():
        flag = VLLM_FLAGS.get(name)
        if flag is None:
            translation.add(name, value, name)
        elif value is None:
            continue
        elif flag.kind is Kind.REFUSED:
            _check_harmless(flag, value, given.get("model"))
        elif flag.kind is Kind.NEUTRAL:
            translation.notices.append(f"{flag_name(name)} changes nothing: {flag.note}")
        else:
            _add_setting(translation, flag, value)
    return translation


def _add_setting(translation: Translation, flag: VllmFlag, value: object) -> None:
    setting = flag.setting or flag.name
    own = own_value(flag.name, value)
    if own is None:
        return
    translation.add(setting, own, flag.name)
    if flag.kind is Kind.MAPPED:
        note = f" ({flag.note})" if flag.note else ""
        becomes = f"--no-{flag_name(setting)[2:]}" if own is False else f"{flag_name(setting)} {own}"
        translation.notices.append(f"{flag_name(flag.name)} is {becomes}{note}")


def own_value(name: str, value: object) -> object:
    """What Quire calls a value of a flag that vLLM has too; None where it says what Quire does anyway."""
    convert = _CONVERSIONS.get(name)
    return value if convert is None else convert(value)


def variables(environment: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Settings that vLLM's environment variables ask for, by name: the variable, and the value.

    VLLM_API_KEY is not optional: a server that was protected must not be open after a move.
    """
    found: dict[str, tuple[str, Any]] = {}
    if key := environment.get("VLLM_API_KEY"):
        found["api_key"] = ("VLLM_API_KEY", [key])
    if (space := environment.get("VLLM_CPU_KVCACHE_SPACE", "0")) != "0":
        found["kv_cache_memory"] = ("VLLM_CPU_KVCACHE_SPACE", f"{space}GiB")
    return found


def _check_harmless(flag: VllmFlag, value: object, model: object) -> None:
    """Raises StartupError if the value asks for something that Quire does not do."""
    asks_nothing = value in ("", [], {}, ()) or str(value).lower() in flag.harmless
    if asks_nothing or (flag.name == "tokenizer" and value == model):
        return
    shown = flag_name(flag.name) + (f" {value}" if not isinstance(value, bool) and flag.name != "hf_token" else "")
    if value is False:
        shown = f"--no-{flag_name(flag.name)[2:]}"
    raise StartupError(f"{shown} is vLLM's and cannot be served: {flag.note}", field=flag.name)


def _count(value: object) -> object:
    """An integer as vLLM reads it: 4k is 4000, 4K is 4096, 25.6k is 25600."""
    match = _COUNT.fullmatch(str(value).strip())
    if match is None:
        return value  # for pydantic to refuse
    number, letter = match.groups()
    return int(float(number) * _MULTIPLIERS[letter]) if letter else value


def _model_len(value: object) -> object:
    return None if str(value) in ("auto", "-1") else _count(value)


def _one_of(names: Mapping[str, str]) -> Callable[[object], object]:
    """Replaces names, of any case."""
    return lambda value: names.get(str(value).lower(), str(value).lower())


_LOG_LEVEL: Final = _one_of({"critical": "error", "trace": "debug", "notset": "debug"})
_CONVERSIONS: Final[Mapping[str, Callable[[object], object]]] = {
    "disable_log_requests": lambda value: False if value else None,
    "dtype": _one_of({"half": "float16", "float": "float32"}),
    "kv_cache_memory_bytes": _count,
    "log_level": _LOG_LEVEL,
    "max_model_len": _model_len,
    "max_num_batched_tokens": _count,
    "max_num_queued_tokens": _count,
    # The numbers of Python's ssl module.
    "ssl_cert_reqs": _one_of({"0": "none", "1": "optional", "2": "required"}),
    "uvicorn_log_level": _LOG_LEVEL,
}
