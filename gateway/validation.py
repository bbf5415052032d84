"""From what a client sent to a `ValidRequest`, which inner layers never check again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from quire.errors import ContextLengthError, InvalidRequestError, ModelNotFoundError
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.structured import rules
from quire.gateway.structured.compiler import GrammarCompiler
from quire.gateway.tokenizer import ModelTokenizer
from quire.internal.v1 import executor_pb2
from quire.sampling_params import SamplingParams, is_encodable
from quire.structured_outputs import StructuredOutputs

# How many offending token ids an error names.
_NAMED_IDS = 8


# A text, token ids, or a chat.
Prompt = str | Sequence[int] | ChatPrompt


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model and its scheduler can take."""

    model: str
    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    max_logprobs: int


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request carries besides its prompt and how tokens are chosen."""

    request_id: str
    # Lower is scheduled first.
    priority: int = 0
    # Prompts share KV blocks only under an equal salt.
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A request that the scheduler will take as it is."""

    context: RequestContext
    # None where the client sent token ids.
    prompt: str | None
    prompt_token_ids: list[int]
    # Resolved: every field that generation reads is set.
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    constraints: executor_pb2.Constraints = field(default_factory=executor_pb2.Constraints)
    # Special tokens that are not left out of the text: a chat's markup, say, which is taken out later.
    shown_token_ids: frozenset[int] = frozenset()

    @property
    def request_id(self) -> str:
        return self.context.request_id

    # `or` tells the type checker what `resolved` has done.
    @property
    def n(self) -> int:
        """Number of continuations."""
        return self.params.n or 1

    @property
    def min_tokens(self) -> int:
        """Tokens before which nothing ends a continuation."""
        return self.params.min_tokens or 0

    @property
    def skip_special_tokens(self) -> bool:
        """Whether special tokens are left out of the text."""
        return self.params.skip_special_tokens is not False


class Validator:
    """Checks requests against one served model."""

    def __init__(self, tokenizer: ModelTokenizer, limits: ModelLimits) -> None:
        self._tokenizer = tokenizer
        self.limits = limits
        self._grammars = GrammarCompiler(tokenizer.file, limits.vocab_size, tokenizer.eos_token_ids)

    async def close(self) -> None:
        """Ends the process that compiles grammars, if there is one."""
        await self._grammars.close()

    def check_model(self, model: str) -> None:
        """Raises ModelNotFoundError for a model that is not served."""
        if model != self.limits.model:
            message = f"The model `{model}` does not exist; this server serves `{self.limits.model}`."
            raise ModelNotFoundError(message, field="model")

    def check_token_ids(self, token_ids: Sequence[int], field: str) -> None:
        """Raises InvalidRequestError, naming them, for ids outside of the model's vocabulary."""
        size = self.limits.vocab_size
        wrong = [token_id for token_id in token_ids if not 0 <= token_id < size]
        if wrong:
            named = ", ".join(map(str, wrong[:_NAMED_IDS])) + (", …" if len(wrong) > _NAMED_IDS else "")
            raise InvalidRequestError(f"token ids outside of [0, {size}): {named}", field=field)

    async def encode(self, prompt: str | ChatPrompt, *, field: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text or a chat. Raises InvalidRequestError."""
        _, token_ids = await self._tokenize(prompt, field, add_special_tokens)
        return token_ids

    async def compile_grammar(self, outputs: StructuredOutputs) -> str:
        """llguidance's serialised grammar. Raises InvalidRequestError for what cannot be enforced."""
        return await self._grammars.compile(outputs)

    async def validate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        context: RequestContext,
        *,
        field: str = "prompt",
        default_max_tokens: int | None = None,
    ) -> ValidRequest:
        """A request in its valid form; `field` is what the client calls the prompt.

        Without max_tokens it may fill the context, or `default_max_tokens` if that is given and less.

        Raises InvalidRequestError for empty prompts, unknown token ids, parameters beyond the server's limits and
        constraints that cannot be enforced, ContextLengthError for what does not fit the context.
        """
        self._check_params(params)
        if isinstance(prompt, (str, ChatPrompt)):
            text, token_ids = await self._tokenize(prompt, field, add_special_tokens=True)
        else:
            text, token_ids = None, list(prompt)
            self.check_token_ids(token_ids, field)
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", field=field)
        room = self._check_length(len(token_ids), params.max_tokens, field)
        max_tokens = room if default_max_tokens is None else min(room, default_max_tokens)
        resolved = params.resolved(self._tokenizer.generation_defaults, max_tokens)
        constraints = executor_pb2.Constraints()
        if params.structured_outputs is not None:
            rules.check_combination(params)
            constraints.grammar = await self.compile_grammar(params.structured_outputs)
            resolved = rules.adapt(resolved)
        return ValidRequest(context, text, token_ids, resolved, self._tokenizer.eos_token_ids, constraints)

    async def _tokenize(self, prompt: str | ChatPrompt, field: str, add_special_tokens: bool) -> tuple[str, list[int]]:
        if isinstance(prompt, str):
            text = prompt
        else:
            if not prompt.messages:
                raise InvalidRequestError("there are no messages", field=field)
            text = await self._tokenizer.render_chat(prompt, field=field)
            # The template writes the special tokens itself.
            add_special_tokens = False
        if not text:
            raise InvalidRequestError("the prompt is empty", field=field)
        self._check_size(text, field)
        if not is_encodable(text):
            raise InvalidRequestError("the prompt is not valid Unicode", field=field)
        return text, await self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _check_params(self, params: SamplingParams) -> None:
        limits = self.limits
        if params.n is not None and params.n > limits.max_num_seqs:
            message = f"n must be at most {limits.max_num_seqs} (the server's max_num_seqs), not {params.n}"
            raise InvalidRequestError(message, field="n")
        if params.logprobs is not None and params.logprobs > limits.max_logprobs:
            message = f"logprobs must be at most {limits.max_logprobs}, not {params.logprobs}"
            raise InvalidRequestError(message, field="logprobs")
        self.check_token_ids(params.stop_token_ids or (), "stop_token_ids")
        self.check_token_ids(list(params.logit_bias or ()), "logit_bias")

    def _check_size(self, text: str, field: str) -> None:
        """Raises ContextLengthError for a text that cannot fit, without the time that encoding it would take."""
        # Normalising may join up to four characters to one (a letter and its marks).
        most = 4 * self.limits.max_model_len * self._tokenizer.vocabulary.longest_token
        if len(text) > most:
            message = f"your {field} has {len(text)} characters, more than {self.limits.max_model_len} tokens hold."
            raise ContextLengthError(f"{message} Please reduce the length of the {field}.", field=field)

    def _check_length(self, num_prompt_tokens: int, max_tokens: int | None, field: str) -> int:
        """Tokens left for the output. Raises ContextLengthError, in OpenAI's words."""
        context = self.limits.max_model_len
        start = f"This model's maximum context length is {context} tokens. However, "
        if num_prompt_tokens >= context:
            message = f"{start}your {field} resulted in {num_prompt_tokens} tokens, and one more must fit."
            raise ContextLengthError(f"{message} Please reduce the length of the {field}.", field=field)
        if max_tokens is not None and num_prompt_tokens + max_tokens > context:
            message = (
                f"{start}you requested {num_prompt_tokens + max_tokens} tokens ({num_prompt_tokens} in the {field}, "
                f"{max_tokens} in the completion). Please reduce the length of the {field} or completion."
            )
            raise ContextLengthError(message, field=field)
        return context - num_prompt_tokens
