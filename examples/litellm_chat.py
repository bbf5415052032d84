"""LiteLLM: the prefix openai/ says which API the server at api_base speaks.

make run                                      # in another terminal
pip install litellm
python examples/litellm_chat.py
"""

import os

import litellm

stream = litellm.completion(
    model="openai/quire-tiny",
    api_base=os.environ.get("QUIRE_URL", "http://127.0.0.1:8000/v1"),
    api_key="none",
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    temperature=0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
