"""vLLM on the CPU, by its offline class.

Traps: without VLLM_CPU_OMP_THREADS_BIND and VLLM_CPU_NUM_OF_RESERVED_CPU (peers/environment.py sets them) it keeps a
core for itself and computes on one; its engine is a child process, which only a call of shutdown ends in time.
"""

import os

import vllm

from peers.protocol import serve_engine


class VllmEngine:
    """Engine core in a process of its own, vLLM's default."""

    version = vllm.__version__

    def __init__(self, model, threads, max_batch, max_len, number_format):
        if number_format != "bf16":
            raise ValueError(f"not compared in {number_format}")
        settings = {"dtype": "bfloat16", "max_model_len": max_len, "max_num_seqs": max_batch}
        bound = os.environ["VLLM_CPU_OMP_THREADS_BIND"]
        self.flags = " ".join(f"{name}={value}" for name, value in settings.items()) + f" OMP_THREADS_BIND={bound}"
        self._llm = vllm.LLM(model=model, disable_log_stats=True, **settings)

    def generate(self, prompts, output_len):
        params = vllm.SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    def close(self):
        self._llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    serve_engine(VllmEngine)
