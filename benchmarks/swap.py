"""What the swap tier saves: chats that come again in turn, in a pool that holds only some of them.

Each chat has a history of its own. In every round each of them, one after the other, asks something more and gets an
answer. Least recently used goes first, so a pool that holds a part of the chats has always lost the one that comes
next: without a tier every history is computed again, with one its blocks are copied back.

The physics: computing a token again takes 2 × parameters operations at the matrix rate; bringing it back moves its keys
and values once, at the bandwidth of the host's memory (on a GPU, of PCIe). On a CPU the copies take the step's own
time, on a GPU they run beside the step before.

Three servers get the same requests: a small pool, the same with a tier, and a pool that holds everything. Rounds are
repeated in turn; the first round fills the caches and is not counted. Times are wall times of a round, medians.

    .venv/bin/python benchmarks/swap.py [--model NAME] [--chats 24] [--history 1024] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import time
from dataclasses import dataclass, field

from quire import LLM, SamplingParams
from quire.config import BUNDLED_MODEL

NUM_ASKED = 24
NUM_ANSWERED = 8
BLOCK_SIZE = 16
# Share of the chats that the small pool holds.
SHARE = 0.25
CASES = ("small pool", "small pool and tier", "large pool")


@dataclass
class Case:
    """One server, and what it was asked."""

    llm: LLM
    histories: list[list[int]]
    seconds: list[float] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)

    def run_round(self, asked: list[list[int]]) -> None:
        """Every chat goes on."""
        params = SamplingParams(temperature=0.0, max_tokens=NUM_ANSWERED, ignore_eos=True)
        num_computed, started = 0, time.perf_counter()
        for history, question in zip(self.histories, asked, strict=True):
            history += question
            (answer,) = self.llm.generate({"prompt_token_ids": history}, params, use_tqdm=False)
            num_computed += len(history) - (answer.num_cached_tokens or 0)
            history += answer.outputs[0].token_ids
        self.seconds.append(time.perf_counter() - started)
        self.computed.append(num_computed)


def measure(model: str, num_chats: int, length: int, num_rounds: int) -> list[Case]:
    """All cases, after a round that is not counted."""
    draw = random.Random(0)
    context = length + (num_rounds + 1) * (NUM_ASKED + NUM_ANSWERED) + BLOCK_SIZE
    blocks = num_chats * -(-context // BLOCK_SIZE)
    small = max(int(blocks * SHARE), context // BLOCK_SIZE + 1)
    common = {"max_model_len": context, "block_size": BLOCK_SIZE, "log_level": "warning"}
    settings = [
        {"num_gpu_blocks_override": small},
        {"num_gpu_blocks_override": small, "swap_space": 4.0},
        {"num_gpu_blocks_override": blocks + 64},
    ]
    histories = [[draw.randrange(40, 1900) for _ in range(length)] for _ in range(num_chats)]
    with contextlib.ExitStack() as servers:
        cases = [
            Case(servers.enter_context(LLM(model, **common, **own)), [history.copy() for history in histories])
            for own in settings
        ]
        for _ in range(num_rounds + 1):
            asked = [[draw.randrange(40, 1900) for _ in range(NUM_ASKED)] for _ in range(num_chats)]
            for case in cases:
                case.run_round(asked)
    if any(case.histories != cases[0].histories for case in cases):
        raise SystemExit("the servers answered differently")
    return cases


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED_MODEL))
    parser.add_argument("--chats", type=int, default=24)
    parser.add_argument("--history", type=int, default=1024, help="tokens of each chat at the beginning")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cases = measure(arguments.model, arguments.chats, arguments.history, arguments.rounds)
    figures = {
        name: {
            "seconds_per_round": round(statistics.median(case.seconds[1:]), 3),
            "computed_tokens_per_round": round(statistics.median(case.computed[1:])),
        }
        for name, case in zip(CASES, cases, strict=True)
    }
    for name, figure in figures.items():
        computed = f"{figure['computed_tokens_per_round']:8d} prompt tokens computed"
        print(f"{name:20}  {figure['seconds_per_round']:8.3f} s a round  {computed}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
