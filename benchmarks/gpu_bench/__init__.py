"""Executors on a GPU against the device's limits and against Hugging Face transformers: see `__main__.py`."""
