"""Finds and declares libquire_kernels.so: the C ABI of native/quire_kernels.h, through ctypes.

ctypes rather than a Python extension: one library serves every Python version, and no headers are needed to
build it. Calls release the interpreter's lock.
"""

import ctypes
import os
import threading
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, ClassVar

__all__ = [
    "ISAS",
    "AttentionArgs",
    "CacheArgs",
    "NativeLibraryError",
    "RotateArgs",
    "StoreArgs",
    "available_isas",
    "call",
    "current_isa",
    "declare",
    "get_num_threads",
    "library",
    "set_isa",
    "set_num_threads",
]

# The variable is for tests of another build.
LIBRARY = Path(os.environ.get("QUIRE_KERNELS_LIBRARY") or Path(__file__).resolve().parent / "libquire_kernels.so")
ABI_VERSION = 4
_ERROR_BYTES = 256

#: Every instruction set there are kernels for, best first.
ISAS = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable")


class NativeLibraryError(RuntimeError):
    """The native kernels are missing, stale or cannot be loaded."""


class CacheArgs(ctypes.Structure):
    """quire_kv_cache of native/quire_kernels.h, field by field. Strides are counted in elements."""

    _fields_: ClassVar = [
        ("key", c_void_p),
        ("value", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("key_block_stride", c_int64),
        ("key_head_stride", c_int64),
        ("value_block_stride", c_int64),
        ("value_head_stride", c_int64),
        ("key_scale_block_stride", c_int64),
        ("key_scale_head_stride", c_int64),
        ("value_scale_block_stride", c_int64),
        ("value_scale_head_stride", c_int64),
        ("num_blocks", c_int64),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("dtype", c_int32),
    ]


class AttentionArgs(ctypes.Structure):
    """quire_attention_args, as above."""

    _fields_: ClassVar = [
        ("cache", CacheArgs),
        ("query", c_void_p),
        ("output", c_void_p),
        ("query_start", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("query_token_stride", c_int64),
        ("query_head_stride", c_int64),
        ("block_table_stride", c_int64),
        ("sliding_window", c_int64),
        ("num_tokens", c_int32),
        ("num_seqs", c_int32),
        ("max_blocks", c_int32),
        ("num_heads", c_int32),
        ("query_dtype", c_int32),
        ("scale", c_float),
    ]


class StoreArgs(ctypes.Structure):
    """quire_store_args, as above."""

    _fields_: ClassVar = [
        ("cache", CacheArgs),
        ("key", c_void_p),
        ("value", c_void_p),
        ("slot_mapping", c_void_p),
        ("key_token_stride", c_int64),
        ("key_head_stride", c_int64),
        ("value_token_stride", c_int64),
        ("value_head_stride", c_int64),
        ("num_tokens", c_int32),
        ("dtype", c_int32),
    ]


class RotateArgs(ctypes.Structure):
    """quire_rotate_args, as above."""

    _fields_: ClassVar = [
        ("cache", CacheArgs),
        ("qkv", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("slot_mapping", c_void_p),
        ("token_stride", c_int64),
        ("num_tokens", c_int32),
        ("num_heads", c_int32),
        ("rotary_dim", c_int32),
        ("eps", c_float),
    ]


_library: ctypes.CDLL | None = None
# Functions that other modules call: name, result and parameter types.
_declared: list[tuple[str, Any, tuple[Any, ...]]] = []
_load_lock = threading.Lock()
_error = threading.local()


def declare(name: str, result: Any, *parameters: Any) -> None:
    """Say what a function of the library takes and gives, before its first call."""
    _declared.append((name, result, parameters))
    if _library is not None:
        _declare(_library, name, result, parameters)


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        NativeLibraryError: it is not there, cannot be loaded, or was built from other sources.
    """
    if _library is None:
        with _load_lock:
            _load()
    assert _library is not None
    return _library


def call(function: str, *arguments: object) -> None:
    """Call a function of the library whose last two parameters take an error message.

    Raises:
        ValueError: with the message, which names the argument that is at fault.
    """
    buffer = getattr(_error, "buffer", None)
    if buffer is None:
        buffer = _error.buffer = ctypes.create_string_buffer(_ERROR_BYTES)
    if getattr(library(), function)(*arguments, buffer, _ERROR_BYTES):
        raise ValueError(buffer.value.decode())


def available_isas() -> tuple[str, ...]:
    """The instruction sets this build and this machine have, best first: of ISAS."""
    names: bytes = library().quire_available_isas()
    return tuple(names.decode().split(","))


def current_isa() -> str:
    """The instruction set in use. Results differ in their last bits from one to the other."""
    name: bytes = library().quire_current_isa()
    return name.decode()


def set_isa(name: str) -> None:
    """Use this instruction set in the whole process, for tests and measurements. The start is the best one.

    Raises:
        ValueError: it is not one of `available_isas()`.
    """
    if library().quire_set_isa(name.encode()):
        raise ValueError(f"isa must be one of {', '.join(available_isas())}, not {name!r}")


def set_num_threads(num_threads: int) -> None:
    """Run native kernels on this many threads, the caller's included. The start is one a core it may run on.

    Raises:
        ValueError: fewer than one.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, not {num_threads}")
    library().quire_set_num_threads(num_threads)


def get_num_threads() -> int:
    """The number of threads native kernels run on, the caller's included."""
    num_threads: int = library().quire_get_num_threads()
    return num_threads


def _load() -> None:
    global _library
    if _library is not None:
        return
    build = "run `make native` (or python tools/build_native.py); it needs a C++17 compiler"
    if not LIBRARY.exists():
        raise NativeLibraryError(f"{LIBRARY} is missing: {build}")
    try:
        loaded = ctypes.CDLL(os.fspath(LIBRARY))
        loaded.quire_abi_version.restype = c_int32
        version = loaded.quire_abi_version()
    except (OSError, AttributeError) as error:
        raise NativeLibraryError(f"{LIBRARY} cannot be loaded ({error}): {build}") from error
    if version != ABI_VERSION:
        raise NativeLibraryError(f"{LIBRARY} has ABI {version}, this package needs {ABI_VERSION}: {build}")
    error_buffer = [c_char_p, c_size_t]
    for name, result, parameters in (
        ("quire_available_isas", c_char_p, []),
        ("quire_current_isa", c_char_p, []),
        ("quire_set_isa", c_int32, [c_char_p]),
        ("quire_set_num_threads", None, [c_int32]),
        ("quire_get_num_threads", c_int32, []),
        ("quire_paged_attention", c_int32, [POINTER(AttentionArgs), *error_buffer]),
        ("quire_paged_attention_layers", c_int32, [POINTER(AttentionArgs), c_int32, *error_buffer]),
        ("quire_store_kv", c_int32, [POINTER(StoreArgs), *error_buffer]),
        ("quire_rotate_and_store", c_int32, [POINTER(RotateArgs), *error_buffer]),
        ("quire_copy_blocks", None, [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64]),
        ("quire_exp", None, [c_void_p, c_void_p, c_int64]),
    ):
        _declare(loaded, name, result, parameters)
    for name, result, types in _declared:
        _declare(loaded, name, result, types)
    _library = loaded


def _declare(loaded: ctypes.CDLL, name: str, result: Any, parameters: Sequence[Any]) -> None:
    function = getattr(loaded, name)
    function.restype, function.argtypes = result, parameters
