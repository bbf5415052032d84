"""Hugging Face transformers' `generate`, from our own environment."""

import torch
import transformers

from peers.protocol import serve_engine


class TransformersEngine:
    """Static batches: all prompts have one length."""

    version = transformers.__version__

    def __init__(self, model, threads, max_batch, max_len, number_format):
        if number_format != "bf16":
            raise ValueError(f"not compared in {number_format}")
        torch.set_num_threads(threads)
        self.flags = f"dtype=bfloat16 threads={threads} attn=sdpa"
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    def generate(self, prompts, output_len):
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=output_len,
                max_new_tokens=output_len,
                pad_token_id=0,
            )
        return [len(row) - ids.shape[1] for row in output]

    def close(self):
        pass


if __name__ == "__main__":
    serve_engine(TransformersEngine)
