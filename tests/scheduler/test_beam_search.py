"""Which hypotheses a search keeps and when it ends, on distributions small enough to follow by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_executor import true_hypotheses

from quire.scheduler.beam_search import Beam, BeamSearch, Continuation
from quire.v1 import generate_pb2

END = 9
START = [Beam((), 0.0)]


def _search(width: int = 2, *, max_tokens: int = 10, min_tokens: int = 0, **settings) -> BeamSearch:
    return BeamSearch(width, frozenset({END}), min_tokens, max_tokens, **settings)


def test_the_first_choice_is_among_the_prompts_own_continuations():
    search = _search()
    assert search.num_candidates == 3
    chosen = search.advance(START, [[(3, -1.0), (4, -2.0), (5, -3.0)]])
    assert chosen == [Continuation(0, 3, -1.0), Continuation(0, 4, -2.0)]


def test_beams_compete_with_each_other():
    search = _search()
    beams = [Beam((3,), -1.0), Beam((4,), -2.0)]
    chosen = search.advance(beams, [[(1, -3.0), (2, -4.0)], [(5, -0.5), (6, -0.75)]])
    assert chosen == [Continuation(1, 5, -2.5), Continuation(1, 6, -2.75)]


def test_what_ends_becomes_a_hypothesis_and_another_beam_takes_its_place():
    search = _search()
    chosen = search.advance(START, [[(3, -1.0), (END, -2.0), (5, -3.0), (6, -4.0)]])
    assert [continuation.token_id for continuation in chosen] == [3, 5]
    (hypothesis,) = search.hypotheses
    assert (hypothesis.token_ids, hypothesis.logprob, hypothesis.is_ended) == ((END,), -2.0, True)


def test_an_end_beyond_the_first_width_candidates_is_no_hypothesis():
    search = _search()
    assert search.advance(START, [[(3, -1.0), (4, -2.0), (END, -3.0), (6, -4.0)]])
    assert not search.hypotheses


def test_nothing_ends_before_min_tokens():
    search = _search(min_tokens=1)
    chosen = search.advance(START, [[(END, -0.5), (3, -1.0), (4, -2.0), (5, -3.0)]])
    assert [continuation.token_id for continuation in chosen] == [3, 4]
    assert not search.hypotheses
    assert search.advance([Beam((3,), -1.0), Beam((4,), -2.0)], [[(END, -0.5), (3, -1.0)], [(4, -2.0), (5, -3.0)]])
    assert search.hypotheses


def test_the_longest_outputs_are_hypotheses_that_did_not_end():
    search = _search(max_tokens=1)
    assert search.advance(START, [[(3, -1.0), (END, -2.0), (5, -3.0), (6, -4.0)]]) == []
    assert [(hypothesis.token_ids, hypothesis.is_ended) for hypothesis in search.hypotheses] == [
        ((3,), False),
        ((END,), True),
    ]


@pytest.mark.parametrize(("penalty", "best"), [(0.0, (END,)), (1.0, (3, END)), (-1.0, (END,))])
def test_the_length_penalty_weighs_short_against_long(penalty, best):
    """-2 for one token against -3 for two: -2 and -3, -2 and -1.5, -2 and -6."""
    search = _search(length_penalty=penalty, early_stopping=generate_pb2.EARLY_STOPPING_TRUE)
    search.advance(START, [[(3, -1.0), (END, -2.0), (5, -3.0), (6, -4.0)]])
    assert (
        search.advance([Beam((3,), -1.0), Beam((5,), -3.0)], [[(END, -2.0), (4, -9.0)], [(4, -9.0), (5, -9.5)]]) == []
    )
    assert search.hypotheses[0].token_ids == best


@pytest.mark.parametrize(
    ("early_stopping", "goes_on"),
    [
        (generate_pb2.EARLY_STOPPING_TRUE, False),
        # At its present length, 2, the best beam has -4 / 2 = -2, no more than the worst hypothesis, -3 / 2.
        (generate_pb2.EARLY_STOPPING_UNSPECIFIED, False),
        # At 10 tokens it might have -4 / 10.
        (generate_pb2.EARLY_STOPPING_NEVER, True),
    ],
)
def test_when_a_search_with_enough_hypotheses_ends(early_stopping, goes_on):
    search = _search(early_stopping=early_stopping)
    beams = [Beam((3,), -1.0), Beam((4,), -1.5)]
    chosen = search.advance(beams, [[(END, -1.0), (5, -3.0)], [(END, -1.5), (6, -3.5)]])
    assert len(search.hypotheses) == 2
    assert bool(chosen) is goes_on


def test_as_many_candidates_as_all_ends_and_the_width_need():
    assert BeamSearch(3, frozenset(), 0, 5).num_candidates == 3
    assert BeamSearch(3, frozenset({1}), 0, 5).num_candidates == 4
    assert BeamSearch(3, frozenset({1, 2, 3}), 0, 5).num_candidates == 6


@given(
    width=st.integers(1, 4),
    ends=st.frozensets(st.integers(0, 9), max_size=3),
    max_tokens=st.integers(1, 5),
    penalty=st.sampled_from([0.0, 1.0, -1.0, 2.0]),
    early_stopping=st.sampled_from([0, 1, 2]),
)
def test_any_search_ends_with_distinct_hypotheses_in_order(width, ends, max_tokens, penalty, early_stopping):
    search = BeamSearch(width, ends, 0, max_tokens, penalty, early_stopping)
    found = true_hypotheses([1, 2], search)
    assert len(found) == width
    assert len({hypothesis.token_ids for hypothesis in found}) == width
    scores = [hypothesis.score for hypothesis in found]
    assert scores == sorted(scores, reverse=True)
    for hypothesis in found:
        length = len(hypothesis.token_ids)
        assert length <= max_tokens
        assert not ends.intersection(hypothesis.token_ids[:-1])
        assert hypothesis.is_ended == (hypothesis.token_ids[-1] in ends)
        assert hypothesis.is_ended or length == max_tokens
        assert math.isclose(hypothesis.score, hypothesis.logprob / length**penalty)
