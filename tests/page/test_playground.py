"""The playground: answers as they come, their tokens, and what goes wrong."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, Route, expect
from support.live_page import steady_load
from support.servers import Server

pytestmark = pytest.mark.page

QUESTION = "What is the capital of France?"
MARKUP = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


def ask(page: Page, question: str = QUESTION, max_tokens: int = 24) -> None:
    page.get_by_label("Max tokens").fill(str(max_tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Message").fill(question)
    page.get_by_label("Message").press("Enter")


def wait_for_end(page: Page) -> None:
    expect(page.locator(".stats").last).to_contain_text(re.compile("complete|cut at max tokens|stopped"))


def test_an_answer_comes_token_by_token(page: Page) -> None:
    expect(page.get_by_label("Model")).to_have_value("quire-tiny")
    ask(page)
    wait_for_end(page)
    expect(page.locator(".message.user")).to_have_text(QUESTION)
    expect(page.locator(".assistant .text")).to_have_text("The capital of France is Paris.")
    assert "".join(page.locator(".token").all_text_contents()) == "The capital of France is Paris."
    expect(page.locator(".stats")).to_have_text(
        re.compile(r"^\d+ tokens · TTFT .*s · ITL .*s · .* tokens/s · complete$")
    )
    expect(page.locator("#chat-status")).to_contain_text("Answer complete")


def test_the_conversation_goes_on_again_and_is_cleared(page: Page) -> None:
    ask(page)
    wait_for_end(page)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And of Germany?")
    assert [message["role"] for message in sent.value.post_data_json["messages"]] == ["user", "assistant", "user"]
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_label("System prompt").fill("Be brief.")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Regenerate").click()
    roles = [message["role"] for message in sent.value.post_data_json["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".message")).to_have_count(4)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#chat-hint")).to_be_visible()


def test_tokens_tell_their_alternatives_to_the_pointer(page: Page) -> None:
    ask(page)
    wait_for_end(page)
    tip = page.get_by_role("tooltip")
    page.locator(".token").nth(3).hover()
    expect(tip).to_be_visible()
    expect(tip.locator(".other")).to_have_count(5)
    expect(tip.locator(".of .name")).to_have_text("␣France")
    expect(tip.locator(".other.taken .share")).to_have_text(re.compile(r"\d %$"))
    tip.hover()  # the pointer may rest on it
    expect(tip).to_be_visible()
    page.get_by_label("Message").hover()
    expect(tip).to_be_hidden()


def test_tokens_tell_their_alternatives_to_the_keyboard(page: Page) -> None:
    ask(page)
    wait_for_end(page)
    tip, tokens = page.get_by_role("tooltip"), page.locator(".token")
    page.locator("#messages").focus()
    page.keyboard.press("Tab")  # one stop for a whole answer
    expect(tokens.first).to_be_focused()
    expect(tip.locator(".of .name")).to_have_text("The")
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_attribute("aria-describedby", "token-tip")
    expect(tip.locator(".of .name")).to_have_text("␣capital")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    expect(tip).to_be_visible()
    page.keyboard.press("Tab")
    expect(tip).to_be_hidden()
    expect(page.get_by_label("Message")).to_be_focused()


def test_stop(page: Page, server: Server) -> None:
    page.route("**/v1/chat/completions", endless)
    with steady_load(server.url, users=2):  # so that it takes its time
        ask(page, "Go on for ever.", max_tokens=1900)
        expect(page.locator(".token").first).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".stats")).to_contain_text("stopped")
        page.get_by_role("button", name="Regenerate").click()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    server.wait_idle()  # the server was told


def endless(route: Route) -> None:
    """Asks for an answer that does not end of itself."""
    body = {**route.request.post_data_json, "ignore_eos": True}
    route.continue_(post_data=json.dumps(body))


def test_what_the_server_refuses_is_said_plainly(page: Page) -> None:
    ask(page, max_tokens=100_000)
    error = page.get_by_role("alert")
    expect(error).to_contain_text("maximum context length is 2048 tokens")
    expect(page.locator(".assistant")).to_have_count(0)
    ask(page)
    wait_for_end(page)
    expect(error).to_be_hidden()


def test_an_error_within_the_stream(page: Page) -> None:
    said = {"choices": [{"index": 0, "delta": {"content": "so far"}, "finish_reason": None}]}
    failed = {"error": {"message": "an executor was lost", "type": "server_error"}}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in (said, failed))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page)
    expect(page.get_by_role("alert")).to_have_text("an executor was lost")


def test_markup_of_the_model_is_text(page: Page) -> None:
    candidate = {"token": MARKUP, "logprob": -0.1, "bytes": list(MARKUP.encode())}
    token = {**candidate, "top_logprobs": [candidate]}
    chunk = {
        "choices": [
            {
                "index": 0,
                "delta": {"content": MARKUP},
                "logprobs": {"content": [token]},
                "finish_reason": "stop",
            }
        ]
    }
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, MARKUP)
    expect(page.locator(".message.user")).to_have_text(MARKUP)
    expect(page.locator(".assistant .text")).to_have_text(MARKUP)
    page.locator(".token").hover()
    expect(page.get_by_role("tooltip").locator(".of .name")).to_contain_text("<img")
    assert page.locator("#messages img, #messages script, #token-tip img").count() == 0
    assert page.title() == "Quire"


def test_nothing_moves_while_an_answer_comes(page: Page) -> None:
    parts = ("#composer", "#pool", "#charts", "#requests-box", ".settings")
    before = [page.locator(part).bounding_box() for part in parts]
    ask(page, "Count to fifty.", max_tokens=200)
    expect(page.locator(".token").nth(5)).to_be_visible()
    assert [page.locator(part).bounding_box() for part in parts] == before
    wait_for_end(page)
    assert [page.locator(part).bounding_box() for part in parts] == before
