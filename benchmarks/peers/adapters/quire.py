"""Quire, by its offline class."""

import quire
from peers.protocol import serve_engine
from quire import LLM, SamplingParams


class QuireEngine:
    """Scheduler and executor processes, as a user's script starts them."""

    version = quire.__version__

    def __init__(self, model, threads, max_batch, max_len, number_format):
        settings = {"dtype": "bfloat16", "threads": threads, "max_model_len": max_len, "max_num_seqs": max_batch}
        if number_format != "bf16":
            settings["quantization"] = number_format
        # So much memory that no sequence ever waits for a block, and no more.
        settings["kv_cache_memory"] = "2GiB"
        self.flags = " ".join(f"{name}={value}" for name, value in settings.items())
        self._llm = LLM(model=model, **settings)

    def generate(self, prompts, output_len):
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    def close(self):
        self._llm.close()


if __name__ == "__main__":
    serve_engine(QuireEngine)
