"""Between hosts our processes speak mutual TLS, or refuse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.certificates import Authority, Pair

from quire import rpc
from quire.config import SchedulerSettings
from quire.errors import StartupError
from quire.process_links import ProcessLinks

PUBLIC = "192.0.2.7:7000"


def _options(pair: Pair | None = None, authority: Authority | None = None, **more: Any) -> SchedulerSettings:
    given: dict[str, Any] = {"listen": "127.0.0.1:0", "executors": ["unix:/x"], **more}
    if pair is not None and authority is not None:
        given |= {
            "internal_tls_cert": pair.certificate,
            "internal_tls_key": pair.key,
            "internal_tls_ca": authority.path,
        }
    return SchedulerSettings.load(given)


@contextlib.contextmanager
def _links(options: SchedulerSettings) -> Iterator[None]:
    rpc.use_links(ProcessLinks.of(options))
    try:
        yield
    finally:
        rpc.use_links(ProcessLinks())


async def test_nothing_listens_off_the_host_unless_told_to() -> None:
    with _links(_options()):
        for address in (PUBLIC, "0.0.0.0:0", "[::]:0", "host.example:7000", "unix-abstract:quire"):
            server = rpc.new_server()
            with pytest.raises(StartupError, match=r"(cannot|refusing to) listen at") as caught:
                rpc.bind(server, address)
            assert caught.value.field in ("internal_tls_cert", "listen")
            with pytest.raises(StartupError, match="connect at"):
                rpc.open_channel(address)
        for address in ("127.0.0.1:0", "localhost:0", "127.8.8.8:0"):
            assert rpc.bind(rpc.new_server(), address)
    with pytest.raises(StartupError, match="--allow-insecure-internal"):
        ProcessLinks.of(_options(listen="0.0.0.0:7000"))
    with _links(_options(allow_insecure_internal=True)):
        assert rpc.bind(rpc.new_server(), "0.0.0.0:0")


async def test_processes_of_one_authority_reach_each_other_and_no_others(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    pair = authority.issue("process", "127.0.0.1")
    foreign = stranger.issue("foreign", "127.0.0.1")

    async def answer(request: bytes, context: Any) -> bytes:
        return request

    handlers = {"Ask": grpc.unary_unary_rpc_method_handler(answer)}
    server = rpc.new_server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    with _links(_options(pair, authority)):
        port = rpc.bind(server, "127.0.0.1:0")
        await server.start()
        async with rpc.open_channel(f"127.0.0.1:{port}") as channel:
            assert await channel.unary_unary("/test.Echo/Ask")(b"x", timeout=60) == b"x"
    for options in (_options(), _options(foreign, authority)):
        with _links(options):
            async with rpc.open_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/test.Echo/Ask")(b"x", timeout=60)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(None)


async def test_a_unix_socket_needs_no_certificate_and_is_ours_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with _links(_options(authority.issue("process", "127.0.0.1"), authority)):
        server = rpc.new_server()
        path = tmp_path / "a.sock"
        rpc.bind(server, f"unix:{path}")
        assert path.stat().st_mode & 0o777 == 0o600
        await server.start()
        async with rpc.open_channel(f"unix:{path}") as channel, asyncio.timeout(60):
            await channel.channel_ready()
        await server.stop(None)


def test_half_an_identity_is_refused(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("process", "127.0.0.1")
    with pytest.raises(StartupError, match="--internal-tls-ca is missing") as caught:
        ProcessLinks.of(_options(internal_tls_cert=pair.certificate, internal_tls_key=pair.key))
    assert caught.value.field == "internal_tls_ca"
    with pytest.raises(StartupError, match="--internal-tls-cert: cannot read"):
        missing = Pair(tmp_path / "missing", pair.key)
        ProcessLinks.of(_options(missing, Authority(tmp_path)))
