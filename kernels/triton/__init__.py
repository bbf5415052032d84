"""Kernels in Triton for NVIDIA GPUs. docs/gpu.md says how they fit together.

    launch.py           every launch goes through here: the options that all kernels share
    tuning.py           sizes of tiles by GPU, kernel and shape: tables in configs/

Imported only where Triton computes, since the CPU build of torch comes without it.
"""
