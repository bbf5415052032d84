"""One line per request when it ends, or when it is refused."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.gateway_fixtures import Gateway, start_gateway

from quire.errors import OverloadedError, ServiceUnavailableError
from quire.gateway.origin import Origin
from quire.gateway.refusal_log import RefusalLog
from quire.gateway.request_log import RequestLog, fields_of
from quire.gateway.request_record import RequestRecord
from quire.gateway.tenants import Tenant

SECRET = "a prompt that nobody else may read"
DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="quire.gateway")
    return caplog


def _said(caplog: pytest.LogCaptureFixture, module: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == f"quire.gateway.{module}"]


async def _post(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 3, **body})


async def test_a_request_gets_one_line_with_its_times_and_without_its_text(http, scheduler, lines):
    answer = await _post(http)
    (record,) = _said(lines, "request_log")
    line = record.getMessage()
    assert line.startswith("length ")
    assert re.search(r" →    3 tokens  queue .* ttft .* itl .* e2e .* tok/s  /v1/completions cmpl-", line)
    assert answer.json()["id"] in line
    assert SECRET not in lines.text
    assert answer.json()["choices"][0]["text"] not in line
    assert record.levelno == logging.INFO


async def test_a_stream_that_is_left_ends_with_abort(http, scheduler, lines):
    body = {"prompt": SECRET, "max_tokens": 200, "stream": True}
    scheduler.step_delay = 0.01
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            break
    async with asyncio.timeout(30):
        while not (said := _said(lines, "request_log")):
            await asyncio.sleep(0.01)
    assert said[0].getMessage().startswith("abort ")


@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
async def test_whoever_leaves_before_the_scheduler_has_answered_ends_with_abort(http, scheduler, lines, path, field):
    scheduler.submit_delay = 30
    asked = asyncio.ensure_future(http.post(path, json={field: SECRET}))
    await scheduler.wait_requests()
    asked.cancel()
    async with asyncio.timeout(30):
        while not (said := _said(lines, "request_log")):
            await asyncio.sleep(0.01)
    assert [line.getMessage().split()[0] for line in said] == ["abort"]


async def test_a_refusal_names_the_field_and_not_what_it_held(http, scheduler, lines):
    await _post(http, temperature=-7.5)
    (record,) = _said(lines, "refusal_log")
    assert "invalid_value (temperature)" in record.getMessage()
    assert vars(record)["field"] == "temperature"
    assert vars(record)["route"] == "/v1/completions"
    assert SECRET not in lines.text
    assert "7.5" not in lines.text
    assert record.levelno == logging.INFO
    assert not _said(lines, "request_log")


async def test_what_the_scheduler_refuses_is_told_once_and_what_is_our_fault_louder(http, scheduler, lines):
    scheduler.submit_error = ServiceUnavailableError("no room today")
    assert (await _post(http)).status_code == 503
    (record,) = _said(lines, "refusal_log")
    assert record.levelno == logging.WARNING
    assert "no room today" in record.getMessage()
    assert not _said(lines, "request_log")


async def test_prompts_and_outputs_are_written_if_that_is_asked_for(module_scheduler, model_folder, scheduler, lines):
    gateway: Gateway = await start_gateway(module_scheduler, model_folder, log_prompts=True, max_log_len=8)
    try:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as http:
            text = (await _post(http, n=2)).json()["choices"][0]["text"]
        (line,) = [record.getMessage() for record in _said(lines, "request_log")]
    finally:
        await gateway.close()
    assert f"prompt={SECRET[:8]!r}" in line
    assert SECRET[:9] not in line
    assert repr(text[:8])[1:-1] in line


async def test_lines_can_be_turned_off(module_scheduler, model_folder, scheduler, lines):
    gateway: Gateway = await start_gateway(module_scheduler, model_folder, enable_log_requests=False)
    try:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as http:
            assert (await _post(http)).status_code == 200
            assert (await _post(http, temperature=-1)).status_code == 400
    finally:
        await gateway.close()
    assert not _said(lines, "request_log")
    assert not _said(lines, "refusal_log")


async def test_a_flood_of_refusals_is_counted_and_not_written(lines, monkeypatch):
    monkeypatch.setattr("quire.gateway.refusal_log._PERIOD_S", 0.1)
    log = RefusalLog(enabled=True)
    for _ in range(500):
        log.note(OverloadedError("full"), "/v1/completions", "r")
    assert len(_said(lines, "refusal_log")) == 10
    async with asyncio.timeout(30):
        while len(said := _said(lines, "refusal_log")) < 11:
            await asyncio.sleep(0.01)
    assert "490 rate_limit_exceeded" in said[-1].getMessage()
    log.note(OverloadedError("full"), "/v1/completions", "r")
    assert len(_said(lines, "refusal_log")) == 12


def _record(**fields: Any) -> RequestRecord:
    times = {"arrived_s": 1.0, "submitted_s": 1.5, "queued_s": 0.5, "ended_s": 5.0}
    return RequestRecord("r", Tenant("alice"), 7, 2, 64, **{**times, **fields})


async def test_the_figures_of_a_line():
    record = _record(first_token_s=3.0, last_token_s=4.5, num_output_tokens=8, origin=Origin("/v1/completions"))
    record.finish_reasons = ["stop", "length"]
    fields = fields_of(record)
    assert (fields["queue_s"], fields["ttft_s"], fields["e2e_s"]) == (0.5, 2.0, 4.0)
    # Two sequences with four tokens each: three intervals.
    assert fields["mean_itl_s"] == 0.5
    assert fields["output_tokens_per_s"] == 2.0
    assert fields["tenant"] == "alice"


async def test_json_lines_have_the_fields_that_are_documented(lines):
    record = _record(error=OverloadedError("full"))
    RequestLog("json").on_end(record)
    (said,) = _said(lines, "request_log")
    assert vars(said).items() >= fields_of(record).items()
    table = DOCUMENT.read_text().split("request fields -->")[1]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert documented == list(fields_of(record))
