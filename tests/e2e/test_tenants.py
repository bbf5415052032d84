"""Tenants of a real server: whose prefixes are found, limits over two gateways' worth of clients, reloads, floods."""

from __future__ import annotations

import contextlib
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from support.servers import running_server, wait_for

from quire.client import Client
from quire.errors import OverloadedError
from quire.sampling_params import SamplingParams

KEYS = {name: f"the secret key of {name}" for name in ("a", "b", "limited", "flood", "quiet", "late")}
PROMPT = list(range(300, 400))
LIMITS = {"limited": {"max_concurrent_requests": 1}}
SLOTS = 4


def entry(name: str) -> dict[str, object]:
    digest = hashlib.sha256(KEYS[name].encode()).hexdigest()
    return {"sha256": digest, "tenant": name, **LIMITS.get(name, {})}


def write(path: Path, names: list[str]) -> None:
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump([entry(name) for name in names]))
    new.replace(path)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    write(path, [name for name in KEYS if name != "late"])
    return path


@pytest.fixture(scope="module")
def server(key_file: Path):
    with running_server(
        api_keys=key_file, scheduling_policy="fair", max_num_seqs=SLOTS, max_queued_requests=8
    ) as server:
        yield server


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
    server.wait_idle()


def complete(http: httpx.Client, tenant: str, prompt=PROMPT, max_tokens=4, **fields) -> httpx.Response:
    body = {"model": "quire-tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return http.post("/v1/completions", json=body | fields, headers={"authorization": f"Bearer {KEYS[tenant]}"})


def cached_tokens(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_prefix_is_found_by_its_own_tenant_alone(server, http):
    assert cached_tokens(complete(http, "a")) == 0
    assert cached_tokens(complete(http, "a")) == 96
    assert cached_tokens(complete(http, "b")) == 0, "another tenant's blocks are nobody's business"
    assert cached_tokens(complete(http, "b")) == 96
    for salt in ("a", "\x01\0\0\0a", KEYS["a"]):
        assert cached_tokens(complete(http, "b", cache_salt=salt)) == 0, "no salt opens what is a's"
    assert cached_tokens(complete(http, "a", cache_salt="x")) == 0
    assert cached_tokens(complete(http, "a", cache_salt="x")) == 96
    with Client(server.grpc_address, api_key=KEYS["a"]) as client:
        output = client.complete(PROMPT, SamplingParams(max_tokens=2, temperature=0))
        assert output.num_cached_tokens == 96, "whatever the API"


def test_a_limit_of_the_tenant_gives_429_and_its_name(server, http):
    with contextlib.ExitStack() as stack:
        body = {"model": "quire-tiny", "prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        headers = {"authorization": f"Bearer {KEYS['limited']}"}
        running = stack.enter_context(http.stream("POST", "/v1/completions", json=body, headers=headers))
        lines = running.iter_lines()  # closes the stream when it is dropped
        next(lines)
        refused = complete(http, "limited")
        assert refused.status_code == 429
        assert refused.json()["error"]["param"] == "max_concurrent_requests"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        with Client(server.grpc_address, api_key=KEYS["limited"]) as client, pytest.raises(OverloadedError) as caught:
            client.complete("Hi", SamplingParams(max_tokens=1))
        assert caught.value.field == "max_concurrent_requests"
        assert 1 <= caught.value.retry_after <= 60
        assert complete(http, "a").status_code == 200
    server.wait_idle()
    assert complete(http, "limited").status_code == 200


@pytest.mark.slow
def test_a_new_key_counts_without_a_restart(http, key_file):
    assert complete(http, "late").status_code == 401
    write(key_file, list(KEYS))
    wait_for(lambda: complete(http, "late").status_code == 200)
    key_file.write_text("- {tenant: broken, weight: -1}")
    time.sleep(2.5)  # the file is looked at every second
    assert complete(http, "late").status_code == 200, "a broken file changes nothing"
    write(key_file, [name for name in KEYS if name != "late"])
    wait_for(lambda: complete(http, "late").status_code == 401)


def test_a_flood_fills_its_own_queue_and_leaves_others_their_slots(server, http):
    """Order, not time: the quiet tenant's requests end while the flood's earlier ones still wait."""
    num_flood = SLOTS + 8
    with ThreadPoolExecutor(num_flood) as pool:
        ended: list[str] = []

        def ask(tenant: str, index: int, max_tokens: int) -> int:
            response = complete(http, tenant, [500 + index, *PROMPT], max_tokens)
            ended.append(tenant)
            return response.status_code

        flood = [pool.submit(ask, "flood", index, 250) for index in range(num_flood)]
        wait_for(lambda: server.kv_state().num_requests_waiting == 8)
        refused = complete(http, "flood")
        assert (refused.status_code, refused.json()["error"]["param"]) == (429, "max_queued_requests")
        assert [ask("quiet", index, 8) for index in range(3)] == [200] * 3
        assert server.kv_state().num_preemptions > 0
        assert ended.count("flood") < num_flood - 3, "the flood's last ones were there before and still run or wait"
        assert [request.result() for request in flood] == [200] * num_flood, "what was accepted ends, preempted or not"
