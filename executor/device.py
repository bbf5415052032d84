"""Devices that compute behind the host's back: work is given to them in order, and its end is told by a descriptor.

A CPU is not one of them: there a step has been computed when it has been launched (`direct_step.py`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quire.cuda_driver import CudaError, load_driver
from quire.errors import StartupError
from quire.executor.graphs import Capture, CudaCapture
from quire.kernels.native_signal import eventfd_signal


class Completion(Protocol):
    """The end of all work that a device was given before this was marked."""

    @property
    def is_done(self) -> bool:
        """Never waits. Raises RuntimeError if the device has failed."""

    def wait(self) -> None:
        """Returns once it is done. Raises RuntimeError if the device has failed."""


class AsyncDevice(ABC):
    """A stream of work. Used by one thread; all work runs in the order in which it was submitted.

    Attributes:
        torch_device: where its tensors lie.
        completion_fd: a non-blocking eventfd that becomes readable when something that was marked is done. A device
            that fails need not write it: whoever waits looks at the completion itself once in a while.
    """

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device
        self.completion_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @abstractmethod
    def host_memory(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] on the host, which the device copies from and to without anybody waiting."""

    @abstractmethod
    def device_memory(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] of zeros on the device, for use by submitted work alone."""

    @abstractmethod
    def submit(self, work: Callable[[], None]) -> None:
        """Has the device do what `work` does with its tensors, in inference mode.

        `work` may run now, and launch kernels, or later on another thread: it must read nothing of the host that
        changes before the next completion.
        """

    @abstractmethod
    def mark(self) -> Completion:
        """The end of what was submitted so far; `completion_fd` is written then."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for everything on the device, also for what was not submitted here."""

    def capture(self) -> Capture | None:
        """What records CUDA graphs of work on this device; None: it cannot."""
        return None

    def close(self) -> None:
        """Waits for all work, and closes the descriptor. Raises RuntimeError if the device has failed."""
        self.mark().wait()
        os.close(self.completion_fd)


class CudaDevice(AsyncDevice):
    """A stream of one GPU."""

    def __init__(self, torch_device: torch.device) -> None:
        """Raises StartupError where the driver or the native library lacks what is needed."""
        try:
            self._driver = load_driver()
        except CudaError as error:
            raise StartupError(f"the GPU's driver cannot be used: {error}", field="device") from error
        # Before the stream is used, what was done on others (loading the weights) must be over.
        torch.cuda.synchronize(torch_device)
        self._stream = torch.cuda.Stream(torch_device)  # type: ignore[no-untyped-call]
        self._signal = eventfd_signal()
        super().__init__(torch_device)

    def host_memory(self, num_bytes: int) -> Tensor:
        """Pinned: pages that cannot move."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def device_memory(self, num_bytes: int) -> Tensor:
        """Of this stream: torch hands it out again, once it is given back, to what comes later in the stream."""
        with torch.cuda.stream(self._stream):
            return torch.zeros(num_bytes, dtype=torch.uint8, device=self.torch_device)

    def submit(self, work: Callable[[], None]) -> None:
        """Runs `work` now; the kernels that it launches run later."""
        with torch.cuda.stream(self._stream), torch.inference_mode():
            work()

    def mark(self) -> Completion:
        """An event, and behind it a function that the driver calls on a thread of its own."""
        # Blocking: who waits for it sleeps.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        # The descriptor itself in the place of a pointer: nothing that would have to live until then.
        self._driver.launch_host_function(self._stream.cuda_stream, self._signal, self.completion_fd)
        return _CudaCompletion(event)

    def synchronize(self) -> None:
        """See AsyncDevice."""
        torch.cuda.synchronize(self.torch_device)

    def capture(self) -> Capture:
        """Of graphs on this device; they are replayed in this stream."""
        return CudaCapture(self.torch_device)


class _CudaCompletion:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    @property
    def is_done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()


def async_device(device: torch.device) -> AsyncDevice | None:
    """How steps get to a model's device; None where they are computed at once. Raises StartupError."""
    return CudaDevice(device) if device.type == "cuda" else None
