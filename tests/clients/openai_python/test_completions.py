"""/v1/completions through the official client."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from live_server import MODEL
from openai.types import Completion

FRANCE = "The capital of France is"


def _complete(client: openai.OpenAI, prompt: Any = FRANCE, **params: Any) -> Completion:
    answer = client.completions.create(model=MODEL, prompt=prompt, **{"max_tokens": 8, "temperature": 0, **params})
    assert isinstance(answer, Completion)
    return answer


def test_a_completion_has_every_field(client: openai.OpenAI) -> None:
    answer = _complete(client)
    assert (answer.object, answer.model) == ("text_completion", MODEL)
    assert answer.id
    assert answer.created > 0
    (choice,) = answer.choices
    assert choice.text.startswith(" Paris")
    assert choice.finish_reason in {"stop", "length"}
    assert choice.logprobs is None
    usage = answer.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_is_the_same_text_under_one_id(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    """OpenAI sends a null finish_reason in all chunks but the last, which its own client's type does not allow."""
    whole = _complete(client, max_tokens=40)
    stream = lenient.completions.create(
        model=MODEL,
        prompt=FRANCE,
        max_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage) == ([], whole.usage)
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_logprobs_line_up_with_the_text(client: openai.OpenAI) -> None:
    choice = _complete(client, logprobs=3).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == choice.text
    assert logprobs.text_offset is not None
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for token, chosen, top in zip(
        logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or [], strict=True
    ):
        assert len(top) >= 3
        assert top[token] == pytest.approx(chosen) == max(top.values())  # it is greedy


def test_n_choices_for_each_of_two_prompts(client: openai.OpenAI) -> None:
    answer = _complete(client, prompt=[FRANCE, "The capital of Italy is"], n=2, temperature=1.0, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_best_of_gives_n_choices(client: openai.OpenAI) -> None:
    answer = _complete(client, n=1, best_of=3, temperature=1.0, seed=7)
    assert len(answer.choices) == 1
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens > 8  # of all three


def test_a_stop_string_is_left_out(client: openai.OpenAI) -> None:
    text = _complete(client, prompt="Once upon a time", max_tokens=40).choices[0].text
    stop = text[30:34]
    choice = _complete(client, prompt="Once upon a time", max_tokens=40, stop=stop).choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"


def test_echo_repeats_the_prompt_with_its_logprobs(lenient: openai.OpenAI) -> None:
    """The first token has a null logprob, as with OpenAI, whose client's type does not allow it."""
    choice = _complete(lenient, echo=True, logprobs=1, max_tokens=2).choices[0]
    assert choice.text.startswith(f"{FRANCE} Paris")
    logprobs = choice.logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == choice.text
    assert (logprobs.token_logprobs or [0.0])[0] is None  # nothing comes before the first token
    assert (logprobs.top_logprobs or [{}])[0] is None
    assert all(logprob is not None for logprob in (logprobs.token_logprobs or [])[1:])


def test_echo_of_the_prompt_alone(client: openai.OpenAI) -> None:
    answer = _complete(client, echo=True, max_tokens=0)
    assert answer.choices[0].text == FRANCE
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    texts = [_complete(client, temperature=1.2, seed=5, max_tokens=16).choices[0].text for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_suffix_is_refused(client: openai.OpenAI) -> None:
    """Filling in is for models trained to do it; OpenAI's own newer ones refuse it too."""
    with pytest.raises(openai.BadRequestError) as caught:
        _complete(client, suffix="!")
    assert caught.value.param == "suffix"
