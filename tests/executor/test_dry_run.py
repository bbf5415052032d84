"""The dry run, on a CPU with a stand-in for a device's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.step_driver import StepDriver, load, prompt_of
from support.thread_device import ThreadDevice

from quire import kernels
from quire.errors import StartupError
from quire.executor.dry_run import largest_steps, measure_memory
from quire.executor.model import Model
from quire.executor.model_runner import ModelRunner
from quire.executor.step_limits import StepLimits

GIB = 1 << 30
TOTAL, FREE_AT_START, FREE, IN_USE = 80 * GIB, 79 * GIB, 60 * GIB, 17 * GIB


class FakeMemory:
    """Two measurements and the end: the peaks are as given."""

    def __init__(self, *peaks: int) -> None:
        self.peaks = list(peaks)
        self.starts = 0

    def free_bytes(self) -> int:
        assert self.starts == 3, "free memory is asked for once the steps' memory was given back"
        return FREE

    def total_bytes(self) -> int:
        return TOTAL

    def start_measuring(self) -> int:
        self.starts += 1
        return IN_USE

    def peak_bytes(self) -> int:
        return IN_USE + self.peaks.pop(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_checkpoint(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture
def runner(model: Model) -> ModelRunner:
    return ModelRunner(model)


def limits(seqs: int = 6, tokens: int = 50, sizes: tuple[int, ...] = ()) -> StepLimits:
    return StepLimits(seqs, tokens, 16, sizes)


def test_what_is_free_less_what_the_largest_step_takes(runner: ModelRunner) -> None:
    report = measure_memory(runner, limits(), FakeMemory(3 * GIB, 1 * GIB), FREE_AT_START)
    assert report.available_bytes == FREE - 3 * GIB
    assert report.total_bytes == TOTAL


def test_graphs_take_their_logits_and_the_memory_of_a_decode_step(runner: ModelRunner) -> None:
    eager = measure_memory(runner, limits(), FakeMemory(3 * GIB, 1 * GIB), FREE_AT_START)
    report = measure_memory(runner, limits(sizes=(1, 2, 6)), FakeMemory(3 * GIB, 1 * GIB), FREE_AT_START)
    graphs = eager.available_bytes - report.available_bytes
    logits = 6 * runner.model.config.vocab_size * 4
    assert 1 * GIB + logits < graphs < 1 * GIB + logits + (64 << 20)
    assert report.overhead_bytes - eager.overhead_bytes == graphs


def test_utilisation_counts_all_that_the_process_took(runner: ModelRunner) -> None:
    """Weights, which are reported apart, then buffers and libraries, and what the largest step takes."""
    report = measure_memory(runner, limits(), FakeMemory(1 * GIB, 2 * GIB), FREE_AT_START)
    taken = report.overhead_bytes + runner.model.decoder.num_bytes
    assert taken == FREE_AT_START - FREE + 2 * GIB
    # So that a pool of what utilisation 1 leaves, and what others hold, is what is free.
    assert TOTAL - taken - (TOTAL - FREE_AT_START) == report.available_bytes


def test_a_pool_is_never_less_than_nothing(runner: ModelRunner) -> None:
    assert measure_memory(runner, limits(), FakeMemory(70 * GIB, 1), FREE_AT_START).available_bytes == 0


def test_a_step_that_does_not_fit_names_what_to_lower(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(plan: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "execute", out_of_memory)
    with pytest.raises(StartupError, match=r"--max-num-batched-tokens \(50\) or --max-num-seqs \(6\)") as caught:
        measure_memory(runner, limits(), FakeMemory(), FREE_AT_START)
    assert caught.value.field == "max_num_batched_tokens"


def test_afterwards_the_runner_serves_as_if_nothing_had_been(model: Model, tmp_path: Path) -> None:
    driver = StepDriver(model, tmp_path)
    expected = driver.generate(driver.add(prompt_of(20)), 6)
    fresh = StepDriver(model, tmp_path)
    measure_memory(fresh.runner, limits(), FakeMemory(1, 1), FREE_AT_START)
    fresh.attach(tmp_path)
    assert fresh.generate(fresh.add(prompt_of(20)), 6) == expected


def test_on_a_device_that_computes_behind_the_hosts_back(tmp_path: Path) -> None:
    """As on a GPU: both steps are launched, waited for, and let go of."""
    kernels.set_implementation("torch")
    device = ThreadDevice()
    try:
        runner = ModelRunner(load(make_checkpoint(tmp_path, "llama")), device=device, graph_sizes=[1, 6])
        for _ in range(2):
            report = measure_memory(runner, limits(sizes=(1, 6)), FakeMemory(2 * GIB, 1 * GIB), FREE_AT_START)
            assert 0 < report.available_bytes < FREE - 3 * GIB
            assert device.is_idle and len(runner.sequences) == 0
            assert not runner.use_pause(idle=True), "there is no pool to capture a graph for"
    finally:
        device.close()
        kernels.set_implementation(None)


@pytest.mark.parametrize(
    ("seqs", "tokens", "max_model_len", "lengths"),
    [
        (4, 100, 200, [97, 1, 1, 1]),
        (4, 100, 51, [50, 48, 1, 1]),
        (4, 1000, 51, [50] * 4),
        (100, 3, 51, [1] * 3),
        (2, 1, 1, [1]),
    ],
)
def test_the_largest_step_has_all_tokens_and_rows(
    seqs: int, tokens: int, max_model_len: int, lengths: list[int]
) -> None:
    prefill, decode = largest_steps(limits(seqs, tokens), max_model_len)
    assert np.frombuffer(prefill.query_lengths, "<u4").tolist() == lengths
    assert [len(new.prompt_token_ids) // 4 for new in prefill.new_sequences] == lengths
    assert np.frombuffer(decode.computed_tokens, "<u4").tolist() == lengths
    assert np.frombuffer(decode.query_lengths, "<u4").tolist() == [1] * len(lengths)
    assert prefill.samples == decode.samples == bytes([1]) * len(lengths), "each row is sampled in both"
