"""Times and sizes that cases measure, and never assert: `make bench-chaos` collects them.

With QUIRE_CHAOS_RECORD set to a path, every measurement is a line of JSON there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

VARIABLE: Final = "QUIRE_CHAOS_RECORD"


def record(case: int, what: str, value: float, unit: str, criterion: str = "") -> None:
    """Notes a figure of a case, and what the design asks of it, where it asks something."""
    entry = {"case": case, "what": what, "value": value, "unit": unit, "criterion": criterion}
    print(f"measured: case {case}: {what}: {value:.4g} {unit}")
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as lines:
            lines.write(json.dumps(entry) + "\n")
