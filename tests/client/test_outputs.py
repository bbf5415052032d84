from __future__ import annotations

from quire.outputs import (
    CompletionDelta,
    GenerationDelta,
    Logprob,
    RequestOutput,
    TokenLogprobs,
    Usage,
    merge_deltas,
)


def test_deltas_add_up_to_an_output() -> None:
    output = RequestOutput.empty("id", "prompt", [1], n=2)
    first = CompletionDelta(1, "a", [5], [TokenLogprobs(5, -1.0, ((7, -0.5), (5, -1.0)))])
    second = CompletionDelta(1, "b", [6], [TokenLogprobs(6, -2.0, ((7, -0.25),))], "stop", "x")
    output.add(GenerationDelta([first]), decode=str)
    assert not output.finished
    output.add(GenerationDelta([second], Usage(1, 2, 1)))
    assert output.finished
    assert output.num_cached_tokens == 1
    assert output.outputs[0].text == ""
    completion = output.outputs[1]
    assert (completion.text, completion.token_ids) == ("ab", [5, 6])
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "x")
    assert completion.cumulative_logprob == -3.0
    assert completion.logprobs == [
        {5: Logprob(-1.0, 2, "5"), 7: Logprob(-0.5, 1, "7")},
        {6: Logprob(-2.0, None, None), 7: Logprob(-0.25, 1, None)},
    ]


def test_merged_deltas_are_all_of_them() -> None:
    entry = TokenLogprobs(5, -1.0)
    merged = merge_deltas([CompletionDelta(3, "a", [5], [entry]), CompletionDelta(3, "b", [6], [entry], "stop", 6)])
    assert merged == CompletionDelta(3, "ab", [5, 6], [entry, entry], "stop", 6)


def test_logprobs_survive_the_message() -> None:
    entry = TokenLogprobs(5, -1.0, ((7, -0.5), (5, -1.0)))
    assert TokenLogprobs.from_proto(5, entry.to_proto()) == entry
