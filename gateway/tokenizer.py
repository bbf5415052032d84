"""The model's tokenizer, chat template and generation defaults.

Encoding a long prompt takes milliseconds to seconds, so what is long runs in a small thread pool, off the event loop;
what is short runs where it is, since it takes less time than waking a thread and coming back. Of the `tokenizers`
library only the batch methods release the GIL, so they serve single texts too; several threads may use one tokenizer
that nobody changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from quire.errors import CheckpointError, InvalidRequestError
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


class ModelTokenizer:
    """What a checkpoint says about text: its tokenizer, chat template, end tokens and sampling defaults."""

    def __init__(self, loaded: LoadedTokenizer, generation_config: Mapping[str, Any]) -> None:
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
        self._chat_template_source = loaded.chat_template
        self._special_tokens = loaded.special_tokens
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")

    @classmethod
    async def load(cls, model: str, revision: str | None = None) -> ModelTokenizer:
        """Loads from a folder or a hub id. Raises CheckpointError naming what is missing."""
        return await in_daemon_thread(lambda: cls._load(model, revision))

    @classmethod
    def _load(cls, model: str, revision: str | None) -> ModelTokenizer:
        try:
            loaded = load_tokenizer(model, revision)
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
            return cls(loaded, config)
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

    async def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """The prompt that the model's chat template makes of messages, special tokens included.

        Raises InvalidRequestError where the model has no template or its template refuses the messages.
        """
        if self._chat_template_source is None:
            message = "the model has no chat template; send a plain prompt instead of messages"
            raise InvalidRequestError(message, field="messages")

        def render() -> str:
            return self._chat_template.render(messages, add_generation_prompt=add_generation_prompt)

        try:
            is_short = sum(len(message["content"]) for message in messages) <= _SHORT_TEXT
            return render() if is_short else await self._in_thread(render)
        except Exception as error:  # a template is a program of the model's owner, run on the client's data
            logger.info("the chat template refused a request", exc_info=True)
            message = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequestError(message, field="messages") from error

    def detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer:
        """A detokenizer for one sequence."""
        return new_detokenizer(self._backend, self.vocabulary, skip_special_tokens=skip_special_tokens)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        """Compiled when the first chat comes: Jinja is not needed before."""
        from quire.gateway.chat_template import ChatTemplate

        assert self._chat_template_source is not None, "checked by the caller"
        return ChatTemplate(self._chat_template_source, self._special_tokens)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _eos_token_ids(config: Mapping[str, Any], tokenizer_eos: int | None) -> tuple[int, ...]:
    """Tokens that end a sequence: those of the generation config, and the tokenizer's own."""
    given = config.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return tuple(sorted({token_id for token_id in (*ids, tokenizer_eos) if token_id is not None}))
