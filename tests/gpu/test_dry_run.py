"""What the dry run says is free is free: a pool of that size leaves room for the largest step."""

from __future__ import annotations

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.step_driver import load

from quire.executor.dry_run import largest_steps, measure_memory
from quire.executor.kv_cache import KvCache
from quire.executor.memory import CudaMemory
from quire.executor.model import Model
from quire.executor.start import make_runner
from quire.executor.step_limits import StepLimits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

LIMITS = StepLimits(max_num_seqs=64, max_num_batched_tokens=2048, block_size=16, graph_sizes=(1, 64))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(make_checkpoint(tmp_path_factory.mktemp("model"), "llama"), device="cuda", dtype="bfloat16")


def test_a_pool_of_all_that_is_available_leaves_room_for_the_largest_step(model: Model) -> None:
    memory = CudaMemory(model.device)
    runner = make_runner(model, LIMITS)
    report = measure_memory(runner, LIMITS, memory, memory.free_bytes())
    assert 0 < report.available_bytes < memory.free_bytes() <= report.total_bytes
    assert report.overhead_bytes > 0
    block_bytes = 16 * model.cache_group.bytes_per_token
    # Blocks of a step's ids are few; the rest of the room is taken as a pool would.
    rest = torch.empty(report.available_bytes - 64 * block_bytes, dtype=torch.uint8, device=model.device)
    runner.adopt(KvCache.allocate(8, 16, model.cache_group, model.kv_cache_dtype, model.device), 0)
    for plan in largest_steps(LIMITS, model.max_model_len):
        runner.execute(plan)
    while runner.use_pause(idle=True):
        pass
    runner.detach()
    del rest
