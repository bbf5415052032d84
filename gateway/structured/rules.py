"""What a request with a grammar may not ask for besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from quire.errors import InvalidRequestError
from quire.sampling_params import SamplingParams


def check_combination(params: SamplingParams) -> None:
    """Raises InvalidRequestError, naming the field, for what could leave no token to sample or break the grammar.

    A grammar ends an output when it is complete, which min_tokens forbids; allowed_token_ids and bad_words may take
    away every token that it allows; beams are chosen from logits that no mask has touched. Stop strings and stop
    tokens are the client's own wish to end early, and stay.
    """
    for name in _asked_for(params):
        raise InvalidRequestError(f"{name} cannot be combined with structured output", field=name)


def adapt(params: SamplingParams) -> SamplingParams:
    """Resolved parameters as the executor needs them beside a grammar.

    The end of the grammar ends the output, so ignore_eos has no meaning; the constraint itself travels compiled.
    """
    return replace(params, ignore_eos=False, structured_outputs=None)


def _asked_for(params: SamplingParams) -> Iterator[str]:
    if params.min_tokens:
        yield "min_tokens"
    if params.allowed_token_ids is not None:
        yield "allowed_token_ids"
    if params.bad_words:
        yield "bad_words"
    if params.use_beam_search:
        yield "use_beam_search"
