"""Tables of tile sizes: which is asked when, what they may set, and how they are made."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import tune_kernels

from quire.kernels.triton import linear_plan, tuning
from quire.kernels.triton.linear_plan import Tiles, default_tiles, sections, tiles_for
from quire.kernels.triton.tuning import Gpu, Table, TableError, configuration, shipped

H200 = Gpu("NVIDIA H200", 90, 132, 227 << 10)
L4 = Gpu("NVIDIA L4", 89, 58, 99 << 10)
A100 = Gpu("NVIDIA A100-SXM4-80GB", 80, 108, 163 << 10)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
SHAPES = [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (1024, 3072), (33, 100)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing remembered of the last one."""
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path))
    tuning._tables.cache_clear()
    linear_plan._tiles_for.cache_clear()
    return tuning.cache_file(H200.name)


def write(path: Path, kernels: dict[str, object], measured: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cards": [H200.name], "measured": measured, "kernels": kernels}))


def test_without_a_table_the_default_is_taken() -> None:
    assert configuration("linear", ["narrow", "wide"], H200, {"num_warps": 4}) == {"num_warps": 4}


def test_the_narrowest_class_counts_and_keeps_the_other_defaults(cache: Path) -> None:
    write(cache, {"linear": {"wide": {"num_warps": 2}, "narrow": {"num_warps": 8}}})
    default = {"num_warps": 4, "num_stages": 3}
    assert configuration("linear", ["narrow", "wide"], H200, default) == {"num_warps": 8, "num_stages": 3}
    assert configuration("linear", ["other", "wide"], H200, default) == {"num_warps": 2, "num_stages": 3}
    assert configuration("attention", ["narrow"], H200, default) == default
    assert configuration("linear", ["narrow"], L4, default) == default


@pytest.mark.parametrize(("measured", "expected"), [(True, 1), (False, 2)])
def test_measured_tables_come_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch, measured: bool, expected: int
) -> None:
    ours = Table("h200.json", (H200.name,), measured, {"linear": {"wide": {"num_warps": 1}}})
    monkeypatch.setattr(tuning, "shipped", lambda: [ours])
    write(cache, {"linear": {"wide": {"num_warps": 2}}})
    assert configuration("linear", ["wide"], H200, {"num_warps": 4}) == {"num_warps": expected}


def test_what_decides_bits_cannot_be_set(cache: Path) -> None:
    write(cache, {"linear": {"bfloat16 m<=16": {"block_k": 32}}})
    with pytest.raises(TableError, match=r"NVIDIA_H200\.json: linear: bfloat16 m<=16: unknown keys: block_k"):
        tiles_for(1, 4096, 4096, torch.bfloat16, H200)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cards": [], "measured": true, "kernels": {"linear": 3}}'])
def test_a_broken_table_is_named(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    with pytest.raises(TableError, match=r"NVIDIA_H200\.json is not a table"):
        configuration("linear", ["wide"], H200, {})


def test_tiles_that_would_change_the_instruction_are_refused(cache: Path) -> None:
    write(cache, {"linear": {"bfloat16 m<=16": {"block_m": 16}}})
    with pytest.raises(TableError, match="wgmma needs a block_m of 64"):
        tiles_for(1, 4096, 4096, torch.bfloat16, H200)


def test_tiles_that_do_not_fit_are_refused(cache: Path) -> None:
    write(cache, {"linear": {"bfloat16 m<=16": {"num_stages": 40}}})
    with pytest.raises(TableError, match="bytes of shared memory are more than"):
        tiles_for(1, 4096, 4096, torch.bfloat16, H200)


@pytest.mark.parametrize("gpu", [A100, L4, H200], ids=lambda gpu: gpu.name)
def test_defaults_fit(gpu: Gpu) -> None:
    for dtype, shape, rows in itertools.product(DTYPES, SHAPES, (1, 16, 17, 64, 65, 256, 1000, 4000)):
        assert tiles_for(rows, *shape, dtype, gpu).problem(dtype, gpu) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sections_cover_the_inputs_in_order(dtype: torch.dtype) -> None:
    for outputs, inputs in SHAPES:
        cut = sections(outputs, inputs, dtype.itemsize)
        blocks = math.ceil(inputs / cut.block_k)
        assert (cut.count - 1) * cut.blocks < blocks <= cut.count * cut.blocks


def test_sections_of_a_model() -> None:
    """Other numbers are other results: NUMERICS_VERSION must be raised with them."""
    counts = [sections(*shape, 2).count for shape in SHAPES]
    assert counts == [4, 3, 1, 4, 1, 8, 1]
    assert [sections(*shape, 2).blocks for shape in SHAPES] == [16, 22, 64, 56, 64, 6, 4]


def test_shipped_tables_are_of_real_tiles() -> None:
    for table in shipped():
        assert table.cards
        for entry in table.kernels.get("linear", {}).values():
            Tiles.of(entry)


def fake_time(_shape: tuple[int, int], rows: int, tiles: Tiles) -> float:
    """Best are the highest tiles that rows fill, with 6 stages, and some cannot be launched at all."""
    if tiles.block_n == 256:
        return math.inf
    return abs(tiles.block_m - rows) + (tiles.num_stages != 6) + tiles.num_warps / 100


def test_what_is_tuned_is_what_is_used(cache: Path) -> None:
    lines: list[str] = []
    found = tune_kernels.tune([(4096, 4096)], torch.bfloat16, H200, fake_time, lines.append)
    table = tune_kernels.merged(None, H200, found, "new")
    cache.parent.mkdir(parents=True)
    cache.write_text(table.text())
    assert Table.parse(table.text(), "new") == table
    chosen = tiles_for(64, 4096, 4096, torch.bfloat16, H200)
    assert (chosen.block_m, chosen.num_stages, chosen.num_warps) == (64, 6, 4)
    assert tiles_for(2000, 4096, 4096, torch.bfloat16, H200).block_m == 256
    assert len(found) == len(lines) == 5
    assert "m<=64" in lines[1]


@pytest.mark.parametrize("gpu", [A100, L4, H200], ids=lambda gpu: gpu.name)
def test_candidates_can_be_used_and_come_once(gpu: Gpu) -> None:
    for rows, dtype in itertools.product((16, 256, 2048), DTYPES):
        found = list(tune_kernels.candidates(rows, (4096, 4096), dtype, gpu))
        assert found[0] == default_tiles(rows, sections(4096, 4096, dtype.itemsize).count, dtype, gpu)
        assert len(found) == len(set(found)) > 5
        assert all(tiles.problem(dtype, gpu) is None for tiles in found)


def test_other_kernels_entries_stay() -> None:
    old = Table("old", (H200.name,), True, {"attention": {"a": {"x": 1}}, "linear": {"a": {"x": 1}, "b": {"x": 1}}})
    new = tune_kernels.merged(old, H200, {"b": {"x": 2}}, "old")
    assert new.kernels == {"attention": {"a": {"x": 1}}, "linear": {"a": {"x": 1}, "b": {"x": 2}}}
    assert dataclasses.replace(new, kernels=old.kernels) == old
