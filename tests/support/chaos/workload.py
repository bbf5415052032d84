"""Sixteen requests of every kind, to run side by side while processes die.

All are seeded or greedy, so that their answers are the same each time; `length` is the number of tokens of most.
"""

from __future__ import annotations

from typing import Any, Final

from support.chaos.streams import Call, embed, generate, in_turn, rest

from quire.v1 import generate_pb2

STORY: Final = "Once upon a time there was a fox who"
FRANCE: Final = "The capital of France is"
_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}},
    },
    "required": ["name", "numbers"],
    "additionalProperties": False,
}
_COMPLETIONS: Final = "/v1/completions"
_CHAT: Final = "/v1/chat/completions"


def mixed_workload(length: int = 400) -> dict[str, Call]:
    """Sixteen calls by name. Those whose answer comes in one piece say so in their names."""
    return {**_completions(length), **_chats(length), **_grpc(length), **_embeddings(length)}


def _completions(length: int) -> dict[str, Call]:
    def complete(prompt: str, **body: Any) -> Call:
        return rest(_COMPLETIONS, prompt=prompt, **{"max_tokens": length, "ignore_eos": True, **body})

    return {
        "greedy": complete(FRANCE, temperature=0, stream=True, return_token_ids=True),
        "seeded": complete(STORY, temperature=1.1, top_p=0.9, seed=1, stream=True, return_token_ids=True),
        "n = 4": complete(STORY, n=4, seed=2, stream=True, logprobs=2, max_tokens=length // 2),
        "penalties (whole)": complete(
            STORY, seed=3, presence_penalty=0.6, frequency_penalty=0.4, repetition_penalty=1.1, logit_bias={"40": 1.5}
        ),
        "stop strings": complete(STORY, seed=4, stream=True, stop=["the", ".", "\n"], min_tokens=length * 3 // 4),
        "logprobs (whole)": complete(FRANCE, temperature=0, logprobs=5, echo=True),
        "beam search (whole)": complete(
            FRANCE, use_beam_search=True, n=2, best_of=4, temperature=0, max_tokens=length // 3
        ),
        "prompt_logprobs (whole)": complete(STORY * 12, seed=5, prompt_logprobs=3),
        "best_of (whole)": complete(STORY, seed=6, n=2, best_of=4, max_tokens=length // 3),
    }


def _chats(length: int) -> dict[str, Call]:
    def chat(text: str, **body: Any) -> Call:
        messages = [{"role": "user", "content": text}]
        return rest(_CHAT, messages=messages, stream=True, **{"max_tokens": length, **body})

    numbers = {**_SCHEMA["properties"]["numbers"], "minItems": length // 8, "maxItems": length // 8}
    schema = {**_SCHEMA, "properties": {**_SCHEMA["properties"], "numbers": numbers}}
    form = {"type": "json_schema", "json_schema": {"name": "list", "schema": schema, "strict": True}}
    return {
        "chat": chat("Tell me a story about a fox.", seed=7, min_tokens=length, logprobs=True, top_logprobs=2),
        "JSON schema": chat("Give me numbers.", seed=8, response_format=form, max_tokens=4 * length),
    }


def _grpc(length: int) -> dict[str, Call]:
    def request(text: str, structured: generate_pb2.StructuredOutputs | None = None, **params: Any) -> Call:
        values = generate_pb2.SamplingParams(
            **{"max_tokens": length, "ignore_eos": True, **params}, structured_outputs=structured
        )
        return generate(generate_pb2.GenerateRequest(text=text, sampling_params=values, return_token_ids=True))

    words = generate_pb2.StructuredOutputs(regex=f"([a-z]{{1,9}} ){{{length // 6}}}")
    return {
        "gRPC greedy": request(STORY, temperature=0, logprobs=1),
        "gRPC n = 4": request(FRANCE, n=4, seed=9, temperature=0.8, top_k=40, logprobs=3, max_tokens=length // 2),
        "gRPC regex": request(STORY, structured=words, seed=10, ignore_eos=False, max_tokens=4 * length),
        "gRPC bad words": request(STORY, seed=11, min_p=0.02, bad_words=["the", "and"], prompt_logprobs=1),
    }


def _embeddings(length: int) -> dict[str, Call]:
    """As many short requests as there are tokens in a fifth of a stream, over both doors."""
    calls = []
    for i in range(length // 10):
        text = f"{STORY} saw {i} birds"
        message = generate_pb2.EmbedInput(text=text)
        calls.append(rest("/v1/embeddings", input=[text, f"{i} foxes"]))
        calls.append(embed(generate_pb2.EmbedRequest(inputs=[message])))
    return {"embeddings (whole)": in_turn(calls)}
