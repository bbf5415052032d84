"""Metrics of a whole server with two gateways: exact sums whichever answers, promtool, the dashboard and the alerts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.promql import Query, promtool, running_prometheus
from support.scrapes import Samples, scrape, scrape_until
from support.servers import Server, running_server, wait_for

from quire.client import Client
from quire.sampling_params import SamplingParams

DEPLOY = Path(__file__).parents[2] / "deploy"
TENANTS = ("operator", "a", "b")
KEYS = {name: f"the key of {name}" for name in TENANTS}
OPERATOR = {"authorization": f"Bearer {KEYS['operator']}"}
# Of a block, and a prompt with two of them and a token more.
BLOCK = 16
PROMPT_LENGTH = 2 * BLOCK + 1
# What a gateway's reports bring.
GENERATED = ("quire:generation_tokens_total",)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    path.write_text(
        yaml.safe_dump([{"sha256": digests[name], "tenant": name, "operator": name == "operator"} for name in TENANTS])
    )
    with running_server(gateways=2, api_keys=path, metrics_alias="vllm", block_size=BLOCK) as server:
        yield server


def complete(server: Server, tenant: str, first: int, max_tokens: int, **fields: Any) -> httpx.Response:
    """On a connection of its own, so that any gateway gets it."""
    prompt = list(range(first, first + PROMPT_LENGTH))
    body = {"model": "quire-tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    headers = {"authorization": f"Bearer {KEYS[tenant]}"}
    return httpx.post(f"{server.url}/v1/completions", json=body | fields, headers=headers, timeout=60)


def sums(count: int, sum_: float, name: str) -> Samples:
    """Of a histogram."""
    return {(f"quire:{name}_count",): count, (f"quire:{name}_sum",): sum_}


def test_known_requests_give_exactly_known_counts_whichever_gateway_answers(server):
    for number in range(10):
        assert complete(server, "a", 300 + 50 * number, 5).status_code == 200
    for _ in range(3):  # the first finds nothing, the others the first's two blocks
        assert complete(server, "b", 1000, 4, n=2).status_code == 200
    for _ in range(4):
        assert complete(server, "b", 1000, 4, model="another").status_code == 404
    params = SamplingParams(max_tokens=7, temperature=0, ignore_eos=True)
    with Client(server.grpc_address, api_key=KEYS["b"]) as client:
        client.complete(list(range(1200, 1200 + PROMPT_LENGTH)), params)
    generated, found_tokens = 10 * 5 + 3 * 2 * 4 + 7, 2 * 2 * BLOCK
    # Every prompt token that was not found, and every token but the last of each continuation; a second continuation
    # computes the prompt's last token itself.
    computed = 14 * PROMPT_LENGTH - found_tokens + generated - 17 + 3
    expected: Samples = {
        GENERATED: generated,
        ("vllm:generation_tokens_total",): generated,
        ("quire:prompt_tokens_total",): 14 * PROMPT_LENGTH,
        ("quire:prompt_tokens_cached_total",): found_tokens,
        ("quire:prefix_cache_queries_total",): 14 * PROMPT_LENGTH,
        ("quire:prefix_cache_hits_total",): found_tokens,
        ("quire:request_success_total", "length"): 10 + 3 * 2 + 1,
        ("quire:request_success_total", "stop"): 0,
        ("quire:tenant_generation_tokens_total", "a"): 50,
        ("quire:tenant_request_success_total", "length", "b"): 7,
        ("quire:tenant_prompt_tokens_total", "b"): 4 * PROMPT_LENGTH,
        ("quire:http_responses_total", "404"): 4,
        ("quire:grpc_responses_total", "OK"): 1,
        ("quire:gateways",): 2,
        ("quire:iteration_tokens_total_sum",): computed,
        ("quire:time_to_first_token_seconds_count",): 14,
        ("quire:e2e_request_latency_seconds_count",): 14,
        ("quire:request_queue_time_seconds_count",): 14,
        **sums(14, 14 * PROMPT_LENGTH, "request_prompt_tokens"),
        **sums(14, 14 * PROMPT_LENGTH - found_tokens, "request_prefill_kv_computed_tokens"),
        **sums(17, generated, "request_generation_tokens"),
        **sums(14, 10 * 5 + 3 * 4 + 7, "request_max_num_generation_tokens"),
        **sums(14, 10 + 3 * 2 + 1, "request_params_n"),
        **sums(14, 10 * 5 + 3 * 4 + 7, "request_params_max_tokens"),
    }
    scrape_until(server.url, lambda found: expected.items() <= found.items(), OPERATOR)
    # Each of these is on a connection of its own.
    assert {scrape(server.url)[GENERATED] for _ in range(12)} == {generated}


@pytest.mark.slow
def test_killing_a_gateway_loses_nothing_that_was_reported(server):
    before = scrape(server.url)[GENERATED]
    assert complete(server, "a", 1300, 6).status_code == 200
    scrape_until(server.url, lambda found: found[GENERATED] == before + 6)
    gateway = next(child for child in server.supervisor.children if child.name == "gateway 0")
    os.kill(gateway.process.pid, signal.SIGKILL)

    def answer() -> float | None:
        try:
            return scrape(server.url)[GENERATED]
        except httpx.TransportError:  # the dead one had the connection
            return None

    wait_for(lambda: answer() is not None)
    assert {answer() for _ in range(12)} - {None} == {before + 6}


def families(server: Server) -> dict[str, set[str]]:
    """By the names of samples: the labels they have."""
    text = httpx.get(f"{server.url}/metrics", headers=OPERATOR, timeout=20).text
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def test_promtool_finds_nothing_but_what_vllm_s_names_have(server):
    """Its linter wants no colons, which it keeps for recording rules, and `_total` for counters alone."""
    text = httpx.get(f"{server.url}/metrics", headers=OPERATOR, timeout=20).text
    checked = promtool("check", "metrics", given=text)
    complaints = Counter(line.split(" ", 1)[1] for line in (checked.stdout + checked.stderr).splitlines())
    colon, total = "metric names should not contain ':'", 'non-counter metrics should not have "_total" suffix'
    assert complaints.keys() == {colon, total}
    assert complaints[total] == 2, "quire:iteration_tokens_total and vllm:iteration_tokens_total"
    # With other names there is nothing to find, and the format is right: 3 stands for complaints alone.
    assert checked.returncode == 3
    renamed = re.sub(r"\b(quire|vllm):", r"\1_", text).replace("iteration_tokens_total", "iteration_tokens")
    checked = promtool("check", "metrics", given=renamed)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def check_query(expression: str, live: dict[str, set[str]], of_prometheus: frozenset[str] = frozenset()) -> set[str]:
    """Compares an expression with the live series; returns the labels that its results may have."""
    query = Query.of(expression)
    assert query.series, expression
    known = set(of_prometheus)
    for name, labels in query.series:
        if name != "up":
            assert name in live, f"{name}, which {expression} asks for, is not there"
            assert labels <= live[name] | of_prometheus, f"{expression} asks for labels that {name} has not"
            known |= live[name]
    assert query.groups <= known, f"{expression} groups by labels that are not there"
    return query.groups or known


def panels() -> list[dict[str, Any]]:
    """Of the dashboard, without its headings."""
    dashboard = json.loads((DEPLOY / "grafana" / "quire.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """All queries of the panels, by panel and letter, with values for Grafana's variables."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$model_name", "quire-tiny")
        for panel in panels()
        for target in panel["targets"]
    }


def test_every_panel_of_the_dashboard_has_its_series(server, tmp_path):
    live = families(server)
    variables = json.loads((DEPLOY / "grafana" / "quire.json").read_text())["templating"]["list"]
    known = {variable["name"] for variable in variables} | {"__rate_interval"}
    for panel in panels():
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            labels = check_query(target["expr"], live)
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, panel["title"]
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= known
    for variable in variables:
        if variable["type"] == "query":
            name, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", variable["query"]["query"]).groups()
            assert label in live[name]
    # Whether it is PromQL at all.
    rules = [{"record": f"panel{number}", "expr": entry} for number, entry in enumerate(expressions().values())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = promtool("check", "rules", path)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
def test_a_real_prometheus_has_something_to_show_on_every_panel(server, tmp_path):
    configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = configuration["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    job["scrape_interval"] = "1s"
    job["authorization"] = {"credentials": KEYS["operator"]}
    (tmp_path / "alerts.yml").write_text((DEPLOY / "prometheus" / "alerts.yml").read_text())
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with Client(server.grpc_address, api_key=KEYS["b"]) as client:
        client.complete([300, 301], SamplingParams(max_tokens=2, temperature=0))
    with running_prometheus(tmp_path / "prometheus.yml", tmp_path / "data") as prometheus:
        missing, deadline = expressions(), time.monotonic() + 90
        while missing:
            assert time.monotonic() < deadline, f"nothing to show: {missing}"
            assert complete(server, "b", 1400, 4).status_code == 200
            missing = {panel: entry for panel, entry in missing.items() if not prometheus.query(entry)}


def test_alerts_and_prometheus_s_configuration(server):
    live = families(server)
    folder = DEPLOY / "prometheus"
    checked = promtool("check", "config", folder / "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert "1 rule files found" in checked.stdout
    (group,) = yaml.safe_load((folder / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        labels = check_query(rule["expr"], live, frozenset({"job", "instance"}))
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= labels, rule["alert"]


def test_tenants_are_for_operators(server):
    assert not any("tenant" in name for name, *_ in scrape(server.url))
    user = {"authorization": f"Bearer {KEYS['a']}"}
    assert not any("tenant" in name for name, *_ in scrape(server.url, user))
    assert any("tenant" in name for name, *_ in scrape(server.url, OPERATOR))
