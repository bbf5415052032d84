"""The scheduler process: block tables, prefix hashes, the queue and the step loop. Imports no torch.

Read `scheduler.py` first: `schedule()` is continuous batching on one screen.
"""
