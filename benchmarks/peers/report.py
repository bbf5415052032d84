"""From records to the tables of docs/benchmarks.md and of the terminal."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from peers.cases import CASES, OfflineCase, ServedCase
from peers.checkpoints import SHAPES
from peers.machine import Limits

BEGIN, END = "<!-- bench-peers: begin -->", "<!-- bench-peers: end -->"
_OFFLINE = (("decode_tokens_s", "decode"), ("prefill_tokens_s", "prefill"))
# Figures of which less is better.
_SERVED = (("output_tokens_s", "output tokens/s"), ("ttft_ms", "TTFT p50, ms"), ("itl_ms", "ITL p50, ms"))
_LESS_IS_BETTER = {"ttft_ms", "itl_ms"}


class Figures:
    """Records by (case, batch, figure, engine, round)."""

    def __init__(self, records: Iterable[dict]) -> None:
        self.flags: dict[tuple[str, str], str] = {}
        self.errors: dict[tuple[str, str], str] = {}
        self._values: dict[tuple, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for record in records:
            where = record["case"], record["engine"]
            if "error" in record:
                self.errors[where] = record["error"]
                continue
            version = f" ({record['version']})" if "version" in record else ""
            self.flags[where] = f"{record['flags']}{version}"
            for figure in (key for key, _ in _OFFLINE + _SERVED if record.get(key) is not None):
                self._values[record["case"], record["batch"], figure][record["engine"]][record["round"]] = record[
                    figure
                ]

    def rounds(self, case: str) -> int:
        """How many there were."""
        found = (values for key, by_engine in self._values.items() if key[0] == case for values in by_engine.values())
        return max((len(by_round) for by_round in found), default=0)

    def rows(self, case: str, figure: str) -> Iterator[tuple[int, dict[str, dict[int, float]]]]:
        """(batch, engine -> round -> value), by batch."""
        keys = sorted(key for key in self._values if key[0] == case and key[2] == figure)
        return ((key[1], self._values[key]) for key in keys)


def ratio_to_best(figure: str, by_engine: dict[str, dict[int, float]]) -> tuple[str, float] | None:
    """(best other engine, how many times as good we are): the median over rounds of the ratio within a round.

    The best is the one with the best median. For a latency, how many times as short ours is.
    """
    others = {engine: values for engine, values in by_engine.items() if engine != "quire"}
    if not others or "quire" not in by_engine:
        return None
    less = figure in _LESS_IS_BETTER
    best = (min if less else max)(others, key=lambda engine: statistics.median(others[engine].values()))
    ours, theirs = by_engine["quire"], others[best]
    common = ours.keys() & theirs.keys()
    if not common:
        return None
    ratios = [theirs[i] / ours[i] if less else ours[i] / theirs[i] for i in common if ours[i] > 0 and theirs[i] > 0]
    return (best, statistics.median(ratios)) if ratios else None


def markdown(records: list[dict], limits: Limits, machine: dict[str, str], day: str) -> dict[str, str]:
    """What is written of each case that was run, by its name: the table, the engines' flags, day and machine."""
    figures = Figures(records)
    names = {record["case"] for record in records}
    return {case.name: "\n".join(_case(case, figures, limits, machine, day)) for case in CASES if case.name in names}


def _case(
    case: OfflineCase | ServedCase, figures: Figures, limits: Limits, machine: dict[str, str], day: str
) -> Iterator[str]:
    yield from _table(case, figures, limits)
    yield ""
    yield from (f"- {engine}: `{flags}`" for (name, engine), flags in figures.flags.items() if name == case.name)
    yield from (f"- {engine} failed: {text}" for (name, engine), text in figures.errors.items() if name == case.name)
    described = "; ".join(f"{name}: {value}" for name, value in machine.items())
    yield (
        f"- {day}, rounds: {figures.rounds(case.name)}. {described}; "
        f"limits: read {limits.read_gb_s:.1f} GB/s, float32 {limits.float32_gops:.0f}, bfloat16 "
        f"{limits.bfloat16_gops:.0f}, int8 {limits.int8_gops:.0f} Gop/s (0: no such instruction)"
    )


def _table(case: OfflineCase | ServedCase, figures: Figures, limits: Limits) -> Iterator[str]:
    offline = isinstance(case, OfflineCase)
    kind = f"offline, {case.number_format}" if offline else "served over HTTP, streaming"
    prefix = "" if offline or not case.prefix_len else f"{case.prefix_len} shared + "
    yield f"### `{case.name}`: {case.shape}, {kind}; {prefix}{case.input_len} in, {case.output_len} out"
    yield ""
    unit = "batch" if offline else "concurrency"
    share = " of the limit |" if offline else ""
    yield f"| figure | {unit} | {' | '.join(case.engines)} | ratio |{share}"
    yield "|---" * (len(case.engines) + 3 + offline) + "|"
    for figure, label in _OFFLINE if offline else _SERVED:
        for batch, by_engine in figures.rows(case.name, figure):
            best = ratio_to_best(figure, by_engine)
            ratio = f"{best[1]:.2f} ({best[0]})" if best else "–"
            cells = [label, str(batch), *(_cell(by_engine.get(engine)) for engine in case.engines), ratio]
            if isinstance(case, OfflineCase):
                cells.append(_share(case, figure, batch, by_engine.get("quire"), limits))
            yield f"| {' | '.join(cells)} |"


def _cell(by_round: dict[int, float] | None) -> str:
    if not by_round:
        return "–"
    values = by_round.values()
    return f"{statistics.median(values):,.4g} ± {(max(values) - min(values)) / 2:,.2g}"


def _share(case: OfflineCase, figure: str, batch: int, ours: dict[int, float] | None, limits: Limits) -> str:
    """Of the machine's measured limit; of the tiny model, which is all overhead, none is stated."""
    if not ours or case.shape == "tiny":
        return "–"
    shape = SHAPES[case.shape]
    if figure == "prefill_tokens_s":
        limit = limits.prefill_rate(shape, case.number_format)
    else:
        limit = limits.decode_rate(shape, case.number_format, batch, case.input_len + case.output_len / 2)
    return f"{statistics.median(ours.values()) / limit:.2f}"


def write_cases(path: Path, written: dict[str, str]) -> None:
    """Puts what was written of each case between the file's markers; cases that were not run keep what they had."""
    before, rest = path.read_text().split(BEGIN, 1)
    section, after = rest.split(END, 1)
    known = dict(re.findall(r"^<!-- case (\S+) -->\n(.*?)\n(?=\n<!-- case|\Z)", section.strip() + "\n", re.M | re.S))
    both = {**known, **written}
    blocks = [f"<!-- case {case.name} -->\n{both[case.name]}\n" for case in CASES if case.name in both]
    path.write_text("\n".join([f"{before}{BEGIN}\n", *blocks, f"{END}{after}"]))
