"""Hugging Face `generate` in a process of its own, as people serve with it: `python -m quire.bench.compare_hf`.

Its parent writes one JSON object per line to its standard input and gets one back for each:

    {"op": "load", "model": …, "revision": …, "dtype": …, "device": …}
        -> {"version": …, "dtype": …, "device": …, "max_len": …}
    {"op": "tokenize", "texts": […]}                                -> {"prompts": [[ids]]}
    {"op": "set_threads", "prompts": [[ids]], "candidates": [n, …]}  -> {"threads": n}, the fastest of them
    {"op": "run", "prompts": [[ids]], "users": N, "mode": …, "output_len": …}
        -> {"answers": [{"sent": s, "first": s or null, "ended": s, "tokens": n, "text": …}]}, in the prompts' order
    end of input -> the process ends

A failure is {"error": …}. Seconds are those of time.perf_counter.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

# Of each prompt, when numbers of threads are tried.
_TRIED_TOKENS: Final = 8


class HfEngine:
    """A model of transformers, and greedy generation of an exact number of tokens."""

    def __init__(self, model: str, revision: str | None, dtype: str, device: str) -> None:
        """Raises whatever transformers raises for what it cannot load."""
        # Typed by what we use of it: transformers' own types do not fit each other.
        library: Any = transformers
        library.logging.set_verbosity_error()
        chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer: Any = library.AutoTokenizer.from_pretrained(model, revision=revision)
        loaded = library.AutoModelForCausalLM.from_pretrained(
            model, revision=revision, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
        )
        self._model: Any = loaded.to(chosen).eval()
        config = self._model.generation_config
        # Both sides generate the same number of tokens, whatever these are.
        config.eos_token_id = None
        self._pad = config.pad_token_id or 0
        config.pad_token_id = self._pad
        config.do_sample, config.num_beams = False, 1
        # Unused in greedy decoding, and warned of.
        config.temperature = config.top_p = config.top_k = None

    def describe(self) -> dict[str, Any]:
        """What it runs with, for the report."""
        return {
            "version": transformers.__version__,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": self._model.device.type,
            "max_len": self._model.config.max_position_embeddings,
        }

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with what the tokeniser adds by itself, as a completion's prompt has them."""
        return [self._tokenizer(text)["input_ids"] for text in texts]

    def set_threads(self, prompts: Sequence[Sequence[int]], candidates: Sequence[int]) -> int:
        """Computes with as many threads as are fastest from now on; `prompts` are tried as one batch."""
        seconds = {}
        for threads in candidates:
            torch.set_num_threads(threads)
            self.run(prompts, len(prompts), "batch", _TRIED_TOKENS)
            started = time.perf_counter()
            self.run(prompts, len(prompts), "batch", _TRIED_TOKENS)
            seconds[threads] = time.perf_counter() - started
        fastest = min(candidates, key=lambda threads: seconds[threads])
        torch.set_num_threads(fastest)
        return fastest

    def run(self, prompts: Sequence[Sequence[int]], users: int, mode: str, output_len: int) -> list[dict[str, Any]]:
        """A closed loop: each of `users` sends its next request when its last one has been answered."""
        run = self._run_batches if mode == "batch" else self._run_one_by_one
        with torch.inference_mode():
            return run(prompts, users, output_len)

    def _run_one_by_one(self, prompts: Sequence[Sequence[int]], users: int, output_len: int) -> list[dict[str, Any]]:
        """One request at a time, in the order in which they came: a server with a lock around the model."""
        answers: list[dict[str, Any]] = []
        started = time.perf_counter()
        queue = deque([started] * min(users, len(prompts)))
        for prompt in prompts:
            first = _FirstToken()
            (row,) = self._generate([prompt], output_len, first)
            ended = time.perf_counter()
            answers.append(self._answer(queue.popleft(), first.at, ended, prompt, row))
            queue.append(ended)
        return answers

    def _run_batches(self, prompts: Sequence[Sequence[int]], users: int, output_len: int) -> list[dict[str, Any]]:
        """One request of each user as a static batch, padded on the left; nobody gets anything before all are done."""
        answers = []
        for start in range(0, len(prompts), users):
            wave = prompts[start : start + users]
            sent = time.perf_counter()
            rows = self._generate(wave, output_len, None)
            ended = time.perf_counter()
            answers += [self._answer(sent, None, ended, *pair) for pair in zip(wave, rows, strict=True)]
        return answers

    def _generate(
        self, prompts: Sequence[Sequence[int]], output_len: int, streamer: BaseStreamer | None
    ) -> list[list[int]]:
        """The new tokens of each prompt."""
        longest = max(map(len, prompts))
        padded = [[self._pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        output = self._model.generate(
            input_ids=torch.tensor(padded, device=self._model.device),
            attention_mask=torch.tensor(mask, device=self._model.device),
            max_new_tokens=output_len,
            streamer=streamer,
        )
        rows: list[list[int]] = output[:, longest:].tolist()
        return rows

    def _answer(
        self, sent: float, first: float | None, ended: float, prompt: Sequence[int], row: Sequence[int]
    ) -> dict[str, Any]:
        # Decoded together, since a token's text may depend on what is before it.
        before = self._tokenizer.decode(prompt, skip_special_tokens=True)
        text = self._tokenizer.decode([*prompt, *row], skip_special_tokens=True)[len(before) :]
        return {"sent": sent, "first": first, "ended": ended, "tokens": len(row), "text": text}


class _FirstToken(BaseStreamer):
    """Notes when the first new token comes; `generate` puts the prompt before it."""

    def __init__(self) -> None:
        self.at: float | None = None
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt and self.at is None:
            self.at = time.perf_counter()
        self._has_prompt = True

    def end(self) -> None:
        """Nothing is left to do."""


def main() -> None:
    """Answers requests until the input ends."""
    # Libraries print to standard output, from C++ too: they get standard error, and the replies a copy.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: HfEngine | None = None
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            if operation == "load":
                engine = HfEngine(**request)
            assert engine is not None, "load comes first"
            match operation:
                case "load":
                    reply = engine.describe()
                case "tokenize":
                    reply = {"prompts": engine.tokenize(**request)}
                case "set_threads":
                    reply = {"threads": engine.set_threads(**request)}
                case "run":
                    reply = {"answers": engine.run(**request)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
