"""Hugging Face transformers, on the same device: `generate` with a static cache, and continuous batching.

Their times are taken from when tokens come, so that start, prefill and the compilation of the first call are apart.
"""

import contextlib
import gc
import statistics
import time
import weakref
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpu_bench.engine import Workload

# Of one answer of the continuous batching's thread; what it does at most is compute a chunk.
_ANSWER_SECONDS = 120.0
_PAGE_TOKENS = 256
# Tokens beyond which `generate` computes prompts in chunks; its activations would not fit beside the cache.
_PREFILL_TOKENS = 65536


def make_model(folder: Path, dtype: str, device: torch.device) -> Any:
    """A model of transformers with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.to(device).eval()


class _Hf:
    """What both have in common. A model each, since continuous batching changes its attention; one set of weights."""

    _shared: ClassVar[weakref.WeakValueDictionary[tuple[str, str], torch.nn.Module]] = weakref.WeakValueDictionary()

    def __init__(self, folder: Path, workload: Workload, device: torch.device, dtype: str) -> None:
        self.workload = workload
        self.device = device
        self.model = make_model(folder, dtype, device)
        self.vocab_size = self.model.config.vocab_size
        weights = dict(self._shared.setdefault((str(folder), dtype), self.model).named_parameters())
        for name, parameter in self.model.named_parameters():
            parameter.data = weights[name].data
        self.make_room()

    def make_room(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        self.make_room()
        del self.model
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def config(self, num_tokens: int, **given: Any) -> Any:
        """Greedy, and nothing ends early."""
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False, max_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0, use_cache=True, **given
        )

    def prompts(self, count: int, length: int) -> list[list[int]]:
        return [self.workload.prompt(index, length, self.vocab_size) for index in range(count)]


class Generate(_Hf):
    """`generate` with a static cache: transformers compiles its decode step (torch.compile, with CUDA graphs)."""

    # What was compiled last.
    _batch = 0

    def decode_seconds(self, batch: int) -> float:
        workload = self.workload
        if batch != self._batch:
            # Else torch.compile would make code for any batch, which is slower.
            torch._dynamo.reset()
            self._batch = batch
        # One token comes from the prompt.
        _, times = self._times(batch, workload.context, 1 + workload.warm_up + workload.steps)
        return (times[-1] - times[workload.warm_up]) / workload.steps

    def prefill_seconds(self) -> float:
        started, times = self._times(1, self.workload.prefill, 1)
        return times[0] - started

    def close(self) -> None:
        torch._dynamo.reset()  # compiled code holds the model
        super().close()

    def make_room(self) -> None:
        # Where transformers keeps the static cache between calls.
        for name in ("_cache", "_static_cache"):
            if hasattr(self.model, name):
                delattr(self.model, name)
        super().make_room()

    def _times(self, batch: int, length: int, num_tokens: int) -> tuple[float, list[float]]:
        """When it began and when each token came. `generate` itself waits for the device after each."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        times: list[float] = []
        going_on = torch.zeros(batch, dtype=torch.bool, device=self.device)

        class Clock(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                if input_ids.is_cuda:
                    torch.cuda.synchronize(input_ids.device)
                times.append(time.perf_counter())
                return going_on

        given: dict[str, Any] = {"cache_implementation": "static"}
        if batch * length > _PREFILL_TOKENS:
            given["prefill_chunk_size"] = max(1, _PREFILL_TOKENS // 2 // batch)
        prompts = torch.tensor(self.prompts(batch, length), device=self.device)
        mask = torch.ones_like(prompts)
        started = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                prompts,
                attention_mask=mask,
                generation_config=self.config(num_tokens, **given),
                stopping_criteria=StoppingCriteriaList([Clock()]),
            )
        return started, times


class ContinuousBatching(_Hf):
    """transformers' own scheduler and paged cache; it takes flash attention if that is installed."""

    def __init__(self, folder: Path, workload: Workload, device: torch.device, dtype: str) -> None:
        self._open = contextlib.ExitStack()
        self._manager: Any = None
        super().__init__(folder, workload, device, dtype)

    def decode_seconds(self, batch: int) -> float:
        """From when all have their first token until the first has its last: all decode together then."""
        workload = self.workload
        # While other prompts are computed the first sequences decode already.
        num_tokens = batch * workload.context // workload.budget + workload.warm_up + workload.steps
        _, stamps = self._timestamps(batch, workload.context, num_tokens)
        start, end = max(each[0] for each in stamps), min(each[-1] for each in stamps)
        steps = statistics.median(sum(start < stamp <= end for stamp in each) for each in stamps)
        if steps < 2:
            raise RuntimeError("its sequences did not decode together")
        return (end - start) / steps

    def prefill_seconds(self) -> float:
        started, stamps = self._timestamps(1, self.workload.prefill, 1)
        return stamps[0][0] - started

    def make_room(self) -> None:
        self._open.close()
        self._manager = None
        super().make_room()

    def _timestamps(self, batch: int, length: int, num_tokens: int) -> tuple[float, list[list[float]]]:
        """When they were added, and when the tokens of each came (time.perf_counter)."""
        manager = self._manager or self._start(batch, length + num_tokens)
        prompts = self.prompts(batch, length)
        started = time.perf_counter()
        manager.add_requests(inputs=prompts, max_new_tokens=num_tokens, record_timestamps=True)
        stamps: list[list[float]] = []
        deadline = time.monotonic() + _ANSWER_SECONDS
        while len(stamps) < batch:
            answer = manager.get_result(timeout=1)
            if answer is None:
                if not manager.is_running() or time.monotonic() > deadline:
                    raise RuntimeError("continuous batching ended or does not answer")
                continue
            deadline = time.monotonic() + _ANSWER_SECONDS
            if answer.error is not None:
                raise RuntimeError(answer.error)
            if answer.is_finished():
                stamps.append(answer.timestamps)
        return started, stamps

    def _start(self, batch: int, num_tokens: int) -> Any:
        """A manager with a cache of so many sequences; until `make_room`."""
        from transformers import ContinuousBatchingConfig

        config = ContinuousBatchingConfig(
            page_size=_PAGE_TOKENS,
            num_blocks=batch * (-(-num_tokens // _PAGE_TOKENS) + 1) + 1,
            max_batch_tokens=self.workload.budget,
            allow_block_sharing=False,
        )
        self._manager = self._open.enter_context(
            self.model.continuous_batching_context_manager(
                generation_config=self.config(64), continuous_batching_config=config, block=True, timeout=5
            )
        )
        return self._manager
