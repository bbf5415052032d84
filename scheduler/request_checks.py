"""What a scheduler refuses, since it could never run it to its end."""

from __future__ import annotations

from dataclasses import dataclass

from quire.config import SchedulingPolicy
from quire.errors import ContextLengthError, InvalidRequestError
from quire.scheduler.kv_cache import KvCache
from quire.scheduler.sequence import Request
from quire.v1 import generate_pb2


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What a step may hold, and what a request may ask for."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    policy: SchedulingPolicy = "fcfs"


def check_request(
    request: Request,
    num_prompt_tokens: int,
    outputs: dict[int, list[int]],
    limits: SchedulerLimits,
    kv_cache: KvCache,
) -> None:
    """Raises InvalidRequestError naming the field. `outputs`: tokens emitted so far by sequence index."""
    if not num_prompt_tokens:
        raise InvalidRequestError("the prompt is empty", field="prompt_token_ids")
    if not outputs:
        raise InvalidRequestError("the request has no sequences", field="sequences")
    if request.priority and limits.policy != "priority":
        message = "priority is not 0, and the server does not schedule by priority (--scheduling-policy priority)"
        raise InvalidRequestError(message, field="priority")
    longest = min(limits.max_model_len, kv_cache.max_num_tokens)
    if request.is_pooling:
        _check_pooling(request, num_prompt_tokens, outputs, longest)
        return
    if request.params.max_tokens < 1:
        raise InvalidRequestError("max_tokens must be at least 1", field="max_tokens")
    if num_prompt_tokens >= longest:
        raise ContextLengthError(
            f"the prompt has {num_prompt_tokens} tokens; with at least one token of output, {longest} fit",
            field="prompt_token_ids",
        )
    for index, output in outputs.items():
        if len(output) >= request.params.max_tokens or num_prompt_tokens + len(output) >= longest:
            raise InvalidRequestError(f"sequence {index} is already finished", field="sequences")
    if request.params.use_beam_search:
        _check_beams(request, num_prompt_tokens, len(outputs), limits, kv_cache)


def _check_pooling(request: Request, num_prompt_tokens: int, outputs: dict[int, list[int]], longest: int) -> None:
    if request.pooling not in (generate_pb2.POOLING_TYPE_LAST, generate_pb2.POOLING_TYPE_MEAN):
        raise InvalidRequestError(f"pooling has no value {request.pooling}", field="pooling")
    if outputs != {0: []}:
        raise InvalidRequestError("a pooling request has one sequence, without output", field="sequences")
    if num_prompt_tokens > longest:
        raise ContextLengthError(f"the prompt has {num_prompt_tokens} tokens; {longest} fit", field="prompt_token_ids")


def _check_beams(
    request: Request, num_prompt_tokens: int, width: int, limits: SchedulerLimits, kv_cache: KvCache
) -> None:
    """A search must be able to run when it has slots and pool to itself, however its beams part."""
    if width > limits.max_num_seqs:
        message = f"best_of must be at most {limits.max_num_seqs} (max_num_seqs) for beam search, not {width}"
        raise InvalidRequestError(message, field="best_of")
    # Those that have memory: others may never get any (see pool_growth).
    block_size, num_blocks = kv_cache.block_size, kv_cache.pool.num_usable
    # The last token a beam can have is chosen but never computed.
    num_tokens = min(num_prompt_tokens + request.params.max_tokens, limits.max_model_len) - 1
    num_shared = num_prompt_tokens // block_size
    most = num_shared + width * (-(-num_tokens // block_size) - num_shared)
    if most > num_blocks:
        message = f"{width} beams of {request.params.max_tokens} tokens may need {most} KV blocks of {num_blocks}"
        raise InvalidRequestError(f"{message}; ask for a smaller max_tokens or best_of", field="max_tokens")
