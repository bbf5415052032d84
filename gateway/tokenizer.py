"""The model's tokenizer, chat template and generation defaults.

Encoding a long prompt takes milliseconds to seconds, so what is long runs in a small thread pool, off the event loop;
what is short runs where it is, since it takes less time than waking a thread and coming back. Of the `tokenizers` library only the batch methods release the GIL, so they serve single texts too; several
threads may use one tokenizer that nobody changes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from quire.errors import CheckpointError, InvalidRequestError
from quire.gateway.detokenizer import Detokenizer, new_detokenizer
from quire.gateway.vocabulary import Vocabulary
from quire.process import in_daemon_thread
from quire.sampling_params import generation_config_defaults

logger = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 4
# Texts up to this length (in characters; encoding takes about a third of a microsecond each) are short.
_SHORT_TEXT = 2048


class ModelTokenizer:
    """What a checkpoint says about text: its tokenizer, chat template, end tokens and sampling defaults."""

    def __init__(self, hf_tokenizer: Any, generation_config: Mapping[str, Any]) -> None:
        """`hf_tokenizer` is a transformers tokenizer that the `tokenizers` library backs."""
        self._hf = hf_tokenizer
        self._backend = hf_tokenizer.backend_tokenizer
        # A checkpoint may ask for truncation; a prompt that is too long is an error here, never cut.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocabulary = Vocabulary(self._backend)
        self.eos_token_ids = _eos_token_ids(generation_config, hf_tokenizer.eos_token_id)
        self.generation_defaults = generation_config_defaults(generation_config)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")

    @classmethod
    async def load(cls, model: str, revision: str | None = None) -> ModelTokenizer:
        """Loads from a folder or a hub id. Raises CheckpointError naming what is missing."""
        return await in_daemon_thread(lambda: cls._load(model, revision))

    @classmethod
    def _load(cls, model: str, revision: str | None) -> ModelTokenizer:
        try:
            hf_tokenizer = _load_hf_tokenizer(model, revision)
        except Exception as error:  # the library raises whatever a damaged file makes it raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            message = f"the tokenizer of {model} cannot be loaded: {reason}"
            raise CheckpointError(message, field="model") from error
        if getattr(hf_tokenizer, "backend_tokenizer", None) is None:
            message = f"{model} has no tokenizer.json, and its tokenizer cannot be converted to one"
            raise CheckpointError(message, field="model")
        config = _read_json(model, "generation_config.json", revision)
        if "eos_token_id" not in config:
            end = (_read_json(model, "config.json", revision)).get("eos_token_id")
            config = {**config, "eos_token_id": end}
        try:
            return cls(hf_tokenizer, config)
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

    async def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """The prompt that the model's chat template makes of messages, special tokens included.

        Raises InvalidRequestError where the model has no template or its template refuses the messages.
        """
        if self._hf.chat_template is None:
            message = "the model has no chat template; send a plain prompt instead of messages"
            raise InvalidRequestError(message, field="messages")

        def render() -> str:
            text: str = self._hf.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
            return text

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

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _load_hf_tokenizer(model: str, revision: str | None) -> Any:
    """The checkpoint's tokenizer; raises whatever a damaged file makes the library raise.

    A tokenizer.json is complete in itself. Asking transformers for the right class instead would import torch,
    which takes seconds and hundreds of megabytes; only a checkpoint without that file needs it.
    """
    if _find_file(model, "tokenizer.json", revision) is not None:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(model, revision=revision or "main")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)


def _eos_token_ids(config: Mapping[str, Any], tokenizer_eos: int | None) -> tuple[int, ...]:
    """Tokens that end a sequence: those of the generation config, and the tokenizer's own."""
    given = config.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return tuple(sorted({token_id for token_id in (*ids, tokenizer_eos) if token_id is not None}))


def _find_file(model: str, name: str, revision: str | None) -> Path | None:
    """Where a file of a checkpoint lies, downloaded if need be; None if the checkpoint has no such file."""
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None


def _read_json(model: str, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a checkpoint, empty if there is none. Raises CheckpointError for a damaged one."""
    path = _find_file(model, name, revision)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", field="model") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object", field="model")
    return content
