"""Products as they are compiled: the matrix units, 128-bit loads, no spills, at the shapes of Llama-3.1-8B."""

from __future__ import annotations

import pytest
import torch

from quire.kernels import Fp8Weight, linear

# Outputs and inputs: the attention's output, its projections, the MLP's two, the head. Their memory is never touched.
SHAPES = [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]


def check(compiled, code, instruction):
    assert code.spills == 0
    assert code.count(instruction) > 0
    loads = [word for word in code.sass.split() if word.startswith("LDGSTS")]
    assert loads
    assert all("BYPASS" in load and load.endswith(".128") for load in loads)
    if instruction.endswith("GMMA"):
        # One group for each block of inputs: ptxas would wait for each instruction if it had to serialise them.
        assert sum(f"{instruction}." in line and "gsb0" in line for line in code.sass.splitlines()) == 1


@pytest.mark.parametrize("rows", [1, 64, 2048])
def test_bfloat16(compiled, rows):
    for outputs, inputs in SHAPES:
        x = torch.empty(rows, inputs, dtype=torch.bfloat16)
        linear(x, torch.empty(outputs, inputs, dtype=torch.bfloat16))
    assert len(compiled.named("_linear")) == len(SHAPES)
    for code in compiled:
        check(compiled, code, "HGMMA" if compiled.capability == 90 else "HMMA")


@pytest.mark.parametrize("rows", [1, 2048])
def test_fp8(compiled, rows):
    if compiled.capability < 90:
        pytest.skip("FP8 needs Hopper or later")
    for outputs, inputs in SHAPES:
        weight = Fp8Weight(torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn), torch.empty(outputs))
        linear(torch.empty(rows, inputs, dtype=torch.bfloat16), weight)
    assert len(compiled.named("_linear")) == len(compiled.named("_quantize")) == len(SHAPES)
    for code in compiled.named("_linear"):
        check(compiled, code, "QGMMA")
    for code in compiled.named("_quantize"):
        assert code.spills == 0
        assert "LDG.E.128" in code.sass


@pytest.mark.parametrize("rows", [1, 200])
def test_float32_is_not_rounded_to_tf32(compiled, rows):
    linear(torch.empty(rows, 1024), torch.empty(3072, 1024))
    (code,) = compiled.named("_linear")
    assert code.spills == 0
    assert code.count("FFMA") > 0
    assert not any(f"{unit}." in code.sass for unit in ("HMMA", "HGMMA"))


def test_arrivals_publish_partial_results(compiled):
    """All threads have stored, then one releases and acquires for them."""
    linear(torch.empty(1, 4096, dtype=torch.bfloat16), torch.empty(4096, 4096, dtype=torch.bfloat16))
    (code,) = compiled.named("_linear")
    arrival = code.sass.index("ATOMG.E.ADD.STRONG.GPU")
    before = code.sass[:arrival]
    assert before.rindex("STG.E") < before.rindex("BAR.SYNC") < before.rindex("MEMBAR")
    assert "LDG.E.128.STRONG.GPU" in code.sass[arrival:]
