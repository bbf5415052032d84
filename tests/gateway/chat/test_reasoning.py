"""Thoughts are taken out of a turn, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.gateway.chat.reasoning import DEEPSEEK_R1, MISTRAL, QWEN3, ReasoningParser, find_reasoning_format

# (whether the prompt has opened a thought, what the model wrote, thought, answer)
TURNS = [
    (False, "Paris.", "", "Paris."),
    (False, "\n Paris. ", "", "\n Paris. "),
    (False, "<think>\nIt is France.\n</think>\n\nParis.", "It is France.", "Paris."),
    (True, "It is\n\nFrance.\n</think>\n\nParis.\n", "It is\n\nFrance.", "Paris.\n"),
    (True, "<think>It is France.</think>Paris.", "It is France.", "Paris."),
    (True, "It is Fr", "It is Fr", ""),
    (False, "<think>It is </thi", "It is </thi", ""),
    (False, "<thi", "", "<thi"),
    (False, "<think></think>", "", ""),
    (False, "A <think> is no thought </think>", "", "A <think> is no thought </think>"),
    (False, "<think>a</think>b <think>c</think>", "a", "b <think>c</think>"),
]


def parse(inside: bool, pieces: list[str]) -> tuple[str, str]:
    parser = ReasoningParser(QWEN3, inside=inside)
    parts = [parser.push(piece) for piece in pieces] + [parser.finish()]
    return "".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize(("inside", "text", "thought", "answer"), TURNS)
def test_a_recorded_turn(inside: bool, text: str, thought: str, answer: str) -> None:
    assert parse(inside, [text]) == (thought, answer)
    assert parse(inside, list(text)) == (thought, answer)


_PIECES = st.sampled_from(["<think>", "</think>", "<", "</", "think>", " ", "\n", "a", "é😀"])


@given(st.booleans(), st.lists(_PIECES, max_size=10), st.data())
def test_any_cut_gives_the_same(inside: bool, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(inside, pieces) == parse(inside, [text])


@pytest.mark.parametrize(
    ("prompt", "continued", "thought"),
    [
        ("<|im_start|>assistant\n", None, ""),
        ("<|im_start|>assistant\n<think>\n", None, "x"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None, ""),
        ("<|im_start|>assistant\n<think>so", "<think>so", "x"),
        ("<|im_start|>assistant\n<think>so</think>", "<think>so</think>", ""),
        ("What does <think> mean?<|im_start|>assistant\n", None, ""),
    ],
)
def test_the_prompt_says_whether_a_turn_begins_in_a_thought(prompt: str, continued: str | None, thought: str) -> None:
    parser = QWEN3.new_parser(prompt, continued=continued)
    assert parser.push("x</think>y") == ((thought, "y") if thought else ("", "x</think>y"))


def test_some_models_always_think() -> None:
    assert DEEPSEEK_R1.new_parser("assistant:", continued=None).push("x</think>y") == ("x", "y")
    assert DEEPSEEK_R1.new_parser("assistant:<think></think>", continued=None).push("x") == ("", "x")


def test_the_format_is_found_in_the_template() -> None:
    assert find_reasoning_format("auto", "…</think>…") is QWEN3
    assert find_reasoning_format("auto", "[THINK][/THINK]") is MISTRAL
    assert find_reasoning_format("auto", "{{ messages }}") is None
    assert find_reasoning_format("deepseek_r1", "") is DEEPSEEK_R1
    assert find_reasoning_format("none", "</think>") is None
