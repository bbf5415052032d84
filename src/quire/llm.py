"""Offline batch generation: `LLM`, through the same scheduler and executor processes that a server has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from quire.client.requests import ChatOptions
from quire.config import LocalSettings
from quire.errors import InvalidRequestError, QuireError, StartupError
from quire.gateway.engine import Engine
from quire.gateway.pooling import field_names
from quire.gateway.tenants import ANONYMOUS
from quire.gateway.validation import Prompt, RequestContext, ValidRequest
from quire.model_path import local_folder
from quire.offline_prompts import Message, OfflinePrompt, to_chats, to_prompts
from quire.outputs import EmbeddingOutput, EmbeddingRequestOutput, RequestOutput
from quire.pooling_params import PoolingParams
from quire.sampling_params import SamplingParams
from quire.supervisor import Supervisor
from quire.vllm_arguments import translate

T = TypeVar("T")

logger = logging.getLogger(__name__)

# vLLM's default for offline generation.
_DEFAULT_MAX_TOKENS: Final = 16
_ANY_NUMBER: Final = 2**31 - 1
_CLOSE_TIMEOUT_S: Final = 30.0


class _Background:
    """The processes, and the engine on an event loop in a thread of its own."""

    def __init__(self, settings: LocalSettings) -> None:
        self.supervisor = Supervisor(settings)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quire-llm", daemon=True)
        self._thread.start()
        try:
            self.supervisor.start()
            self.engine = self.run(
                Engine.start(
                    scheduler=self.supervisor.scheduler_address,
                    model=settings.model,
                    revision=settings.revision,
                    startup_timeout=settings.startup_timeout,
                )
            )
        except BaseException:
            self._end()
            raise
        self.supervisor.on_failure(self._fail)

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Runs a coroutine on the engine's loop; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the engine, the processes and the thread."""
        # A garbage collection, which may close a forgotten LLM, may happen on that very thread.
        elsewhere = threading.current_thread() is not self._thread
        try:
            if elsewhere:
                self.run(self.engine.close(), timeout=_CLOSE_TIMEOUT_S)
        finally:
            self._end(join=elsewhere)

    def _fail(self, error: StartupError) -> None:
        """Ends what waits for a process that cannot be had any more."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self.engine.fail, error)

    def _end(self, *, join: bool = True) -> None:
        self.supervisor.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        if join:
            self._thread.join(_CLOSE_TIMEOUT_S)
            self._loop.close()


class LLM:
    """A model to generate with. Starts its processes at once and ends them with `close`, or as a context manager.

    Settings are the flags of `quire serve`: dtype, max_model_len, block_size, kv_cache_memory ("2GiB" or bytes),
    max_num_seqs, max_num_batched_tokens, enable_prefix_caching, num_executors, … Arguments of vLLM's that ask for
    nothing else (tensor_parallel_size=1, enforce_eager, …), or have another name here, are taken as well.

    Raises StartupError where the model or the KV pool cannot be had.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        given = translate(settings if model is None else {"model": str(model), **settings})
        for notice in given.notices:
            logger.info("%s", notice)
        # There is nobody to turn away: all prompts of a call may wait.
        own_defaults = {"log_level": "warning", "max_queued_requests": _ANY_NUMBER}
        self.settings = LocalSettings.load({**own_defaults, **given.settings})
        self._background = _Background(self.settings)
        # Ends the processes even if nobody calls close().
        self._finalizer = weakref.finalize(self, self._background.close)
        self._num_requests = 0

    @property
    def scheduler_address(self) -> str:
        """Where the scheduler can be inspected (`SchedulerService`)."""
        return self._background.supervisor.scheduler_address

    def generate(
        self,
        prompts: OfflinePrompt | Iterable[OfflinePrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continues one prompt or many; the outputs are in the prompts' order.

        A prompt is a text, token ids (any iterable of integers), {"prompt": …} or {"prompt_token_ids": …}.
        `sampling_params` is one for all or one for each. Raises InvalidRequestError before anything runs if any prompt
        or parameter is out of range, and QuireError after `close`.
        """
        return self._complete(to_prompts(prompts), sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """Answers one conversation or many, with the model's own chat template. Raises as `generate` does.

        `options` are tools, chat_template_kwargs, add_generation_prompt and so on. The outputs are texts as the model
        wrote them, tool calls included.
        """
        return self._complete(to_chats(messages, options), sampling_params, use_tqdm)

    def get_tokenizer(self) -> Any:
        """The model's tokenizer, as transformers loads it."""
        from transformers import AutoTokenizer

        model = self.settings.model
        return AutoTokenizer.from_pretrained(local_folder(model) or model, revision=self.settings.revision)

    def embed(
        self, prompts: OfflinePrompt | Iterable[OfflinePrompt], pooling_params: PoolingParams | None = None
    ) -> list[EmbeddingRequestOutput]:
        """The embeddings of one prompt or many, in their order; see `generate` for prompts."""
        inputs = to_prompts(prompts)
        about = RequestContext(f"embd-{self._num_requests}", ANONYMOUS)
        self._num_requests += 1
        params = pooling_params or PoolingParams()
        embedding = self._running().engine.embed(inputs, params, about, fields=field_names("prompts", inputs))
        return [
            EmbeddingRequestOutput(
                f"{about.request_id}-{index}",
                entry.prompt_token_ids,
                EmbeddingOutput(list(entry.values)),
                entry.cached_tokens,
            )
            for index, entry in enumerate(self._running().run(embedding))
        ]

    def close(self) -> None:
        """Ends the processes; returns when none is left. Does nothing the second time."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> _Background:
        """Raises QuireError after `close`."""
        if not self._finalizer.alive:
            raise QuireError("this LLM is closed")
        return self._background

    def _complete(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or SamplingParams()] * len(prompts)
        else:
            params = list(sampling_params)
        if len(params) != len(prompts):
            raise InvalidRequestError(
                f"{len(prompts)} prompts have {len(params)} sampling parameters", field="sampling_params"
            )
        background = self._running()
        with _progress_bar(enabled=use_tqdm) as progress:
            return background.run(self._complete_all(prompts, params, progress))

    async def _complete_all(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], progress: Progress
    ) -> list[RequestOutput]:
        requests = []
        for prompt, param in zip(prompts, params, strict=True):
            request_id = str(self._num_requests)
            self._num_requests += 1
            requests.append(
                await self._background.engine.validator.validate(
                    prompt, param, RequestContext(request_id, ANONYMOUS), default_max_tokens=_DEFAULT_MAX_TOKENS
                )
            )
        bar = progress.add_task("Generating", total=len(requests), tokens=0)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._complete_one(request, progress, bar)) for request in requests]
        except* Exception as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _complete_one(self, request: ValidRequest, progress: Progress, bar: Any) -> RequestOutput:
        output = RequestOutput.empty(request.request_id, request.prompt, request.prompt_token_ids, request.n)
        async for delta in self._background.engine.generate(request):
            output.add(delta, self._background.engine.tokenizer.vocabulary.text_of)
        generated = sum(len(completion.token_ids) for completion in output.outputs)
        progress.update(bar, advance=1, tokens=progress.tasks[bar].fields["tokens"] + generated)
        return output


def _progress_bar(*, enabled: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeElapsedColumn(),
        console=console,
        disable=not enabled or not console.is_terminal,
    )
