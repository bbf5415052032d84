"""What has been computed since the scheduler started: counters that only grow."""

from __future__ import annotations

from dataclasses import dataclass

from quire.scheduler.outputs import StepEvents
from quire.scheduler.step_plan import StepPlan


@dataclass(slots=True)
class StepCounts:
    """Counted where a step's result is taken in; read by whoever tells of it."""

    num_steps: int = 0
    # Tokens of prompts that were computed, those that were computed again after a preemption included.
    num_prompt_tokens: int = 0
    # Tokens that were given out.
    num_generation_tokens: int = 0

    def add(self, plan: StepPlan, events: StepEvents) -> None:
        """A step whose result has been taken in."""
        self.num_steps += 1
        self.num_prompt_tokens += plan.num_prefill_tokens
        self.num_generation_tokens += len(events.token_ids)
