"""Which sampling parameters go with beam search, and what it makes of the others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from quire.errors import InvalidRequestError
from quire.sampling_params import SamplingParams

if TYPE_CHECKING:
    from quire.gateway.validation import ModelLimits

# Parameters that would change a sampled output and cannot change a searched one, and their values that ask for
# nothing; so does None. They are refused and not ignored, since the client expects something of them.
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    "temperature": (0, 1),
    "top_k": (0, -1),
    "top_p": (1,),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (),
    "prompt_logprobs": (),
    # Which beams a stop string ends would have to be known in the scheduler, which knows no texts.
    "stop": ((), []),
    "bad_words": ((), []),
    "allowed_token_ids": (),
    "structured_outputs": (),
}


# Every beam looks at as many candidates more.
_MAX_ENDING_TOKENS = 64


def check_beam_search(params: SamplingParams, limits: ModelLimits, eos_token_ids: Collection[int]) -> None:
    """Raises InvalidRequestError for a beam search that this server cannot do as it is asked for."""
    if not params.use_beam_search:
        return
    for name, neutral in _NEUTRAL.items():
        value = getattr(params, name)
        if value is not None and value not in neutral:
            raise InvalidRequestError(f"{name} cannot be combined with use_beam_search", field=name)
    width = params.best_of or params.n or 1
    ending = set(params.stop_token_ids or ()).union(() if params.ignore_eos else eos_token_ids)
    if len(ending) > _MAX_ENDING_TOKENS:
        message = f"stop_token_ids and end-of-sequence tokens are {len(ending)}; beam search takes {_MAX_ENDING_TOKENS}"
        raise InvalidRequestError(message, field="stop_token_ids")
    # As in scheduler/beam_search.py: a beam needs that many different next tokens.
    if width + len(ending) > limits.vocab_size:
        message = f"a vocabulary of {limits.vocab_size} tokens is too small for {width} beams"
        raise InvalidRequestError(message, field="n" if params.best_of is None else "best_of")


def without_sampling(params: SamplingParams) -> SamplingParams:
    """Resolved parameters of a beam search: the model's defaults for sampling say nothing to it."""
    return replace(params, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
