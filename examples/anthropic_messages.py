"""Anthropic's Python client, which calls /v1/messages of the same server.

make run                                      # in another terminal
pip install anthropic
python examples/anthropic_messages.py
"""

import os

from anthropic import Anthropic

base_url = os.environ.get("QUIRE_URL", "http://127.0.0.1:8000/v1").removesuffix("/v1")  # this client adds /v1 itself
client = Anthropic(base_url=base_url, api_key="none")

with client.messages.stream(
    model="quire-tiny",
    max_tokens=100,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
print()
