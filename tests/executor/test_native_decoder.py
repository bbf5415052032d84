"""The native step: odd shapes, every instruction set, quantised weights, and the hard rule of independent rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import load_reference, make_checkpoint
from support.step_driver import StepDriver, greedy, load, log_distribution, prompt_of

from quire import kernels
from quire.columns import unpack_u32
from quire.errors import CheckpointError
from quire.executor.model import Model
from quire.executor.native_decoder import NativeDecoder
from quire.v1 import generate_pb2

VOCAB = 320

# No size is a multiple of a tile, a panel or a cache line.
ODD: dict[str, Any] = {
    "hidden_size": 90,
    "intermediate_size": 131,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 80,
    "vocab_size": VOCAB,
}


@pytest.fixture(params=kernels.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before, name = kernels.current_isa(), str(request.param)
    if name not in kernels.available_isas():
        pytest.skip(f"this machine has no {name}")
    kernels.set_isa(name)
    yield name
    kernels.set_isa(before)


def distributions(driver: StepDriver, prompt: list[int], tokens: list[int]) -> np.ndarray:
    """[len(tokens), vocab]: log-softmax after the prompt and after each of `tokens` but the last, forced."""
    rows = []
    for count in range(len(tokens)):
        slot = driver.add(prompt + tokens[:count], greedy(logprobs=VOCAB))
        rows.append(log_distribution(driver.run({slot: len(prompt) + count}), 0, VOCAB))
    return np.stack(rows)


def reference_distributions(model: Any, prompt: list[int], tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :]
    return torch.log_softmax(logits.double(), dim=-1).numpy()


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_odd_sizes_on_every_instruction_set(isa: str, tmp_path: Path, architecture: str) -> None:
    folder = make_checkpoint(tmp_path / "model", architecture, **ODD)
    driver = StepDriver(load(folder), tmp_path)
    prompt, tokens = prompt_of(70), prompt_of(3, seed=1)
    expected = reference_distributions(load_reference(folder), prompt, tokens)
    np.testing.assert_allclose(distributions(driver, prompt, tokens), expected, rtol=0, atol=1e-4)


def held(model: Model, folder: Path) -> Any:
    """Transformers' model in float32 with the values that the packed matrices stand for."""
    decoder = model.decoder
    assert isinstance(decoder, NativeDecoder)
    config, weights = model.config, decoder.weights
    reference = load_reference(folder)
    values = reference.state_dict()
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    size = config.intermediate_size
    for index in range(config.num_layers):
        layer = f"model.layers.{index}."
        query, key, value = weights.matrix(f"{index}.qkv").dequantise().split([heads, kv_heads, kv_heads])
        turns = weights.matrix(f"{index}.gate_up").dequantise().view(-1, 2, 16, config.hidden_size)
        values |= {
            f"{layer}self_attn.q_proj.weight": query,
            f"{layer}self_attn.k_proj.weight": key,
            f"{layer}self_attn.v_proj.weight": value,
            f"{layer}self_attn.o_proj.weight": weights.matrix(f"{index}.output").dequantise(),
            f"{layer}mlp.gate_proj.weight": turns[:, 0].reshape(-1, config.hidden_size)[:size],
            f"{layer}mlp.up_proj.weight": turns[:, 1].reshape(-1, config.hidden_size)[:size],
            f"{layer}mlp.down_proj.weight": weights.matrix(f"{index}.down").dequantise(),
        }
    reference.load_state_dict(values)
    # A parameter of its own, where the checkpoint ties it to the embedding.
    reference.lm_head.weight = torch.nn.Parameter(weights.matrix("head").dequantise())
    return reference


@pytest.mark.parametrize(("quantization", "tolerance"), [("int8", 0.15), ("int8_weight_only", 1e-4), ("int4", 1e-4)])
def test_quantised_models_compute_with_the_values_they_hold(
    isa: str, tmp_path: Path, quantization: str, tolerance: float
) -> None:
    """int8 rounds its inputs as well, so it is further away."""
    folder = make_checkpoint(tmp_path / "model", "llama", dtype=torch.bfloat16, **ODD)
    model = load(folder, quantization=quantization, kv_cache_dtype="float32")
    driver = StepDriver(model, tmp_path)
    prompt, tokens = prompt_of(40), prompt_of(3, seed=1)
    expected = reference_distributions(held(model, folder), prompt, tokens)
    assert np.abs(distributions(driver, prompt, tokens) - expected).mean() < tolerance


def test_a_tied_model_is_quantised_and_keeps_its_embedding(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", dtype=torch.bfloat16, tie_word_embeddings=True)
    model = load(folder, quantization="int8_weight_only", kv_cache_dtype="float32")
    assert isinstance(model.decoder, NativeDecoder)
    reference = load_reference(folder)
    embedding = model.decoder.weights.plain("embedding")
    assert embedding is not None and torch.equal(embedding.float(), reference.model.embed_tokens.weight)
    prompt, tokens = prompt_of(40), prompt_of(3, seed=1)
    expected = reference_distributions(held(model, folder), prompt, tokens)
    np.testing.assert_allclose(distributions(StepDriver(model, tmp_path), prompt, tokens), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("quantization", ["int8", "int8_weight_only", "int4"])
def test_weights_without_a_scale_are_refused(tmp_path: Path, quantization: str) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1)
    reference = load_reference(folder)
    with torch.no_grad():
        reference.model.layers[0].mlp.up_proj.weight[3, 3] = torch.inf
    reference.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"0\.mlp\.gate_proj.*0\.mlp\.up_proj.*not finite"):
        load(folder, quantization=quantization)


# (prompt length, tokens, sampling) of the request that is watched.
WATCHED = (150, 24, {"temperature": 0.8, "top_p": 0.9, "seed": 5, "logprobs": VOCAB})


class Watched:
    """A driver with one request whose logits are kept: its full distribution at every step."""

    def __init__(self, model: Model, folder: Path) -> None:
        prompt_len, self.count, params = WATCHED
        self.driver = StepDriver(model, folder, num_blocks=2048)
        self.prompt = prompt_of(prompt_len, seed=7)
        self.params = generate_pb2.SamplingParams(**params)
        self.slot = self.driver.add(self.prompt, self.params)
        self.rows: list[np.ndarray] = []

    @property
    def done(self) -> bool:
        return len(self.driver.sequences[self.slot].output) >= self.count

    def step(self, rows: dict[int, int]) -> None:
        result = self.driver.run(rows)
        sampled = unpack_u32(result.slots)
        entries = [entry for entry in result.logprobs if sampled[entry.row] == self.slot]
        for entry in entries:
            self.rows.append(log_distribution(result, entry.row, VOCAB))

    def missing(self, slot: int) -> int:
        planned = self.driver.sequences[slot]
        return planned.num_tokens - planned.computed

    def outcome(self) -> tuple[list[int], np.ndarray]:
        return self.driver.sequences[self.slot].output[: self.count], np.stack(self.rows)[: self.count]


def alone(model: Model, folder: Path) -> tuple[list[int], np.ndarray]:
    run = Watched(model, folder)
    while not run.done:
        run.step({run.slot: run.missing(run.slot)})
    return run.outcome()


def chunked(model: Model, folder: Path) -> tuple[list[int], np.ndarray]:
    run = Watched(model, folder)
    chooser = random.Random(3)
    while not run.done:
        run.step({run.slot: min(chooser.randrange(1, 40), run.missing(run.slot))})
    return run.outcome()


def preempted(model: Model, folder: Path) -> tuple[list[int], np.ndarray]:
    """Its blocks are lost twice, and prompt and output computed again elsewhere."""
    run = Watched(model, folder)
    while not run.done:
        output = run.driver.sequences[run.slot].output
        if len(output) in (5, 11) and run.missing(run.slot) == 1:
            run.driver.finish(run.slot)
            run.slot = run.driver.add(run.prompt, run.params, slot=run.slot + 1, output=output)
        run.step({run.slot: min(64, run.missing(run.slot))})
    return run.outcome()


def among_others(model: Model, folder: Path) -> tuple[list[int], np.ndarray]:
    """63 more, of all lengths and samplings, that come and go in the meantime; every step in another order."""
    run = Watched(model, folder)
    chooser = random.Random(4)
    waiting = [
        run.driver.add(
            prompt_of(chooser.randrange(1, 200), seed=100 + i),
            greedy() if i % 3 else generate_pb2.SamplingParams(temperature=1.2, top_k=chooser.randrange(0, 50), seed=i),
        )
        for i in range(63)
    ]
    running: list[int] = []
    while not run.done:
        running += [waiting.pop() for _ in range(min(len(waiting), chooser.randrange(0, 9)))]
        for slot in [slot for slot in running if chooser.random() < 0.02]:
            running.remove(slot)
            run.driver.finish(slot)
        members = [*running, run.slot]
        chooser.shuffle(members)
        run.step({slot: min(chooser.randrange(1, 64), run.missing(slot)) for slot in members})
    assert len(running) > 20
    return run.outcome()


PRECISIONS = [
    {},
    {"quantization": "int8"},
    {"quantization": "int4"},
    {"kv_cache_dtype": "int8"},
    {"dtype": "float32"},
]


@pytest.mark.parametrize("settings", PRECISIONS, ids=str)
def test_a_requests_bits_do_not_depend_on_its_company(tmp_path: Path, settings: dict[str, str]) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3", dtype=torch.bfloat16, **ODD)
    model = load(folder, **settings)
    tokens, logits = alone(model, tmp_path)
    assert len(set(tokens)) > 5
    for run in (chunked, preempted, among_others):
        its_tokens, its_logits = run(model, tmp_path)
        assert its_tokens == tokens, run.__name__
        np.testing.assert_array_equal(its_logits, logits, err_msg=run.__name__)


def test_threads_do_not_show(tmp_path: Path) -> None:
    model = load(make_checkpoint(tmp_path / "model", "llama", dtype=torch.bfloat16, **ODD))
    before = kernels.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        kernels.set_num_threads(threads)
        results.append(chunked(model, tmp_path))
    kernels.set_num_threads(before)
    for tokens, logits in results[1:]:
        assert tokens == results[0][0]
        np.testing.assert_array_equal(logits, results[0][1])


def test_pools_may_follow_one_another(tmp_path: Path) -> None:
    """The structures that name a pool's memory go with it."""
    model = load(make_checkpoint(tmp_path / "model", "llama"))
    decoder = model.decoder
    assert isinstance(decoder, NativeDecoder)
    outputs = []
    for index in range(3):
        (tmp_path / str(index)).mkdir()
        driver = StepDriver(model, tmp_path / str(index))
        outputs.append(driver.generate(driver.add(prompt_of(30)), 4))
        del driver
        assert len(decoder.caches) == 0
    assert outputs[0] == outputs[1] == outputs[2]
