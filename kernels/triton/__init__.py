"""Kernels in Triton for NVIDIA GPUs. docs/gpu.md says how they fit together.

    launch.py           every launch goes through here: the options that all kernels share

Imported only where Triton computes, since the CPU build of torch comes without it.
"""
