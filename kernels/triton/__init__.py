"""Kernels in Triton for NVIDIA GPUs. docs/gpu.md says how they fit together.

    launch.py           every launch goes through here: the options that all kernels share
    linear.py linear_plan.py fp8_linear.py
                        products with weight matrices
    tuning.py           sizes of tiles by GPU, kernel and shape: tables in configs/
    attention.py attention_kernel.py attention_sections.py
                        paged attention; the work of its programs is planned in kernels/attention_work.py
    norm.py             RMSNorm, with the residual stream's sum
    activation.py       SwiGLU's gate
    rotary_store.py     norms of queries and keys, rotation and the cache's write
    cache_store.py      the cache's write alone; 8 bits with a scale
    blocks.py           copies of whole blocks
    sampling.py         logits → tokens and logprobs, by the kernels of
    sampling_edits.py sampling_candidates.py sampling_choice.py sampling_logprobs.py sampling_rows.py philox.py

Imported only where Triton computes, since the CPU build of torch comes without it.
"""
