"""The responses API and embeddings, with the official Python client.

make run                                      # in another terminal
pip install openai
python examples/openai_responses.py
"""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("QUIRE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
MODEL = "quire-tiny"

with client.responses.stream(model=MODEL, input="What is the capital of France?", temperature=0) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
print()

texts = ["A cat", "A dog", "The capital of France is"]
cat, dog, france = (item.embedding for item in client.embeddings.create(model=MODEL, input=texts).data)
print("cat and dog:", sum(left * right for left, right in zip(cat, dog, strict=True)))
print("cat and France:", sum(left * right for left, right in zip(cat, france, strict=True)))
