"""The most that answers to one request may hold: counts multiply, each of which is in range by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from quire.errors import InvalidRequestError

if TYPE_CHECKING:
    from quire.gateway.validation import ValidRequest

# A token is one number, and each logprob beside it another. An answer that is not streamed is collected whole, at
# about 50 bytes for each.
MAX_NUMBERS: Final = 1 << 24


def check_answer_size(requests: Sequence[ValidRequest]) -> None:
    """For all prompts of a request together. Raises InvalidRequestError naming the field that counts most."""
    outputs = sum(map(_output_numbers, requests))
    prompts = sum(map(_prompt_numbers, requests))
    if outputs + prompts <= MAX_NUMBERS:
        return
    first = requests[0]
    if prompts > outputs:
        field = "prompt_logprobs"
        count = f"{prompts:,} logprobs of prompts (prompt_logprobs = {first.params.prompt_logprobs})"
    else:
        field = "max_tokens"
        with_logprobs = f", logprobs = {first.params.logprobs}" if first.needs_logprobs else ""
        count = (
            f"{outputs:,} tokens and logprobs (continuations: {first.num_sequences}, max_tokens: "
            f"{first.params.max_tokens}{with_logprobs})"
        )
    prompts_of = f" for {len(requests)} prompts" if len(requests) > 1 else ""
    message = f"the request asks for up to {count}{prompts_of}, more than the {MAX_NUMBERS:,} that one may"
    raise InvalidRequestError(f"{message}; ask for fewer, or set max_tokens", field=field)


def _output_numbers(request: ValidRequest) -> int:
    # The sampled token's own logprob comes with any number of others.
    logprobs = (request.params.logprobs or 0) + 1 if request.needs_logprobs else 0
    return request.num_sequences * (request.params.max_tokens or 1) * (1 + logprobs)


def _prompt_numbers(request: ValidRequest) -> int:
    top = request.params.prompt_logprobs
    return 0 if top is None else len(request.prompt_token_ids) * (top + 1)
