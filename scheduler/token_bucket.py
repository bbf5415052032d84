"""A rate limit that allows bursts: the token bucket."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Holds a minute's worth at most and fills steadily. It may go below zero, for what is known only afterwards."""

    per_minute: float
    level: float
    # Seconds of the caller's clock.
    filled_at: float

    @classmethod
    def renewed(cls, bucket: TokenBucket | None, per_minute: float | None, now: float) -> TokenBucket | None:
        """A bucket for a limit that may have changed: the same one, a new and full one, or None without a limit."""
        if per_minute is None:
            return None
        if bucket is None:
            return cls(per_minute, per_minute, now)
        if bucket.per_minute != per_minute:
            bucket.take(0, now)
            bucket.per_minute, bucket.level = per_minute, min(bucket.level, per_minute)
        return bucket

    def take(self, amount: float, now: float) -> None:
        """Takes out what was used since the last call."""
        # First out and then in: what was used in the meantime would not have overflowed.
        filled = self.level - amount + (now - self.filled_at) * self.per_minute / 60
        self.level, self.filled_at = min(filled, self.per_minute), now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until it holds an amount, or is full; 0 if it does."""
        self.take(0, now)
        return max(min(amount, self.per_minute) - self.level, 0) * 60 / self.per_minute
