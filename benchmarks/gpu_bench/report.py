"""The figures of a run, as a table in Markdown and as one JSON object."""

from dataclasses import dataclass, field
from typing import Any

from gpu_bench.machine import Limits, Machine


@dataclass
class Row:
    """One piece of work of one model.

    Attributes:
        work: "decode 16", "prefill 2048".
        tokens: that come of it, or go into a prefill.
        seconds: ours; or why there are none.
        limit_seconds: at the measured bandwidth or matrix rate.
        peers: their seconds by name, or why there are none. Ours beside them was taken in turn with them.
    """

    model: str
    variant: str
    work: str
    tokens: int
    seconds: float | str
    limit_seconds: float | None = None
    peers: dict[str, float | str] = field(default_factory=dict)

    @property
    def share_of_limit(self) -> float | None:
        if isinstance(self.seconds, str) or self.limit_seconds is None:
            return None
        return self.limit_seconds / self.seconds

    def times(self, peer: str) -> float | None:
        """How often we do it while the peer does it once."""
        theirs = self.peers.get(peer)
        return None if isinstance(self.seconds, str) or not isinstance(theirs, float) else theirs / self.seconds

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "variant": self.variant,
            "work": self.work,
            "ms": self.seconds if isinstance(self.seconds, str) else round(self.seconds * 1e3, 4),
            "tokens_per_s": None if isinstance(self.seconds, str) else round(self.tokens / self.seconds, 1),
            "of_limit": _rounded(self.share_of_limit),
            "peers_ms": {
                name: value if isinstance(value, str) else round(value * 1e3, 4) for name, value in self.peers.items()
            },
            "times_peer": {name: _rounded(self.times(name)) for name in self.peers},
        }


def markdown(rows: list[Row], peers: list[str], limits: Limits, machine: Machine) -> str:
    """The table, under a line that says what it is of."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        f"{machine.device}: {limits.bandwidth / 1e9:.0f} GB/s copied (read and written), "
        f"{limits.matrix_rate / 1e12:.1f} TFLOP/s in bfloat16; {versions}.",
        "",
        "| model | variant | work | ms | tokens/s | of the limit | " + " | ".join(f"× {name}" for name in peers) + " |",
        "|---|---|---|---:|---:|---:|" + "---:|" * len(peers),
    ]
    notes: list[str] = []
    for row in rows:
        if isinstance(row.seconds, str):
            figures = [_note(row.seconds, notes), "–", "–"]
        else:
            share = row.share_of_limit
            figures = [
                f"{row.seconds * 1e3:.3f}",
                f"{row.tokens / row.seconds:,.0f}",
                "–" if share is None else f"{share:.0%}",
            ]
        for name in peers:
            times, theirs = row.times(name), row.peers.get(name)
            if times is not None:
                figures.append(f"{times:.2f}")
            else:
                figures.append(_note(theirs, notes) if isinstance(theirs, str) else "–")
        lines.append("| " + " | ".join([row.model, row.variant, row.work, *figures]) + " |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def _note(reason: str, notes: list[str]) -> str:
    """Refers to a reason below the table."""
    if reason not in notes:
        notes.append(reason)
    return f"failed ({notes.index(reason) + 1})"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
