"""Builds kernels/libquire_kernels.so from kernels/native: `python tools/build_native.py [--force]`.

Incremental: an object is compiled again when its source, a header, its flags or the compiler changed. One
kernel source is compiled once per instruction set (isa_*.cpp); the library chooses at run time, so it runs on
any machine of its architecture. Imports the standard library only: the wheel's build hook imports this file.
The compiler is $CXX, or g++.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

__all__ = ["BuildError", "build"]

ROOT = Path(__file__).resolve().parent.parent

COMMON_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    # Sums must round the same way in every register block: nothing may be fused or reordered behind our back.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
)
X86 = platform.machine() in ("x86_64", "AMD64")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512")
ISA_FLAGS = {
    "isa_amx.cpp": (*_AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    "isa_avx512_bf16.cpp": (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
    "isa_avx512_vnni.cpp": (*_AVX512, "-mavx512vnni"),
    "isa_avx512.cpp": _AVX512,
    "isa_avx2.cpp": ("-mavx2", "-mfma"),
}


class BuildError(RuntimeError):
    """There is no compiler, or it refused the sources."""


def build(root: Path = ROOT, *, force: bool = False) -> tuple[Path, str]:
    """Bring the library up to date.

    Args:
        root: the repository's (or the unpacked source distribution's) root.
        force: compile everything again.

    Returns:
        The library's path, and one line that says what was done.

    Raises:
        BuildError: with the compiler's own words.
    """
    kernels = root / "kernels"
    library = kernels / "libquire_kernels.so"
    objects = kernels / "build"
    compiler, identity = _compiler()
    objects.mkdir(exist_ok=True)
    with _lock(objects / "lock"):
        if force:
            library.unlink(missing_ok=True)
            for stale in objects.glob("*.o"):
                stale.unlink()
        started = time.monotonic()
        wanted = _objects(kernels / "native", objects, identity)
        missing = {source: target for source, target in wanted.items() if not target.exists()}
        stamp = objects / "library.stamp"
        linked = " ".join(sorted(target.name for target in wanted.values()))
        if not missing and library.exists() and stamp.exists() and stamp.read_text() == linked:
            return library, f"{library.name} is up to date"
        with ThreadPoolExecutor(os.cpu_count() or 1) as executor:
            list(executor.map(lambda pair: _compile(compiler, *pair), missing.items()))
        _into_place([compiler, "-shared", "-pthread", *(os.fspath(target) for target in wanted.values())], library)
        stamp.write_text(linked)
        for stale in set(objects.glob("*.o")) - set(wanted.values()):
            stale.unlink()
    seconds = time.monotonic() - started
    return library, f"{library.name}: compiled {len(missing)} of {len(wanted)} sources in {seconds:.1f} s"


def _compiler() -> tuple[str, str]:
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise BuildError(
            f"no C++ compiler: {name!r} is not on the PATH. Install GCC 11 or newer (Debian: apt install g++), "
            "or name one in CXX."
        )
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if version.returncode:
        raise BuildError(f"{path} --version failed: {version.stderr.strip()}")
    return path, version.stdout


def _flags(source: Path) -> tuple[str, ...]:
    architecture = ("-DQUIRE_X86",) if X86 else ()
    return (*COMMON_FLAGS, *architecture, *ISA_FLAGS.get(source.name, ()))


def _objects(native: Path, objects: Path, identity: str) -> dict[Path, Path]:
    """Each source's object. Its name holds a digest of all it is made from, so that to exist is to be current."""
    headers = b"".join(
        path.name.encode() + path.read_bytes()
        for path in sorted(native.iterdir())
        if path.suffix in (".h", ".hpp", ".inl")
    )
    result = {}
    for source in sorted(native.glob("*.cpp")):
        if source.name in ISA_FLAGS and not X86:
            continue
        parts = (source.read_bytes(), headers, " ".join(_flags(source)).encode(), identity.encode())
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
        result[source] = objects / f"{source.stem}-{digest}.o"
    return result


def _compile(compiler: str, source: Path, target: Path) -> None:
    _into_place([compiler, *_flags(source), "-c", os.fspath(source)], target)


def _into_place(command: list[str], target: Path) -> None:
    """Run a compiler and move its output over the target at once.

    A process that has the old library mapped keeps it whole.
    """
    unfinished = target.with_suffix(target.suffix + ".tmp")
    result = subprocess.run([*command, "-o", os.fspath(unfinished)], capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{' '.join(command)}\n{result.stderr.strip()}")
    if result.stderr:
        print(result.stderr.strip(), file=sys.stderr)
    unfinished.replace(target)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One build at a time, also among processes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build, and print one line."""
    try:
        _, line = build(force="--force" in sys.argv[1:])
    except BuildError as error:
        print(f"build_native: {error}", file=sys.stderr)
        return 1
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
