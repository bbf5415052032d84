"""tools/build_native.py on a tiny source tree of its own."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "tools" / "build_native.py"
    spec = importlib.util.spec_from_file_location("build_native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_native = _load()
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler here")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    native = tmp_path / "kernels" / "native"
    native.mkdir(parents=True)
    (native / "answer.hpp").write_text("constexpr int answer = 42;\n")
    exported = '__attribute__((visibility("default")))'
    (native / "one.cpp").write_text(f'#include "answer.hpp"\nextern "C" {exported} int one() {{ return answer; }}\n')
    (native / "two.cpp").write_text('extern "C" int two() { return 2; }\n')
    return tmp_path


@needs_compiler
def test_compiles_only_what_changed(root: Path):
    library, line = build_native.build(root)
    assert library == root / "kernels" / "libquire_kernels.so"
    assert "compiled 2 of 2" in line
    assert ctypes.CDLL(os.fspath(library)).one() == 42
    before = library.stat().st_mtime_ns

    assert "up to date" in build_native.build(root)[1]
    assert library.stat().st_mtime_ns == before
    (root / "kernels/native/two.cpp").write_text('extern "C" int two() { return 3; }\n')
    assert "compiled 1 of 2" in build_native.build(root)[1]
    (root / "kernels/native/answer.hpp").write_text("constexpr int answer = 43;\n")
    assert "compiled 2 of 2" in build_native.build(root)[1]
    library.unlink()
    assert "compiled 0 of 2" in build_native.build(root)[1]
    assert "compiled 2 of 2" in build_native.build(root, force=True)[1]
    assert len(list((root / "kernels/build").glob("*.o"))) == 2  # no stale ones stay


@needs_compiler
def test_refused_source_keeps_the_library(root: Path):
    library, _ = build_native.build(root)
    (root / "kernels/native/two.cpp").write_text("this is not C++\n")
    with pytest.raises(build_native.BuildError, match=r"two\.cpp"):
        build_native.build(root)
    assert library.exists()


def test_missing_compiler_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build_native.BuildError, match="no-such-compiler"):
        build_native.build(root)
    monkeypatch.setattr("sys.argv", ["build_native.py"])
    assert build_native.main() == 1
    assert "no-such-compiler" in capsys.readouterr().err
