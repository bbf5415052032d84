"""The ladder of CUDA graphs, with a capture that runs the work again instead of replaying kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quire.executor.graphs import GraphLadder, ladder_sizes

VOCAB = 5


class Columns:
    """A decode step in miniature: a column of tokens at one address, whose logits are multiples of it."""

    def __init__(self, largest: int) -> None:
        self.tokens = torch.zeros(largest)
        self.padded: list[int] = []

    def stage(self, tokens: list[int], size: int) -> None:
        self.tokens[:size] = 0.0
        self.tokens[: len(tokens)] = torch.tensor(tokens, dtype=torch.float32)

    def stage_padding(self, size: int) -> None:
        self.padded.append(size)
        self.tokens[:size] = 0.0

    def forward(self, size: int, logits: Tensor) -> None:
        logits.copy_(self.tokens[:size, None] * torch.arange(VOCAB))


class RepeatedWork:
    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


class RecordingCapture:
    """Records what it was asked, and grows by a MiB with each graph."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.bytes = 0
        self.failure: Exception | None = None

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        self.log.append(f"empty {list(shape)}")
        return torch.full(shape, torch.nan)

    def record(self, work: Callable[[], None]) -> RepeatedWork:
        assert torch.is_inference_mode_enabled()
        if self.failure is not None:
            raise self.failure
        work()
        self.log.append("record")
        self.bytes += 1 << 20
        return RepeatedWork(work)

    def allocated_bytes(self) -> int:
        return self.bytes

    def wait(self) -> None:
        self.log.append("wait")


@pytest.fixture
def columns() -> Columns:
    return Columns(8)


@pytest.fixture
def capture() -> RecordingCapture:
    return RecordingCapture()


@pytest.fixture
def ladder(columns: Columns, capture: RecordingCapture) -> GraphLadder:
    return GraphLadder(columns, VOCAB, [1, 2, 4, 8], capture)


def ask(ladder: GraphLadder, num_rows: int, times: int = 1) -> None:
    for _ in range(times):
        assert ladder.padded_size(num_rows) is None


def captured(ladder: GraphLadder) -> list[int]:
    return [size for size in (1, 2, 4, 8) if ladder.padded_size(size) == size]


def test_nothing_is_captured_that_nobody_asked_for(ladder: GraphLadder, capture: RecordingCapture) -> None:
    assert not ladder.capture_next(idle=True)
    assert capture.log == []


def test_the_first_is_the_largest_and_then_the_one_asked_for_most(ladder: GraphLadder, columns: Columns) -> None:
    ask(ladder, 3, times=2)
    ask(ladder, 1, times=3)
    ask(ladder, 2)
    assert [ladder.capture_next(idle=True) for _ in range(5)] == [True, True, True, True, False]
    assert columns.padded == [8, 1, 4, 2]


def test_a_step_is_padded_to_the_next_larger_size(ladder: GraphLadder) -> None:
    ask(ladder, 5)
    assert ladder.capture_next(idle=True)
    assert [ladder.padded_size(rows) for rows in (5, 6, 7, 8)] == [8] * 4
    assert ladder.padded_size(9) is None, "larger than any graph"
    assert ladder.padded_size(4) is None, "it has a size of its own"


def test_a_replay_reads_the_columns_as_they_are_then(ladder: GraphLadder, columns: Columns) -> None:
    ask(ladder, 3)
    while ladder.capture_next(idle=True):
        pass
    for tokens in ([3, 1, 2], [7, 7], [5, 6, 7, 8, 9]):
        size = ladder.padded_size(len(tokens)) or 8
        columns.stage(tokens, size)
        logits = ladder.replay(size)
        assert logits.shape == (size, VOCAB) and logits.dtype == torch.float32
        assert torch.equal(logits[: len(tokens)], torch.tensor(tokens)[:, None] * torch.arange(VOCAB))
        assert not logits[len(tokens) :].any()


def test_all_sizes_share_the_memory_of_the_largests_logits(ladder: GraphLadder, capture: RecordingCapture) -> None:
    ask(ladder, 1)
    while ladder.capture_next(idle=True):
        pass
    assert capture.log == [f"empty [8, {VOCAB}]", "record", "record"]
    assert ladder.replay(1).data_ptr() == ladder.replay(8).data_ptr()


def test_a_busy_worker_captures_one_size_after_some_steps(ladder: GraphLadder) -> None:
    asked = 0
    while not ladder.capture_next(idle=False):
        ask(ladder, 2)
        asked += 1
        assert asked < 100
    assert asked > 4
    assert not ladder.capture_next(idle=False), "never two between the same steps"
    assert captured(ladder) == [8]


def test_a_busy_worker_does_get_all_sizes(ladder: GraphLadder) -> None:
    for _ in range(200):
        for size in (1, 2, 4, 8):
            ladder.padded_size(size)
        ladder.capture_next(idle=False)
    assert captured(ladder) == [1, 2, 4, 8]


def test_a_failure_is_told_once_and_leaves_the_other_sizes(
    ladder: GraphLadder, capture: RecordingCapture, caplog: pytest.LogCaptureFixture
) -> None:
    capture.failure = RuntimeError("operation not permitted when stream is capturing")
    ask(ladder, 8)
    assert ladder.capture_next(idle=True)
    capture.failure = None
    ask(ladder, 8, times=3)
    assert not ladder.capture_next(idle=True), "it is not tried again"
    ask(ladder, 2)
    assert ladder.capture_next(idle=True)
    assert captured(ladder) == [2]
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "8 sequences" in warning and "operation not permitted" in warning


def test_the_reason_is_what_broke_the_recording_off(
    ladder: GraphLadder, capture: RecordingCapture, caplog: pytest.LogCaptureFixture
) -> None:
    capture.failure = RuntimeError("the recording was invalidated")
    capture.failure.__context__ = RuntimeError("a copy from pageable memory")
    ask(ladder, 8)
    ladder.capture_next(idle=True)
    assert "a copy from pageable memory" in caplog.text


def test_without_memory_for_logits_all_stays_eager(
    ladder: GraphLadder, capture: RecordingCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(shape: tuple[int, ...]) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(capture, "empty", no_memory)
    for size in (1, 2, 4, 8):
        ladder.padded_size(size)
    while ladder.capture_next(idle=True):
        pass
    assert captured(ladder) == []


def test_another_pool_drops_the_graphs_once_the_device_is_done(ladder: GraphLadder, capture: RecordingCapture) -> None:
    ask(ladder, 8)
    ladder.capture_next(idle=True)
    ladder.drop()
    assert capture.log[-1] == "wait"
    assert captured(ladder) == []
    assert ladder.capture_next(idle=True)
    assert captured(ladder) == [8]


def test_a_log_line_for_each_graph(ladder: GraphLadder, caplog: pytest.LogCaptureFixture) -> None:
    ask(ladder, 8)
    with caplog.at_level(logging.INFO):
        ladder.capture_next(idle=True)
    assert "captured decode steps of 8 sequences" in caplog.text and "1.0 MiB" in caplog.text


def test_without_sizes_everything_is_eager(columns: Columns, capture: RecordingCapture) -> None:
    ladder = GraphLadder(columns, VOCAB, [], capture)
    ask(ladder, 1, times=100)
    assert not ladder.capture_next(idle=True)


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes", "largest", "expected"),
    [
        (1, [], None, [1]),
        (3, [], None, [1, 2, 3]),
        (20, [], None, [1, 2, 4, 8, 16, 20]),
        (256, [], None, [1, 2, 4, *range(8, 257, 8)]),
        (300, [], None, [1, 2, 4, *range(8, 257, 8), 272, 288, 300]),
        (1000, [], 16, [1, 2, 4, 8, 16]),
        (64, [8, 2, 100], None, [2, 8, 64]),
        (64, [8, 2, 100], 10, [2, 8]),
        (64, [8], 4, []),
    ],
)
def test_sizes(max_num_seqs: int, sizes: list[int], largest: int | None, expected: list[int]) -> None:
    assert ladder_sizes(max_num_seqs, sizes, largest) == expected


def test_sizes_end_somewhere() -> None:
    assert ladder_sizes(10_000)[-1] == 512
    assert ladder_sizes(10_000, largest=1024)[-2:] == [1008, 1024]
