"""TLS for clients: REST and gRPC, names in certificates, files that change, flags that are wrong."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from support.certificates import Authority, Pair
from support.fake_scheduler import FakeScheduler, Pause
from support.gateway_fixtures import MODEL, Gateway, sse_events, start_gateway

from quire.certificates import CertificateFiles, ServerCertificates
from quire.client import AsyncClient
from quire.errors import StartupError
from quire.gateway.tls import grpc_peer_name, name_peer, peer_name
from quire.sampling_params import SamplingParams

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.issue("server", "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pair:
    return authority.issue("client", common_name="team-blue")


def _flags(pair: Pair, **more: Any) -> dict[str, Any]:
    return {"ssl_certfile": pair.certificate, "ssl_keyfile": pair.key, **more}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secure(
    module_scheduler: FakeScheduler, model_folder: Path, authority: Authority, server: Pair
) -> AsyncIterator[Gateway]:
    """A gateway that asks for certificates."""
    flags = _flags(server, ssl_ca_certs=authority.path, ssl_cert_reqs="required")
    gateway = await start_gateway(module_scheduler, model_folder, **flags)
    yield gateway
    await gateway.close()


async def _server_certificate(port: int, context: ssl.SSLContext) -> str:
    """The digest of what the server shows in a new handshake."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return hashlib.sha256(shown).hexdigest()


async def test_rest_and_grpc_serve_clients_with_a_certificate(
    secure: Gateway, scheduler: FakeScheduler, authority: Authority, client: Pair
) -> None:
    scheduler.script = lambda request, index: [70, 71, 72]
    async with httpx.AsyncClient(verify=authority.client_context(client)) as http:
        url = f"https://127.0.0.1:{secure.port}/v1/completions"
        answer = await http.post(url, json={"model": MODEL, "prompt": "x", "max_tokens": 3})
        rest_text = answer.json()["choices"][0]["text"]
    async with AsyncClient(
        secure.grpc_address, ssl_ca_certs=authority.path, ssl_certfile=client.certificate, ssl_keyfile=client.key
    ) as grpc_client:
        output = await grpc_client.complete("x", SamplingParams(max_tokens=3))
    assert output.outputs[0].text == rest_text
    assert len(scheduler.requests) == 2


async def test_without_a_certificate_nobody_gets_in(secure: Gateway, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger").issue("stranger", common_name="team-blue")
    for context in (authority.client_context(), authority.client_context(stranger)):
        async with httpx.AsyncClient(verify=context) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"https://127.0.0.1:{secure.port}/health")
    credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
    async with grpc.aio.secure_channel(secure.grpc_address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # Without TLS neither.
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.TransportError):
            await http.get(f"http://127.0.0.1:{secure.port}/health")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_versions_of_tls_are_refused(authority: Authority, server: Pair) -> None:
    context = authority.client_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), received, server_hostname="localhost").do_handshake()
    certificates = ServerCertificates(CertificateFiles(server.certificate, server.key), "none")
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        certificates.ssl_context().wrap_bio(received, sent, server_side=True).do_handshake()


async def test_a_changed_certificate_is_shown_and_streams_go_on(
    scheduler: FakeScheduler,
    model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server", "127.0.0.1")
    gateway = await start_gateway(scheduler, model_folder, **_flags(pair))
    go_on = asyncio.Event()
    scheduler.script = lambda request, index: [70, Pause(go_on), 71, 72]
    body = {"model": MODEL, "prompt": "x", "max_tokens": 3, "stream": True}
    context = authority.client_context()
    async with httpx.AsyncClient(verify=context, timeout=60) as http:
        reading = asyncio.create_task(http.post(f"https://127.0.0.1:{gateway.port}/v1/completions", json=body))
        await scheduler.wait_requests()
        async with AsyncClient(gateway.grpc_address, ssl_ca_certs=authority.path) as grpc_client:
            other = asyncio.create_task(grpc_client.complete("x", SamplingParams(max_tokens=3)))
            await scheduler.wait_requests(2)
            before = await _server_certificate(gateway.port, context)

            # Half a pair, then one that is no certificate: the old one stays, and the log says so.
            shutil.copy(Authority(tmp_path, "other").issue("x", "127.0.0.1").certificate, pair.certificate)
            with caplog.at_level(logging.ERROR):
                assert await _server_certificate(gateway.port, context) == before
            assert "--ssl-certfile" in caplog.text
            assert "stays in use" in caplog.text
            pair.certificate.write_text("no certificate")
            assert await _server_certificate(gateway.port, context) == before

            authority.issue("server", "127.0.0.1")
            after = await _server_certificate(gateway.port, context)
            assert after != before
            shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", gateway.grpc_port))
            assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest() == after

            go_on.set()
            assert (await other).outputs[0].token_ids == [70, 71, 72]
        *_, last, done = sse_events((await reading).text)
        assert done == "[DONE]"
        assert last["choices"][0]["finish_reason"] == "length"
    await gateway.close()


async def test_an_authority_that_is_removed_is_no_longer_believed(
    scheduler: FakeScheduler, model_folder: Path, tmp_path: Path
) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    server = old.issue("server", "127.0.0.1")
    client = old.issue("client", common_name="team-red")
    trusted = tmp_path / "trusted.pem"
    shutil.copy(old.path, trusted)
    flags = _flags(server, ssl_ca_certs=trusted, ssl_cert_reqs="required")
    gateway = await start_gateway(scheduler, model_folder, **flags)
    url = f"https://127.0.0.1:{gateway.port}/health"
    context = old.client_context(client)
    async with httpx.AsyncClient(verify=context) as http:
        assert (await http.get(url)).status_code == 200
    shutil.copy(new.path, trusted)
    async with httpx.AsyncClient(verify=context) as http:
        with pytest.raises(httpx.TransportError):
            await http.get(url)
    await gateway.close()


class _Connection:
    def __init__(self, certificate: dict[str, Any] | None) -> None:
        self._certificate = certificate

    def get_extra_info(self, name: str) -> Any:
        assert name == "ssl_object"
        return self

    def getpeercert(self) -> dict[str, Any] | None:
        return self._certificate


async def test_the_common_name_is_in_the_scope() -> None:
    subject = ((("organizationName", "Blue"),), (("commonName", "team-blue"),))
    scope: dict[str, Any] = {}
    name_peer(scope, _Connection({"subject": subject}))
    assert peer_name(scope) == "team-blue"
    anonymous: dict[str, Any] = {}
    name_peer(anonymous, _Connection({}))
    assert peer_name(anonymous) is None


async def test_the_common_name_of_a_grpc_client(authority: Authority, server: Pair, client: Pair) -> None:
    names: list[str | None] = []

    async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        names.append(grpc_peer_name(context))
        return b""

    grpc_server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("test.Names", {"Ask": grpc.unary_unary_rpc_method_handler(answer)})
    grpc_server.add_generic_rpc_handlers((handler,))
    root = authority.path.read_bytes()
    pair = [(server.key.read_bytes(), server.certificate.read_bytes())]
    port = grpc_server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, root, True))
    await grpc_server.start()
    shown = grpc.ssl_channel_credentials(root, client.key.read_bytes(), client.certificate.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", shown) as channel:
        await channel.unary_unary("/test.Names/Ask")(b"", timeout=30)
    await grpc_server.stop(None)
    assert names == ["team-blue"]


@pytest.mark.parametrize(
    ("flags", "field", "says"),
    [
        ({"ssl_certfile": "missing"}, "ssl_certfile", "--ssl-certfile: cannot read"),
        ({"ssl_keyfile": "missing"}, "ssl_keyfile", "--ssl-keyfile: cannot read"),
        ({"ssl_keyfile": "authority"}, "ssl_certfile", "--ssl-certfile: .* no certificate and its key"),
        ({"ssl_ca_certs": "garbage"}, "ssl_ca_certs", "--ssl-ca-certs: .* holds no certificates"),
        ({"ssl_cert_reqs": "required"}, "ssl_cert_reqs", "needs --ssl-ca-certs"),
        ({"ssl_certfile": None}, "ssl_keyfile", "--ssl-keyfile needs --ssl-certfile"),
        ({"ssl_certfile": None, "ssl_keyfile": None, "ssl_cert_reqs": "optional"}, "ssl_cert_reqs", "--ssl-certfile"),
    ],
)
async def test_wrong_flags_are_named(
    scheduler: FakeScheduler,
    model_folder: Path,
    authority: Authority,
    server: Pair,
    tmp_path: Path,
    flags: dict[str, Any],
    field: str,
    says: str,
) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnothing\n")
    files = {"missing": tmp_path / "missing", "authority": authority.path, "garbage": garbage}
    given = {name: files.get(value, value) for name, value in flags.items()}
    merged = {name: value for name, value in _flags(server, **given).items() if value is not None}
    with pytest.raises(StartupError, match=says) as caught:
        await start_gateway(scheduler, model_folder, **merged)
    assert caught.value.field == field
