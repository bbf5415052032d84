"""Kernels in Triton for NVIDIA GPUs. docs/gpu.md says how they fit together.

    launch.py           every launch goes through here: the options that all kernels share
    linear.py linear_plan.py fp8_linear.py
                        products with weight matrices
    tuning.py           sizes of tiles by GPU, kernel and shape: tables in configs/
    attention.py attention_kernel.py attention_sections.py
                        paged attention; the work of its programs is planned in kernels/attention_work.py

Imported only where Triton computes, since the CPU build of torch comes without it.
"""
