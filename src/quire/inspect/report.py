"""An inspection in words: for people, and as JSON."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quire.inspect.block_map import draw_map
from quire.inspect.inspection import Inspection
from quire.units import format_bytes

# Of one kind; --json has all.
_MAX_SHOWN: Final = 8


def to_json(inspection: Inspection) -> dict[str, Any]:
    """Everything that was found. No token of a prompt is in it."""
    header, layout = inspection.header, inspection.layout
    block_map = draw_map(inspection)
    return {
        "name": inspection.name,
        "sound": inspection.is_sound,
        "findings": [
            {"kind": finding.kind.value, "block": finding.block, "text": finding.text}
            for finding in inspection.findings
        ],
        "notes": inspection.notes,
        "header": {
            "checks": [{"name": check.name, "good": check.is_good, "text": check.text} for check in header.checks],
            "size_bytes": header.size,
            "allocated_bytes": header.allocated,
            "state": header.header.state.name if header.header else None,
            "epoch": layout.epoch if layout else None,
            "boot_id": header.header.boot_id.hex() if header.header else None,
            "fingerprint": layout.fingerprint.hex() if layout else None,
            "block_size": layout.block_size if layout else None,
            "num_blocks": layout.num_blocks if layout else None,
            "num_ranks": layout.num_ranks if layout else None,
            "block_bytes": layout.block_bytes if layout else None,
        },
        "processes": [
            {"pid": holder.pid, "title": holder.title, "state": holder.state}
            for holder in (inspection.held.holders if inspection.held else [])
        ],
        "journal": _journal(inspection),
        "scheduler": _scheduler(inspection),
        "map": {shown.label: count for shown, count in block_map.legend} if block_map else None,
    }


def print_report(inspection: Inspection) -> None:
    """Tables, and a last line that says whether all is well."""
    console = Console(highlight=False)
    table = Table(title=escape(inspection.name), title_justify="left", show_header=False)
    for check in inspection.header.checks:
        table.add_row("[green]✓" if check.is_good else "[red]✗", check.name, escape(check.text))
    console.print(table)
    for title, figures in (("Journal", _journal(inspection)), ("Scheduler", _scheduler(inspection))):
        if figures is not None:
            console.print(_figures(title, figures))
    if inspection.held is not None:
        held = Table(title="Processes that hold it", title_justify="left", show_header=False)
        for holder in inspection.held.holders:
            held.add_row(str(holder.pid), escape(holder.title), "stopped" if holder.state == "T" else "")
        console.print(held)
    for note in inspection.notes:
        console.print(escape(note))
    _print_findings(console, inspection)


def _print_findings(console: Console, inspection: Inspection) -> None:
    by_kind: dict[str, list[str]] = {}
    for finding in inspection.findings:
        by_kind.setdefault(finding.kind.value, []).append(finding.text)
    for kind, texts in by_kind.items():
        console.print(f"[red]{kind}[/red] ({len(texts)})")
        for text in texts[:_MAX_SHOWN]:
            console.print(f"  {escape(text)}", soft_wrap=True)
        if len(texts) > _MAX_SHOWN:
            console.print(f"  … and {len(texts) - _MAX_SHOWN} more; --json has all")
    console.print("[green]sound" if inspection.is_sound else "[red]not sound")


def _journal(inspection: Inspection) -> dict[str, Any] | None:
    """What is known, if the journal could be read."""
    journal, layout = inspection.journal, inspection.layout
    if journal is None or layout is None:
        return None
    known = journal.num_known
    return {
        "records": journal.counts,
        "known_blocks": known,
        "known_tokens": known * layout.block_size,
        "known_bytes": known * layout.block_bytes * max(layout.num_ranks, 1),
        "known_share": known / layout.num_blocks,
        "prompts": journal.num_prompts,
        "chains": journal.num_chains,
        "longest_chain_blocks": journal.longest_chain,
        "salted_blocks": journal.num_salted,
        "contents_by_continuations": {str(count): number for count, number in journal.sharing.items()},
    }


def _scheduler(inspection: Inspection) -> dict[str, Any] | None:
    """What the scheduler says, if it was asked and answers."""
    view = inspection.scheduler
    if view is None:
        return None
    state = view.state
    return {
        "free_blocks": state.free_blocks,
        "cached_blocks": state.cached_blocks,
        "held_blocks": state.held_blocks,
        "usable_blocks": state.num_usable_blocks,
        "blocks_by_references": {str(count): number for count, number in view.shared.items()},
        "requests_running": state.num_requests_running,
        "requests_waiting": state.num_requests_waiting,
        "block_tables": [
            {
                "request_id": sequence.request_id,
                "sequence_index": sequence.sequence_index,
                "status": sequence.status,
                "tokens": sequence.num_tokens,
                "computed_tokens": sequence.num_computed_tokens,
                "blocks": len(sequence.block_ids) // 4,
            }
            for sequence in state.sequences
        ],
    }


def _figures(title: str, figures: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in figures.items():
        words = name.removesuffix("_bytes").replace("_", " ")
        match value:
            case dict():
                shown = ", ".join(f"{key}: {count:,}" for key, count in value.items()) or "none"
            case list():
                shown = "\n".join(_sequence(entry) for entry in value[:_MAX_SHOWN]) or "none"
            case float():
                shown = f"{value:.1%}"
            case _:
                shown = format_bytes(value) if name.endswith("_bytes") else f"{value:,}"
        table.add_row(words, escape(shown))
    return table


def _sequence(entry: dict[str, Any]) -> str:
    where = f"{entry['request_id']}[{entry['sequence_index']}] {entry['status']}"
    return f"{where}: {entry['computed_tokens']:,} of {entry['tokens']:,} tokens, {entry['blocks']} blocks"
