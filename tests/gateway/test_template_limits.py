"""Templates that never end, or make more than memory holds, are errors; others see nothing of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from support.bystander import streaming
from support.fake_scheduler import FakeScheduler
from support.gateway_fixtures import MODEL, Gateway, start_gateway

from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.chat_template import ChatTemplate
from quire.gateway.template_limits import TemplateLimitError, TemplateTimeoutError

PROMPT = ChatPrompt([{"role": "user", "content": "x"}])
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    "source",
    [
        ENDLESS,
        # Two calls of each depth below it.
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) if loop.depth < 4 }}{% endfor %}",
        "{% set x = namespace(n=0) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set x.n = x.n + 1 %}"
        "{% endfor %}{% endfor %}",
    ],
)
def test_templates_without_end(source: str) -> None:
    with pytest.raises(TemplateTimeoutError, match=r"longer than 0\.1 s"):
        ChatTemplate(source, {}).render(PROMPT, 0.1)


_DOUBLING = "{% set x = namespace(s='a') %}{% for i in range(99) %}{% set x.s = OPERATION %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 9 ** (9 ** 9) }}",
        "{{ 2 ** 99999 }}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ 10 ** 12 * 'a' }}",
        "{{ ([1] * 10 ** 9) | length }}",
        "{{ '%01000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ 'a' | indent(10 ** 9, true) }}",
        _DOUBLING.replace("OPERATION", "x.s + x.s"),
        _DOUBLING.replace("OPERATION", "x.s ~ x.s"),
        _DOUBLING.replace("OPERATION", "x.s ~ (x.s ~ 'b')"),
        _DOUBLING.replace("OPERATION", "x.s.replace('a', 'aa')"),
        "{% set a = 'a' * 1000000 %}{% for i in range(99) %}{{ a }}{% endfor %}",
    ],
)
def test_templates_that_make_too_much(source: str) -> None:
    with pytest.raises(TemplateLimitError):
        ChatTemplate(source, {}).render(PROMPT)


def test_what_is_usual_is_not_bounded() -> None:
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ '%5.1f' % 2 }}{{ 'a' * 3 }}"
        "{{ 'x' ~ m.content ~ 'y' }}{{ 'b' | center(5) }}{{ [1, 2] + [3] }} {{ 2 ** 10 }}{% endfor %}"
    )
    assert ChatTemplate(source, {}).render(PROMPT) == "1/1 True   2.0aaaxxy  b  [1, 2, 3] 1024"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trusting(module_scheduler: FakeScheduler, model_folder: Path) -> AsyncIterator[Gateway]:
    gateway = await start_gateway(module_scheduler, model_folder, trust_request_chat_template=True)
    yield gateway
    await gateway.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_clients_template_without_end(trusting: Gateway, scheduler: FakeScheduler) -> None:
    async with (
        streaming(trusting, scheduler) as bystander,
        httpx.AsyncClient(base_url=trusting.url, timeout=60) as http,
    ):
        body = {"model": MODEL, "messages": PROMPT.messages, "chat_template": ENDLESS}
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        assert "takes longer than 3 s" in answer.json()["error"]["message"]
        await bystander.gets_a_token()
        body["chat_template"] = "x" * 70_000
        answer = await http.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "chat_template")
