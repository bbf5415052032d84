"""Without a server: batches in one program, on the same scheduler and executor processes.

.venv/bin/python examples/offline_llm.py      # after make run or make test, which install
"""

from quire import LLM, SamplingParams

# The processes of a model import the program that starts them, so it needs this guard.
if __name__ == "__main__":
    prompts = ["The capital of France is", "The capital of Italy is", "Once upon a time"]
    with LLM(kv_cache_memory="64MiB") as llm:
        for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16)):
            print(output.prompt + output.outputs[0].text)
