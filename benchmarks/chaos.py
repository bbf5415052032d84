"""What recovery costs: `python benchmarks/chaos.py`, which writes its table into docs/reliability.md.

The chaos tests assert tokens, counts and order, never time; what they measure on the way is collected here. A pause is
the longest time between two pieces of any of 16 streams, over a kill and all that follows from it: the kernel ends
the process, its death is seen, another one starts (imports and weights: the most of it), sequences are computed anew
where the prefix cache has lost them. All of it shares the machine's cores with the clients.

The last line is JSON: every measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> None:
    """Runs the chaos tests, and writes the table if they pass."""
    parser = argparse.ArgumentParser(description="What recovery takes, measured by the chaos tests.")
    parser.add_argument("--select", default="", help="pytest's -k: only these cases, and the document stays as it is")
    selected = parser.parse_args().select
    with tempfile.NamedTemporaryFile(prefix="quire-chaos-", suffix=".jsonl") as lines:
        command = [sys.executable, "-m", "pytest", "-q", "tests/chaos", *(["-k", selected] if selected else [])]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "QUIRE_CHAOS_RECORD": lines.name}, check=True)
        measured = [json.loads(line) for line in Path(lines.name).read_text().splitlines()]
    # A case that ran twice (few kills, then many) counts with its last run, which has more.
    latest = {(entry["case"], entry["what"]): entry for entry in measured}
    entries = sorted(latest.values(), key=lambda entry: entry["case"])
    text = table(entries)
    print(text)
    if not selected:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{rest[rest.index(END) :]}")
    print(json.dumps(entries))


def table(entries: list[dict[str, Any]]) -> str:
    """As Markdown."""
    kernel = platform.release().split("-")[0]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Linux {kernel}, the clients on the same machine"
    rows = [f"On {machine}; the bundled model.", "", "| case | measured | value | asked for |", "|---|---|---|---|"]
    for entry in entries:
        value = f"{entry['value']:.3g} {entry['unit']}".strip()
        rows.append(f"| {entry['case']} | {entry['what']} | {value} | {entry['criterion']} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
