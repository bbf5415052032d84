from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from quire.errors import InvalidRequestError
from quire.sampling_params import (
    LIBRARY_DEFAULTS,
    MAX_STOP_STRINGS,
    SamplingParams,
    generation_config_defaults,
)
from quire.structured_outputs import StructuredOutputs

FULL = SamplingParams(
    n=2,
    max_tokens=7,
    min_tokens=1,
    temperature=0.5,
    top_k=3,
    top_p=0.25,
    min_p=0.125,
    seed=5,
    presence_penalty=-1.5,
    frequency_penalty=1.5,
    repetition_penalty=1.25,
    logit_bias={4: -100.0, 5: 2.5},
    logprobs=0,
    stop=("a", "b"),
    stop_token_ids=(1, 2),
    ignore_eos=True,
    skip_special_tokens=False,
    best_of=5,
    use_beam_search=True,
    length_penalty=0.5,
    early_stopping="never",
    bad_words=("bad", "worse"),
    allowed_token_ids=(1, 2, 3),
    include_stop_str_in_output=True,
    truncate_prompt_tokens=-1,
    prompt_logprobs=2,
    structured_outputs=StructuredOutputs(choice=("yes", "no")),
)

# Field, values just inside, values just outside.
ENDS: list[tuple[str, list[Any], list[Any]]] = [
    ("n", [1, 2**32 - 1], [0, -1, 2**32]),
    ("max_tokens", [1], [0, -1, 2**32]),
    ("min_tokens", [0], [-1, 2**32]),
    ("temperature", [0, 0.0, 2, 2.0], [-0.001, 2.001, 10**400]),
    ("top_k", [-1, 0, 1], [-2, 2**32]),
    ("top_p", [1e-6, 1], [0, 0.0, -0.1, 1.001, 1e-60]),
    ("min_p", [0, 1], [-0.001, 1.001]),
    ("seed", [-(2**63), 0, 2**64 - 1], [-(2**63) - 1, 2**64]),
    ("presence_penalty", [-2, 2], [-2.001, 2.001]),
    ("frequency_penalty", [-2, 2], [-2.001, 2.001]),
    ("repetition_penalty", [1e-6, 100], [0, -1, 100.001]),
    ("logprobs", [0, 20], [-1, 2**32]),
    ("logit_bias", [{0: -100}, {2**32 - 1: 100}, {}], [{0: -100.1}, {0: 100.1}, {-1: 0}, {2**32: 0}]),
    ("stop", [[], ["x"] * MAX_STOP_STRINGS, "x"], ["", [""], ["x"] * (MAX_STOP_STRINGS + 1)]),
    ("stop_token_ids", [[], [0, 2**32 - 1]], [[-1], [2**32]]),
    ("best_of", [1], [0, 2**32]),
    ("length_penalty", [-10, 10], [-10.001, 10.001]),
    ("early_stopping", [True, False, "never"], ["always"]),
]

WRONG_TYPES: list[tuple[str, list[Any]]] = [
    *((name, [True, "1", 1.0, [1]]) for name in ("n", "max_tokens", "min_tokens", "top_k", "seed", "logprobs")),
    *(
        (name, [True, "1", [1], math.nan, math.inf, -math.inf])
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
    ),
    ("early_stopping", [1, 0, [True]]),
    ("logit_bias", [[1], "1", {"1": 1}, {True: 1}, {1: True}, {1: "1"}, {1: math.nan}]),
    ("stop", [1, [1], b"x", {"x": 1}, "\ud800"]),
    ("stop_token_ids", [1, "12", [True], [1.0], ["1"]]),
    ("ignore_eos", [1, 0, "true"]),
    ("skip_special_tokens", [1, "false"]),
]


@pytest.mark.parametrize(("field", "inside", "outside"), ENDS)
def test_both_ends_of_every_range(field: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        SamplingParams(**{field: value}).to_proto()
    for value in outside:
        with pytest.raises(InvalidRequestError) as caught:
            SamplingParams(**{field: value})
        assert caught.value.field == field


@pytest.mark.parametrize(("field", "values"), WRONG_TYPES)
def test_wrong_types_are_refused(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidRequestError) as caught:
            SamplingParams(**{field: value})
        assert caught.value.field == field


def test_min_tokens_beyond_max_tokens_is_refused() -> None:
    SamplingParams(min_tokens=3, max_tokens=3)
    with pytest.raises(InvalidRequestError, match="min_tokens must be at most max_tokens"):
        SamplingParams(min_tokens=4, max_tokens=3)


def test_the_message_keeps_every_field() -> None:
    assert SamplingParams.from_proto(FULL.to_proto()) == FULL
    assert SamplingParams.from_proto(SamplingParams().to_proto()) == SamplingParams()


def test_a_message_is_checked_too() -> None:
    message = FULL.to_proto()
    message.temperature = math.nan
    with pytest.raises(InvalidRequestError):
        SamplingParams.from_proto(message)


def test_negative_seeds_are_twos_complement_and_top_k_all_is_zero() -> None:
    message = SamplingParams(seed=-1, top_k=-1).to_proto()
    assert message.seed == 2**64 - 1
    assert message.top_k == 0


def test_resolved_fills_from_the_model_then_from_the_library() -> None:
    defaults = generation_config_defaults({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "unknown": 1})
    resolved = SamplingParams(top_p=0.5, stop="x").resolved(defaults, max_tokens=9)
    assert (resolved.temperature, resolved.top_k, resolved.top_p) == (0.6, 20, 0.5)
    assert (resolved.max_tokens, resolved.stop, resolved.logprobs) == (9, ("x",), None)
    assert resolved.seed is not None
    assert 0 <= resolved.seed < 2**63
    rest = replace(resolved, temperature=1.0, top_k=0, top_p=1.0, max_tokens=None, seed=None, stop=(), best_of=None)
    assert rest == LIBRARY_DEFAULTS


def test_resolved_leaves_what_is_given() -> None:
    assert FULL.resolved(SamplingParams(temperature=1), max_tokens=100) == FULL


def test_seeds_are_drawn_anew() -> None:
    drawn = {SamplingParams().resolved(SamplingParams(), 1).seed for _ in range(20)}
    assert len(drawn) == 20


def test_a_generation_config_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidRequestError):
        generation_config_defaults({"temperature": -1})
