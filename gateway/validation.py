"""From what a client sent to a `ValidRequest`, which inner layers never check again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from quire.columns import pack_u32
from quire.errors import ContextLengthError, InvalidRequestError, ModelNotFoundError
from quire.gateway.answer_size import check_answer_size
from quire.gateway.bad_words import bad_word_sequences
from quire.gateway.beam_params import check_beam_search, without_sampling
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.origin import Origin
from quire.gateway.structured import rules
from quire.gateway.structured.compiler import GrammarCompiler
from quire.gateway.tenants import Tenant
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

    # All names that clients may use for it.
    models: tuple[str, ...]
    # Where its files come from: a folder or hub id.
    root: str
    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    max_logprobs: int
    # Dimensions of an embedding.
    hidden_size: int

    @property
    def model(self) -> str:
        """The name that answers carry."""
        return self.models[0]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request carries besides its prompt and how tokens are chosen."""

    request_id: str
    # Whose request it is: nothing else decides with whom its prompt may share KV blocks.
    tenant: Tenant
    # Lower is scheduled first.
    priority: int = 0
    # Prompts of a tenant share KV blocks only under an equal salt.
    cache_salt: str = ""
    # Whether the tokenizer adds its own to the prompt; None: to a text, and not to a chat, whose template does it.
    add_special_tokens: bool | None = None
    # Which of the prompts of the client's request.
    prompt_index: int = 0
    # Monotonic seconds.
    arrived_s: float = field(default_factory=time.monotonic)
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class ValidRequest:
    """A request that the scheduler will take as it is."""

    context: RequestContext
    # None where the client sent token ids, or the text was cut.
    prompt: str | None
    prompt_token_ids: list[int]
    # Resolved: every field that generation reads is set.
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    constraints: executor_pb2.Constraints = field(default_factory=executor_pb2.Constraints)
    # Special tokens that are not left out of the text: a chat's markup, say, which is taken out later.
    shown_token_ids: frozenset[int] = frozenset()
    is_chat: bool = False

    @property
    def request_id(self) -> str:
        return self.context.request_id

    # `or` tells the type checker what `resolved` has done.
    @property
    def n(self) -> int:
        """Number of continuations."""
        return self.params.n or 1

    @property
    def num_sequences(self) -> int:
        """Continuations to generate; the n best of them are given. (Beams are the scheduler's.)"""
        return self.n if self.params.use_beam_search else self.params.best_of or self.n

    @property
    def needs_logprobs(self) -> bool:
        """Whether the client gets logprobs or continuations are chosen by them."""
        return self.params.logprobs is not None or self.num_sequences > self.n

    @property
    def min_tokens(self) -> int:
        """Tokens before which nothing ends a continuation."""
        return self.params.min_tokens or 0

    @property
    def include_stop(self) -> bool:
        """Whether what stops a continuation stays in its text."""
        return self.params.include_stop_str_in_output is True

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

    def check_model(self, model: str | None) -> None:
        """Raises ModelNotFoundError for a model that is not served; None and "" stand for the one that is."""
        if model and model not in self.limits.models:
            message = f"The model `{model}` does not exist; this server serves `{self.limits.model}`."
            raise ModelNotFoundError(message, field="model")

    def check_token_ids(self, token_ids: Sequence[int], field: str) -> None:
        """Raises InvalidRequestError, naming them, for ids outside of the model's vocabulary."""
        size = self.limits.vocab_size
        wrong = [token_id for token_id in token_ids if not 0 <= token_id < size]
        if wrong:
            named = ", ".join(map(str, wrong[:_NAMED_IDS])) + (", …" if len(wrong) > _NAMED_IDS else "")
            raise InvalidRequestError(f"token ids outside of [0, {size}): {named}", field=field)

    async def encode(
        self, prompt: str | ChatPrompt, *, field: str, add_special_tokens: bool | None = None, truncates: bool = False
    ) -> list[int]:
        """The token ids of a text or a chat; see RequestContext. Raises InvalidRequestError.

        `truncates`: only the last tokens will be used, so that the text may be of any length.
        """
        _, token_ids = await self._tokenize(prompt, field, add_special_tokens, truncates=truncates)
        return token_ids

    async def compile_grammar(self, outputs: StructuredOutputs) -> str:
        """The serialised grammar of a constraint. Raises InvalidRequestError for what cannot be enforced."""
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
            truncates = params.truncate_prompt_tokens is not None
            text, token_ids = await self._tokenize(prompt, field, context.add_special_tokens, truncates=truncates)
        else:
            text, token_ids = None, list(prompt)
            self.check_token_ids(token_ids, field)
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", field=field)
        kept = self.truncate(token_ids, params.truncate_prompt_tokens, params.max_tokens or default_max_tokens)
        text, token_ids = (text if len(kept) == len(token_ids) else None), kept
        room = self._check_length(len(token_ids), params.max_tokens, field)
        max_tokens = room if default_max_tokens is None else min(room, default_max_tokens)
        resolved = params.resolved(self._tokenizer.generation_defaults, max_tokens)
        if resolved.use_beam_search:
            resolved = without_sampling(resolved)
        constraints = executor_pb2.Constraints()
        if resolved.bad_words:
            sequences = await bad_word_sequences(self._tokenizer, resolved.bad_words)
            constraints.bad_words.extend(map(pack_u32, sequences))
        if params.structured_outputs is not None:
            rules.check_combination(params)
            constraints.grammar = await self.compile_grammar(params.structured_outputs)
            resolved = rules.adapt(resolved)
        valid = ValidRequest(
            context,
            text,
            token_ids,
            resolved,
            self._tokenizer.eos_token_ids,
            constraints,
            is_chat=isinstance(prompt, ChatPrompt),
        )
        check_answer_size([valid])
        return valid

    def truncate(self, token_ids: list[int], keep: int | None, max_tokens: int | None) -> list[int]:
        """The last `keep` tokens of a prompt. -1 keeps as many as leave room for max_tokens (or one); None keeps all.

        Raises InvalidRequestError for 0 and for more than the context holds.
        """
        if keep is None:
            return token_ids
        context = self.limits.max_model_len
        if keep == 0 or keep > context:
            message = f"truncate_prompt_tokens must be -1 or in [1, {context}] (the context), not {keep}"
            raise InvalidRequestError(message, field="truncate_prompt_tokens")
        # Where max_tokens alone fills the context, the check of the length says so.
        keep = max(context - (max_tokens or 1), 1) if keep == -1 else keep
        return token_ids[-keep:]

    async def _tokenize(
        self, prompt: str | ChatPrompt, field: str, add_special_tokens: bool | None, *, truncates: bool = False
    ) -> tuple[str, list[int]]:
        if isinstance(prompt, str):
            text, adds_special = prompt, add_special_tokens is not False
        else:
            if not prompt.messages:
                raise InvalidRequestError("there are no messages", field=field)
            text = await self._tokenizer.render_chat(prompt, field=field)
            # The template writes the special tokens itself.
            adds_special = add_special_tokens is True
        if not text:
            raise InvalidRequestError("the prompt is empty", field=field)
        if truncates:  # more text than any context holds, so that the end's tokens are those of the whole
            text = text[-self._most_characters :]
        self._check_size(text, field)
        if not is_encodable(text):
            raise InvalidRequestError("the prompt is not valid Unicode", field=field)
        return text, await self._tokenizer.encode(text, add_special_tokens=adds_special)

    def _check_params(self, params: SamplingParams) -> None:
        limits = self.limits
        for name, value in (("n", params.n), ("best_of", params.best_of)):
            if value is not None and value > limits.max_num_seqs:
                message = f"{name} must be at most {limits.max_num_seqs} (the server's max_num_seqs), not {value}"
                raise InvalidRequestError(message, field=name)
        for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            if count is not None and count > limits.max_logprobs:
                message = f"{name} must be at most {limits.max_logprobs}, not {count}"
                raise InvalidRequestError(message, field=name)
        self.check_token_ids(params.stop_token_ids or (), "stop_token_ids")
        self.check_token_ids(list(params.logit_bias or ()), "logit_bias")
        self.check_token_ids(params.allowed_token_ids or (), "allowed_token_ids")
        check_beam_search(params, limits, self._tokenizer.eos_token_ids)

    @property
    def _most_characters(self) -> int:
        """No longer text fits the context."""
        # Normalising may join up to four characters to one (a letter and its marks).
        return 4 * self.limits.max_model_len * self._tokenizer.vocabulary.longest_token

    def _check_size(self, text: str, field: str) -> None:
        """Raises ContextLengthError for a text that cannot fit, without the time that encoding it would take."""
        if len(text) > self._most_characters:
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
