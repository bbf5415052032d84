from __future__ import annotations

from support.fake_chat import WHOLE_TURN, calls, ends, says, thinks

from quire.gateway.chat.blocks import Block, BlockEnded, BlockEvent, BlockGrew, BlockStarted, TurnBlocks
from quire.gateway.chat.deltas import ChatDelta, ToolCallDelta
from quire.outputs import TokenLogprobs


def told(turn: TurnBlocks, deltas: list[ChatDelta]) -> list[tuple[str, int, str]]:
    """(what happened, block, text) of all events."""
    events: list[BlockEvent] = [event for delta in deltas for event in turn.add(delta)]
    names = {BlockStarted: "start", BlockGrew: "grow", BlockEnded: "end"}
    return [(names[type(event)], event.block.index, getattr(event, "text", "")) for event in events]


def shown(blocks: list[Block]) -> list[tuple[str, str, str, str]]:
    return [(block.kind, block.call_id, block.name, block.text) for block in blocks]


def test_blocks_come_one_after_the_other() -> None:
    turn = TurnBlocks()
    assert told(turn, WHOLE_TURN) == [
        ("start", 0, ""),
        ("grow", 0, "Let me "),
        ("grow", 0, "see."),
        ("end", 0, ""),
        ("start", 1, ""),
        ("grow", 1, "I will "),
        ("grow", 1, "look."),
        ("end", 1, ""),
        ("start", 2, ""),
        ("grow", 2, '{"where": '),
        ("grow", 2, '"Paris"}'),
        ("end", 2, ""),
        ("start", 3, ""),
        ("grow", 3, "{}"),
        ("end", 3, ""),
    ]
    assert shown(turn.blocks) == [
        ("reasoning", "", "", "Let me see."),
        ("text", "", "", "I will look."),
        ("call", "call_a", "look", '{"where": "Paris"}'),
        ("call", "call_b", "listen", "{}"),
    ]
    assert all(block.complete for block in turn.blocks)
    assert turn.finish_reason == "tool_calls"


def test_one_delta_may_hold_it_all() -> None:
    turn = TurnBlocks()
    call_a, call_b = ToolCallDelta(0, "{}", "a", "f"), ToolCallDelta(1, "[]", "b", "g")
    delta = ChatDelta(
        0, content="text", reasoning_content="thought", tool_calls=[call_a, call_b], finish_reason="tool_calls"
    )
    told(turn, [delta])
    assert shown(turn.blocks) == [
        ("reasoning", "", "", "thought"),
        ("text", "", "", "text"),
        ("call", "a", "f", "{}"),
        ("call", "b", "g", "[]"),
    ]


def test_text_after_a_call_is_a_block_of_its_own() -> None:
    turn = TurnBlocks()
    told(turn, [says("a"), calls(0, "{}", "id", "f"), says("b"), ends()])
    assert [block.kind for block in turn.blocks] == ["text", "call", "text"]


def test_a_cut_leaves_the_last_block_incomplete() -> None:
    turn = TurnBlocks()
    told(turn, [says("a"), calls(0, '{"x', "id", "f"), ends("length")])
    assert [block.complete for block in turn.blocks] == [True, False]


def test_an_empty_turn_has_no_blocks() -> None:
    turn = TurnBlocks()
    assert told(turn, [ends(stop_reason="\n")]) == []
    assert (turn.blocks, turn.finish_reason, turn.stop_reason) == ([], "stop", "\n")


def test_silent_tokens_count_for_what_comes_next() -> None:
    turn = TurnBlocks()
    silent = ChatDelta(0, token_ids=[5, 6])
    told(turn, [silent, thinks("hm", tokens=3), silent, says("well"), silent, ends()])
    assert [block.num_tokens for block in turn.blocks] == [5, 3]
    assert turn.reasoning_tokens == 5


def test_logprobs_are_those_of_the_text() -> None:
    def entry(token_id: int) -> list[TokenLogprobs]:
        return [TokenLogprobs(token_id, -0.5)]

    turn = TurnBlocks()
    deltas = [
        ChatDelta(0, reasoning_content="hm", token_ids=[1], logprobs=entry(1)),
        ChatDelta(0, token_ids=[2], logprobs=entry(2)),
        ChatDelta(0, content="a", token_ids=[3], logprobs=entry(3)),
        ChatDelta(0, content="b", token_ids=[4], logprobs=entry(4)),
        ChatDelta(0, token_ids=[5], logprobs=entry(5), finish_reason="stop"),
    ]
    events = [event for delta in deltas for event in turn.add(delta)]
    grown = [event for event in events if isinstance(event, BlockGrew)]
    assert [[position.token_id for position in event.logprobs] for event in grown] == [[], [2, 3], [4]]
    assert [position.token_id for position in turn.blocks[1].logprobs] == [2, 3, 4]
    assert turn.blocks[0].logprobs == []
