"""The model's tokenizer, chat template and generation defaults.

Encoding a long prompt takes milliseconds to seconds, so what is long runs in a small thread pool, off the event loop;
what is short runs where it is, since it takes less time than waking a thread and coming back. Of the `tokenizers`
library only the batch methods release the GIL, so they serve single texts too; several threads may use one tokenizer
that nobody changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from quire.errors import CheckpointError, InvalidRequestError
from quire.gateway.chat.prompt import ChatPrompt
from quire.gateway.chat.tools import callable_tools
from quire.gateway.checkpoint_files import read_json
from quire.gateway.detokenizer import Detokenizer, new_detokenizer
from quire.gateway.tokenizer_files import LoadedTokenizer, load_tokenizer
from quire.gateway.vocabulary import Vocabulary
from quire.process import in_daemon_thread
from quire.sampling_params import generation_config_defaults

if TYPE_CHECKING:
    from quire.gateway.chat_template import ChatTemplate

logger = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 4
# Texts up to this length (in characters; encoding takes about a third of a microsecond each) are short.
_SHORT_TEXT = 2048
# What rendering a short chat may take on the event loop, in seconds; it takes a tenth of a millisecond.
_SHORT_RENDER_S = 0.02
# Characters of a request's own template; the largest of models have 20,000.
_MAX_OWN_TEMPLATE = 1 << 16
# What a template writes around a message.
_MESSAGE_MARKS = 16


class ModelTokenizer:
    """What a checkpoint says about text: its tokenizer, chat template, end tokens and sampling defaults."""

    def __init__(
        self,
        loaded: LoadedTokenizer,
        generation_config: Mapping[str, Any],
        *,
        trust_request_chat_template: bool = False,
    ) -> None:
        """Raises InvalidRequestError for a generation config with values out of range."""
        # tokenizer.json, where the checkpoint has one.
        self.file = loaded.file
        self._backend = loaded.backend
        # A checkpoint may ask for truncation; a prompt that is too long is an error here, never cut.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocabulary = Vocabulary(self._backend)
        self.eos_token_ids = _eos_token_ids(generation_config, loaded.eos_token_id)
        self.generation_defaults = generation_config_defaults(generation_config)
        self._chat_templates = loaded.chat_templates
        # By source; a request's own template is not kept.
        self._compiled_templates: dict[str, ChatTemplate] = {}
        self._trusts_requests = trust_request_chat_template
        self._special_tokens = loaded.special_tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")

    @classmethod
    async def load(
        cls, model: str, revision: str | None = None, *, trust_request_chat_template: bool = False
    ) -> ModelTokenizer:
        """Loads from a folder or a hub id. Raises CheckpointError naming what is missing."""
        return await in_daemon_thread(lambda: cls._load(model, revision, trust_request_chat_template))

    @classmethod
    def _load(cls, model: str, revision: str | None, trust_request_chat_template: bool = False) -> ModelTokenizer:
        try:
            loaded = load_tokenizer(model, revision)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises whatever a damaged file makes it raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"the tokenizer of {model} cannot be loaded: {reason}"
            raise CheckpointError(message, field="model") from error
        if loaded is None:
            message = f"{model} has no tokenizer.json, and its tokenizer cannot be converted to one"
            raise CheckpointError(message, field="model")
        config = read_json(model, "generation_config.json", revision)
        if "eos_token_id" not in config:
            end = (read_json(model, "config.json", revision)).get("eos_token_id")
            config = {**config, "eos_token_id": end}
        try:
            return cls(loaded, config, trust_request_chat_template=trust_request_chat_template)
        except InvalidRequestError as error:
            message = f"generation_config.json of {model}: {error.message}"
            raise CheckpointError(message, field="model") from error

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text."""

        def encode() -> list[int]:
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            ids: list[int] = encoding.ids
            return ids

        return encode() if len(text) <= _SHORT_TEXT else await self._in_thread(encode)

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included; ids unknown to the tokenizer give nothing."""

        def decode() -> str:
            texts: list[str] = self._backend.decode_batch([list(token_ids)], skip_special_tokens=False)
            return texts[0]

        return await self._in_thread(decode)

    def token_names(self, token_ids: Sequence[int]) -> list[str]:
        """What the tokenizer itself calls tokens; "" for ids that it does not know."""
        return [self._backend.id_to_token(token_id) or "" for token_id in token_ids]

    @property
    def chat_template_source(self) -> str:
        """The template for chats with tools; empty if there is none."""
        return self._chat_templates.for_tools or ""

    async def render_chat(self, prompt: ChatPrompt, *, field: str = "messages") -> str:
        """The prompt that the model's chat template makes of a chat, special tokens included.

        Raises InvalidRequestError where the model has no template or its template refuses the chat.
        """
        template = self._template_for(prompt)
        kwargs = {name: value for name, value in prompt.template_kwargs.items() if name != "chat_template"}
        shown = replace(prompt, template_kwargs=kwargs)

        is_own = "chat_template" in prompt.template_kwargs
        is_short = not is_own and not prompt.tools and sum(map(_length, prompt.messages)) <= _SHORT_TEXT
        try:
            if is_short:
                from quire.gateway.template_limits import TemplateTimeoutError

                with contextlib.suppress(TemplateTimeoutError):
                    return self._compiled(template).render(shown, _SHORT_RENDER_S)
            return await self._in_thread(lambda: self._compiled(template).render(shown))
        except Exception as error:  # a template is a program of the model's owner, run on the client's data
            logger.info("the chat template refused a request", exc_info=True)
            message = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequestError(message, field=field) from error

    def _template_for(self, prompt: ChatPrompt) -> str:
        own = prompt.template_kwargs.get("chat_template")
        if own is not None:
            if not self._trusts_requests:
                message = "chat_template is taken only by a server started with --trust-request-chat-template"
                raise InvalidRequestError(message, field="chat_template")
            if not isinstance(own, str):
                raise InvalidRequestError("chat_template must be a string", field="chat_template")
            if len(own) > _MAX_OWN_TEMPLATE:
                message = f"chat_template has {len(own)} characters; at most {_MAX_OWN_TEMPLATE} are taken"
                raise InvalidRequestError(message, field="chat_template")
            return own
        template = self._chat_templates.for_tools if callable_tools(prompt) else self._chat_templates.default
        if template is None:
            message = "the model has no chat template; send a plain prompt instead of messages"
            raise InvalidRequestError(message, field="messages")
        return template

    def detokenizer(self, *, skip_special_tokens: bool, shown: Collection[int] = ()) -> Detokenizer:
        """A detokenizer for one sequence; `shown` are special tokens that it does not skip."""
        skipped = self.vocabulary.special_token_ids.difference(shown) if skip_special_tokens else frozenset[int]()
        return new_detokenizer(self._backend, self.vocabulary, skipped)

    def _compiled(self, source: str) -> ChatTemplate:
        """Compiled when the first chat comes: Jinja is not needed before."""
        from quire.gateway.chat_template import ChatTemplate

        found = self._compiled_templates.get(source)
        if found is None:
            found = ChatTemplate(source, self._special_tokens)
            if source in (self._chat_templates.default, self._chat_templates.for_tools):
                self._compiled_templates[source] = found
        return found

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _eos_token_ids(config: Mapping[str, Any], tokenizer_eos: int | None) -> tuple[int, ...]:
    """Tokens that end a sequence: those of the generation config, and the tokenizer's own."""
    given = config.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return tuple(sorted({token_id for token_id in (*ids, tokenizer_eos) if token_id is not None}))


def _length(message: Mapping[str, Any]) -> int:
    """About how many characters a message makes."""
    if message.get("tool_calls"):
        return _SHORT_TEXT
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    texts = [*(part["text"] for part in parts), message.get("reasoning_content") or ""]
    return _MESSAGE_MARKS + sum(map(len, texts))
