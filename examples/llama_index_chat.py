"""LlamaIndex, by its client for servers that speak OpenAI's API.

make run                                      # in another terminal
pip install llama-index-llms-openai-like
python examples/llama_index_chat.py
"""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model="quire-tiny",
    api_base=os.environ.get("QUIRE_URL", "http://127.0.0.1:8000/v1"),
    api_key="none",
    is_chat_model=True,
    context_window=2048,
    temperature=0,
)

print(llm.complete("What is the capital of France?").text)
for chunk in llm.stream_chat([ChatMessage(role="user", content="What is the capital of Italy?")]):
    print(chunk.delta, end="", flush=True)
print()
