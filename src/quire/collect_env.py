"""`quire collect-env`: what a report of a fault should say of machine and installation. No secret is printed."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from quire.kernels import native_library

_PACKAGE: Final = Path(__file__).parent
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - looked at, not written
_COMMAND_TIMEOUT_S: Final = 20.0

# Flags of /proc/cpuinfo that the kernels ask for.
_CPU_FLAGS: Final = re.compile(r"avx\w*|fma|amx_\w+|asimd\w*|bf16|i8mm|sve\w*")

_VARIABLES: Final = re.compile(
    r"(QUIRE|VLLM|OMP|GOMP|KMP|MKL|OPENBLAS|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|HF|HUGGINGFACE|TRANSFORMERS|GRPC|MALLOC)_\w+"
    r"|LD_PRELOAD|LD_LIBRARY_PATH|PYTHON\w+|VIRTUAL_ENV|LANG|LC_ALL|KUBERNETES_SERVICE_HOST|\w+_PROXY",
    re.IGNORECASE,
)
# Their values are secrets, or say where secrets lie.
_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASS|CRED|AUTH|CERT|PROXY|HEADERS", re.IGNORECASE)


def collect() -> dict[str, dict[str, Any]]:
    """What there is to know, by section. What cannot be found out is None, or says why."""
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "quire": _quire,
        "system": _system,
        "cpu": _cpu,
        "memory": _memory,
        "gpu": _gpu,
        "kernels": _kernels,
        "sandbox": _sandbox,
        "limits": _limits,
        "packages": _packages,
        "environment": lambda: variables(os.environ),
    }
    home = str(Path.home())
    return {name: {key: _without_home(value, home) for key, value in make().items()} for name, make in sections.items()}


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
    """As text for people."""
    lines = []
    for section, entries in found.items():
        lines.append(section)
        lines += [f"  {key}: {_shown(value)}" for key, value in entries.items()]
    return "\n".join(lines)


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter; of those that hold a secret, or lead to one, only that they are set."""
    return {
        name: "set, not shown" if _SECRET.search(name) or ("://" in value and "@" in value) else value
        for name, value in sorted(environment.items())
        if _VARIABLES.fullmatch(name)
    }


def _quire() -> dict[str, Any]:
    root = _PACKAGE.parents[1]
    is_checkout = (root / ".git").exists()
    changes = _run("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no") if is_checkout else None
    return {
        "version": importlib.metadata.version("quire"),
        "commit": _run("git", "-C", str(root), "rev-parse", "HEAD") if is_checkout else None,
        "changed files": None if changes is None else len(changes.splitlines()),
        "folder": str(_PACKAGE),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "executable": sys.executable,
    }


def _system() -> dict[str, Any]:
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        return {"os": release.get("PRETTY_NAME"), **_kernel()}
    return {"os": platform.platform(), **_kernel()}


def _kernel() -> dict[str, Any]:
    hints = [name for name in ("/.dockerenv", "/run/.containerenv") if Path(name).exists()]
    hints += ["kubernetes"] if "KUBERNETES_SERVICE_HOST" in os.environ else []
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "container": ", ".join(hints) or "no sign of one",
    }


def _cpu() -> dict[str, Any]:
    from quire.executor.processors import usable_processors

    info = _read("/proc/cpuinfo") or ""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", info, re.MULTILINE))
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "model": fields.get("model name") or platform.processor(),
        "flags": " ".join(filter(_CPU_FLAGS.fullmatch, flags)),
        "cores": psutil.cpu_count(logical=False),
        "processors": psutil.cpu_count(),
        "may run on": len(os.sched_getaffinity(0)),
        "control group's share (cpu.max)": _read("/sys/fs/cgroup/cpu.max"),
        "usable": usable_processors(),
        "NUMA nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None,
        "load": os.getloadavg(),
    }


def _memory() -> dict[str, Any]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    meminfo = dict(re.findall(r"^(\w+):\s+(.*)$", _read("/proc/meminfo") or "", re.MULTILINE))
    shared = shutil.disk_usage(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
    return {
        "total": _gib(memory.total),
        "available": _gib(memory.available),
        "swap": _gib(swap.total),
        "control group's limit (memory.max)": _read("/sys/fs/cgroup/memory.max"),
        str(_SHARED_MEMORY): None if shared is None else f"{_gib(shared.free)} free of {_gib(shared.total)}",
        "huge pages": f"{meminfo.get('HugePages_Free')} free of {meminfo.get('HugePages_Total')}, "
        f"{meminfo.get('Hugepagesize')} each",
        "transparent huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "overcommit": _read("/proc/sys/vm/overcommit_memory"),
    }


def _gpu() -> dict[str, Any]:
    query = "--query-gpu=name,driver_version,memory.total,memory.free"
    found: dict[str, Any] = {"nvidia-smi": _run("nvidia-smi", query, "--format=csv,noheader")}
    import torch  # seconds: the last thing that is looked at would be as slow

    found |= {"torch": torch.__version__, "built for CUDA": torch.version.cuda, "usable": torch.cuda.is_available()}
    if torch.cuda.is_available():
        devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        found["devices"] = [f"{device.name}, sm_{device.major}{device.minor}" for device in devices]
    return found


def _kernels() -> dict[str, Any]:
    library = native_library.LIBRARY
    if not library.is_file():
        return {"library": f"there is none at {library}"}
    found: dict[str, Any] = {
        "library": str(library),
        "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "interface": native_library.ABI_VERSION,
    }
    try:
        return found | {"isas": native_library.available_isas(), "chosen isa": native_library.current_isa()}
    except native_library.NativeLibraryError as error:
        return found | {"error": str(error)}


def _sandbox() -> dict[str, Any]:
    """In a process of its own, which can never leave the sandbox again."""
    code = "from quire.executor.sandbox import enter_sandbox; enter_sandbox('require', device='cpu')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
    )
    reason = done.stderr.strip().splitlines()[-1:] or ["unknown"]
    return {
        "works": "yes" if done.returncode == 0 else f"no: {reason[0]}",
        "seccomp actions": _read("/proc/sys/kernel/seccomp/actions_avail"),
        "user namespaces": _read("/proc/sys/user/max_user_namespaces"),
    }


def _limits() -> dict[str, Any]:
    names = {
        "open files": "NOFILE",
        "locked memory": "MEMLOCK",
        "processes": "NPROC",
        "address space": "AS",
        "core": "CORE",
    }
    found: dict[str, Any] = {}
    for shown, name in names.items():
        soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        found[shown] = " of ".join(
            "unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard)
        )
    return found | {"listen queue (somaxconn)": _read("/proc/sys/net/core/somaxconn")}


def _packages() -> dict[str, Any]:
    """What Quire requires, also with extras, as far as it is installed; not what its developers use."""
    required = importlib.metadata.requires("quire") or []
    names = sorted(
        {
            re.split(r"[^\w.-]", entry, maxsplit=1)[0].lower()
            for entry in required
            if "dev" not in entry.partition(";")[2]
        }
    )
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _run(*command: str) -> str | None:
    """What a command prints, or None if there is no such command or it fails."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def _read(path: str) -> str | None:
    """A small file of the kernel's, or None where there is none or it may not be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _without_home(value: Any, home: str) -> Any:
    """Texts with ~ for the home folder: it names a person."""
    if isinstance(value, str) and len(home) > 1:
        return value.replace(home, "~")
    return value


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).replace("\n", "; ")
