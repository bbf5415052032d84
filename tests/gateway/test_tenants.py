"""Tenants at the gateway: the key file, who a caller is, and what the scheduler is told."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from support.gateway_fixtures import start_gateway

from quire.client import AsyncClient
from quire.config import AccessOptions
from quire.errors import AuthenticationError, OverloadedError, StartupError
from quire.gateway.access import Access
from quire.gateway.overload import Refusals
from quire.gateway.tenants import Tenant, read_key_file
from quire.sampling_params import SamplingParams

# The scheduler's.
in_module_loop = pytest.mark.asyncio(loop_scope="module")

KEYS = {"a": "the key of tenant a", "a2": "another key of tenant a", "b": "the key of tenant b"}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


FILE = f"""
- sha256: {digest(KEYS["a"])}
  tenant: a
  weight: 2
  max_concurrent_requests: 3
  requests_per_minute: 60
  tokens_per_minute: 1000
- sha256: {digest(KEYS["a2"])}
  tenant: a
  weight: 2
  max_concurrent_requests: 3
  requests_per_minute: 60
  tokens_per_minute: 1000
- sha256: {digest(KEYS["b"])}
  tenant: b
- tenant: by-certificate
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(FILE)
    return path


def access(path: Path | None = None, *keys: str) -> Access:
    return Access(AccessOptions.load({"api_keys": path, "api_key": list(keys)}))


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def replace_file(path: Path, text: str) -> None:
    """As careful people do it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_a_key_is_its_tenants(path: Path) -> None:
    guard = access(path, "a key of the command line")
    a = Tenant("a", 2.0, 3, 60, 1000)
    assert guard.tenant(bearer(KEYS["a"])) == guard.tenant(bearer(KEYS["a2"])) == a
    assert guard.tenant({b"x-api-key": KEYS["b"].encode()}) == Tenant("b")
    assert guard.tenant(bearer("a key of the command line")) == Tenant("default", is_operator=True)
    for wrong in ("", "no", KEYS["a"][:-1], digest(KEYS["a"])):
        with pytest.raises(AuthenticationError):
            guard.tenant(bearer(wrong))


def test_a_certificate_is_a_tenant_of_the_file_and_a_key_decides(path: Path) -> None:
    guard = access(path)
    assert guard.tenant({}, "by-certificate").name == "by-certificate"
    assert guard.tenant(bearer(KEYS["b"]), "by-certificate").name == "b"
    for name in (None, "", "somebody"):
        with pytest.raises(AuthenticationError):
            guard.tenant({}, name)
    with pytest.raises(AuthenticationError):
        guard.tenant(bearer("wrong"), "by-certificate")


def test_without_keys_everybody_is_admitted_as_whom_the_certificate_says() -> None:
    guard = access()
    assert guard.tenant({}).name == ""
    assert guard.tenant({}, "somebody") == Tenant("somebody", is_operator=True)
    assert guard.tenant(bearer("whatever")).name == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a list of entries"),
        ("keys: []", "not a list of entries"),
        ("- x", "entry 1: not a mapping"),
        ("- {tenant: a}\n- {tenant: b, wieght: 2}", "entry 2: wieght: there is no such field"),
        ("- {sha256: aa, tenant: a}", "entry 1: sha256: must be 64 hexadecimal digits"),
        (f"- {{sha256: {'0' * 64}, tenant: a}}\n" * 2, "entry 1: sha256: must be 64"),  # YAML reads a number
        (f"- {{sha256: {'a' * 64}, tenant: a}}\n" * 2, "entry 2: sha256: the same key"),
        (f"- {{sha256: {'a' * 64}}}", "entry 1: tenant: must be a name"),
        ("- {tenant: ''}", "entry 1: tenant: must be a name"),
        ("- {tenant: a, weight: 0}", "entry 1: weight: must be a number above 0"),
        ("- {tenant: a, weight: -1}", "entry 1: weight: must be"),
        ("- {tenant: a, weight: .nan}", "entry 1: weight: must be"),
        ("- {tenant: a, weight: true}", "entry 1: weight: must be"),
        ("- {tenant: a, max_concurrent_requests: -1}", "entry 1: max_concurrent_requests: must be an integer"),
        ("- {tenant: a, requests_per_minute: 1.5}", "entry 1: requests_per_minute: must be an integer"),
        ("- {tenant: a, tokens_per_minute: true}", "entry 1: tokens_per_minute: must be an integer"),
        ("- {tenant: a, max_concurrent_requests: 4294967296}", "entry 1: max_concurrent_requests: must be"),
        ("- {tenant: a}\n- {tenant: a, weight: 3}", "entry 2: tenant 'a': weight, operator and limits"),
        ("- {tenant: [", "cannot be read"),
    ],
)
def test_a_file_that_is_not_right_is_refused_by_name_entry_and_field(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(StartupError) as refused:
        read_key_file(path)
    assert refused.value.field == "api_keys"
    assert str(path) in refused.value.message
    assert message in refused.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--api-keys"):
        access(tmp_path / "none.yaml")


def test_a_new_file_counts_and_a_broken_one_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = access(path)
    replace_file(path, f"- {{sha256: {digest('a new key of b')}, tenant: b, weight: 5}}")
    guard.reload()
    assert guard.tenant(bearer("a new key of b")) == Tenant("b", 5.0)
    with pytest.raises(AuthenticationError):
        guard.tenant(bearer(KEYS["b"]))
    for broken in ("- {tenant: b, weight: -5}", ""):
        replace_file(path, broken)
        with caplog.at_level(logging.ERROR):
            guard.reload()
        assert "stay as they were" in caplog.messages[-1]
        assert guard.tenant(bearer("a new key of b")).weight == 5
    path.unlink()
    guard.reload()
    assert guard.tenant(bearer("a new key of b")).weight == 5
    replace_file(path, FILE)
    guard.reload()
    assert guard.tenant(bearer(KEYS["b"])) == Tenant("b")


def test_hash_key_makes_entries(tmp_path: Path) -> None:
    def hash_key(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "quire", "hash-key", "--tenant", "a", *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False)

    made = hash_key()
    new_key = made.stderr.split()[0]
    given = hash_key("-", given="a long key of my own\n")
    path = tmp_path / "keys.yaml"
    path.write_text(made.stdout + given.stdout)
    assert read_key_file(path).by_digest.keys() == {
        bytes.fromhex(digest(new_key)),
        bytes.fromhex(digest("a long key of my own")),
    }
    assert "a long key of my own" not in given.stdout + given.stderr
    assert hash_key("-", given="short\n").returncode == 1
    assert hash_key("a key on the command line").returncode == 1


@in_module_loop
async def test_every_route_tells_the_scheduler_whose_request_it_is(scheduler, model_folder, path: Path) -> None:
    gateway = await start_gateway(scheduler, model_folder, api_keys=path)
    try:
        limit = {"max_tokens": 1}
        messages = [{"role": "user", "content": "Hi"}]
        bodies = {
            "/v1/completions": {"prompt": "Hi", **limit},
            "/v1/chat/completions": {"messages": messages, **limit},
            "/v1/responses": {"input": "Hi", "max_output_tokens": 1},
            "/v1/messages": {"model": "tiny", "messages": messages, **limit},
            "/v1/embeddings": {"input": "Hi"},
            "/v1/score": {"text_1": "Hi", "text_2": "Ho"},
            "/v1/rerank": {"query": "Hi", "documents": ["Ho"]},
        }
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as http:
            for route, body in bodies.items():
                del scheduler.requests[:]
                answer = await http.post(route, json=body, headers={"x-api-key": KEYS["a"]})
                assert answer.status_code == 200, (route, answer.text)
                tenants = {request.message.tenant.SerializeToString() for request in scheduler.requests}
                assert tenants == {Tenant("a", 2.0, 3, 60, 1000).message.SerializeToString()}, route
            assert (await http.post("/v1/completions", json=bodies["/v1/completions"])).status_code == 401
        async with AsyncClient(gateway.grpc_address, api_key=KEYS["b"]) as client:
            del scheduler.requests[:]
            await client.complete("Hi", SamplingParams(max_tokens=1))
            await client.embed(["Hi"])
        assert [request.message.tenant.name for request in scheduler.requests] == ["b", "b"]
    finally:
        await gateway.close()


@in_module_loop
async def test_a_tenant_cannot_join_anothers_run(scheduler, model_folder, path: Path) -> None:
    gateway = await start_gateway(scheduler, model_folder, api_keys=path)
    try:
        answers = {}
        for name in ("a", "b", "a2"):
            async with AsyncClient(gateway.grpc_address, api_key=KEYS[name]) as client:
                answers[name] = await client.complete("Hi", SamplingParams(max_tokens=3, seed=1), request_id="the same")
        assert [request.message.tenant.name for request in scheduler.requests] == ["a", "b"], "a's second call joined"
        async with AsyncClient(gateway.grpc_address, api_key=KEYS["b"]) as client:
            await client.complete("Another prompt", SamplingParams(max_tokens=3), request_id="another")
        async with AsyncClient(gateway.grpc_address, api_key=KEYS["a"]) as client:
            await client.complete("What b cannot know of", SamplingParams(max_tokens=3), request_id="another")
    finally:
        await gateway.close()


@in_module_loop
async def test_a_refusal_says_when_to_come_again_and_is_remembered_for_its_tenant(
    scheduler, model_folder, path: Path
) -> None:
    gateway = await start_gateway(scheduler, model_folder, api_keys=path)
    scheduler.submit_error = OverloadedError("many wait", field="max_queued_requests", retry_after=17)
    try:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=20) as http:
            messages = [{"role": "user", "content": "Hi"}]
            for route, prompt in (("/v1/completions", {"prompt": "Hi"}), ("/v1/messages", {"messages": messages})):
                body = {"model": "tiny", "max_tokens": 1, **prompt}
                answer = await http.post(route, json=body, headers={"x-api-key": KEYS["a"]})
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "17"), answer.text
        async with AsyncClient(gateway.grpc_address, api_key=KEYS["b"]) as client:
            with pytest.raises(OverloadedError) as refused:
                await client.complete("Hi", SamplingParams(max_tokens=1))
        assert (refused.value.field, refused.value.retry_after) == ("max_queued_requests", 17)
    finally:
        await gateway.close()


def test_refusals_hold_for_a_moment_and_for_their_tenant_alone() -> None:
    now = 0.0
    refusals = Refusals(lambda: now)
    refusals.note("a", OverloadedError("many wait", field="max_queued_requests", retry_after=9))
    refusals.note("b", OverloadedError("its own", field="tokens_per_minute", retry_after=9))
    with pytest.raises(OverloadedError) as refused:
        refusals.check("a")
    assert refused.value.retry_after == 9
    refusals.check("b")
    now = 1.0
    refusals.check("a")
