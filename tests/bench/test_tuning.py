"""benchmarks/tuning.py: its workload, and the table that it puts into docs/operations.md."""

from __future__ import annotations

import re
from dataclasses import astuple, fields

import tuning

from quire.config import ServeSettings


def _figures(scale: float) -> tuning.Figures:
    return tuning.Figures(*(scale * number for number in range(1, 1 + len(fields(tuning.Figures)))))


def test_the_workload_is_always_the_same_and_as_described():
    requests = tuning.workload(2048, tuning.REQUESTS)
    assert requests == tuning.workload(2048, tuning.REQUESTS)
    common = requests[0].prompt[: tuning.COMMON_TOKENS]
    assert all(request.prompt[: tuning.COMMON_TOKENS] == common for request in requests)
    lengths = [len(request.prompt) - tuning.COMMON_TOKENS for request in requests]
    assert lengths.count(tuning.LONG_TOKENS) == tuning.REQUESTS // tuning.LONG_EVERY
    assert set(lengths) == {tuning.LONG_TOKENS, tuning.OWN_TOKENS}
    assert all(request.output_len in tuning.OUTPUT_TOKENS for request in requests)


def test_medians_and_ratios_are_of_the_same_round():
    # The machine is twice as slow in the second round, and three times in the third; a setting's figure is 1.5 times.
    rounds = [[_figures(slow), *[_figures(1.5 * slow)] * (len(tuning.SETTINGS) - 1)] for slow in (1, 2, 3)]
    text, entries = tuning.table(rounds, "note")
    assert entries[0]["tokens_per_s"] == 2
    assert all(entry["ttft_p50_ms_ratio"] == 1.5 for entry in entries[1:])
    assert text.startswith("note\n\n| |")
    assert len(re.findall(r"^\| ", text, flags=re.MULTILINE)) == 1 + len(tuning.SETTINGS)
    assert len(astuple(rounds[0][0])) == len(tuning.COLUMNS)


def test_settings_exist_and_the_document_has_a_place_for_the_table():
    assert all(name in ServeSettings.model_fields for own in tuning.SETTINGS for name in own)
    text = tuning.DOCUMENT.read_text()
    assert text.index(tuning.BEGIN) < text.index(tuning.END)
