"""The reference of the command line, as Markdown, from the classes and tables that make it.

    python tools/docs_reference.py [FOLDER]

writes a file per page into FOLDER, or all of them to standard output. The site's build calls `render_flags` and
`render_vllm_flags`.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import Final

from pydantic.fields import FieldInfo

from quire.bench.settings import CompareSettings, LatencySettings, ServeBenchSettings, ThroughputSettings
from quire.cli.settings_command import choices, default_text, value_name
from quire.config import BUNDLED_MODEL, ExecutorSettings, GatewaySettings, SchedulerSettings, ServeSettings
from quire.settings import VARIABLE_PREFIX, Settings, flag_name, home, in_panels
from quire.vllm_flags import VLLM_FLAGS, VLLM_VERSION, Kind, VllmFlag

# Page name: the command and its settings.
_PAGES: Final[dict[str, tuple[str, type[Settings]]]] = {
    "serve": ("quire serve", ServeSettings),
    "gateway": ("quire gateway", GatewaySettings),
    "scheduler": ("quire scheduler", SchedulerSettings),
    "executor": ("quire executor", ExecutorSettings),
    "bench-serve": ("quire bench serve", ServeBenchSettings),
    "bench-throughput": ("quire bench throughput", ThroughputSettings),
    "bench-latency": ("quire bench latency", LatencySettings),
    "bench-compare": ("quire bench compare", CompareSettings),
}

_ABOUT_VLLM_FLAGS: Final = f"""\
The names are those of vLLM {VLLM_VERSION}, and some of its predecessors'. Underscores (`--max_model_len`),
short forms (`-tp`), counts such as `4k`, and several values after one flag are understood. A flag that is
mapped or changes nothing is told in one line on standard error; a refused one in a message that says what to
do. The same table serves the arguments of `LLM` and the file of `--config`.
"""


def render_flags() -> dict[str, str]:
    """All flags of each command that has settings: page name to Markdown, whose first heading is of level 2."""
    return {page: _render_command(command, settings) for page, (command, settings) in _PAGES.items()}


def render_vllm_flags() -> str:
    """What becomes of each flag of `vllm serve`, as tables, without a heading of level 1 or 2."""
    lines = [_ABOUT_VLLM_FLAGS, ""]
    lines += ["### Taken: the same in Quire", ""]
    lines += [", ".join(f"`{flag_name(flag.name)}`" for flag in _of_kind(Kind.TAKEN)) + ".", ""]
    lines += ["| flag | what is different |", "|---|---|"]
    lines += [f"| `{flag_name(flag.name)}` | {flag.note} |" for flag in _of_kind(Kind.TAKEN) if flag.note]
    lines.append("")
    lines += ["### Mapped: the same under another name", "", "| vLLM | Quire | |", "|---|---|---|"]
    for flag in _of_kind(Kind.MAPPED):
        setting = f"`{flag_name(flag.setting)}`"
        if flag.name.startswith("disable_"):
            setting = f"`--no-{flag.setting.replace('_', '-')}`"
        lines.append(f"| `{flag_name(flag.name)}` | {setting} | {flag.note} |")
    lines += ["", "### Neutral: accepted, and changes nothing", "", "| flags | why |", "|---|---|"]
    lines += [f"| {names} | {note} |" for note, names in _by_note(Kind.NEUTRAL).items()]
    lines += [
        "",
        "### Refused, unless the value is the one in brackets or the switch is off",
        "",
        "| flags | why, and what to do |",
    ]
    lines += ["|---|---|", *(f"| {names} | {note} |" for note, names in _by_note(Kind.REFUSED).items()), ""]
    return "\n".join(lines)


def _of_kind(kind: Kind) -> list[VllmFlag]:
    return [flag for flag in VLLM_FLAGS.values() if flag.kind is kind]


def _by_note(kind: Kind) -> dict[str, str]:
    """The flags of a kind, in one line, by what is said of them."""
    groups: dict[str, list[str]] = {}
    for flag in _of_kind(kind):
        harmless = sorted(flag.harmless - {"false"}) if kind is Kind.REFUSED else []
        name = f"`{flag_name(flag.name)}`" + (f" ({', '.join(harmless)})" if harmless else "")
        groups.setdefault(flag.note, []).append(name)
    return {note: ", ".join(names) for note, names in groups.items()}


def _render_command(command: str, settings_type: type[Settings]) -> str:
    lines = [f"## `{command}`", ""]
    for panel, members in groupby(in_panels(settings_type), key=lambda entry: home(entry[0], settings_type).panel):
        lines += [f"### {panel}", "", "| flag | value | default | variable | what it does |", "|---|---|---|---|---|"]
        lines += [_row(name, field) for name, field in members]
        lines.append("")
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    flag = flag_name(name)
    value = "`, `".join(choices(field)) or value_name(field)
    cells = (
        f"`{flag}`" if value else f"`{flag}`, `--no-{flag[2:]}`",
        f"`{value}`" if value else "",
        _default(field),
        f"`{VARIABLE_PREFIX}{name.upper()}`",
        field.description or "",
    )
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    text = default_text(field)
    return "" if text is None or text == str(BUNDLED_MODEL) else f"`{text}`"


def _main(folder: str | None) -> None:
    pages = {f"flags-{page}.md": text for page, text in render_flags().items()}
    pages["flags-vllm.md"] = render_vllm_flags()
    for name, text in pages.items():
        if folder is None:
            print(text)
        else:
            (Path(folder) / name).write_text(text)


if __name__ == "__main__":
    _main(*sys.argv[1:2] or [None])
