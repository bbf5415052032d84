"""A typed client of Quire's gRPC API, for plain code (`Client`) and for asyncio (`AsyncClient`).

    with Client("127.0.0.1:50051") as client:
        for delta in client.generate("The capital of France is", SamplingParams(max_tokens=8)):
            print(delta.text, end="")

Every call has a deadline. Only UNAVAILABLE is retried, with exponential back-off and jitter, and that is safe: each
generation carries a request id, so that a repeat joins the run that it began, and a seed, so that a server that
lost the run begins the same one again. What has been yielded before a retry is not yielded twice.
"""

from quire.client.asynchronous import AsyncClient
from quire.client.plain import Client
from quire.client.requests import Prompt, RequestOptions
from quire.client.retry import RetryPolicy

__all__ = ["AsyncClient", "Client", "Prompt", "RequestOptions", "RetryPolicy"]
