"""Quire's own gRPC client: deadlines, retries that never run a request twice, tokens as they come.

make run                                      # in another terminal
.venv/bin/python examples/grpc_client.py
"""

import os

from quire import SamplingParams
from quire.client import Client

with Client(os.environ.get("QUIRE_GRPC", "127.0.0.1:50051")) as client:
    for delta in client.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=8)):
        print(delta.text, end="", flush=True)
    print()
    print(client.tokenize("The capital of France is"))
