"""A stream in miniature: an asynchronous device whose work runs on a thread, in order, when a test lets it."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from quire.executor.device import AsyncDevice, Completion
from quire.executor.graphs import Capture

_TIMEOUT_S = 120.0


class ThreadDevice(AsyncDevice):
    """Its memory is host memory, and host memory that it copies from is filled with nonsense when it is allocated."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._runs = threading.Event()
        self._runs.set()
        # Once a piece of work has failed, everything after it fails like a GPU's.
        self._failure: BaseException | None = None
        self.num_replays = 0
        # Pieces of work that have not begun.
        self._num_open = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="thread-device")
        self._thread.start()

    def pause(self) -> None:
        """Work waits until `resume`: steps are in flight for as long as the test wants."""
        self._runs.clear()

    def resume(self) -> None:
        self._runs.set()

    def fail(self, message: str) -> None:
        """From the next piece of work on nothing works any more."""

        def fail() -> None:
            raise RuntimeError(message)

        self.submit(fail)

    @property
    def is_idle(self) -> bool:
        return self._num_open == 0

    def host_memory(self, num_bytes: int) -> Tensor:
        return torch.full((num_bytes,), 0xA5, dtype=torch.uint8)

    def device_memory(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def submit(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._num_open += 1
        self._work.put(work)

    def mark(self) -> Completion:
        done = _Done(self)
        self.submit(done.set)
        return done

    def synchronize(self) -> None:
        self.mark().wait()

    def capture(self) -> Capture:
        return _ThreadCapture(self)

    def close(self) -> None:
        self._runs.set()
        self._work.put(None)
        self._thread.join(_TIMEOUT_S)
        assert not self._thread.is_alive()
        os.close(self.completion_fd)

    @property
    def failure(self) -> RuntimeError | None:
        return None if self._failure is None else RuntimeError(f"device error: {self._failure}")

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            assert self._runs.wait(_TIMEOUT_S), "the device was not resumed"
            with self._lock:
                self._num_open -= 1
            if self._failure is not None and not isinstance(getattr(work, "__self__", None), _Done):
                continue
            try:
                with torch.inference_mode():
                    work()
            except BaseException as error:  # what a GPU reports at the next synchronisation
                self._failure = error


class _Done:
    def __init__(self, device: ThreadDevice) -> None:
        self._device = device
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()
        # As on a GPU: a host function is not called once the device has failed.
        if self._device.failure is None:
            os.eventfd_write(self._device.completion_fd, 1)

    @property
    def is_done(self) -> bool:
        if self._device.failure is not None:
            raise self._device.failure
        return self._event.is_set()

    def wait(self) -> None:
        assert self._event.wait(_TIMEOUT_S), "the device did not come to an end"
        if self._device.failure is not None:
            raise self._device.failure


class _ThreadCapture:
    """Graphs that do the work again, on the addresses that it was recorded with."""

    def __init__(self, device: ThreadDevice) -> None:
        self._device = device

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape)

    def record(self, work: Callable[[], None]) -> _ThreadGraph:
        work()
        return _ThreadGraph(self._device, work)

    def allocated_bytes(self) -> int:
        return 0

    def wait(self) -> None:
        self._device.mark().wait()


class _ThreadGraph:
    def __init__(self, device: ThreadDevice, work: Callable[[], None]) -> None:
        self._device = device
        self._work = work

    def replay(self) -> None:
        self._device.num_replays += 1
        self._work()
