"""Loading, threads and instruction sets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from quire import kernels
from quire.kernels import native_library

if TYPE_CHECKING:
    from .conftest import Case


def test_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(native_library, "_library", None)
    monkeypatch.setattr(native_library, "LIBRARY", tmp_path / "libquire_kernels.so")
    with pytest.raises(kernels.NativeLibraryError, match="make native"):
        kernels.current_isa()
    (tmp_path / "libquire_kernels.so").write_bytes(b"no library")
    with pytest.raises(kernels.NativeLibraryError, match="make native"):
        kernels.current_isa()


def test_library_of_another_abi(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native_library, "_library", None)
    monkeypatch.setattr(native_library, "ABI_VERSION", -1)
    with pytest.raises(kernels.NativeLibraryError, match="make native"):
        kernels.current_isa()


def test_instruction_sets():
    isas = kernels.available_isas()
    assert isas[-1] == "portable"
    assert kernels.current_isa() == isas[0]  # the best is the start
    for isa in isas:
        kernels.set_isa(isa)
        assert kernels.current_isa() == isa
    with pytest.raises(ValueError, match=r"^isa "):
        kernels.set_isa("mmx")


def test_number_of_threads():
    kernels.set_num_threads(3)
    assert kernels.get_num_threads() == 3
    with pytest.raises(ValueError, match=r"^num_threads "):
        kernels.set_num_threads(0)


def test_unknown_implementation():
    with pytest.raises(ValueError, match=r"^implementation "):
        kernels.set_implementation("cuda")  # type: ignore[arg-type]


def test_calls_from_several_threads(make_case: Callable[..., Case]):
    kernels.set_num_threads(2)
    case = make_case([200], [500], num_kv_heads=2, head_dim=32)
    expected = kernels.paged_attention(*case.arguments, scale=case.scale)
    results: list[bool] = []

    def work() -> None:
        for _ in range(10):
            output = kernels.paged_attention(*case.arguments, scale=case.scale)
            results.append(torch.equal(output, expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


def test_idle_threads_do_not_spin(make_case: Callable[..., Case]):
    kernels.set_num_threads(4)
    case = make_case([200], [500], num_kv_heads=2, head_dim=32)
    kernels.paged_attention(*case.arguments, scale=case.scale)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1


def test_a_forked_child_gets_its_own_threads(make_case: Callable[..., Case]):
    # In a process of its own: to fork one that runs torch and pytest is not ours to do.
    program = """
import os, sys, torch
torch.set_num_threads(1)  # torch's own threads do not survive a fork
from quire import kernels
kernels.set_num_threads(2)
pool = torch.zeros(4, 2 << 20, dtype=torch.uint8)
pool[1] = 7
kernels.copy_blocks(pool, torch.tensor([1]), torch.tensor([2]))
child = os.fork()
if child == 0:
    kernels.set_num_threads(2)
    kernels.copy_blocks(pool, torch.tensor([1]), torch.tensor([3]))
    os._exit(0 if bool((pool[3] == 7).all()) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    result = subprocess.run([sys.executable, "-P", "-c", program], env=environment, timeout=60, check=False)
    assert result.returncode == 0
