"""OpenVINO GenAI, by its continuous-batching pipeline.

Its own LLMPipeline is built on the same; this one takes batches of token ids directly. Matrix products run in
bfloat16 where the CPU has it and in float32 elsewhere: that is the precision hint which is fastest there, and on a
CPU without bfloat16 instructions the plug-in would fall back to float32 in any case.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from peers.protocol import serve_engine


class OpenvinoEngine:
    """Weights as exported: fp16, int8 or int4 (with dynamically quantised activations, the plug-in's default)."""

    version = version("openvino-genai")

    def __init__(self, model, threads, max_batch, max_len, number_format):
        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        hint = "bf16" if "BF16" in capabilities else "f32"
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = max_batch
        scheduler.cache_size = 2
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        self.flags = f"weights={Path(model).name.split('-')[-1]} precision_hint={hint} threads={threads} cache_size=2"
        self._eos = json.loads((Path(model) / "config.json").read_text())["eos_token_id"]
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def generate(self, prompts, output_len):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output_len
        config.ignore_eos = True
        config.do_sample = False
        tensors = [openvino.Tensor(np.asarray([ids], np.int64)) for ids in prompts]
        results = self._pipeline.generate(tensors, [config] * len(tensors))
        return [len(result.m_generation_ids[0]) for result in results]

    def close(self):
        pass


if __name__ == "__main__":
    serve_engine(OpenvinoEngine)
