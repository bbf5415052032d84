"""AVX-512 bfloat16 dot products and AMX without the instructions: a build in which plain arithmetic replaces them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quire import kernels

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from build_native import build  # noqa: E402

pytestmark = pytest.mark.slow

SUITES = ["tests/kernels/test_packed_weight.py", "tests/executor/test_native_decoder.py"]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, with the emulations in the sources that know of the instructions."""
    root = tmp_path_factory.mktemp("emulated")
    # Objects are named by what they are made from, so the others need not be compiled again.
    for folder in ("native", "build"):
        shutil.copytree(ROOT / "kernels" / folder, root / "kernels" / folder)
    for name in ("isa.cpp", "isa_avx512_bf16.cpp"):
        source = root / "kernels" / "native" / name
        source.write_text("#define QUIRE_EMULATE_AVX512_BF16\n" + source.read_text())
    shutil.copy(Path(__file__).with_name("emulated_amx_tiles.hpp"), root / "kernels" / "native" / "amx_tiles.hpp")
    library, _ = build(root)
    return library


@pytest.mark.skipif("avx512_vnni" not in kernels.available_isas(), reason="there is no AVX-512 to emulate it on")
@pytest.mark.parametrize("isa", ["avx512_bf16", "amx"])
def test_the_suites_of_packed_products_and_of_the_step_pass(emulated: Path, isa: str) -> None:
    if isa in kernels.available_isas():
        pytest.skip(f"this machine has {isa} itself")
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"{isa} or bits", *SUITES],
        cwd=ROOT,
        env={**os.environ, "QUIRE_KERNELS_LIBRARY": str(emulated)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    # Nothing was skipped for want of the instruction.
    assert "skipped" not in ran.stdout.splitlines()[-1], ran.stdout[-300:]
