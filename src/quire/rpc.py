"""gRPC, the way every process of Quire uses it: channel options, servers, and errors with details.

An error travels as google.rpc.Status with an ErrorInfo (domain "quire.dev"): `reason` is the exception's code
in upper case, metadata["field"] the field at fault; RetryInfo says when to come again. `to_status` and `from_rpc_error`
are each other's inverse.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from quire.errors import (
    AuthenticationError,
    DeadlineError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    QuireError,
    RequestAbortedError,
    ServiceUnavailableError,
    StartupError,
    UnreachedError,
    all_errors,
)
from quire.process_links import ProcessLinks

ERROR_DOMAIN = "quire.dev"

# Plans and prompts of long contexts pass grpc's default of 4 MiB; this bounds what a peer can make us hold.
MAX_MESSAGE_BYTES = 64 << 20

# A peer is gone that is silent for so long while a call runs, and then leaves a ping unanswered for as long again: its
# host has vanished, or it is stopped. Our own are near; a client's network may pause.
_KEEPALIVE_MS = 5_000
_CLIENT_KEEPALIVE_MS = 10_000


def _options(keepalive_ms: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        # Without these a ping is given a minute, and a call that carries nothing gets one ping a minute.
        ("grpc.http2.ping_timeout_ms", keepalive_ms),
        ("grpc.http2.max_pings_without_data", 0),
        # What a server takes from its peers without calling it abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.enable_http_proxy", 0),
        # A process that was restarted is found again soon (milliseconds; the defaults are 1 s and 120 s).
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200),
    ]


_OPTIONS = _options(_KEEPALIVE_MS)
# What clients are allowed, beyond the sizes above.
_PUBLIC_OPTIONS: list[tuple[str, Any]] = [
    # On one connection. HTTP/2 lets a client wait for its turn.
    ("grpc.max_concurrent_streams", 1024),
    # Of a call's metadata (bytes): from the first on some are refused, from the second on all.
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.absolute_max_metadata_size", 32 << 10),
    # A ping costs under a microsecond to answer. With strikes, gRPC's core spends time on each further ping that grows
    # with their number, while the client leaves the GOAWAY unread: 10 s for 80,000 pings (grpcio 1.85), 0.05 s without.
    ("grpc.http2.max_ping_strikes", 0),
    # Of a connection: until its handshake is done, and without any call (clients connect again by themselves).
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 300_000),
]

# Where several exceptions share a status code, the one a bare status (without details) means.
_BARE_STATUS: dict[str, type[QuireError]] = {
    cls.grpc_code: cls
    for cls in (
        AuthenticationError,
        InvalidRequestError,
        PermissionDeniedError,
        ModelNotFoundError,
        RequestAbortedError,
        DeadlineError,
        OverloadedError,
        ServiceUnavailableError,
        StartupError,
    )
}


# Of this process, which has one identity; a program that is none of our processes reaches servers as they are.
_links = ProcessLinks()


def use_links(links: ProcessLinks) -> None:
    """Decides how channels and servers of this process speak with our other processes."""
    global _links
    _links = links


def open_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """A channel to a process of ours, or with `credentials` to any; `address` is host:port or unix:/path.

    Raises StartupError for an address that must not be reached without TLS.
    """
    credentials = credentials or _links.channel_credentials(address)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)


def open_sync_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """The same for callers without an event loop."""
    credentials = credentials or _links.channel_credentials(address)
    if credentials is None:
        return grpc.insecure_channel(address, options=_OPTIONS)
    return grpc.secure_channel(address, credentials, options=_OPTIONS)


def new_server() -> grpc.aio.Server:
    """A server for processes of ours, which refuses to share its port with another."""
    return grpc.aio.server(options=[*_OPTIONS, ("grpc.so_reuseport", 0)])


def new_public_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor], max_connections: int, *, reuse_port: bool = False
) -> grpc.aio.Server:
    """A server for clients, who are not trusted; with `reuse_port` other processes may have the same port."""
    own = [("grpc.max_allowed_incoming_connections", max_connections), ("grpc.so_reuseport", int(reuse_port))]
    return grpc.aio.server(interceptors=interceptors, options=[*_options(_CLIENT_KEEPALIVE_MS), *_PUBLIC_OPTIONS, *own])


def bind(server: grpc.aio.Server, address: str) -> int:
    """Binds a server for our own processes, and returns its port (1 for a Unix socket, which is ours alone).

    Raises StartupError if it is taken, or must not be served without TLS.
    """
    return bind_public(server, address, _links.server_credentials(address))


def bind_public(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """The same for everybody who is let in by what serves there."""
    # A socket is never open to others, not even between its creation and a chmod.
    old_mask = os.umask(0o177)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}: {error}", field="listen") from error
    finally:
        os.umask(old_mask)


def to_status(error: QuireError) -> status_pb2.Status:
    """The google.rpc.Status of an error."""
    info = error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=ERROR_DOMAIN)
    if error.field is not None:
        info.metadata["field"] = error.field
    details: list[Message] = [info]
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=error.retry_after)))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.grpc_code), message=error.message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: QuireError) -> NoReturn:
    """Ends a call with an error and its details."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("unreachable: context.abort raises")


@contextlib.asynccontextmanager
async def errors_to_status(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Turns a QuireError that leaves the block into the call's status."""
    try:
        yield
    except QuireError as error:
        await abort(context, error)


def from_rpc_error(error: grpc.RpcError) -> QuireError:
    """The exception that a failed call stands for; unknown statuses become QuireError."""
    call: Any = error  # aio and sync errors share code() and details(), but no typed base
    message = call.details() or "the call failed without a message"
    info = _error_info(call)
    by_code = {cls.code.upper(): cls for cls in all_errors()}
    cls = by_code.get(info.reason) if info else _BARE_STATUS.get(call.code().name)
    field = info.metadata.get("field") if info else None
    retry = _detail(call, error_details_pb2.RetryInfo())
    return (cls or QuireError)(message, field=field, retry_after=retry.retry_delay.seconds if retry else None)


@contextlib.contextmanager
def errors_from_status(what: str | None = None) -> Iterator[None]:
    """Turns a failed call inside the block into the exception it stands for; `what` names the callee."""
    try:
        yield
    except grpc.RpcError as error:
        translated = from_rpc_error(error)
        # With details it is the callee's own answer: it was reached.
        unreached = isinstance(translated, ServiceUnavailableError) and _error_info(error) is None
        if what is not None and unreached:
            translated = UnreachedError(f"{what} cannot be reached: {translated.message}")
        raise translated from error


def _error_info(call: Any) -> error_details_pb2.ErrorInfo | None:
    info = _detail(call, error_details_pb2.ErrorInfo())
    return info if info is not None and info.domain == ERROR_DOMAIN else None


def _detail(call: Any, into: Any) -> Any:
    """The first detail of a failed call that is of the message's type, or None."""
    packed = dict(call.trailing_metadata() or ()).get("grpc-status-details-bin")
    if isinstance(packed, bytes):
        for detail in status_pb2.Status.FromString(packed).details:
            if detail.Is(into.DESCRIPTOR) and detail.Unpack(into):
                return into
    return None
