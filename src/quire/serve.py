"""`quire serve`: starts everything on this host, says how to call it, and ends it in order."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import setproctitle
from rich.console import Console
from rich.table import Table

from quire.config import ServeSettings
from quire.errors import QuireError
from quire.logs import configure_logging
from quire.service_manager import notify
from quire.supervisor import Supervisor
from quire.units import format_bytes

if TYPE_CHECKING:
    from quire.internal.v1 import scheduler_pb2

logger = logging.getLogger(__name__)


def serve(settings: ServeSettings) -> int:
    """Serves until SIGTERM or SIGINT (status 0) or until a process cannot be had any more (status 1).

    A second signal cuts the end of running requests short. Raises StartupError if the start fails.
    """
    setproctitle.setproctitle("quire: serve")
    configure_logging("serve", settings.log_level, settings.log_format)
    teller: _Console | _Log = _Log(settings) if settings.log_format == "json" else _Console(settings)
    with Supervisor(settings) as supervisor:
        try:
            with _stop_signals(supervisor):
                teller.starting()
                ready = supervisor.start(gateway=settings)
                teller.ready(supervisor.describe(), ready["port"], ready["grpc_port"])
                if admits_everybody(settings):
                    logger.warning(
                        "whoever reaches %s may use this server: it asks for no API key (--api-key, --api-keys) and no "
                        "client certificate (--ssl-cert-reqs)",
                        settings.host,
                    )
                notify("READY=1")
                failure = supervisor.wait()
        except _Stopped:
            teller.stopping()
            notify("STOPPING=1")
            supervisor.stop()
            return 0
        except QuireError as error:
            if settings.log_format == "text":
                raise  # the command line tells it
            logger.error("%s", error.message)
            return 1
        teller.failed(failure)
        return 1


def admits_everybody(settings: ServeSettings) -> bool:
    """Whether other hosts may call, and nobody asks them who they are."""
    # Imported now: with grpc, which would delay the start of the children.
    from quire.process_links import is_loopback

    asks = bool(settings.api_key) or settings.api_keys is not None or settings.ssl_cert_reqs == "required"
    return not asks and not is_loopback(f"[{settings.host}]:{settings.port}")


class _Console:
    """Tells whoever sits at the terminal."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._console = Console(stderr=True, highlight=False)

    def starting(self) -> None:
        self._console.print(f"Starting [bold]{self._settings.model_name}[/bold] …")

    def ready(self, model: scheduler_pb2.DescribeResponse, port: int, grpc_port: int) -> None:
        self._console.print(budget_table(model))
        self._console.print(how_to_call(self._settings, port, grpc_port), soft_wrap=True)

    def stopping(self) -> None:
        self._console.print("Stopping …")

    def failed(self, error: QuireError) -> None:
        self._console.print(f"[red]quire serve: error:[/red] {error.message}; stopping the other processes")


class _Log:
    """Tells programs the same: --log-format json."""

    def __init__(self, settings: ServeSettings) -> None:
        self._model = settings.model_name

    def starting(self) -> None:
        logger.info("starting", extra={"model": self._model})

    def ready(self, model: scheduler_pb2.DescribeResponse, port: int, grpc_port: int) -> None:
        fields = {
            "model": self._model,
            "port": port,
            "grpc_port": grpc_port,
            "weight_bytes": model.weight_bytes,
            "kv_cache_bytes": model.kv_cache_bytes,
            "num_blocks": model.num_blocks,
            "block_size": model.block_size,
            "max_model_len": model.max_model_len,
        }
        logger.info("ready", extra=fields)

    def stopping(self) -> None:
        logger.info("stopping")

    def failed(self, error: QuireError) -> None:
        logger.error("%s; stopping the other processes", error.message)


def budget_table(model: scheduler_pb2.DescribeResponse) -> Table:
    """Where the memory goes, and what fits into it."""
    tokens = model.num_blocks * model.block_size
    table = Table(title="Memory", title_justify="left", show_header=False)
    table.add_row(
        "weights", format_bytes(model.weight_bytes), f"{model.executors[0].architecture}, {model.executors[0].dtype}"
    )
    table.add_row("KV pool", format_bytes(model.kv_cache_bytes), f"{format_bytes(model.kv_bytes_per_token)} per token")
    table.add_row("blocks", f"{model.num_blocks:,}", f"of {model.block_size} tokens")
    table.add_row("tokens", f"{tokens:,}", "fit the pool")
    full = tokens / (-(-model.max_model_len // model.block_size) * model.block_size)
    table.add_row("requests", f"{full:,.1f}", f"of full length ({model.max_model_len:,} tokens) fit at a time")
    return table


def how_to_call(settings: ServeSettings, port: int, grpc_port: int) -> str:
    """The first things to try."""
    name, host = settings.model_name, settings.host
    address = f"[{host}]" if ":" in host else host
    is_secure = settings.ssl_certfile is not None
    url = f"{'https' if is_secure else 'http'}://{address}:{port}"
    # Without a certificate authority of its own, a client trusts those of its system.
    grpc_address = f"{'https://' if is_secure else ''}{address}:{grpc_port}"
    page = f" Look at {url}/ for a playground and a view of the server." if settings.live_page else ""
    return f"""
[bold]Ready.[/bold] REST on {url} (docs at /docs), gRPC on {address}:{grpc_port}.{page} For example:

  curl -N {url}/v1/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "prompt": "The capital of France is", "max_tokens": 32, "stream": true}}'
  {sys.argv[0]} complete --address {grpc_address} 'The capital of France is'
  {sys.argv[0]} chat --address {grpc_address}

Ctrl-C stops it.
"""


class _Stopped(BaseException):
    """SIGTERM or SIGINT came."""


@contextlib.contextmanager
def _stop_signals(supervisor: Supervisor) -> Iterator[None]:
    """Makes the first SIGTERM or SIGINT raise _Stopped; after the block, where clean-up runs, another hurries it."""

    def hurry(number: int, frame: object) -> None:
        supervisor.hurry()

    def stop(number: int, frame: object) -> None:
        _handle(hurry)
        raise _Stopped

    _handle(stop)
    try:
        yield
    finally:
        _handle(hurry)


def _handle(handler: Callable[[int, object], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
