"""Quire and other engines, in turn in one run: `make bench-peers` (benchmarks/ is on the path, and the root is not).

The physics. At batch 1 a decode step reads every weight once (269 MB of SmolLM-135M's shape in bfloat16) and computes
two operations for each, so memory's read bandwidth is its limit; from about 16 sequences on it is arithmetic; prefill
is arithmetic alone. Both limits are measured here first (limits.cpp), and machine.py turns them into tokens/s. Decode
and prefill are separated in one way for every engine: see OfflineCase in cases.py.

The comparison. The same random weights in each engine's own format, the same lengths, dtype and threads, random token
ids, greedy, nothing stops early; for servers the same client. Prompts are new for each run, so that no prefix cache
helps but where it is what is compared. Engines take turns, so only one has processes at any time: what it costs to
start is not measured, but it is waited for. Let nothing else run: with two threads on two cores, engines whose threads
spin at barriers (llama.cpp) lose a factor of ten to any neighbour.

The result goes to benchmarks/results/, the tables of the cases that were run to docs/benchmarks.md. The last line is
JSON: the ratio to the best other engine for each case, batch and figure.
"""

import argparse
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from peers.cases import CASES
from peers.engines import ENGINES
from peers.install import PEERS, install
from peers.machine import Limits, describe_machine, measure_limits
from peers.report import Figures, markdown, ratio_to_best, write_cases
from peers.rounds import run_rounds

REPOSITORY = Path(__file__).parent.parent.parent
DEFAULT_ROOT = REPOSITORY / ".venv-peers"


def main() -> None:
    """Install, measure, report."""
    options = _parse()
    # As an interrupt does: the running engine is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    root = Path(os.environ.get("QUIRE_PEERS_DIR") or DEFAULT_ROOT).resolve()
    root.mkdir(parents=True, exist_ok=True)
    for name in sorted(options.engines & PEERS.keys()):
        install(PEERS[name], root)
    if "openvino" in options.engines:
        install(PEERS["openvino_export"], root)
    if options.install_only:
        return
    cases = [case for case in CASES if case.name in options.cases]
    machine, limits = describe_machine(), measure_limits(root)
    print(f"{machine}\n{limits}", flush=True)
    started = datetime.now(UTC)
    result_file = options.results / f"peers-{started:%Y%m%d-%H%M%S}.json"
    result_file.parent.mkdir(parents=True, exist_ok=True)
    records: list[dict] = []
    for record in run_rounds(cases, options.engines, options.repeats, root, options.quick):
        records.append(record)
        print({key: value for key, value in record.items() if key not in ("flags", "version")}, flush=True)
        _save(result_file, started, machine, limits, records)
    written = markdown(records, limits, machine, f"{started:%Y-%m-%d}")
    print("\n\n".join(written.values()))
    if not options.quick:
        write_cases(REPOSITORY / "docs" / "benchmarks.md", written)
    print(f"results: {result_file}")
    print(json.dumps(_ratios(records)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quire and other engines, in turn in one run.")
    names = [case.name for case in CASES]
    parser.add_argument("--cases", type=_names(names), default=set(names), help=f"of {', '.join(names)}")
    parser.add_argument("--engines", type=_names(list(ENGINES)), default=set(ENGINES), help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument(
        "--quick", action="store_true", help="few tokens, to see that everything runs; not written to docs"
    )
    parser.add_argument("--install-only", action="store_true", help="install the peers and stop")
    parser.add_argument(
        "--results", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder for the JSON"
    )
    return parser.parse_args()


def _names(known: list[str]):
    def parse(text: str) -> set[str]:
        names = set(text.split(","))
        if names - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(names - set(known))}: not one of {', '.join(known)}")
        return names

    return parse


def _save(path: Path, started: datetime, machine: dict, limits: Limits, records: list[dict]) -> None:
    """After every record, so that an interrupted run has not measured for nothing."""
    result = {"started": started.isoformat(), "machine": machine, "limits": vars(limits), "records": records}
    path.write_text(json.dumps(result, indent=1) + "\n")


def _ratios(records: list[dict]) -> list[dict]:
    figures = Figures(records)
    return [
        {"case": case.name, "batch": batch, "figure": figure, "best": best[0], "ratio": round(best[1], 3)}
        for case in CASES
        for figure in ("decode_tokens_s", "prefill_tokens_s", "output_tokens_s", "ttft_ms", "itl_ms")
        for batch, by_engine in figures.rows(case.name, figure)
        if (best := ratio_to_best(figure, by_engine)) is not None
    ]


if __name__ == "__main__":
    main()
