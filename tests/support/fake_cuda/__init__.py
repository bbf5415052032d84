"""The stand-in for NVIDIA's driver, compiled."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
# Of the stand-in.
GRANULARITY = 2 << 20
UUIDS = (b"A" * 16, b"B" * 16)


def build(folder: Path) -> Path:
    """libcuda.so.1 in the folder."""
    library = folder / "libcuda.so.1"
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(library)]
    subprocess.run([*command, str(SOURCES / "fake_cuda.cpp")], check=True)
    return library
