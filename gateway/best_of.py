"""best_of: more continuations are generated than are asked for, and the likeliest are kept."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from quire.outputs import CompletionDelta, merge_deltas


class BestOf:
    """Holds back what is generated until all of it is there."""

    def __init__(self, num_generated: int, num_returned: int, *, with_logprobs: bool) -> None:
        """`with_logprobs`: whether the client gets the logprobs by which is chosen."""
        self._parts: list[list[CompletionDelta]] = [[] for _ in range(num_generated)]
        self._num_returned = num_returned
        self._with_logprobs = with_logprobs

    def add(self, deltas: Iterable[CompletionDelta]) -> None:
        """Deltas with logprobs."""
        for delta in deltas:
            self._parts[delta.index].append(delta)

    def best(self) -> list[CompletionDelta]:
        """The continuations of the highest mean logprob, best first and numbered anew; each as one delta."""
        whole = [merge_deltas(parts) for parts in self._parts]
        # Stable: of equals the first.
        whole.sort(key=_mean_logprob, reverse=True)
        return [
            msgspec.structs.replace(
                delta,
                index=index,
                logprobs=delta.logprobs if self._with_logprobs else None,
                cumulative_logprob=_sum_logprob(delta),
            )
            for index, delta in enumerate(whole[: self._num_returned])
        ]


def _sum_logprob(delta: CompletionDelta) -> float:
    return sum(position.logprob for position in delta.logprobs or ())


def _mean_logprob(delta: CompletionDelta) -> float:
    return _sum_logprob(delta) / len(delta.token_ids)
