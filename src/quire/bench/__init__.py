"""`quire bench`: a load generator for running servers, and offline throughput and latency.

Flags and result keys are those of `vllm bench` where they mean the same.
"""
