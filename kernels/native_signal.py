"""A C function that writes an eventfd, for those who may not call Python: see native/signal.cpp."""

from __future__ import annotations

from ctypes import c_void_p, cast

from .native_library import NativeLibraryError, library

__all__ = ["eventfd_signal"]


def eventfd_signal() -> int:
    """The address of `void function(void *descriptor)`, which adds 1 to the eventfd of that number.

    Raises:
        NativeLibraryError: the library is not there, or is older than this function.
    """
    try:
        function = library().quire_signal_eventfd
    except AttributeError as error:
        raise NativeLibraryError("libquire_kernels.so is older than this package: run `make native`") from error
    address = cast(function, c_void_p).value
    assert address is not None
    return address
