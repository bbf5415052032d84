"""Embeddings of a whole server equal transformers', through the official client, gRPC and the offline class."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import torch
from support.checkpoints import load_reference, make_checkpoint
from support.servers import running_server

from quire import LLM, PoolingParams, SamplingParams
from quire.errors import ContextLengthError, InvalidRequestError
from quire.executor.model_config import load_model_config
from quire.rpc import open_sync_channel
from quire.v1 import generate_pb2, generate_pb2_grpc

MODEL = "embedder"
HIDDEN = 64
TEXTS = ["a", "The capital of France is Paris.", "Ein Satz mit Umlauten: äöü." * 5, "x" * 150]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), "qwen2")


@pytest.fixture(scope="module")
def reference(folder):
    """(text, pooling) → float64 [hidden], of length 1."""
    torch.set_num_threads(1)
    model = load_reference(folder).model
    tokenizer = _byte_ids(folder)

    def embed(text: str, pooling: str = "last", dimensions: int = HIDDEN) -> np.ndarray:
        with torch.no_grad():
            states = model(torch.tensor([tokenizer(text)])).last_hidden_state[0].double().numpy()
        vector = (states[-1] if pooling == "last" else states.mean(axis=0))[:dimensions]
        return vector / np.linalg.norm(vector)

    return embed


def _byte_ids(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids


@pytest.fixture(scope="module")
def server(folder):
    """Long inputs take several steps."""
    settings = {"max_num_batched_tokens": 48, "threads": 1, "served_model_name": MODEL}
    with running_server(model=str(folder), dtype="float32", **settings) as running:
        yield running
        running.wait_idle()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_official_client(client, reference, encoding):
    answer = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format=encoding)
    assert [entry.index for entry in answer.data] == list(range(len(TEXTS)))
    for text, entry in zip(TEXTS, answer.data, strict=True):
        # What the client was asked for in base64, it leaves so.
        given = entry.embedding
        values = np.frombuffer(_decoded(given), "<f4") if isinstance(given, str) else np.array(given)
        np.testing.assert_allclose(values, reference(text), atol=1e-4)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(text.encode()) for text in TEXTS)


def _decoded(text):
    from base64 import b64decode

    return b64decode(text)


def test_the_official_client_by_default(client, reference):
    """It asks for base64 and decodes it."""
    answer = client.embeddings.create(model=MODEL, input=TEXTS[1], dimensions=10)
    np.testing.assert_allclose(answer.data[0].embedding, reference(TEXTS[1], dimensions=10), atol=1e-4)


def test_the_mean_of_all_tokens(client, reference):
    answer = client.embeddings.create(model=MODEL, input=TEXTS, extra_body={"pooling": "mean"})
    for text, entry in zip(TEXTS, answer.data, strict=True):
        np.testing.assert_allclose(entry.embedding, reference(text, "mean"), atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_alone_and_among_others(server, client, pooling):
    """Bit for bit: with 40 other inputs in the request, and beside generations."""
    extra = {"pooling": pooling}

    def embed(texts):
        answer = client.embeddings.create(model=MODEL, input=texts, extra_body=extra)
        return [entry.embedding for entry in answer.data]

    def generate(seed):
        client.completions.create(model=MODEL, prompt=f"{seed} and", max_tokens=40, seed=seed)

    alone = embed(TEXTS[3])[0]
    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(generate, seed) for seed in range(4)]
        together = embed([*[f"{i} " * (i % 30 + 1) for i in range(40)], TEXTS[3]])
        for future in running:
            future.result()
    assert together[-1] == alone


def test_token_ids_and_bad_input(client, folder, reference):
    ids = _byte_ids(folder)(TEXTS[1])
    answer = client.embeddings.create(model=MODEL, input=[ids, ids])
    for entry in answer.data:
        np.testing.assert_allclose(entry.embedding, reference(TEXTS[1]), atol=1e-4)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input=["fine", ""])
    assert refused.value.param == "input[1]"
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="fine", dimensions=HIDDEN + 1)
    assert refused.value.param == "dimensions"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="fine")


def test_score_and_rerank(server, reference):
    similarity = [float(reference(TEXTS[0]) @ reference(text)) for text in TEXTS]
    body = {"model": MODEL, "text_1": TEXTS[0], "text_2": TEXTS}
    scores = httpx.post(f"{server.url}/v1/score", json=body, timeout=60).json()["data"]
    np.testing.assert_allclose([entry["score"] for entry in scores], similarity, atol=1e-4)
    body = {"model": MODEL, "query": TEXTS[0], "documents": TEXTS, "top_n": 3}
    results = httpx.post(f"{server.url}/rerank", json=body, timeout=60).json()["results"]
    assert [entry["index"] for entry in results] == sorted(range(4), key=lambda i: -similarity[i])[:3]


def test_grpc(server, reference):
    request = generate_pb2.EmbedRequest(model=MODEL, pooling=generate_pb2.POOLING_TYPE_MEAN)
    for text in TEXTS:
        request.inputs.add(text=text)
    with open_sync_channel(server.grpc_address) as channel:
        response = generate_pb2_grpc.GenerateServiceStub(channel).Embed(request, timeout=60)
    for text, embedding in zip(TEXTS, response.embeddings, strict=True):
        np.testing.assert_allclose(embedding.values, reference(text, "mean"), atol=1e-4)


@pytest.mark.parametrize("pooling", [pytest.param("last", marks=pytest.mark.slow), "mean"])
def test_offline_and_cramped(folder, reference, pooling):
    """Prompts in many chunks, in a pool that holds two of them, beside generations that preempt each other."""
    bytes_per_token = load_model_config(folder).cache_group(element_bytes=4).bytes_per_token
    settings = {"kv_cache_memory": str(208 * bytes_per_token), "max_model_len": 200, "max_num_batched_tokens": 24}
    with LLM(folder, dtype="float32", threads=1, **settings) as llm, ThreadPoolExecutor(1) as pool:
        params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
        generating = pool.submit(llm.generate, TEXTS[:3] * 2, params, use_tqdm=False)
        outputs = llm.embed(TEXTS * 3, PoolingParams(pooling=pooling))
        generating.result()
        for text, output in zip(TEXTS * 3, outputs, strict=True):
            np.testing.assert_allclose(output.outputs.embedding, reference(text, pooling), atol=1e-4)
            assert len(output.prompt_token_ids) == len(text.encode())
            assert output.finished
        assert outputs[0].outputs.embedding == outputs[4].outputs.embedding == outputs[8].outputs.embedding
        with pytest.raises(ContextLengthError):
            llm.embed("x" * 201)
        assert len(llm.embed("x" * 200)) == 1
        with pytest.raises(InvalidRequestError) as refused:
            llm.embed(["a", [7, 10_000]])
        assert refused.value.field == "prompts[1]"
