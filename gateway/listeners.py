"""Where clients connect: the REST and gRPC servers of a gateway, and what they say of its health."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator

import uvicorn
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from quire import rpc
from quire.config import AccessOptions, EdgeOptions, ObservationOptions, TlsOptions
from quire.errors import StartupError
from quire.gateway.access import Access, KeyInterceptor
from quire.gateway.engine import Engine
from quire.gateway.generate_service import SERVICE as GENERATE_SERVICE
from quire.gateway.generate_service import GenerateService
from quire.gateway.grpc_api.requests import TolerateMalformed
from quire.gateway.http_protocol import LimitedConfig, end_overdue
from quire.gateway.metrics_report import MetricsReporter
from quire.gateway.monitor_service import MonitorService
from quire.gateway.readiness import Readiness
from quire.gateway.refusal_log import RefusalLog
from quire.gateway.rest import create_app
from quire.gateway.tls import server_certificates
from quire.ports import take_port
from quire.v1 import generate_pb2_grpc, monitor_pb2, monitor_pb2_grpc

MONITOR_SERVICE = monitor_pb2.DESCRIPTOR.services_by_name["MonitorService"].full_name

# How long a closing server gets to send what it still has to say, in seconds.
_CLOSE_S = 1


class RestServer(uvicorn.Server):
    """Uvicorn inside our loop: signals belong to the process, not to it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Takes no more connections, and ends when those that are open have ended."""
        self.should_exit = True
        self._stopped.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens."""
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Renews the Date header and ends overdue connections every second until the stop.

        Uvicorn's own loop looks ten times a second for a stop.
        """
        loop = asyncio.get_running_loop()
        while not self._stopped.is_set():
            await self.on_tick(0)
            end_overdue(self.server_state, loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopped.wait()


class Listeners:
    """Both servers. Their ports are taken at once; gRPC answers NOT_SERVING until `serve`.

    Where other gateways have the same ports (`reuse_port`) neither listens before `serve`, since others can serve what
    comes until then.
    """

    def __init__(
        self,
        host: str,
        port: int,
        grpc_port: int,
        access: AccessOptions,
        tls: TlsOptions,
        limits: EdgeOptions,
        refusals: RefusalLog,
        *,
        reuse_port: bool = False,
    ) -> None:
        """Port 0 picks a free one.

        Raises StartupError naming the flag of a port that cannot be had or of a certificate that cannot be used.
        """
        self._options = access
        self._access = Access(access)
        self._watching: asyncio.Task[None] | None = None
        self._limits = limits
        self._refusals = refusals
        self._certificates = server_certificates(tls)
        self._socket = take_port(host, port, shared=reuse_port)
        self._reuse_port = reuse_port
        self._grpc_address = f"[{host}]:{grpc_port}" if ":" in host else f"{host}:{grpc_port}"
        self.grpc_port = grpc_port
        try:
            keys = KeyInterceptor(self._access, refusals, with_certificates=self._certificates is not None)
            interceptors = [*([keys] if self._access.needs_key else []), TolerateMalformed(GENERATE_SERVICE)]
            self._grpc = rpc.new_public_server(interceptors, limits.max_connections, reuse_port=reuse_port)
            if not reuse_port:
                self._bind_grpc()
        except StartupError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self._health = health.aio.HealthServicer()
        self._service = GenerateService(self._access, refusals)
        self._monitor = MonitorService(self._access)
        self._rest: RestServer | None = None
        self._rest_task: asyncio.Task[None] | None = None
        self._grpc_stop: asyncio.Task[None] | None = None
        self._drain_s = 0.0
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts gRPC, so that health checks have an answer while the engine starts."""
        generate_pb2_grpc.add_GenerateServiceServicer_to_server(self._service, self._grpc)
        monitor_pb2_grpc.add_MonitorServiceServicer_to_server(self._monitor, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (GENERATE_SERVICE, MONITOR_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if not self._reuse_port:
            await self._grpc.start()
        self._watching = asyncio.create_task(self._access.watch(), name="API keys")

    async def serve(
        self, engine: Engine, metrics: MetricsReporter, observation: ObservationOptions, drain_s: float
    ) -> None:
        """Starts REST, and takes calls on both; `drain_s` is how long calls may go on after `refuse`."""
        self._drain_s = drain_s
        config = LimitedConfig(
            create_app(engine, self._options, self._access, self._refusals, metrics, observation),
            self._limits,
            self._certificates,
            lifespan="off",
            log_config=None,
            # Its warnings are of clients that do not speak HTTP, at their pleasure.
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(drain_s) + _CLOSE_S,
        )
        self._rest = RestServer(config)
        self._rest_task = asyncio.create_task(self._rest.serve([self._socket]))
        listening = asyncio.create_task(self._rest.listening.wait())
        await asyncio.wait((listening, self._rest_task), return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._rest_task.done():
            self._rest_task.result()
            raise StartupError("the REST server ended while it started", field="port")
        self._service.attach(engine, metrics.counts)
        self._monitor.attach(engine)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._following = asyncio.create_task(self._follow(engine.readiness), name="health")
        if self._reuse_port:
            self._bind_grpc()
            await self._grpc.start()

    async def refuse(self) -> None:
        """Takes no more calls nor connections; calls that run go on."""
        await self._stop_following()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._service.detach()
        self._monitor.detach()
        if self._rest is not None:
            self._rest.stop()
        # Tells clients to go elsewhere (GOAWAY).
        self._grpc_stop = asyncio.create_task(self._grpc.stop(self._drain_s + _CLOSE_S))

    async def until_answered(self) -> None:
        """Waits until all calls have ended that were running at `refuse`."""
        if self._rest_task is not None:
            await asyncio.wait((self._rest_task,))
        await self._service.until_idle()

    async def close(self) -> None:
        """Ends what still runs after a second, and frees the ports."""
        if self._watching is not None:
            self._watching.cancel()
        await self._stop_following()
        if self._rest is not None and self._rest_task is not None:
            self._rest.stop()
            await asyncio.gather(self._rest_task, self._grpc.stop(_CLOSE_S), return_exceptions=True)
        else:
            await self._grpc.stop(None)
        if self._grpc_stop is not None:
            await self._grpc_stop
        self._socket.close()

    async def _follow(self, readiness: Readiness) -> None:
        """Says on gRPC what `/health` says on REST."""
        async for is_ready in readiness.changes():
            response = health_pb2.HealthCheckResponse
            await self._set_health(response.SERVING if is_ready else response.NOT_SERVING)

    async def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    def _bind_grpc(self) -> None:
        credentials = None if self._certificates is None else self._certificates.grpc_credentials()
        try:
            self.grpc_port = rpc.bind_public(self._grpc, self._grpc_address, credentials)
        except StartupError as error:
            raise StartupError(f"--grpc-port: {error.message}", field="grpc_port") from error

    async def _set_health(self, state: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for service in (health.OVERALL_HEALTH, GENERATE_SERVICE):
            await self._health.set(service, state)
