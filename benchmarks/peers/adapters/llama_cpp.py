"""llama.cpp, by its C API: all sequences decode in one batch, as its own `llama-batched-bench` does it.

The `Llama` class of llama-cpp-python runs one sequence at a time, so it is not used. Prompts go in chunks of n_batch
tokens, several sequences to a chunk; the next token is numpy's argmax of the logits (10 µs a row). The cache is
bfloat16-sized (f16, llama.cpp's default); flash attention is left at "auto".
"""

import llama_cpp
import numpy as np

from peers.protocol import serve_engine

_CHUNK = 512


class LlamaCppEngine:
    """A context with room for `max_batch` sequences."""

    version = llama_cpp.__version__

    def __init__(self, model, threads, max_batch, max_len, number_format):
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max_batch * max_len
        params.n_seq_max = max_batch
        params.n_batch = params.n_ubatch = _CHUNK
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(_CHUNK, 0, 1)
        self.flags = f"-t {threads} -b {_CHUNK} -ub {_CHUNK} -np {max_batch} GGML_NATIVE=ON"

    def generate(self, prompts, output_len):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        last = [0] * len(prompts)
        entries = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        self._decode(entries, last)
        for step in range(output_len - 1):
            self._decode([(last[s], len(prompts[s]) + step, s, True) for s in range(len(prompts))], last)
        return [output_len] * len(prompts)

    def close(self):
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _decode(self, entries, last):
        """Computes (token, position, sequence, wants logits) in chunks; puts the next tokens into `last`."""
        for begin in range(0, len(entries), _CHUNK):
            chunk = entries[begin : begin + _CHUNK]
            batch = self._batch
            batch.n_tokens = len(chunk)
            for i, (token, position, sequence, wanted) in enumerate(chunk):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
            status = llama_cpp.llama_decode(self._context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode returned {status}")
            for i, (_, _, sequence, wanted) in enumerate(chunk):
                if wanted:
                    logits = llama_cpp.llama_get_logits_ith(self._context, i)
                    last[sequence] = int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


if __name__ == "__main__":
    serve_engine(LlamaCppEngine)
