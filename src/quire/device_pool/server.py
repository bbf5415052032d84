"""The process: `quire device-pool`, which the supervisor starts when the first executor asks for device memory."""

from __future__ import annotations

import contextlib
import socket

from quire.config import DevicePoolSettings
from quire.cuda_driver import CudaDriver, CudaError, load_driver
from quire.device_pool.holder import PoolHolder, serve_at
from quire.errors import StartupError
from quire.packet_server import listen
from quire.process import StatusReporter, StopSignal, in_daemon_thread, unless_stopped


async def run(settings: DevicePoolSettings, status: StatusReporter, stop: StopSignal) -> None:
    """Serves until `stop`. Raises StartupError without a driver or an address."""
    with contextlib.ExitStack() as cleanup:
        if settings.listener_fd is None:
            listener = cleanup.enter_context(listen(settings.address))
            cleanup.callback(settings.address.unlink, missing_ok=True)
        else:
            listener = cleanup.enter_context(socket.socket(fileno=settings.listener_fd))
            listener.set_inheritable(False)
        driver = await unless_stopped(_load_driver(), stop)
        if driver is None:
            return
        holder = PoolHolder(driver)
        cleanup.callback(holder.close)
        cleanup.enter_context(contextlib.closing(serve_at(listener, holder)))
        status.ready()
        await stop.wait()


async def _load_driver() -> CudaDriver:
    try:
        return await in_daemon_thread(load_driver)
    except CudaError as error:
        raise StartupError(error.message) from error
